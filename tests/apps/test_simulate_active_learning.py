"""The whole simulation on generated patients: paired, counted right, and the same after a kill."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from apps import simulate_active_learning as program
from lib.experiments.pool_scoring import PreparedVolumes
from lib.experiments.simulation import evaluate_on_test
from lib.imaging.scans import read_ct, read_label
from lib.inference.preprocessing import Pipeline
from lib.models.registry import Model, load_model
from lib.training.cases import digest_of, find_labelled_cases
from lib.training.validate import validate
from phantom.cohort import write_cohort
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
STRATEGIES = ("random", "failure_first")
QUICK = replace(TINY, schedule=replace(TINY.schedule, epochs=1))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Volumes this small gain nothing from a second thread, and the killed process has one as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "studies"
    write_cohort(folder, recipe=TINY, cases=7, labelled=7, seed=3, dicom_cases=0)
    recipe = folder.parent / "quick.yaml"
    recipe.write_text(yaml.safe_dump(QUICK.as_dict()), encoding="utf-8")
    return folder


def arguments(studies: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--data", str(studies), "--recipe", str(studies.parent / "quick.yaml")),
        *("--strategies", *STRATEGIES, "--seeds", "2", "--budgets", "2", "3", "4"),
        *("--pool", "5", "--test", "2", "--device", "cpu", "--output", str(output), *more),
    ]


@pytest.fixture(scope="module")
def undisturbed(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    assert program.main(arguments(studies, output)) == 0
    return output


def rounds(output: Path) -> dict[str, Mapping[str, Any]]:
    """Every round, without the time it took."""
    return {
        path.stem: {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
        for path in (output / "rounds").glob("*.json")
    }


def test_strategies_of_a_seed_start_alike_and_no_case_is_asked_for_twice(undisturbed: Path) -> None:
    records = rounds(undisturbed)
    assert len(records) == 2 * (1 + 2 * 2)
    assert {record["initial_version"] for record in records.values()} == {None}
    for seed in range(2):
        start = records[f"seed{seed}-round0-start"]["labelled"]
        assert len(start) == 2
        for strategy in STRATEGIES:
            last = records[f"seed{seed}-round2-{strategy}"]["labelled"]
            assert last[:2] == start
            assert len(set(last)) == len(last) == 4
            assert last[:3] == records[f"seed{seed}-round1-{strategy}"]["labelled"]


def test_the_test_cases_are_never_asked_for(undisturbed: Path) -> None:
    protocol = json.loads((undisturbed / "protocol.json").read_text())
    assert len(protocol["test"]) == 2
    for record in rounds(undisturbed).values():
        assert set(record["labelled"]) <= set(protocol["pool"])
        assert set(record["per_case"]) == set(protocol["test"])


def test_cost_is_that_of_the_files(undisturbed: Path, studies: Path) -> None:
    cases = {case.image_id: case for case in find_labelled_cases(studies)}
    for record in rounds(undisturbed).values():
        labels = []
        for name in record["labelled"]:
            grid = read_ct(cases[name].image, image_id=name).grid
            labels.append(read_label(cases[name].label, image_id=name, image_grid=grid)[0])
        assert record["cost"] == {
            "cases": len(labels),
            "slices": sum(int((label.max(axis=(0, 1)) > 0).sum()) for label in labels),
            "voxels": sum(int((label > 0).sum()) for label in labels),
        }


def test_weights_are_removed_when_no_round_needs_them(undisturbed: Path) -> None:
    assert not list((undisturbed / "work").iterdir())


def test_report_is_there(undisturbed: Path) -> None:
    page = (undisturbed / "report.md").read_text()
    assert "5 pool cases and 2 test cases" in page
    assert "The baseline `random_foreground` was not included" in page
    with (undisturbed / "rounds.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 2 * 3
    records = rounds(undisturbed)
    (last,) = (
        row
        for row in table
        if (row["strategy"], row["seed"], row["cases"]) == ("failure_first", "1", "4")
    )
    record = records["seed1-round2-failure_first"]
    assert int(last["voxels"]) == record["cost"]["voxels"]
    dsc = [list(organs.values()) for organs in record["per_case"].values()]
    assert float(last["dsc"]) == pytest.approx(float(np.mean(dsc)), abs=1e-4)
    assert (undisturbed / "report.html").stat().st_size > 20_000
    assert (undisturbed / "learning-curves.png").read_bytes().startswith(b"\x89PNG")


def test_killed_and_started_again_it_comes_to_the_same(
    undisturbed: Path, studies: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "apps.simulate_active_learning"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *arguments(studies, tmp_path / "out")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        first = tmp_path / "out" / "rounds" / "seed0-round1-random.json"
        while process.poll() is None and not first.exists():
            time.sleep(0.002)
        process.kill()
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in first.parent.glob("seed*.json")}
    assert 2 <= len(before) < 10, (tmp_path / "log").read_text()
    assert program.main(arguments(studies, tmp_path / "out")) == 0
    assert rounds(tmp_path / "out") == rounds(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_options_are_refused(
    undisturbed: Path, studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = rounds(undisturbed)
    assert program.main(arguments(studies, undisturbed, "--steps", "5")) == 1
    errors = capsys.readouterr().err
    assert "error: " in errors
    assert "recipe: schedule steps_per_epoch stored 2, requested 5" in errors
    assert program.main(arguments(studies, undisturbed, "--from", "previous")) == 1
    assert 'start: stored "scratch", requested "previous"' in capsys.readouterr().err
    assert rounds(undisturbed) == before


def test_report_alone_trains_nothing(
    undisturbed: Path, studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(arguments(studies, tmp_path, "--report-only")) == 1
    assert "0 of 10 rounds are finished" in capsys.readouterr().out
    (undisturbed / "report.md").unlink()
    assert program.main(arguments(studies, undisturbed, "--report-only")) == 0
    assert (undisturbed / "report.md").exists()


def test_testing_a_round_gives_the_numbers_of_validation(studies: Path, tmp_path: Path) -> None:
    cases = find_labelled_cases(studies)[:2]
    pipeline = Pipeline(QUICK)
    volumes = PreparedVolumes(
        {case.image_id: case for case in cases},
        {case.image_id: digest_of(case) for case in cases},
        pipeline,
        tmp_path,
    )
    for case in cases:
        volumes.prepare(case.image_id)
    starter = load_model(next((ROOT / "model" / "starter").glob("*.safetensors")))
    model = Model("m", starter.network, replace(starter.recipe, spacing_mm=QUICK.spacing_mm), {})
    per_case = evaluate_on_test(model, volumes, [case.image_id for case in cases], device="cpu")
    assert per_case == validate(model, cases, device="cpu").per_case
    assert {organ for dsc in per_case.values() for organ in dsc} == set(QUICK.labels)


@pytest.mark.campaign
def test_several_processes_and_warm_starts(studies: Path, tmp_path: Path) -> None:
    more = ("--processes", "2", "--from", "previous", "--budgets", "2", "3")
    assert program.main(arguments(studies, tmp_path, *more)) == 0
    records = rounds(tmp_path)
    assert len(records) == 2 * (1 + 2)
    for seed in range(2):
        start = records[f"seed{seed}-round0-start"]
        assert start["initial_version"] is None
        for strategy in STRATEGIES:
            record = records[f"seed{seed}-round1-{strategy}"]
            assert record["initial_version"] == start["model_version"] != record["model_version"]
    assert not list((tmp_path / "work").iterdir())
