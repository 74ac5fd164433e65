"""The parts of a multipart/related body, each in a file of its own: of any size, byte for byte."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from lib.errors import ConfigError


@dataclass(slots=True)
class Part:
    """One part.

    Attributes:
        path: The file that holds its content.
        headers: Name in small letters -> value.
    """

    path: Path
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def media_type(self) -> str:
        """Its Content-Type without parameters; empty where it says none."""
        return parse_options_header(self.headers.get("content-type"))[0].decode("latin-1").lower()


class PartFiles:
    """Takes a body in pieces and writes its parts into a folder.

    Args:
        folder: Where the files are written; whoever made it removes it.
        boundary: Between the parts.
    """

    def __init__(self, folder: Path, boundary: bytes) -> None:
        self.parts: list[Part] = []
        self.is_whole = False
        self._folder = folder
        self._file: BinaryIO | None = None
        self._name = self._value = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_part_data": self._write,
                    "on_part_end": self._finish,
                    "on_header_field": self._read_name,
                    "on_header_value": self._read_value,
                    "on_header_end": self._keep_header,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise ConfigError(f"the body's boundary cannot be one: {error}") from error

    def take(self, piece: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            ConfigError: If the body is not what its boundary says.
        """
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise ConfigError(f"the body is no multipart message: {error}") from error

    def close(self) -> None:
        """Close what is open, as after an error."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        part = Part(self._folder / f"{len(self.parts):05d}.dcm")
        self.parts.append(part)
        self._file = part.path.open("wb")

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def _finish(self) -> None:
        self.close()

    def _read_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _read_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _keep_header(self) -> None:
        name = self._name.decode("latin-1").lower()
        self.parts[-1].headers[name] = self._value.decode("latin-1")
        self._name = self._value = b""

    def _end(self) -> None:
        self.is_whole = True


async def receive_parts(
    pieces: AsyncIterator[bytes], content_type: str, folder: Path
) -> list[Part]:
    """Return the parts of a body, in files in `folder`.

    Args:
        pieces: The body.
        content_type: Of the body, with its boundary.
        folder: Where the files are written.

    Raises:
        ConfigError: If it is no whole multipart message with at least one part.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise ConfigError("the Content-Type names no boundary between the parts of the body")
    files = PartFiles(folder, boundary)
    try:
        async for piece in pieces:
            # On a thread: a disk may be slow, and other requests do not wait for it.
            await run_in_threadpool(files.take, piece)
    finally:
        files.close()
    if not files.parts or not files.is_whole:
        raise ConfigError("the body ends before its last part does; send it again")
    return files.parts
