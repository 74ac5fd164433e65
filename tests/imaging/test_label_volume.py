import numpy as np

from lib.imaging.volumes import LabelVolume
from tests.phantoms import make_grid, make_label

LABELS = {"Brainstem": 1, "Parotid_L": 2, "Larynx": 5, "Bone_Mandible": 7}


def test_the_box_of_each_organ_that_has_a_voxel() -> None:
    grid = make_grid()
    assert LabelVolume(make_label(), grid, LABELS).boxes == {
        "Brainstem": (slice(13, 16), slice(4, 9), slice(2, 8)),
        "Parotid_L": (slice(3, 5), slice(5, 9), slice(2, 5)),
        "Bone_Mandible": (slice(14, 15), slice(5, 6), slice(3, 4)),
    }
    assert LabelVolume(np.zeros(grid.shape_vox, np.uint8), grid, LABELS).boxes == {}


def test_the_volume_of_each_organ_that_has_a_voxel() -> None:
    # The mark took one of the 90 voxels of the brainstem; 9 mm3 each.
    volumes_ml = LabelVolume(make_label(), make_grid(), LABELS).volumes_ml()
    assert volumes_ml == {"Brainstem": 0.801, "Parotid_L": 0.216, "Bone_Mandible": 0.009}


def test_equal_organs_have_equal_digests_whatever_their_values() -> None:
    grid = make_grid()
    first = LabelVolume(make_label(), grid, LABELS)
    other_values = np.array([0, 4, 3, 0, 0, 0, 0, 9], np.uint8)[make_label()]
    renamed = {"Bone_Mandible": 9, "Brainstem": 4, "Parotid_L": 3}
    assert first.digest() == LabelVolume(other_values, grid, renamed).digest()


def test_one_voxel_or_one_name_more_changes_the_digest() -> None:
    grid = make_grid()
    digests = {LabelVolume(make_label(), grid, LABELS).digest()}
    for voxel in ((3, 5, 2), (0, 0, 0)):
        changed = make_label()
        changed[voxel] = 0 if changed[voxel] else 1
        digests.add(LabelVolume(changed, grid, LABELS).digest())
    swapped = LABELS | {"Brainstem": 2, "Parotid_L": 1}
    digests.add(LabelVolume(make_label(), grid, swapped).digest())
    digests.add(LabelVolume(np.zeros(grid.shape_vox, np.uint8), grid, LABELS).digest())
    assert len(digests) == 5
