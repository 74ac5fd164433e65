from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from lib.activelearning.pool import Choice, OrganShape, Pool
from lib.activelearning.selection.failure import (
    STANDS_OUT,
    failure_first,
    median,
    shape_measures,
    usual_shape,
)
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray
from lib.organs.table import mirror_values
from lib.recipes.schema import OPENKBP
from phantom import head_and_neck_phantom
from tests.activelearning.pools import USUAL, moved, patient, predicted

Shapes = dict[str, OrganShape | None]
ORGANS = list(USUAL)


def swapped(organs: Shapes) -> None:
    organs["Parotid_L"], organs["Parotid_R"] = organs["Parotid_R"], organs["Parotid_L"]


def lone_and_swapped(organs: Shapes) -> None:
    organs["Parotid_L"], organs["Parotid_R"] = organs["Parotid_R"], None


def doubled(organs: Shapes) -> None:
    stem = organs["Brainstem"]
    assert stem is not None
    organs["Brainstem"] = replace(stem, volume_ml=50.0)


def missing(organs: Shapes) -> None:
    organs["OpticChiasm"] = None


def shifted(organs: Shapes) -> None:
    gland = organs["Glnd_Submand_L"]
    assert gland is not None
    organs["Glnd_Submand_L"] = moved(gland, z_mm=20.0)


def in_pieces(organs: Shapes) -> None:
    nerve = organs["OpticNrv_R"]
    assert nerve is not None
    organs["OpticNrv_R"] = replace(nerve, pieces=4)


WRONG: Mapping[str, tuple[Callable[[Shapes], None], str, str]] = {
    "swapped": (swapped, "Parotid_L", "lies on the wrong side; left and right may be swapped"),
    "lone": (lone_and_swapped, "Parotid_L", "lies on the wrong side"),
    "doubled": (doubled, "Brainstem", "the model's Brainstem has 50 mL, "),
    "missing": (
        missing,
        "OpticChiasm",
        "found no OpticChiasm, which is nearly always there in the",
    ),
    "shifted": (shifted, "Glnd_Submand_L", "from its usual position in the annotators' contours"),
    "pieces": (in_pieces, "OpticNrv_R", "is in 4 pieces, 1 is usual in the annotators' contours"),
}


def pool_of(wrong: list[str], *, normal: int = 30, labelled: int = 20, seed: int = 0) -> Pool:
    """Return usual cases `pt_...`, one case for each kind of error, and annotators' contours."""
    shapes: dict[str, Shapes] = {f"pt_{n}": {**patient(n)} for n in range(normal)}
    for n, kind in enumerate(wrong):
        shapes[kind] = {**patient(500 + n)}
        WRONG[kind][0](shapes[kind])
    return Pool(
        candidates=list(shapes),
        scores={name: predicted(name, organs) for name, organs in shapes.items()},
        shapes={f"drawn_{n}": patient(1000 + n) for n in range(labelled)},
        seed=seed,
    )


def chosen(pool: Pool) -> Choice:
    choice = failure_first(pool)
    assert choice is not None
    return choice


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_contour_is_chosen_first_with_the_reason(kind: str) -> None:
    choice = chosen(pool_of([kind]))
    _, organ, text = WRONG[kind]
    assert choice.image_id == kind
    assert choice.organs[0] == organ
    assert organ in choice.why
    assert text in choice.why
    assert (choice.rank, choice.ranked_candidates) == (1, 31)


def test_usual_cases_are_chosen_last() -> None:
    pool, order = pool_of(list(WRONG)), list[str]()
    while pool.candidates:
        order.append(chosen(pool).image_id)
        left = [name for name in pool.candidates if name != order[-1]]
        pool = replace(pool, candidates=left)
    assert set(order[: len(WRONG)]) == set(WRONG)
    assert set(order[:2]) <= {"swapped", "lone"}


@pytest.mark.parametrize("axis", ["x_mm", "y_mm", "z_mm"])
@pytest.mark.parametrize("organ", ORGANS)
def test_an_organ_that_is_20_mm_off_is_named_and_no_other(organ: str, axis: str) -> None:
    pool = pool_of([])
    # Away from the midline: a nerve moved across it is on the wrong side, and so is its partner.
    off_mm = -20.0 if organ.endswith("_L") else 20.0
    typical = {
        name: OrganShape(volume_ml=volume_ml, centroid_mm=middle_mm)
        for name, (volume_ml, middle_mm) in USUAL.items()
    }
    organs = {**typical, organ: moved(typical[organ], **{axis: off_mm})}
    scores = {**pool.scores, "off": predicted("off", organs)}
    choice = chosen(replace(pool, candidates=[*pool.candidates, "off"], scores=scores))
    assert choice.image_id == "off"
    assert choice.organs == (organ,)
    reported_mm = float(choice.why.split(" mm ")[0].split()[-1])
    assert reported_mm == pytest.approx(20.0, abs=4.0)


