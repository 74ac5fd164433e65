import struct
from pathlib import Path

import pydicom
import pytest

from lib.dicom.ct_writer import write_ct_series
from lib.errors import ScanError
from lib.imaging import dicom_files
from lib.imaging.dicom_files import is_damage, read_dicom, text_of
from tests.imaging.dicom_bytes import DEFLATED, UNDEFINED, element, item, write_file
from tests.phantoms import make_ct

MODALITY = element(8, 0x60, b"CS", b"CT")
SEQUENCE = (8, 0x1140, b"SQ")
"""ReferencedImageSequence."""


def nested(depth: int) -> bytes:
    """Return `depth` sequences of undefined length, each in an item of the one before."""
    start = element(*SEQUENCE, b"", UNDEFINED) + item(length=UNDEFINED)
    end = struct.pack(
        "<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0
    )  # of the item, of the sequence
    return start * depth + end * depth


def test_a_file_is_read_as_pydicom_reads_it(tmp_path: Path) -> None:
    write_ct_series(make_ct(), tmp_path, patient_id="anonymous")
    path = tmp_path / "ct_0001.dcm"
    assert read_dicom(path) == pydicom.dcmread(path, stop_before_pixels=True)
    assert read_dicom(path, with_pixels=True) == pydicom.dcmread(path)
    some = read_dicom(path, keywords=["Modality", "Rows"])
    assert (some.filename, some.Modality, some.Rows, len(some)) == (str(path), "CT", 16, 3)


@pytest.mark.parametrize("with_pixels", [True, False])
def test_a_deflated_file_is_read(tmp_path: Path, *, with_pixels: bool) -> None:
    content = MODALITY + element(0x7FE0, 0x10, b"OW", b"ab" * 5000)
    header = read_dicom(write_file(tmp_path / "a.dcm", content, DEFLATED), with_pixels=with_pixels)
    assert header.Modality == "CT"
    assert header.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert header.get("PixelData") == (b"ab" * 5000 if with_pixels else None)


def test_a_truncated_deflated_file_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.dcm", MODALITY + bytes(range(256)) * 40, DEFLATED)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ScanError, match=r"a\.dcm is deflated and truncated"):
        read_dicom(path)


def test_a_deflated_file_is_inflated_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_files, "MAX_INFLATED_BYTES", 2**20)
    pixels = element(0x7FE0, 0x10, b"OW", bytes(2**20))
    path = write_file(tmp_path / "a.dcm", MODALITY + pixels, DEFLATED)
    assert path.stat().st_size < 3000
    with pytest.raises(ScanError, match=r"a\.dcm is deflated and holds more than 1 MiB"):
        read_dicom(path)


def test_deeply_nested_sequences_are_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.dcm", MODALITY + nested(5000))
    with pytest.raises(ScanError, match=r"a\.dcm is damaged: its sequences are nested too deep"):
        read_dicom(path)


def test_sequences_as_deep_as_those_of_real_objects_are_read(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.dcm", MODALITY + nested(12))
    assert read_dicom(path).Modality == "CT"


@pytest.mark.parametrize("length", [UNDEFINED, None])
def test_too_many_items_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int | None
) -> None:
    monkeypatch.setattr(dicom_files, "MAX_ITEMS", 1000)
    path = write_file(tmp_path / "a.dcm", element(*SEQUENCE, item() * 1001, length))
    with pytest.raises(ScanError, match=r"a\.dcm is damaged: it has more than 1000 items"):
        read_dicom(path)


def test_too_many_attributes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_files, "MAX_READS", 1000)
    content = b"".join(element(9, number, b"US", b"") for number in range(1000))
    with pytest.raises(ScanError, match=r"more than 200000 items or 500 attributes"):
        read_dicom(write_file(tmp_path / "a.dcm", content))


def test_too_many_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_files, "MAX_FILE_BYTES", 2**20)
    path = write_file(tmp_path / "a.dcm", element(8, 0x60, b"UN", bytes(2**20)))
    with pytest.raises(ScanError, match=r"a\.dcm holds more than 1 MiB"):
        read_dicom(path)


def test_a_length_beyond_the_end_of_the_file_takes_no_memory(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.dcm", element(8, 0x60, b"UN", b"CT", 0xFFFFFFF0))
    assert text_of(read_dicom(path), "Modality") == "CT"


def test_a_sequence_in_place_of_text_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.dcm", element(8, 0x60, b"SQ", item(MODALITY)))
    with pytest.raises(ScanError, match=r"a\.dcm is damaged: Modality is a sequence"):
        read_dicom(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "charset", [b"no such", b"ISO 2022 IR 6\\no such", b"\xff\xfe", b"ISO_IR 192"]
)
def test_text_in_an_unknown_character_set_is_empty_or_read(tmp_path: Path, charset: bytes) -> None:
    content = element(8, 5, b"CS", charset) + MODALITY + element(16, 16, b"PN", b"\xe9\xff^x")
    header = read_dicom(write_file(tmp_path / "a.dcm", content))
    assert text_of(header, "Modality") == "CT"
    assert isinstance(text_of(header, "PatientName"), str)


@pytest.mark.parametrize(
    "content", [b"", b"text", bytes(200), bytes(128) + b"DICM", bytes(128) + b"DICMxx"]
)
def test_a_file_that_is_not_dicom_is_refused_or_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    if content[128:132] == b"DICM":
        assert not read_dicom(path)
        return
    with pytest.raises(ScanError, match=r"a\.dcm is damaged or not a DICOM file"):
        read_dicom(path)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"a\.dcm cannot be read \(No such file"):
        read_dicom(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("error", "means_damage"),
    [
        (OSError("No tag to read at file position 72A"), True),
        (NotImplementedError("Unknown Value Representation"), True),
        (KeyError("Rows"), True),
        (OSError(28, "No space left on device"), False),
        (MemoryError(), False),
        (ScanError("refused"), False),
        (ReferenceError(), False),
    ],
)
def test_damage_is_told_from_failures_of_the_machine(
    error: Exception, *, means_damage: bool
) -> None:
    assert is_damage(error) is means_damage
