"""Request data: JSON bodies, form fields and uploaded files. Unknown keys are ignored (defect 11)."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticKnownError

from lib.errors import ConfigError, ScanError
from lib.imaging.formats import SCAN_SUFFIXES
from lib.server.bodies import StoredUpload, strict_json
from lib.storage.leftovers import scratch_prefix

INFER_KEYS = frozenset(
    {
        "result_extension",
        "result_dtype",
        "result_compress",
        "overlap",
        "deep",
        "uncertainty_map",
        "save_label",
        "label_tag",
        "job_id",
    }
)
"""Inference options that a client may set. Clients send their whole configuration, so other keys are ignored
without an error; among them are paths (`name`, `train_ds`, `tracking_uri`, `model_filename`, `image`)."""

PROMPT_KEYS = frozenset(
    {"label", "foreground", "background", "label_info", "selected_label_name", "roi"}
)
"""Keys by which MONAI Label's module of 3D Slicer sends clicks and scribbles; their lists are kept whole."""

MAX_SEED = 2**32 - 1
MAX_JOB_ID = 64
"""Longest id of a request for contours, in characters."""

UPLOAD_SUFFIXES = (*SCAN_SUFFIXES, ".zip", ".dcm")
MAX_UPLOAD_BYTES = 2 * 2**30
MAX_LABEL_BYTES = 512 * 2**20
"""Limit of a label file in bytes; 512 x 512 x 1000 voxels take 250 MiB uncompressed."""


def parse_params(params: str) -> dict[str, Any]:
    """Return the JSON object in a form field.

    Raises:
        ConfigError: If the text is not a JSON object.
    """
    try:
        values = strict_json(params or "{}")
    except ValueError as error:
        raise ConfigError(f"params: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"params: expected a JSON object, found {type(values).__name__}")
    return values


def only(values: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """Return the values of `keys`; of a list, as Slicer sends choices, the first element."""
    return {key: _first(values[key]) for key in keys & set(values)}


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def as_flag(key: str, value: Any) -> bool:
    """Return a boolean that a client sent as JSON or as text.

    Raises:
        ConfigError: If it is neither true nor false.
    """
    flags = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in flags:
        raise ConfigError(f"{key}: {value!r} is neither true nor false")
    return flags[str(value).lower()]


def as_number(key: str, value: Any, low: float, high: float) -> float:
    """Return a number that a client sent as JSON or as text.

    Raises:
        ConfigError: If it is not a number from `low` to `high`.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{key}: {value!r} is not a number") from error
    if not low <= number <= high:
        raise ConfigError(f"{key}: {number:g} is not from {low:g} to {high:g}")
    return number


def require_object(values: Any) -> dict[str, Any]:
    """Return a JSON object; raise pydantic's error for anything else, which is answered with 422."""
    if not isinstance(values, dict):
        raise PydanticKnownError("dict_type")
    return values


class ClientOptions(BaseModel):
    """Base of JSON bodies that hold the configuration of a client.

    Slicer sends every option with all of its choices, the chosen one first. Wrong values raise `ConfigError`,
    which is answered with 400 (`lib.server.responses`).
    """

    @model_validator(mode="before")
    @classmethod
    def _take_first_choices(cls, values: Any) -> Any:
        return {key: _first(value) for key, value in require_object(values).items()}


def number_between(low: float, high: float, *, is_whole: bool = False) -> BeforeValidator:
    """Return a validator for a number from `low` to `high`, or null; decimals are cut off if `is_whole`."""

    def check(value: Any, info: ValidationInfo) -> float | None:
        if value is None:
            return None
        number = as_number(str(info.field_name), value, low, high)
        return int(number) if is_whole else number

    return BeforeValidator(check)


def _optional_flag(value: Any, info: ValidationInfo) -> bool | None:
    return None if value is None else as_flag(str(info.field_name), value)


OptionalFlag = Annotated[bool | None, BeforeValidator(_optional_flag)]
OptionalSeed = Annotated[int | None, number_between(0, MAX_SEED, is_whole=True)]
ClientId = Annotated[str, BeforeValidator(lambda value: str(value or "")[:200])]
CLIENT_ID = Field("", description="Name of the client; the lease holder without authentication.")


@contextmanager
def received(
    *files: UploadFile,
    limit_bytes: int = MAX_UPLOAD_BYTES,
    refuse: Callable[[Path, str], str] | None = None,
) -> Iterator[list[Path]]:
    """Yield the uploaded files on disk, and always remove them afterwards (defect 26).

    Of the client's file name only the suffix is used (defect 11).

    Args:
        files: The uploads.
        limit_bytes: Size limit of each file.
        refuse: Called with a refused file and the reason; returns the message for the client.

    Raises:
        ScanError: If a file has another suffix than `UPLOAD_SUFFIXES`, or is larger than `limit_bytes`.
    """
    folder = Path(tempfile.mkdtemp(prefix=scratch_prefix()))
    try:
        yield [
            _write_upload(file, folder / f"{n:05d}", limit_bytes, refuse)
            for n, file in enumerate(files)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_upload(
    file: UploadFile, stem: Path, limit_bytes: int, refuse: Callable[[Path, str], str] | None
) -> Path:
    name = Path(file.filename or "scan.nii.gz").name
    suffix = next((s for s in UPLOAD_SUFFIXES if name.lower().endswith(s)), None)
    path = stem.with_name(stem.name + (suffix or ".unknown"))
    if not isinstance(file, StoredUpload):
        raise TypeError("the route does not read its body with StrictRoute")
    file.path.rename(path)
    size = path.stat().st_size
    reason = None
    if suffix is None:
        reason = f"{name[:80]!r}: expected a file ending in {', '.join(UPLOAD_SUFFIXES)}"
    elif size > limit_bytes:
        reason = f"{name[:80]!r} exceeds the limit of {limit_bytes // 2**20} MiB"
    if reason is not None:
        raise ScanError(reason if refuse is None else refuse(path, reason))
    return path


def stem_of(file: UploadFile) -> str:
    """Return the client's file name without folders and suffix."""
    name = Path(file.filename or "").name
    suffix = next((s for s in UPLOAD_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]
