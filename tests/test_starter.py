"""The starter weights: their model card, and their accuracy on patients that they were not trained on."""

from pathlib import Path

import numpy as np
import pytest

from lib.config import default_starter_dir
from lib.evaluation.metrics import organ_dice
from lib.imaging.scans import read_ct, read_label
from lib.inference.single_pass import contour
from lib.models.registry import Model, Registry, load_model
from lib.recipes.schema import OPENKBP

FIVE = ("Brainstem", "SpinalCord", "Bone_Mandible", "Parotid_L", "Parotid_R")
MAX_BYTES = 20 * 1024 * 1024


@pytest.fixture(scope="module")
def starter() -> Model:
    path = Registry(Path("nowhere"), starter=default_starter_dir()).served_path()
    assert path is not None
    assert path.stat().st_size <= MAX_BYTES
    return load_model(path)


def test_the_starter_has_the_default_organs_and_documents_its_cases(starter: Model) -> None:
    assert starter.recipe.organ_set == OPENKBP.organ_set
    page = (default_starter_dir() / "README.md").read_text(encoding="utf-8")
    assert starter.version in page
    for word in ("Babier", "licence", "Limits", "4 mm"):
        assert word in page
    trained_on = set(starter.card["training"]["cases"])
    left_out = set(starter.card["validation"]["cases"])
    assert len(left_out) >= 20
    assert not trained_on & left_out
    assert all(f"`{case}`" in page for case in left_out)


def test_the_readme_states_the_numbers_of_the_card(starter: Model) -> None:
    page = (default_starter_dir() / "README.md").read_text(encoding="utf-8")
    for organ, dsc in starter.card["validation"]["organ_dice"].items():
        assert f"| {organ} | {dsc:.3f} |" in page


def test_the_starter_contours_patients_it_was_not_trained_on(
    starter: Model, shared_data: Path
) -> None:
    cases = sorted(starter.card["validation"]["cases"])[:2]
    found = []
    for case in cases:
        folder = shared_data / "openkbp" / case
        ct = read_ct(folder / "ct.nii.gz", image_id=case)
        label, _ = read_label(folder / "label.nii.gz", image_id=case, image_grid=ct.grid)
        dice = organ_dice(label, contour(ct, starter).label.array, starter.recipe.labels)
        found += [dice[organ] for organ in FIVE if organ in dice]
    assert np.mean(found) > 0.7


def test_paired_organs_are_on_their_own_side(starter: Model, shared_data: Path) -> None:
    case = min(starter.card["validation"]["cases"])
    ct = read_ct(shared_data / "openkbp" / case / "ct.nii.gz", image_id=case)
    found = contour(ct, starter).label
    # RAS: x increases toward the patient's right.
    right, left = (
        (found.grid.affine_ras @ [*np.argwhere(found.array == value).mean(axis=0), 1.0])[0]
        for value in (found.labels["Parotid_R"], found.labels["Parotid_L"])
    )
    assert right > left + 50
