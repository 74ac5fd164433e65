from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.imaging.scans import read_ct, write_ct
from lib.imaging.volumes import CtVolume
from lib.inference.backend_choice import BackendChoice
from lib.inference.single_pass import contour
from lib.isolation.inputs import Input
from lib.jobs.inference_queue import InferenceQueue
from lib.models.registry import Model, Registry
from lib.models.served_model import ServedModel
from lib.prompts.kept_runs import KeptRuns
from lib.prompts.organ_prompts import DrawnMask, OrganPrompts
from lib.prompts.refinement import Prompt
from lib.prompts.service import PromptService, RefinedOrgan, RunKeeper, part_of, run_key
from lib.recipes.schema import OPENKBP, Recipe
from tests.phantoms import make_ct, make_grid

RECIPE = replace(
    OPENKBP, spacing_mm=(1.5, 2.0, 3.0), spacing_tolerance=0.0, hu_windows=((-1000.0, 1000.0),),
    crop_vox=(12, 12, 8),
)  # fmt: skip
SHAPE = (110, 90, 60)


def body() -> "np.ndarray[tuple[int, int, int], np.dtype[np.int16]]":
    """Return air with a body of soft tissue, in HU."""
    array_hu = np.full(SHAPE, -1000, np.int16)
    array_hu[5:105, 5:85] = 40
    return array_hu


class BoneIsMandible(nn.Module):
    """A network that labels voxels above 400 HU as mandible (7), and all others as background."""

    def __init__(self) -> None:
        super().__init__()
        self.computed_vox = 0

    def forward(self, image: Tensor) -> Tensor:
        self.computed_vox += int(image[:, 0].numel())
        logits = torch.full((image.shape[0], 8, *image.shape[2:]), -20.0)
        logits[:, 7] = torch.where(image[:, 0] > 0.4, 3.0, -3.0)
        logits[:, 0] = -logits[:, 7]
        return logits


class ServedBone(ServedModel):
    """An active model whose contours are known."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Registry(folder))
        self.model = Model("bone", BoneIsMandible(), RECIPE, {})

    def get(self, *, is_newest: bool = False) -> Model:
        return self.model


@pytest.fixture
def served(tmp_path: Path) -> ServedBone:
    return ServedBone(tmp_path / "models")


@pytest.fixture
def service(served: ServedBone, tmp_path: Path) -> PromptService:
    backends = BackendChoice(
        tmp_path / "backends", served, setting="eager", state=tmp_path, scans=list
    )
    return PromptService(served, InferenceQueue(4), backends)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A CT with a bone of 6 x 8 x 8 voxels in its middle."""
    ct = make_ct(make_grid(SHAPE))
    ct.array_hu[:] = body()
    ct.array_hu[50:56, 40:48, 26:34] = 700
    write_ct(tmp_path / "scan.nii.gz", ct)
    return tmp_path / "scan.nii.gz"


def click(*voxel: int, is_add: bool = True) -> Prompt:
    return Prompt(np.array([voxel]), is_add)


def refined(service: PromptService, scan: Path, *prompts: Prompt, **more: object) -> RefinedOrgan:
    wanted = OrganPrompts(**{"organ": "Bone_Mandible", "prompts": prompts, **more})  # type: ignore[arg-type]

    def prompts_on(_ct: CtVolume, _recipe: Recipe) -> OrganPrompts:
        return wanted

    return service.refine(scan, prompts_on, image_id="scan_1")


def test_only_the_box_is_computed_and_then_kept(
    service: PromptService, served: ServedBone, scan: Path
) -> None:
    first = refined(service, scan, click(60, 44, 30))
    computed = served.model.network.computed_vox
    run = service.runs.get(run_key(Input(scan), served.model))
    assert run is not None
    assert not run.is_whole
    second = refined(service, scan, click(60, 44, 30))
    assert (first.was_kept, second.was_kept) == (False, True)
    assert served.model.network.computed_vox == computed
    np.testing.assert_array_equal(second.mask, first.mask)
    # The prompt reaches 25 mm: 17 voxels of 1.5 mm, 13 of 2 mm, 9 of 3 mm.
    assert first.box == (slice(43, 78), slice(31, 58), slice(21, 40))


def test_the_click_is_respected_and_the_rest_of_the_contour_is_the_models(
    service: PromptService, scan: Path
) -> None:
    result = refined(service, scan, click(60, 44, 30))
    bone = np.zeros(SHAPE, bool)
    bone[50:56, 40:48, 26:34] = True
    before = bone[result.box]
    assert result.mask[60 - 43, 44 - 31, 30 - 21]
    assert (result.mask & before).sum() == before.sum()
    assert result.changed_vox == (result.mask != before).sum() > 0


