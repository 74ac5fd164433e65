import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from lib.errors import ScanError
from lib.imaging.archives import unpack_zip
from lib.imaging.dicom_series import read_headers, read_series
from tests.imaging.series_files import edit, phantom_series, put, refusal
from tests.phantoms import make_ct


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The upright phantom as a series of 12 files."""
    return phantom_series(tmp_path / "series")


COMPANIONS = {
    "portal image": ("RTIMAGE", "1.2.840.10008.5.1.4.1.1.481.1"),
    "dose": ("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2"),
    "structures": ("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"),
    "plan": ("RTPLAN", "1.2.840.10008.5.1.4.1.1.481.5"),
    "ion plan": ("PLAN", "1.2.840.10008.5.1.4.1.1.481.8"),
    "document": ("DOC", "1.2.840.10008.5.1.4.1.1.104.1"),
    "document that says CT": ("CT", "1.2.840.10008.5.1.4.1.1.104.1"),
    "screen capture": ("CT", "1.2.840.10008.5.1.4.1.1.7"),
    "colour captures": ("OT", "1.2.840.10008.5.1.4.1.1.7.4"),
    "dose report": ("SR", "1.2.840.10008.5.1.4.1.1.88.67"),
    "presentation state": ("PR", "1.2.840.10008.5.1.4.1.1.11.1"),
    "waveform": ("ECG", "1.2.840.10008.5.1.4.1.1.9.1.1"),
    "raw data": ("CT", "1.2.840.10008.5.1.4.1.1.66"),
    "registration": ("REG", "1.2.840.10008.5.1.4.1.1.66.1"),
    "private object": ("CT", "1.3.12.2.1107.5.9.1"),
    "directory": ("", "1.2.840.10008.1.3.10"),
}
"""What lies beside a CT -> Modality and SOPClassUID."""


@pytest.mark.parametrize("name", COMPANIONS)
@pytest.mark.parametrize("has_own_series", [True, False])
def test_objects_beside_a_ct_are_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str, *, has_own_series: bool
) -> None:
    dataset: Any = pydicom.dcmread(folder / "ct_0001.dcm")
    modality, sop_class = COMPANIONS[name]
    put(Modality=modality, SOPClassUID=sop_class, SOPInstanceUID=generate_uid())(0, dataset)
    if has_own_series:
        dataset.SeriesInstanceUID = generate_uid()
    del dataset.PixelData, dataset.Rows, dataset.ImagePositionPatient
    dataset.save_as(folder / "beside.dcm")
    with caplog.at_level("INFO"):
        np.testing.assert_array_equal(read_series(folder, image_id="case7")[0], make_ct().array_hu)
    assert "case7: left out 1 DICOM files that are no slices" in caplog.text


@pytest.mark.parametrize(
    "sop_class", ["", "1.2.840.10008.5.1.4.1.1.999", "1.2.840.10008.5.1.4.1.1.4"]
)
def test_a_slice_whose_sop_class_is_damaged_is_refused(folder: Path, sop_class: str) -> None:
    edit(folder, put(SOPClassUID=sop_class), only=11)
    assert "ct_0012.dcm is of SOP class" in refusal(folder)


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_ct_without_uids_is_read_but_cannot_be_referred_to(
    folder: Path, keyword: str, value: str | None
) -> None:
    edit(folder, put(**{keyword: value}))
    np.testing.assert_array_equal(read_series(folder, image_id="case7")[0], make_ct().array_hu)
    with pytest.raises(ScanError, match=rf"case7: ct_0001\.dcm has no {keyword}, to which a SEG"):
        read_headers(folder, image_id="case7")


# --- zips


def zipped(folder: Path, archive: Path, **others: bytes) -> Path:
    """Return a zip of the series in `export/`, and of other members (`__` in their names is a slash)."""
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.iterdir()):
            opened.write(path, f"export/{path.name}")
        for name, content in others.items():
            opened.writestr(name, content)
    return archive


SYSTEM_FILES = {
    "__MACOSX/export/._ct_0001.dcm": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(82),
    "export/._ct_0002.dcm": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(82),
    "export/.DS_Store": b"\0\0\0\1Bud1",
    "export/Thumbs.db": b"\xd0\xcf\x11\xe0",
    "export\\desktop.ini": b"[.ShellClassInfo]",
    "DICOMDIR": bytes(128) + b"DICM" + bytes(50),
    "export/README.TXT": b"read me",
}


@pytest.mark.parametrize("name", SYSTEM_FILES)
def test_files_of_the_operating_system_in_a_zip_are_left_out(
    folder: Path, tmp_path: Path, name: str
) -> None:
    archive = zipped(folder, tmp_path / "a.zip", **{name: SYSTEM_FILES[name]})
    unpacked = unpack_zip(archive, tmp_path / "unpacked", "case7")
    np.testing.assert_array_equal(read_series(unpacked, image_id="case7")[0], make_ct().array_hu)


@pytest.mark.parametrize("name", SYSTEM_FILES)
def test_files_of_the_operating_system_in_a_folder_are_left_out(folder: Path, name: str) -> None:
    (folder / name.replace("\\", "/").rpartition("/")[2]).write_bytes(SYSTEM_FILES[name])
    assert not refusal(folder)


def test_an_apple_double_file_under_another_name_is_left_out(folder: Path) -> None:
    (folder / "copied.dcm").write_bytes(SYSTEM_FILES["export/._ct_0002.dcm"])
    assert not refusal(folder)


def test_two_copies_of_an_export_in_a_zip_are_read_once(folder: Path, tmp_path: Path) -> None:
    copies = {f"second/{path.name}": path.read_bytes() for path in folder.iterdir()}
    unpacked = unpack_zip(zipped(folder, tmp_path / "a.zip", **copies), tmp_path / "out", "case7")
    np.testing.assert_array_equal(read_series(unpacked, image_id="case7")[0], make_ct().array_hu)


@pytest.mark.parametrize(
    "name", ["../../evil.dcm", "/etc/evil.dcm", "a\\..\\evil.dcm", "x.d\0m", "é.dç/x"]
)
def test_names_in_a_zip_never_become_paths(folder: Path, tmp_path: Path, name: str) -> None:
    archive = zipped(folder, tmp_path / "a.zip", **{name: b"text"})
    unpacked = unpack_zip(archive, tmp_path / "unpacked", "case7")
    assert sorted(p.stem for p in unpacked.iterdir()) == [f"{n:05d}" for n in range(13)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "series", "unpacked"]


@pytest.mark.parametrize("kind", ["text", "truncated", "damaged"])
def test_a_file_that_is_no_whole_zip_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    content = zipped(folder, tmp_path / "a.zip").read_bytes()
    shutil.rmtree(folder)
    changed = {
        "text": b"not a zip",
        "truncated": content[:-100],
        "damaged": content[:2000] + bytes(500) + content[2500:],
    }
    (tmp_path / "a.zip").write_bytes(changed[kind])
    with pytest.raises(ScanError, match=r"case7: the zip cannot be unpacked"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "unpacked", "case7")
