from pathlib import Path

import numpy as np
from matplotlib.image import imread

from lib.imaging.volumes import LabelVolume
from lib.organs.table import ORGANS
from lib.recipes.schema import OPENKBP
from lib.reports.ct_overlays import contour_picture
from phantom import head_and_neck_phantom


def where(picture: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", organ: str) -> float:
    """Return the mean column, 0 to 1 within the axial view, of the organ's colour."""
    colour = np.array(ORGANS[organ].colour_rgb) / 255
    axial = picture[80:, picture.shape[1] // 9 : picture.shape[1] // 3, :3]
    hits = np.argwhere(np.abs(axial - colour).max(axis=-1) < 0.12)
    assert len(hits), organ
    return float(hits[:, 1].mean() / axial.shape[1])


def test_the_patients_right_is_on_the_pictures_left(tmp_path: Path) -> None:
    ct, label = head_and_neck_phantom(1, grid_shape=(96, 96, 72), labels=OPENKBP.labels)
    contour_picture(ct, label, tmp_path / "contours.png", title="phantom")
    picture = imread(tmp_path / "contours.png")
    assert where(picture, "Parotid_R") < where(picture, "Parotid_L")


def test_a_scan_without_contours_is_a_picture_too(tmp_path: Path) -> None:
    ct, label = head_and_neck_phantom(1, grid_shape=(64, 64, 48), labels={})
    contour_picture(ct, LabelVolume(label.array, ct.grid, {}), tmp_path / "empty.png")
    assert imread(tmp_path / "empty.png").shape[2] in (3, 4)


def test_uncertain_voxels_are_coloured_at_their_place(tmp_path: Path) -> None:
    ct, label = head_and_neck_phantom(1, grid_shape=(96, 96, 72), labels=OPENKBP.labels)
    sure = np.zeros(ct.grid.shape_vox, np.float32)
    unsure = np.where(label.array == OPENKBP.labels["Parotid_R"], np.float32(0.5), sure)
    contour_picture(ct, label, tmp_path / "sure.png", title="sure", uncertainty=sure)
    contour_picture(ct, label, tmp_path / "unsure.png", title="sure", uncertainty=unsure)
    plain, coloured = imread(tmp_path / "sure.png"), imread(tmp_path / "unsure.png")
    changed = np.argwhere(np.abs(plain - coloured).max(axis=-1) > 0.2)
    axial = changed[changed[:, 1] < plain.shape[1] / 3]
    assert len(axial) > 50
    # The patient's right lies in the left half of the first view.
    assert axial[:, 1].mean() < plain.shape[1] / 6
