"""Good scans and labels through the reader process, compared with what was written."""

from pathlib import Path

import numpy as np
import pytest

from lib.errors import GeometryError, LabelError
from lib.imaging.formats import SCAN_SUFFIXES
from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.imaging.volumes import LabelVolume
from tests.imaging.series_files import phantom_series
from tests.imaging.test_dicom_pixels import CODECS, write_as
from tests.phantoms import make_ct, make_label, make_oblique_ct


def test_series_in_every_transfer_syntax_is_read(tmp_path: Path) -> None:
    folder = phantom_series(tmp_path)
    for number, path in enumerate(sorted(folder.iterdir())):
        write_as(path, CODECS[number % len(CODECS)], path)
    for leftover in folder.glob("one.dcm"):
        leftover.unlink()
    ct = read_ct(folder, image_id="case7")
    np.testing.assert_array_equal(ct.array_hu, make_ct().array_hu)


def test_series_of_links_to_other_folders_is_read(tmp_path: Path) -> None:
    folder = phantom_series(tmp_path)
    links = tmp_path / "links"
    links.mkdir()
    for number, path in enumerate(folder.iterdir()):
        (links / f"{number}.dcm").symlink_to(path)
    np.testing.assert_array_equal(read_ct(links).array_hu, make_ct().array_hu)


def test_link_to_a_scan_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_ct(tmp_path / "a" / "scan.nrrd", make_ct())
    (tmp_path / "link.nrrd").symlink_to(tmp_path / "a" / "scan.nrrd")
    np.testing.assert_array_equal(read_ct(tmp_path / "link.nrrd").array_hu, make_ct().array_hu)


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
def test_label_and_its_grid_are_read(tmp_path: Path, suffix: str) -> None:
    ct = make_oblique_ct()
    label = make_label(ct.grid)
    write_label(tmp_path / f"label{suffix}", LabelVolume(label, ct.grid, {}))
    array, grid = read_label(
        tmp_path / f"label{suffix}", image_id="case7", image_grid=ct.grid, integers_only=True
    )
    np.testing.assert_array_equal(array, label)
    assert array.dtype == np.uint8
    assert grid.is_same_as(ct.grid)


def test_errors_of_labels_keep_their_class_and_text(tmp_path: Path) -> None:
    ct = make_ct()
    path = tmp_path / "label.nii.gz"
    write_label(path, LabelVolume(make_label(ct.grid), ct.grid, {}))
    with pytest.raises(GeometryError, match="case7: the label lies on"):
        read_label(path, image_id="case7", image_grid=make_oblique_ct().grid)
    write_ct(path, ct)
    with pytest.raises(LabelError, match="case7: label values run from"):
        read_label(path, image_id="case7", image_grid=None)


def test_names_of_files_may_have_any_letters(tmp_path: Path) -> None:
    for name in ("DOE^JOHN", "Müller", "病人3", "with space", "50%", "-x"):
        write_ct(tmp_path / f"{name}.nii", make_ct())
        assert read_ct(tmp_path / f"{name}.nii").image_id == name