def test_the_origin_of_the_scan_does_not_matter() -> None:
    pool = pool_of(["shifted"])
    score = pool.scores["shifted"]
    organs = {
        name: replace(organ, shape=moved(organ.shape, 300.0, -200.0, 1000.0))
        for name, organ in score.organs.items()
        if organ.shape is not None
    }
    elsewhere = replace(pool, scores={**pool.scores, "shifted": replace(score, organs=organs)})
    assert chosen(elsewhere).score == pytest.approx(chosen(pool).score)


def test_with_two_labels_the_models_other_contours_are_the_reference() -> None:
    for kind in ("swapped", "doubled", "missing", "shifted", "pieces"):
        choice = chosen(pool_of([kind], labelled=2))
        assert choice.image_id == kind
        if kind != "swapped":
            assert choice.why.endswith(
                "in the model's other contours (annotators contoured it in fewer than 3 cases)"
            )


def test_an_organ_that_is_rarely_contoured_does_not_count_as_missing() -> None:
    pool = pool_of(["missing"])
    without = {
        name: {organ: shape for organ, shape in shapes.items() if organ != "OpticChiasm"}
        for name, shapes in pool.shapes.items()
    }
    some = {**without, **{name: pool.shapes[name] for name in list(pool.shapes)[:12]}}
    assert chosen(replace(pool, shapes=some)).image_id != "missing"


def test_an_organ_outside_the_models_recipe_does_not_count_as_missing() -> None:
    organs = {name: shape for name, shape in patient(5).items() if name != "OpticChiasm"}
    pool = pool_of([], normal=3)
    scores = {**pool.scores, "other": predicted("other", {**organs})}
    choice = chosen(replace(pool, candidates=["other"], scores=scores))
    assert "OpticChiasm" not in choice.organs
    assert "no contour stands out" in choice.why


def test_a_case_without_any_contour_comes_before_one_with_a_missing_organ() -> None:
    pool = pool_of(["missing"])
    nothing = predicted("nothing", dict.fromkeys(ORGANS))
    scores = {**pool.scores, "nothing": nothing}
    choice = chosen(replace(pool, candidates=[*pool.candidates, "nothing"], scores=scores))
    assert choice.image_id == "nothing"


def test_three_similar_contours_do_not_make_the_fourth_an_outlier() -> None:
    same = patient(1)
    pool = pool_of([], normal=1)
    alike = replace(pool, shapes={f"drawn_{n}": same for n in range(3)})
    choice = chosen(alike)
    assert choice.score is not None
    assert choice.score < STANDS_OUT
    assert choice.why == "no contour stands out by size or position; this case is the least usual"


def shapes_of(label: LabelArray, grid: Grid, labels: Mapping[str, int]) -> Shapes:
    """Return the shapes in a label volume, with centroids in the grid's RAS millimetres."""
    organs: Shapes = {}
    for name, value in labels.items():
        voxels = np.argwhere(label == value)
        x, y, z = (grid.affine_ras @ np.append(voxels.mean(axis=0), 1.0))[:3]
        volume_ml = len(voxels) * grid.voxel_ml
        organs[name] = OrganShape(volume_ml=volume_ml, centroid_mm=(float(x), float(y), float(z)))
    return organs


def test_the_patients_right_is_positive_x() -> None:
    labels, mirrored = OPENKBP.labels, np.array(mirror_values(OPENKBP.labels), np.uint8)
    shapes: dict[str, Shapes] = {}
    for seed in range(2):
        ct, label = head_and_neck_phantom(seed, labels=labels)
        shapes[f"phantom_{seed}"] = shapes_of(label.array, ct.grid, labels)
        if seed == 1:
            shapes["mirrored"] = shapes_of(mirrored[label.array], ct.grid, labels)
    scores = {name: predicted(name, organs) for name, organs in shapes.items()}
    choice = chosen(Pool(candidates=list(shapes), scores=scores))
    assert choice.image_id == "mirrored"
    assert set(choice.organs) == {"Parotid_L", "Parotid_R"}
    assert "lies on the wrong side" in choice.why
    left = chosen(Pool(candidates=[n for n in shapes if n != "mirrored"], scores=scores))
    assert "wrong side" not in left.why


def test_medians_ignore_missing_values() -> None:
    nan = float("nan")
    values = np.array([[1.0, nan, nan], [5.0, 4.0, nan], [3.0, 8.0, nan]])
    np.testing.assert_array_equal(median(values), [3.0, 6.0, nan])
    np.testing.assert_array_equal(median(values, axis=1), [1.0, 4.5, 5.5])


def test_with_many_cases_the_prior_spread_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    volumes_ml = np.exp(generator.normal(3.0, 0.1, 400))
    cases = [
        {"Brain": OrganShape(volume_ml=float(v), centroid_mm=(0.0, 0.0, 0.0))} for v in volumes_ml
    ]
    usual = usual_shape(shape_measures(cases, ["Brain"]))
    assert usual.log_ml[0] == pytest.approx(3.0, abs=0.02)
    assert usual.log_ml_spread[0] == pytest.approx(0.1, abs=0.015)
    few = usual_shape(shape_measures(cases[:2], ["Brain"]))
    assert np.isnan([few.log_ml[0], few.share[0]]).all()
