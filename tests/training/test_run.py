from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.errors import CheckpointError, TrainingError
from lib.imaging.scans import read_label, write_label
from lib.imaging.volumes import LabelVolume
from lib.inference.preprocessing import Pipeline
from lib.recipes.schema import ClickConfig, Recipe, ScheduleConfig
from lib.training.cases import Case, is_held_out, prepare_cases, split
from lib.training.crops import CropDataset
from lib.training.run import Progress, RunCallbacks, RunOptions, Step, TrainedModel, train
from lib.training.schedule import learning_rate
from lib.training.state import CHECKPOINT_FILE
from phantom import head_and_neck_phantom
from tests.tiny import TINY


def run(
    cases: Sequence[Case],
    run_dir: Path,
    *,
    recipe: Recipe = TINY,
    stop_after: int | None = None,
    options: RunOptions | None = None,
) -> TrainedModel:
    def on_progress(progress: Progress) -> None:
        if progress.epoch == stop_after:
            raise KeyboardInterrupt

    return train(
        recipe,
        cases[:2],
        cases[2:],
        run_dir=run_dir,
        cache_dir=run_dir.parent / "cache",
        options=options or RunOptions(),
        callbacks=RunCallbacks(on_progress=on_progress),
    )


def assert_same(one: TrainedModel, other: TrainedModel) -> None:
    for key, value in one.weights.items():
        assert torch.equal(value, other.weights[key]), key


def test_the_same_seed_gives_the_same_weights(cases: list[Case], tmp_path: Path) -> None:
    assert_same(run(cases, tmp_path / "a"), run(cases, tmp_path / "b"))


def test_another_seed_gives_other_weights(cases: list[Case], tmp_path: Path) -> None:
    one = run(cases, tmp_path / "a")
    other = run(cases, tmp_path / "b", options=RunOptions(seed=1))
    assert any(not torch.equal(value, other.weights[key]) for key, value in one.weights.items())