def test_a_kept_whole_run_gives_the_same_as_the_box_alone(
    service: PromptService, served: ServedBone, scan: Path
) -> None:
    alone = refined(service, scan, click(60, 44, 30))
    whole = read_ct(scan)
    keeper = RunKeeper(whole)
    result = contour(whole, served.model, on_probabilities=keeper.take)
    service.runs.put(run_key(Input(scan), served.model), keeper.run(result))
    kept = refined(service, scan, click(60, 44, 30))
    assert kept.was_kept
    np.testing.assert_array_equal(kept.mask, alone.mask)


def test_without_any_memory_the_answer_is_the_same(service: PromptService, scan: Path) -> None:
    first = refined(service, scan, click(60, 44, 30))
    service.runs = KeptRuns(limit_bytes=0)
    again = refined(service, scan, click(60, 44, 30))
    assert not again.was_kept
    np.testing.assert_array_equal(again.mask, first.mask)


def test_a_changed_scan_is_read_again(service: PromptService, scan: Path) -> None:
    refined(service, scan, click(60, 44, 30))
    ct = read_ct(scan)
    ct.array_hu[:] = body()
    write_ct(scan, ct)
    result = refined(service, scan, click(60, 44, 30))
    assert not result.was_kept
    # There is no bone any more: the click starts the organ anew.
    assert not result.mask[50 - 43, 40 - 31, 26 - 21]


def test_other_organs_are_untouched_unless_asked(service: PromptService, scan: Path) -> None:
    bone = np.zeros(SHAPE, bool)
    bone[50:56, 40:48, 26:34] = True
    beside = refined(service, scan, click(57, 44, 30), organ="Brainstem")
    assert beside.mask.any()
    assert not (beside.mask & bone[beside.box]).any()
    overwriting = refined(service, scan, click(57, 44, 30), organ="Brainstem", is_overwriting=True)
    assert (overwriting.mask & bone[overwriting.box]).any()
    clicked_on = refined(service, scan, click(55, 44, 30), organ="Brainstem")
    assert clicked_on.mask[55 - 38, 44 - 31, 30 - 21]
    assert (clicked_on.mask & bone[clicked_on.box]).sum() > 1


def test_the_drawn_organ_is_corrected_in_place_of_the_models(
    service: PromptService, scan: Path
) -> None:
    drawn = DrawnMask((slice(60, 70), slice(40, 48), slice(26, 34)), np.ones((10, 8, 8), bool))
    result = refined(service, scan, click(72, 44, 30), drawn=drawn)
    assert not result.mask[55 - 55, 44 - 31, 30 - 21]
    assert result.mask[60 - 55 : 70 - 55, 40 - 31 : 48 - 31, 26 - 21 : 34 - 21].all()
    assert result.mask[72 - 55, 44 - 31, 30 - 21]


def test_a_run_of_the_whole_scan_is_computed_once(
    service: PromptService, served: ServedBone, scan: Path
) -> None:
    run, model = service.whole_label(scan, image_id="scan_1")
    computed = served.model.network.computed_vox
    again, _ = service.whole_label(scan, image_id="scan_1")
    assert again is run
    assert model is served.model
    assert served.model.network.computed_vox == computed
    assert (run.label.array == 7).sum() == 6 * 8 * 8
    assert refined(service, scan, click(60, 44, 30)).was_kept


@pytest.mark.parametrize(
    ("organ", "prompts", "message"),
    [
        ("Heart", [click(1, 1, 1)], "'Heart': bone does not contour this organ; expected one of"),
        ("Brainstem", [], "scan_1: no click and no scribble for Brainstem"),
        ("Brainstem", [click(110, 0, 0)], "outside of the scan of 110 x 90 x 60 voxels"),
        ("Brainstem", [click(1, 1, 1)] * 101, "at most 100"),
    ],
)
def test_bad_prompts_are_refused(
    service: PromptService, scan: Path, organ: str, prompts: list[Prompt], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        refined(service, scan, *prompts, organ=organ)


def test_a_part_of_a_ct_stays_at_its_place() -> None:
    ct = make_ct()
    part = part_of(ct, (slice(3, 9), slice(2, 7), slice(1, 11)))
    whole_corner = ct.grid.affine_ras @ np.array([3, 2, 1, 1])
    np.testing.assert_allclose(part.grid.affine_ras[:, 3], whole_corner)
    np.testing.assert_array_equal(part.array_hu, ct.array_hu[3:9, 2:7, 1:11])
