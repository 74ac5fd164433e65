"""Reading of untrusted DICOM files (PS3.10) with pydicom, within limits of memory and time.

Every DICOM file that a user, a folder or a PACS provides is read by `read_dicom`. pydicom itself has no limits:
it inflates a deflated file (PS3.5 section A.5) to any size, follows nested sequences until Python's recursion
limit, and builds an object of about a kilobyte from every item of 8 bytes.
"""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from lib.errors import OrganNetError, ScanError

MAX_INFLATED_BYTES = 256 * 2**20
"""Largest data set of a deflated file, in bytes; a slice has 2 MiB or less, a SEG about 128 MiB."""

MAX_FILE_BYTES = 2 * 2**30
"""Largest number of bytes that are read from one file."""

MAX_READS = 1_000_000
"""Largest number of read operations, two or three per attribute; 50,000 contours have as many."""

MAX_ITEMS = 200_000
"""Largest number of sequence items."""

PARSING_ERRORS = (InvalidDicomError, BytesLengthException, OSError, EOFError, AttributeError, LookupError,
                   NotImplementedError, ArithmeticError, TypeError, ValueError, RecursionError, MemoryError,
                   struct.error, zlib.error)  # fmt: skip
"""Exceptions that pydicom raises for damaged files, also on the first access to a value."""


def is_damage(error: BaseException) -> bool:
    """Return whether an exception means a damaged DICOM file, not a failure of the disk or of the memory.

    pydicom raises OSError without a number where bytes of the file make no sense.
    """
    if isinstance(error, OrganNetError | MemoryError):
        return False
    if isinstance(error, OSError):
        return error.errno is None
    return isinstance(error, PARSING_ERRORS)


DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""Item (FFFE,E000), little and big endian."""
_PREAMBLE_BYTES = 132


def is_dicom(path: Path) -> bool:
    """Return whether the file starts with the preamble and prefix of a DICOM file (PS3.10)."""
    with path.open("rb") as file:
        return file.read(_PREAMBLE_BYTES)[128:] == b"DICM"


def read_dicom(
    path: Path, *, with_pixels: bool = False, keywords: Sequence[str] | None = None
) -> FileDataset:
    """Return the attributes of a DICOM file; of a deflated file as Explicit VR Little Endian.

    Values are converted when they are first used: that may raise one of `PARSING_ERRORS`.

    Args:
        path: The file.
        with_pixels: Whether to read PixelData and what follows it.
        keywords: The attributes to read; None for all.

    Raises:
        ScanError: If the file is damaged, is not DICOM, or exceeds a limit of this module.
    """
    try:
        with path.open("rb") as file:
            try:
                dataset = _parse(file, path.name, keywords, with_pixels=with_pixels)
            except _DeflatedError:
                inflated = _inflated(file, path.name)
                dataset = _parse(inflated, path.name, keywords, with_pixels=with_pixels)
    except ScanError:
        raise
    except RecursionError as error:
        raise ScanError(f"{path.name} is damaged: its sequences are nested too deep") from error
    except OSError as error:
        reason = error.strerror or error
        raise ScanError(f"{path.name} cannot be read ({reason}); export it again") from error
    except PARSING_ERRORS as error:
        raise ScanError(
            f"{path.name} is damaged or not a DICOM file ({_reason(error)}); export it again"
        ) from error
    for tag, element in dataset.items():
        if element.VR == "SQ" and dictionary_has_tag(tag) and dictionary_VR(tag) != "SQ":
            # Its text would be that of all nested items.
            raise ScanError(f"{path.name} is damaged: {keyword_for_tag(tag)} is a sequence")
    dataset.buffer = None
    dataset.filename = str(path)
    return dataset


def text_of(header: Dataset, keyword: str) -> str:
    """Return a value as text; empty if it is missing or cannot be converted."""
    try:
        value = header.get(keyword)
        is_text = value is not None and not isinstance(value, pydicom.Sequence)
        return str(value).strip("\0 ") if is_text else ""
    except PARSING_ERRORS:
        return ""


def _parse(
    file: BinaryIO, name: str, keywords: Sequence[str] | None, *, with_pixels: bool
) -> FileDataset:
    reader = _LimitedReader(file, name)
    try:
        return pydicom.dcmread(
            cast(BinaryIO, reader),
            stop_before_pixels=not with_pixels,
            specific_tags=None if keywords is None else list(keywords),
        )
    except OSError as error:
        # pydicom replaces any exception at the start of an item by an OSError.
        if reader.refusal is not None:
            raise reader.refusal from None
        if isinstance(error.__context__, RecursionError):
            raise error.__context__ from None
        raise


class _DeflatedError(Exception):
    """The file is deflated, and is at the start of the deflated data."""


class _LimitedReader:
    """A file for pydicom that refuses more reads, bytes or items than the limits of this module."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        self._reads = self._bytes = self._items = 0
        self.name = name
        self.refusal: ScanError | None = None
        self.seek, self.tell, self.close = file.seek, file.tell, file.close
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes; a length beyond the end of the file allocates no memory."""
        if size < 0:  # pydicom reads the rest of a file only to inflate it
            raise _DeflatedError
        data = self._file.read(max(0, min(size, self._size - self._file.tell())))
        self._reads += 1
        self._bytes += len(data)
        if data.startswith(_ITEM_TAGS):  # an item, or a whole sequence of defined length
            self._items += sum(data.count(tag) for tag in _ITEM_TAGS)
        if self._reads > MAX_READS or self._items > MAX_ITEMS:
            self.refusal = ScanError(
                f"{self.name} is damaged: it has more than {MAX_ITEMS} items or {MAX_READS // 2} attributes"
            )
        if self._bytes > MAX_FILE_BYTES:
            self.refusal = ScanError(
                f"{self.name} holds more than {MAX_FILE_BYTES // 2**20} MiB; expected one object of a patient"
            )
        if self.refusal is not None:
            raise self.refusal
        return data


def _inflated(file: BinaryIO, name: str) -> BinaryIO:
    """Return the content of a deflated file, which is at its deflated data, as Explicit VR Little Endian."""
    start = file.tell()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    dataset = inflater.decompress(file.read(MAX_INFLATED_BYTES), MAX_INFLATED_BYTES)
    if len(dataset) == MAX_INFLATED_BYTES:
        raise ScanError(
            f"{name} is deflated and holds more than {MAX_INFLATED_BYTES // 2**20} MiB; export it "
            "without compression"
        )
    if not inflater.eof:
        raise ScanError(f"{name} is deflated and truncated; copy or export it again")
    file.seek(0)
    deflated, explicit = DeflatedExplicitVRLittleEndian.encode(), ExplicitVRLittleEndian.encode()
    meta = file.read(start).replace(deflated, explicit.ljust(len(deflated), b"\0"), 1)
    return BytesIO(meta + dataset)


def _reason(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
