"""Mapping structure names to organs, and merging overlapping masks into one label."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.objects import KINDS, Kind, read_object, write_object
from lib.dicom.structures import StructureSet, label_from_structures, match_organs
from lib.errors import ConfigError, LabelError
from lib.imaging.geometry import Grid
from tests.dicom.organ_phantom import LABELS, NAMES, Case, make_case
from tests.phantoms import make_grid

GRID: Grid = make_grid((10, 8, 6))


def structures(boxes: Mapping[str, Sequence[int]], *undrawn: str) -> StructureSet:
    """Return structures that each fill the voxels from `boxes[name][0]` to `[1]` along x, in one row."""
    masks = {}
    for name, (first, after) in boxes.items():
        masks[name] = np.zeros(GRID.shape_vox, np.bool_)
        masks[name][first:after, 0, 0] = True
    return StructureSet((*boxes, *undrawn), masks, ())


def test_names_in_other_spellings_are_mapped_to_organs() -> None:
    structure_set = structures({"Left parotid": (0, 2), "Brain Stem": (3, 4), "OpticNrv_R": (5, 6)})
    label = label_from_structures(structure_set, LABELS, GRID, "case7")
    assert label.labels == {"Brainstem": 1, "OpticNrv_R": 5, "Parotid_L": 6}
    assert label.array[:, 0, 0].tolist() == [6, 6, 0, 1, 0, 5, 0, 0, 0, 0]
    assert label.grid == GRID


@pytest.mark.parametrize("name", ["PTV 70", "Parotid_L~", "Brainstem_PRV03", "Larynx"])
def test_a_structure_that_is_not_an_organ_is_refused_by_name(name: str) -> None:
    structure_set = structures({"Brainstem": (0, 2), name: (3, 4), "Body": (4, 5)})
    with pytest.raises(LabelError, match=f"case7: '{name}', 'Body': not an organ of this server"):
        label_from_structures(structure_set, LABELS, GRID, "case7")


def test_the_organs_are_selected_from_the_names() -> None:
    names = ["Brain Stem", "PTV 70", "Parotid_L", "Brainstem_PRV03", "Larynx"]
    assert match_organs(names, LABELS) == {"Brain Stem": "Brainstem", "Parotid_L": "Parotid_L"}


def test_a_structure_without_voxels_may_have_any_name() -> None:
    assert label_from_structures(
        structures({"Brainstem": (0, 2)}, "Segment 9"), LABELS, GRID, "x"
    ).labels


def test_no_structures_give_an_empty_label() -> None:
    label = label_from_structures(structures({}, "Brainstem"), LABELS, GRID, "case7")
    assert label.array.shape == GRID.shape_vox
    assert not label.array.any()
    assert not label.labels


def test_two_names_of_one_organ_are_refused() -> None:
    with pytest.raises(LabelError, match="'Parotid_L' and 'left parotid' both mean Parotid_L"):
        label_from_structures(
            structures({"Parotid_L": (0, 2), "left parotid": (3, 4)}), LABELS, GRID, "x"
        )


def test_a_shared_voxel_is_assigned_to_the_smaller_organ() -> None:
    notes: list[str] = []
    structure_set = structures({"OpticChiasm": (4, 7), "Brainstem": (0, 5)})
    label = label_from_structures(structure_set, LABELS, GRID, "case7", notes=notes)
    assert label.array[:, 0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 0, 0]
    assert notes == ["Brainstem & OpticChiasm share 1 voxels, assigned to the smaller organ"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("objects") / "ct")


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_read_according_to_its_modality(
    case: Case, tmp_path: Path, kind: Kind
) -> None:
    path = tmp_path / "any.dcm"
    write_object(kind, path, case.label, case.headers, ObjectProvenance(), image_id="case7")
    structure_set = read_object(path, case.headers, case.grid, image_id="case7")
    assert structure_set.names == NAMES
    back = label_from_structures(structure_set, LABELS, case.grid, "case7")
    np.testing.assert_array_equal(back.array, case.expected)


def test_a_ct_slice_is_refused_as_an_object_with_organs(case: Case) -> None:
    with pytest.raises(LabelError, match="case7: the file's modality is CT; SEG or RTSTRUCT"):
        read_object(Path(str(case.headers[0].filename)), case.headers, case.grid, image_id="case7")


def test_a_file_that_is_not_dicom_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(LabelError, match="case7: the file cannot be read as DICOM"):
        read_object(tmp_path / "text.dcm", case.headers, case.grid, image_id="case7")


def test_provenance_is_validated_and_has_a_unique_uid() -> None:
    with pytest.raises(ConfigError, match=r"'1\.\.2' is not a UID"):
        ObjectProvenance(sop_instance_uid="1..2")
    with pytest.raises(ConfigError, match="series number 0"):
        ObjectProvenance(series_number=0)
    with pytest.raises(ConfigError, match="the name of the model expected"):
        ObjectProvenance(is_automatic=True)
    assert ObjectProvenance().sop_instance_uid != ObjectProvenance().sop_instance_uid
