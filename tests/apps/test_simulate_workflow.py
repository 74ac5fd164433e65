"""The whole workflow on real patients: labels over HTTP, trainings, promotions, and no failed inference."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from apps import simulate_workflow
from lib.recipes.schema import OPENKBP

pytestmark = [pytest.mark.server, pytest.mark.campaign]

BRIEF = replace(OPENKBP, schedule=replace(OPENKBP.schedule, steps_per_epoch=15, warmup_steps=0))


def test_labels_become_candidates_that_are_judged_while_infers_go_on(
    shared_data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "brief.yaml"
    recipe.write_text(yaml.safe_dump(BRIEF.as_dict()))
    output = tmp_path / "out"
    conf = {"min_new_labels": "4", "retrain_epochs": "2", "retrain_threads": "2"}
    code = simulate_workflow.main(
        ["--data", str(shared_data / "openkbp"), "--from", "starter", "--cases", "8", "--test", "2",
         "--every", "3", "--infer-every", "6", "--limit-minutes", "60",
         "--recipe", str(recipe), "--output", str(output),
         *(word for pair in conf.items() for word in ("--conf", *pair))]
    )  # fmt: skip
    results = json.loads((output / "rehearsal.json").read_text())
    assert code == 0, results["events"]
    assert results["infers"]["failed"] == []
    assert results["infers"]["answered"] > 10
    assert sum(event["kind"] == "label" for event in results["events"]) == 8
    trainings = results["status"]["history"]["trainings"]
    assert trainings
    assert {run["state"] for run in trainings} <= {"promoted", "rejected"}
    promoted = [run["candidate"] for run in trainings if run["state"] == "promoted"]
    # Each version that was let in has served, after the starter, and none is much worse on cases never seen.
    versions = results["versions"]
    assert [version["version"] for version in versions[1:]] == promoted
    assert all(version["mean_dsc"] > versions[0]["mean_dsc"] - 0.05 for version in versions)
