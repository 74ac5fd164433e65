"""Parser that writes each part of a multipart body to a separate file, independent of its size."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from lib.errors import ConfigError

MAX_PARTS = 10_000
"""Largest number of parts of a body."""


@dataclass(slots=True)
class Part:
    """One part of a body."""

    path: Path
    """File with the content."""
    headers: dict[str, str] = field(default_factory=dict)
    """Lower-case name -> value."""

    @property
    def media_type(self) -> str:
        """Content-Type without parameters; empty if the part has none."""
        return parse_options_header(self.headers.get("content-type"))[0].decode("latin-1").lower()


@dataclass(frozen=True, slots=True)
class PartLimits:
    """Largest numbers of parts of a body.

    Attributes:
        parts: Of all parts: each becomes a file.
        fields: Of the parts without a file name.
    """

    parts: int = MAX_PARTS
    fields: int = MAX_PARTS


class PartFiles:
    """Incremental parser that writes the parts of a body into a folder.

    Args:
        folder: Folder for the files; the caller removes it.
        boundary: Boundary between the parts, from the Content-Type.
        limits: Largest numbers of parts.
    """

    def __init__(self, folder: Path, boundary: bytes, limits: "PartLimits | None" = None) -> None:
        self._limits = limits or PartLimits()
        self._fields = 0
        self.parts: list[Part] = []
        self.is_complete = False
        self._folder = folder
        self._file: BinaryIO | None = None
        self._name = self._value = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_part_data": self._write_content,
                    "on_part_end": self.close,
                    "on_header_field": self._read_header_name,
                    "on_header_value": self._read_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._count_fields,
                    "on_end": self._end_body,
                },
            )
        except FormParserError as error:
            raise ConfigError(f"invalid multipart boundary: {error}") from error

    def feed(self, chunk: bytes) -> None:
        """Parse the next chunk of the body.

        Raises:
            ConfigError: If the body does not have the structure of a multipart message.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise ConfigError(f"the body is not a multipart message: {error}") from error

    def close(self) -> None:
        """Close the file of the present part, which is unfinished after an error."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin_part(self) -> None:
        if len(self.parts) == self._limits.parts:
            raise ConfigError(
                f"the body has more than {self._limits.parts} parts; send the files of a series as a zip"
            )
        part = Part(self._folder / f"{len(self.parts):05d}.part")
        self.parts.append(part)
        self._file = part.path.open("wb")

    def _write_content(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def _read_header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _read_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        name = self._name.decode("latin-1").lower()
        self.parts[-1].headers[name] = self._value.decode("latin-1")
        self._name = self._value = b""

    def _count_fields(self) -> None:
        disposition = self.parts[-1].headers.get("content-disposition")
        self._fields += b"filename" not in parse_options_header(disposition)[1]
        if self._fields > self._limits.fields:
            raise ConfigError(f"the form has more than {self._limits.fields} fields")

    def _end_body(self) -> None:
        self.is_complete = True


async def receive_parts(
    chunks: AsyncIterator[bytes],
    content_type: str,
    folder: Path,
    limits: PartLimits | None = None,
) -> list[Part]:
    """Return the parts of a body, in files in `folder`.

    Args:
        chunks: The body.
        content_type: Content-Type of the request, with the boundary.
        folder: Folder for the files.
        limits: Largest numbers of parts.

    Raises:
        ConfigError: If the body is not a complete multipart message with at least one part, or has too many.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise ConfigError(
            "the Content-Type header has no boundary; expected for example multipart/form-data; boundary=..."
        )
    files = PartFiles(folder, boundary, limits)
    try:
        async for chunk in chunks:
            # In a thread, so that a slow disk does not block other requests.
            await run_in_threadpool(files.feed, chunk)
    finally:
        files.close()
    if not files.parts or not files.is_complete:
        raise ConfigError("the body ends before its last part is complete; send it again")
    return files.parts
