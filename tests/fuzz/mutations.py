"""Random changes of files: of any bytes, of text headers, of the fields of NIfTI and zip."""

import gzip
import random
import struct
import zlib
from collections.abc import Callable, Sequence

from tests.fuzz.dicom_mutations import changed_dataset
from tests.fuzz.good_files import GoodFile

EXTREMES = (
    0, 1, -1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1,
    2**63,
)  # fmt: skip
TEXTS = (
    "", "-1", "0", "1", "3", "99", "2147483648", "9999999999999999999999", "nan", "inf", "-inf", "1e308",
    "1e-320", "0 0 0", "1 1 1 1 1 1 1 1 1 1 1 1", "True", "False", "LIST", "LOCAL", "none",
    "(1,0,0) (0,1,0)", "\0", "%s%n", "\xff", "../outside/canary.raw", "/etc/passwd", "a" * 5000,
    "MET_DOUBLE", "MET_STRING", "double", "block", "ascii", "hex", "gzip", "bzip2", "raw", "big", "little",
    "scanner-xyz", "right-anterior-superior", "2 2 2", "100000 100000 100000",
)  # fmt: skip
MHA_LINES = (
    "NDims = 99", "NDims = 0", "ElementDataFile = LIST", "ElementDataFile = ../outside/canary.raw",
    "HeaderSize = -1", "HeaderSize = 999999999", "ElementNumberOfChannels = 1000000",
    "CompressedDataSize = 99999999999", "BinaryDataByteOrderMSB = True", "ElementByteOrderMSB = True",
    "DimSize = 20 16", "Modality = MET_MOD_MR", "ObjectSubType = x", "TransformMatrix = 1", "Offset = x",
)  # fmt: skip
NRRD_LINES = (
    "data file: ../outside/canary.raw", "data file: LIST", "line skip: 9999999", "byte skip: -1",
    "byte skip: 9999999999", "dimension: 16", "kinds: list list list list", "block size: 99",
    "space dimension: 99", "sizes: 0 0 0", "measurement frame: (0,0,0) (0,0,0) (0,0,0)",
    "space units: \"m\" \"m\" \"m\"", "old min: x", "centerings: ???", "encoding: bzip2",
)  # fmt: skip
NIFTI_FIELDS = (
    (0, "i"), (40, "h"), (42, "h"), (44, "h"), (46, "h"), (48, "h"), (70, "h"), (72, "h"), (76, "f"),
    (80, "f"), (84, "f"), (108, "f"), (112, "f"), (116, "f"), (123, "b"), (252, "h"), (254, "h"),
    (256, "f"), (268, "f"), (280, "f"), (284, "f"), (300, "f"), (344, "i"), (348, "i"), (352, "i"),
)  # fmt: skip
FLOATS = (
    0.0, -1.0, 1e30, -1e30, float("nan"), float("inf"), -float("inf"), 1e-40, 2.0**32, 352.5,
)  # fmt: skip
ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06")
ZIP_NAMES = (
    b"../../../outside/x", b"/etc/cron.d/xx", b"series/\0\0.dcm..", b"C:\\windows\\x.dcm", b"\xff" * 14,
    b"CON.dcm", b"a/" * 7,
)  # fmt: skip

Change = Callable[[bytes, random.Random], bytes]


def mutated(good: GoodFile, chance: random.Random) -> bytes:
    """Return a valid file with random changes, most of them where its format has fields."""
    own = _CHANGES[good.format]
    content = good.content
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        change = chance.choice(own) if chance.random() < 0.7 else chance.choice(ANY)
        if good.name.endswith(".gz") and chance.random() < 0.9:
            content = _inside_gzip(content, change, chance)
        else:
            content = change(content, chance)
    return content


def _inside_gzip(content: bytes, change: Change, chance: random.Random) -> bytes:
    try:
        plain = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return change(content, chance)
    return gzip.compress(change(plain, chance), compresslevel=1, mtime=0)


def _position(content: bytes, chance: random.Random) -> int:
    # Headers are at the beginning, and the directory of a zip is at the end.
    where = chance.random()
    if where < 0.6:
        return chance.randrange(min(len(content), 1024) or 1)
    if where < 0.7:
        return max(0, len(content) - 1 - chance.randrange(256))
    return chance.randrange(len(content) or 1)


