"""The whole loop on real patients: labels over HTTP, trainings, rulings, versions, and no failed infer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from apps import rehearse
from lib.recipes import OPENKBP

pytestmark = [pytest.mark.server, pytest.mark.slow]

BRIEF = replace(
    OPENKBP,
    name="brief",
    schedule=replace(OPENKBP.schedule, epochs=3, steps_per_epoch=20, warmup_steps=5),
)


def test_labels_become_versions_that_contour_better(shared_data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "brief.yaml"
    recipe.write_text(yaml.safe_dump(BRIEF.as_dict()))
    output = tmp_path / "out"
    conf = {"min_new_labels": "4", "retrain_epochs": "3", "retrain_learning_rate": "1",
            "retrain_threads": "2", "min_first_dsc": "0.05"}  # fmt: skip
    code = rehearse.main(
        ["--data", str(shared_data / "openkbp"), "--cases", "9", "--test", "2", "--every", "6",
         "--recipe", str(recipe), "--output", str(output), "--limit-minutes", "9",
         *(word for pair in conf.items() for word in ("--conf", *pair))]
    )  # fmt: skip
    found = json.loads((output / "rehearsal.json").read_text())
    assert code == 0, found["events"]
    assert found["infers"]["failed"] == []
    assert found["infers"]["answered"] > 0
    assert sum(event["kind"] == "label" for event in found["events"]) == 9
    ended = [run["state"] for run in found["status"]["history"]["trainings"]]
    assert len(ended) >= 2
    assert set(ended) <= {"promoted", "rejected"}
    versions = found["versions"]
    assert versions[-1]["mean_dsc"] >= versions[0]["mean_dsc"] > 0
    assert found["status"]["labels"]["waiting"] == 0
