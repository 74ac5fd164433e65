"""Multipart bodies: the parts arrive byte for byte, however the stream is divided into chunks."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from lib.errors import ConfigError
from lib.server.dicomweb.proxy_routes import replaced
from lib.server.multipart import Part, PartLimits, receive_parts

TYPE = 'multipart/related; type="application/dicom"; boundary="b-1"'
NASTY = b"\r\n--b\r\n--b-\r\n-\r--\x00\xff\r\n\r\n--b-2\r\n"
CONTENTS = [NASTY, b"", bytes(range(256)) * 20, b"\r\n", b"--b-1 is no boundary without its CRLF"]


def message(contents: list[bytes], *, lead: bytes = b"\r\n") -> bytes:
    head = b"--b-1\r\nContent-Type: application/dicom; transfer-syntax=1.2\r\n\r\n"
    return lead + b"\r\n".join(head + one for one in contents) + b"\r\n--b-1--"


async def in_pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def received(body: bytes, folder: Path, *, size: int = 4096, kind: str = TYPE) -> list[Part]:
    return asyncio.run(receive_parts(in_pieces(body, size), kind, folder))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 10**6])
def test_parts_are_the_same_bytes_in_chunks_of_any_size(tmp_path: Path, size: int) -> None:
    parts = received(message(CONTENTS), tmp_path, size=size)
    assert [part.path.read_bytes() for part in parts] == CONTENTS
    assert {part.media_type for part in parts} == {"application/dicom"}


def test_random_bytes_survive(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    contents = [rng.integers(0, 256, n, dtype=np.uint8).tobytes() for n in (1, 4095, 4096, 70000)]
    parts = received(message(contents, lead=b""), tmp_path)
    assert [part.path.read_bytes() for part in parts] == contents


@pytest.mark.parametrize("cut", [1, 3, 10, 40])
def test_a_truncated_body_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(ConfigError, match="ends before its last part"):
        received(message([b"x" * 30])[:-cut], tmp_path)


@pytest.mark.parametrize(
    ("body", "kind", "why"),
    [
        (b"", TYPE, "ends before its last part"),
        (b"not a multipart", TYPE, "not a multipart message"),
        (message([b"x"]), "multipart/related", "has no boundary"),
        (
            message([b"x"]),
            f"multipart/related; boundary={'b' * 1000}",
            "invalid multipart boundary",
        ),
        (b"--b-1--", TYPE, "ends before its last part|not a multipart"),
        (b"--b-1\r\nno header\r\n\r\nx\r\n--b-1--", TYPE, "not a multipart message"),
    ],
)
def test_a_body_that_is_not_multipart_is_refused(
    tmp_path: Path, body: bytes, kind: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        received(body, tmp_path, kind=kind)


def test_parts_and_fields_are_counted_while_they_arrive(tmp_path: Path) -> None:
    field = b'--b-1\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
    file = field.replace(b'"a"', b'"a"; filename="b"')
    limits = PartLimits(parts=5, fields=2)

    def count(*parts: bytes) -> int:
        body = in_pieces(b"".join(parts) + b"--b-1--", 16)
        return len(asyncio.run(receive_parts(body, TYPE, tmp_path, limits)))

    assert count(*[file] * 3, *[field] * 2) == 5
    with pytest.raises(ConfigError, match="more than 5 parts"):
        count(*[file] * 4, *[field] * 2)
    with pytest.raises(ConfigError, match="more than 2 fields"):
        count(file, *[field] * 3)


@pytest.mark.parametrize("size", [1, 2, 5, 11, 100])
def test_an_address_is_replaced_also_across_chunks(size: int) -> None:
    body = b'{"a":"http://pacs/x","b":"http://pac","c":"http://pacs/y http://http://pacs/"}' * 3

    async def collect() -> bytes:
        pieces = replaced(in_pieces(body, size), b"http://pacs/", b"/proxy/")
        return b"".join([piece async for piece in pieces])

    assert asyncio.run(collect()) == body.replace(b"http://pacs/", b"/proxy/")