def flip_bits(content: bytes, chance: random.Random) -> bytes:
    """Flip up to 16 bits."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 16)):
        if changed:
            changed[_position(content, chance)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(content: bytes, chance: random.Random) -> bytes:
    """Remove the end."""
    return content[: _position(content, chance)]


def splice(content: bytes, chance: random.Random) -> bytes:
    """Remove, repeat or move a piece."""
    start, size = _position(content, chance), chance.choice((1, 2, 4, 8, 64, 512, 4096))
    piece = content[start : start + size]
    at = chance.choice((start, _position(content, chance)))
    if chance.random() < 0.4:
        return content[:start] + content[start + size :]
    return content[:at] + piece * chance.choice((1, 1, 2, 50)) + content[at:]


def put_integer(content: bytes, chance: random.Random) -> bytes:
    """Overwrite some bytes with an extreme integer."""
    width, start = chance.choice((1, 2, 4, 8)), _position(content, chance)
    value = int(chance.choice(EXTREMES) % 2 ** (8 * width))
    return (
        content[:start]
        + value.to_bytes(width, chance.choice(("little", "big")))
        + content[start + width :]
    )


def put_noise(content: bytes, chance: random.Random) -> bytes:
    """Insert or append random bytes."""
    noise = chance.randbytes(chance.choice((1, 16, 1000)))
    start = chance.choice((len(content), _position(content, chance)))
    return content[:start] + noise + content[start:]


ANY: tuple[Change, ...] = (flip_bits, cut, splice, put_integer, put_noise)


def _changed_line(lines: Sequence[bytes], chance: random.Random, separator: bytes) -> list[bytes]:
    changed = list(lines)
    index = chance.randrange(len(changed))
    key, found, value = changed[index].partition(separator)
    if not found:
        return changed
    text = chance.choice(TEXTS).encode("latin-1")
    words = value.split()
    if words and chance.random() < 0.5:
        words[chance.randrange(len(words))] = text
        text = b" ".join(words)
    changed[index] = key + separator + text
    return changed


def _text_header(end: bytes, separator: bytes, extra: Sequence[str]) -> Change:
    def change(content: bytes, chance: random.Random) -> bytes:
        head, mark, data = content.partition(end)
        lines = head.split(b"\n")
        kind = chance.randrange(5)
        if kind <= 1:
            lines = _changed_line(lines, chance, separator)
        elif kind == 2:
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(extra).encode())
        elif kind == 3:
            del lines[chance.randrange(len(lines))]
        else:
            first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
            lines[first] = lines[second]
        return b"\n".join(lines) + mark + data

    return change


def change_nifti_field(content: bytes, chance: random.Random) -> bytes:
    """Set a field of the header to an extreme value."""
    offset, kind = chance.choice(NIFTI_FIELDS)
    order = chance.choice("<<<>")
    if kind == "f":
        value = bytes(struct.pack(f"{order}f", chance.choice(FLOATS)))
    else:
        width = struct.calcsize(kind)
        number = chance.choice((*EXTREMES, 348, 540, 512, 1792)) % 2 ** (8 * width)
        value = number.to_bytes(width, "little" if order == "<" else "big")
    return content[:offset] + value + content[offset + len(value) :]


def change_zip_field(content: bytes, chance: random.Random) -> bytes:
    """Change a field after a signature: flags, method, sizes, offsets, or the name."""
    signature = chance.choice(ZIP_SIGNATURES)
    starts = [at for at in range(len(content)) if content.startswith(signature, at)]
    if not starts:
        return flip_bits(content, chance)
    start = chance.choice(starts)
    if signature != ZIP_SIGNATURES[2] and chance.random() < 0.3:
        at, value = start + (30 if signature == ZIP_SIGNATURES[0] else 46), chance.choice(ZIP_NAMES)
    else:
        width = chance.choice((2, 4))
        at = start + 4 + 2 * chance.randrange(20)
        value = (chance.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(width, "little")
    return content[:at] + value + content[at + len(value) :]


_CHANGES: dict[str, tuple[Change, ...]] = {
    "mha": (
        _text_header(b"ElementDataFile", b" = ", MHA_LINES),
        _text_header(b"\0", b" = ", MHA_LINES),
    ),
    "nrrd": (_text_header(b"\n\n", b": ", NRRD_LINES),),
    "nifti": (change_nifti_field,),
    "zip": (change_zip_field,),
    "dicom": (changed_dataset,),
    "seg": (changed_dataset,),
    "rtstruct": (changed_dataset,),
}