def test_a_resumed_run_ends_with_the_same_weights(cases: list[Case], tmp_path: Path) -> None:
    whole = run(cases, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(cases, tmp_path / "stopped", stop_after=1)
    resumed = run(cases, tmp_path / "stopped")
    assert_same(whole, resumed)
    assert [entry["epoch"] for entry in resumed.card["history"]] == [1, 2, 3]


def test_a_resumed_run_with_simulated_clicks_ends_with_the_same_weights(
    cases: list[Case], tmp_path: Path
) -> None:
    recipe = replace(TINY, clicks=ClickConfig(probability=0.8, most=3))
    whole = run(cases, tmp_path / "whole", recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        run(cases, tmp_path / "stopped", recipe=recipe, stop_after=1)
    assert_same(whole, run(cases, tmp_path / "stopped", recipe=recipe))
    assert whole.weights["encoder_2d.0.0.weight"].shape[1] == 4


def test_a_finished_run_is_not_trained_again(cases: list[Case], tmp_path: Path) -> None:
    run(cases, tmp_path / "run")
    seen: list[int] = []
    train(
        TINY,
        cases[:2],
        cases[2:],
        run_dir=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        options=RunOptions(),
        callbacks=RunCallbacks(on_progress=lambda progress: seen.append(progress.epoch)),
    )
    assert seen == []


def test_a_checkpoint_of_other_cases_is_not_resumed(cases: list[Case], tmp_path: Path) -> None:
    run(cases, tmp_path / "run")
    again = run([cases[1], cases[2]], tmp_path / "run")
    assert again.card["training"]["cases"] == ["case_1", "case_2"]


def test_a_corrected_contour_starts_a_new_run(cases: list[Case], tmp_path: Path) -> None:
    first = run(cases, tmp_path / "run")
    label, grid = read_label(cases[0].label, image_id="case_0", image_grid=None)
    label[label == TINY.labels["Larynx"]] = 0
    corrected = tmp_path / "corrected.nii.gz"
    write_label(corrected, LabelVolume(label, grid, TINY.labels))
    again = run([replace(cases[0], label=corrected), *cases[1:]], tmp_path / "run")
    assert again.card["training"]["cases"] == first.card["training"]["cases"]
    assert any(not torch.equal(v, again.weights[k]) for k, v in first.weights.items())


def test_a_damaged_checkpoint_is_refused_by_name(cases: list[Case], tmp_path: Path) -> None:
    run(cases, tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT_FILE).write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: cannot be read .* remove it"):
        run(cases, tmp_path / "run")


def test_progress_reports_the_state_of_the_run(cases: list[Case], tmp_path: Path) -> None:
    seen: list[Progress] = []
    train(
        TINY,
        cases[:2],
        cases[2:],
        run_dir=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        options=RunOptions(),
        callbacks=RunCallbacks(on_progress=seen.append),
    )
    assert [p.epoch for p in seen] == [1, 2, 3]
    assert [p.metric is None for p in seen] == [True, False, False]
    assert seen[-1].eta_s == 0
    assert set(seen[-1].organ_dice) == set(TINY.labels)
    assert all(p.loss > 0 for p in seen)


def test_a_time_limit_ends_the_run(cases: list[Case], tmp_path: Path) -> None:
    trained = run(cases, tmp_path / "run", options=RunOptions(max_minutes=1e-6, epochs=50))
    assert trained.card["training"]["epochs"] == 1


def test_a_processor_time_limit_ends_the_run_and_survives_a_kill(
    cases: list[Case], tmp_path: Path
) -> None:
    options = RunOptions(cpu_minutes=1e-6, epochs=50)
    trained = run(cases, tmp_path / "run", options=options)
    assert trained.card["training"]["steps"] == 1
    again = run(cases, tmp_path / "run", options=options)
    assert again.card["training"]["cpu_seconds"] == trained.card["training"]["cpu_seconds"]


def test_every_step_reports_the_remaining_time(cases: list[Case], tmp_path: Path) -> None:
    seen: list[Step] = []
    train(
        TINY,
        cases[:2],
        [],
        run_dir=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        options=RunOptions(),
        callbacks=RunCallbacks(on_step=seen.append),
    )
    assert [s.step for s in seen] == [1, 2, 3, 4, 5, 6]
    assert [s.epoch for s in seen] == [1, 1, 2, 2, 3, 3]
    assert {s.total_steps for s in seen} == {6}
    assert seen[-1].eta_s == 0
    assert seen[0].eta_s > 0


PATIENT = replace(
    TINY,
    schedule=replace(TINY.schedule, epochs=8, validate_every=1, patience=2, min_delta=0.9),
)
"""No run gains 0.9 in DSC: the first validation remains the best, and the third ends the run."""


def test_early_stopping_returns_the_weights_of_the_best_validation(
    cases: list[Case], tmp_path: Path
) -> None:
    stopped = run(cases, tmp_path / "stopped", recipe=PATIENT)
    assert stopped.card["training"]["epochs"] == 3
    assert stopped.card["training"]["weights_of_epoch"] == 1
    assert stopped.card["validation"]["chose_the_weights"]
    assert stopped.card["validation"]["organ_dice"] == stopped.card["history"][0]["organ_dice"]
    with pytest.raises(KeyboardInterrupt):
        run(cases, tmp_path / "first", recipe=PATIENT, stop_after=1)
    state = torch.load(tmp_path / "first" / CHECKPOINT_FILE, weights_only=True)
    assert all(torch.equal(stopped.weights[key], value) for key, value in state["best"].items())


def test_early_stopping_is_the_same_after_a_kill(cases: list[Case], tmp_path: Path) -> None:
    whole = run(cases, tmp_path / "whole", recipe=PATIENT)
    for epoch in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(cases, tmp_path / "killed", recipe=PATIENT, stop_after=epoch)
    resumed = run(cases, tmp_path / "killed", recipe=PATIENT)
    assert_same(whole, resumed)
    assert resumed.card["training"]["epochs"] == 3


def test_without_patience_the_last_weights_are_returned(cases: list[Case], tmp_path: Path) -> None:
    card = run(cases, tmp_path / "run").card
    assert card["training"]["weights_of_epoch"] == card["training"]["epochs"] == 3
    assert card["validation"]["chose_the_weights"] is False


def test_an_organ_without_cases_is_excluded_from_the_loss(
    cases: list[Case], tmp_path: Path
) -> None:
    prepared = prepare_cases(cases[:1], Pipeline(TINY), tmp_path)[0]
    del prepared.points[5]  # type: ignore[attr-defined]
    crops = CropDataset([prepared], TINY, seed=0, length=8)
    assert all(not crops[n][2][5] and crops[n][2][0] for n in range(8))


def test_crops_are_centred_on_organs_and_mirror_the_sides(
    cases: list[Case], tmp_path: Path
) -> None:
    prepared = prepare_cases(cases[:1], Pipeline(TINY), tmp_path)
    # Only the right parotid (3) is contoured: in a mirrored crop it must become the left one (4).
    only = {3: prepared[0].points[3]}
    label = np.where(np.asarray(prepared[0].label) == 3, 3, 0).astype(np.uint8)
    case = replace(prepared[0], points=only, label=label)
    crops = CropDataset([case], TINY, seed=3, length=60)
    values = [set(torch.unique(crops[n][1]).tolist()) - {0} for n in range(60)]
    contoured = [(bool(crops[n][2][3]), bool(crops[n][2][4])) for n in range(60)]
    assert {3} in values
    assert {4} in values
    assert {3, 4} not in values
    assert sum(bool(v) for v in values) > 40
    for value, (right, left) in zip(values, contoured, strict=True):
        assert right != left
        assert value in (set(), {3} if right else {4})


def test_a_crop_depends_on_its_number_only(cases: list[Case], tmp_path: Path) -> None:
    prepared = prepare_cases(cases, Pipeline(TINY), tmp_path)
    one = CropDataset(prepared, TINY, seed=0, length=10)
    other = CropDataset(prepared, TINY, seed=0, length=10)
    _ = [one[n] for n in range(5)]
    for got, expected in zip(one[7], other[7], strict=True):
        assert torch.equal(got, expected)


def test_an_unreadable_case_is_skipped_and_no_remaining_case_is_an_error(
    cases: list[Case], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"<html>")
    bad = Case("broken", broken, cases[0].label)
    assert len(prepare_cases([cases[0], bad], Pipeline(TINY), tmp_path / "cache")) == 1
    with pytest.raises(TrainingError, match="none of 1 cases can be trained on; broken"):
        prepare_cases([bad], Pipeline(TINY), tmp_path / "cache")


def test_a_label_with_values_of_another_organ_set_is_refused(
    cases: list[Case], tmp_path: Path
) -> None:
    _, label = head_and_neck_phantom(
        0, grid_shape=(48, 48, 40), spacing_mm=(10.0, 10.0, 6.0), labels=TINY.labels
    )
    label.array[label.array == 7] = 33
    write_label(tmp_path / "label.nii.gz", label)
    with pytest.raises(TrainingError, match=r"case_0: the label holds the values \[33\]"):
        prepare_cases(
            [Case("case_0", cases[0].image, tmp_path / "label.nii.gz")], Pipeline(TINY), tmp_path
        )


def test_learning_rate_follows_the_paper_or_a_cosine() -> None:
    step = ScheduleConfig(epochs=150, steps_per_epoch=10, decay_epochs=50)
    rates = [learning_rate(step, epoch * 10) for epoch in (0, 49, 50, 100, 149)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-5])
    cosine = ScheduleConfig(epochs=10, steps_per_epoch=10, decay="cosine", warmup_steps=4)
    assert learning_rate(cosine, 0) == pytest.approx(0.25e-3)
    assert learning_rate(cosine, 50) == pytest.approx(0.5e-3)
    assert learning_rate(cosine, 10, share_of_budget=0.5) == pytest.approx(0.5e-3)


def test_held_out_cases_are_about_one_in_five_and_always_the_same() -> None:
    names = [f"case_{n}" for n in range(1000)]
    assert 150 < sum(is_held_out(name) for name in names) < 250
    made = [Case(name, Path(name), Path(name)) for name in names]
    learn, held_out = split(made)
    assert not {c.image_id for c in learn} & {c.image_id for c in held_out}
    assert split(made[::-1])[1] == held_out[::-1]
