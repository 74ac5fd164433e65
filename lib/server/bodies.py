"""Request bodies: strict JSON, and forms whose files are written to disk while they arrive."""

import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, get_origin

from fastapi import HTTPException, Request, Response, UploadFile
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers

from lib.errors import ConfigError
from lib.server.multipart import MAX_PARTS, Part, PartLimits, receive_parts
from lib.storage.leftovers import scratch_prefix
from lib.storage.storage_errors import storage_trouble

MAX_FIELDS_BYTES = 2**20
"""Limit of all fields of a form that are not files, in bytes."""
MAX_FIELDS = 100
"""Limit of the number of these fields."""
MAX_SINGLE_FILES = 10
"""Limit of the number of files in a form of a route that takes one file."""
MAX_DEPTH = 100
"""Limit of nested lists and objects in JSON."""


def strict_json(text: str | bytes) -> Any:
    """Return the value of a JSON text that every reader understands in the same way and that can be stored.

    RFC 8259 leaves open what repeated keys and lone surrogates mean, and has no NaN and no infinite numbers.

    Raises:
        ValueError: If the text is not JSON, or has one of these, the character NUL, or more than `MAX_DEPTH`
            levels.
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique
        )
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _require_storable(value)
    return value


_TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated[:80]!r} is given twice")
    return values


def _require_storable(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _require_text(item)
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise ValueError(_TOO_DEEP)


def _require_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("a text contains the character NUL")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text contains half of a surrogate pair (U+D800 to U+DFFF)") from error


class StoredUpload(UploadFile):
    """A file of a form; it lies complete at `path`, and is opened only when it is read."""

    def __init__(self, path: Path, filename: str) -> None:
        self.path = path
        self.filename = filename
        self.size = path.stat().st_size
        self.headers = Headers()

    @cached_property
    def file(self) -> BinaryIO:  # type: ignore[override]
        """The open file."""
        return self.path.open("rb")

    async def close(self) -> None:
        """Close the file if it was opened."""
        if "file" in self.__dict__:
            self.file.close()


class StoredForm(FormData):
    """A form whose files lie in `folder`, which is removed with it."""

    def __init__(self, items: Iterable[tuple[str, str | UploadFile]], folder: Path) -> None:
        super().__init__(list(items))
        self._folder = folder

    async def close(self) -> None:
        """Remove the files."""
        await super().close()
        await run_in_threadpool(shutil.rmtree, self._folder, ignore_errors=True)


class StrictRequest(Request):
    """A request whose JSON is read by `strict_json`, and whose form is written to disk while it arrives.

    Starlette keeps each file up to 1 MiB in memory and all others open: a thousand slices of a CT need the one
    or the other a thousand times.
    """

    max_files = MAX_SINGLE_FILES
    """Largest number of files in the form."""

    async def json(self) -> Any:
        """Return the JSON body; raise `HTTPException` with 400 if it is not strict JSON."""
        if not hasattr(self, "_json"):
            try:
                self._json = strict_json(await self.body())
            except ValueError as error:
                raise HTTPException(400, f"the body is not JSON: {error}") from error
        return self._json

    async def _get_form(self, **limits: Any) -> FormData:
        content_type = self.headers.get("content-type", "")
        if parse_options_header(content_type)[0] != b"multipart/form-data":
            return await super()._get_form(**limits)
        if self._form is None:
            self._form = await _stored_form(self, content_type, self.max_files)
        return self._form


async def _stored_form(request: Request, content_type: str, max_files: int) -> StoredForm:
    limits = PartLimits(max_files + MAX_FIELDS, MAX_FIELDS)
    folder = Path(tempfile.mkdtemp(prefix=scratch_prefix()))
    try:
        parts = await receive_parts(request.stream(), content_type, folder, limits)
        return StoredForm(await run_in_threadpool(_form_items, parts), folder)
    except BaseException as error:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)
        # FastAPI answers other exceptions during this step with 400, without a reason.
        if isinstance(error, ConfigError):
            raise HTTPException(400, str(error)) from error
        trouble = storage_trouble(error)
        if trouble:
            raise HTTPException(507, f"{trouble}; stored data is unchanged") from error
        raise


def _form_items(parts: Iterable[Part]) -> list[tuple[str, str | UploadFile]]:
    """Return the fields and files of a form (RFC 7578) in the order in which they were sent.

    Raises:
        ConfigError: If a part has no name, or the fields exceed `MAX_FIELDS_BYTES`.
    """
    items: list[tuple[str, str | UploadFile]] = []
    size = 0
    for part in parts:
        _, options = parse_options_header(part.headers.get("content-disposition"))
        if b"name" not in options:
            raise ConfigError(
                "a part of the form has no name; expected Content-Disposition: form-data; name=..."
            )
        name = _text(options[b"name"])
        if b"filename" in options:
            items.append((name, StoredUpload(part.path, _text(options[b"filename"]))))
            continue
        size += part.path.stat().st_size
        if size > MAX_FIELDS_BYTES:
            raise ConfigError(
                f"the fields of the form exceed {MAX_FIELDS_BYTES // 2**20} MiB; give a file a file name"
            )
        items.append((name, _text(part.path.read_bytes())))
    return items


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


class StrictRoute(APIRoute):
    """Route that reads its body as `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route."""
        handle = super().get_route_handler()
        annotations = [param.field_info.annotation for param in self.dependant.body_params]
        takes_many = any(get_origin(annotation) is list for annotation in annotations)

        async def handle_strictly(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive, request._send)
            if takes_many:
                strict.max_files = MAX_PARTS
            try:
                return await handle(strict)
            finally:
                # Before the answer is sent: no client sees its files remain.
                await strict.close()

        return handle_strictly
