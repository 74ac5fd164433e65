"""What a DICOM SEG or RTSTRUCT says of itself: its ids, who made it and when."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal

from pydicom.uid import RE_VALID_UID, generate_uid

from lib import __version__
from lib.errors import ConfigError

MANUFACTURER = "OrganNet Label"
SOFTWARE_VERSION = __version__
LONG_STRING = 64
"""Characters of a value of the representation LO, and of a component group of PN (PS3.5 section 6.2)."""

Generation = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]

_NO_TEXT = re.compile(r"[\\^=\x00-\x1f\x7f]+")
"""Separators of DICOM's values and of parts of names, and control characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectProvenance:
    """Of one DICOM object that holds organs.

    Attributes:
        sop_instance_uid: SOPInstanceUID; give one that follows from the content, so that what is sent twice is
            stored once.
        series_instance_uid: SeriesInstanceUID; a series of its own, in the CT's study.
        author: Who drew or corrected it; empty where nobody is known.
        model: Name of the model that drew it, or that it was corrected from; None where there was none.
        model_version: Its version; empty where there is no model.
        is_automatic: Whether nobody changed what the model drew.
        description: SeriesDescription.
        created: When it was drawn, with a time zone; the object holds this machine's local time, as others do.
        series_number: SeriesNumber; scanners' own are small.
    """

    sop_instance_uid: str = field(default_factory=lambda: str(generate_uid()))
    series_instance_uid: str = field(default_factory=lambda: str(generate_uid()))
    author: str = ""
    model: str | None = None
    model_version: str = ""
    is_automatic: bool = False
    description: str = "OrganNet Label contours"
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    series_number: int = 9000

    def __post_init__(self) -> None:
        """Check what DICOM demands.

        Raises:
            ConfigError: If an id is no UID, the number is not positive, `created` has no time zone, or
                `is_automatic` names no model.
        """
        for uid in (self.sop_instance_uid, self.series_instance_uid):
            if len(uid) > 64 or not re.fullmatch(RE_VALID_UID, uid):
                raise ConfigError(
                    f"{uid!r} is no UID: at most 64 digits and points (PS3.5 section 9.1)"
                )
        if self.series_number < 1:
            raise ConfigError(f"series number {self.series_number}: 1 or more expected")
        if self.created.tzinfo is None:
            raise ConfigError("created: a moment with its time zone expected")
        if self.is_automatic and not self.model:
            raise ConfigError("is_automatic: name the model that drew it")

    @property
    def generation(self) -> Generation:
        """SegmentAlgorithmType and ROIGenerationAlgorithm: a person's, a model's, or both one's work."""
        if not self.model:
            return "MANUAL"
        return "AUTOMATIC" if self.is_automatic else "SEMIAUTOMATIC"

    @property
    def person(self) -> str:
        """The author as a person's name (PN): one family name, whatever it is made of."""
        return text(self.author)

    @property
    def date(self) -> str:
        """The day as DICOM writes it (DA)."""
        return self.created.astimezone().strftime("%Y%m%d")

    @property
    def time(self) -> str:
        """The time of day as DICOM writes it (TM)."""
        return self.created.astimezone().strftime("%H%M%S.%f")


def uid_of(*parts: str) -> str:
    """Return a UID that follows from `parts`, and from them only."""
    return str(generate_uid(entropy_srcs=list(parts)))


def text(value: str) -> str:
    """Return `value` as a string of at most 64 characters without those that DICOM gives a meaning to."""
    return _NO_TEXT.sub(" ", value).strip()[:LONG_STRING].strip()
