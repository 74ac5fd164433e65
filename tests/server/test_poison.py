"""Labels that are wrong in bulk, on real patients: a model trained on them is not promoted."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lib.config import default_starter_dir
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_ct, read_label, write_label
from lib.imaging.volumes import LabelVolume
from lib.organs.table import mirror_values
from lib.recipes.schema import OPENKBP
from tests.server.running import Server, running
from tests.waiting import wait_until

pytestmark = [pytest.mark.server, pytest.mark.campaign]

CLEAN = ("pt_16", "pt_24", "pt_31", "pt_48")
POISONED = ("pt_59", "pt_66", "pt_72", "pt_83")
"""Cases that the starter was not trained on (model/starter/README.md)."""
BRIEF = replace(OPENKBP, schedule=replace(OPENKBP.schedule, steps_per_epoch=30, warmup_steps=0))
CONF = {"doubted_may_judge": "off", "starter_dir": str(default_starter_dir()),
        "retrain_epochs": "2", "retrain_learning_rate": "1", "retrain_threads": "2"}  # fmt: skip
MIRRORED = np.array(mirror_values(OPENKBP.labels), np.uint8)

Poison = Callable[[LabelArray], LabelArray]


def submit(
    server: Server, data: Path, cases: Sequence[str], poison: Poison | None, file: Path
) -> list[str]:
    """Submit labels as a client does; return the server's warnings about them."""
    doubts = []
    for case in cases:
        grid = read_ct(data / case / "ct.nii.gz", image_id=case).grid
        array, _ = read_label(data / case / "label.nii.gz", image_id=case, image_grid=grid)
        write_label(file, LabelVolume(poison(array) if poison else array, grid, OPENKBP.labels))
        answer = server.ask(
            "PUT",
            f"/datastore/label?image={case}&tag=final",
            files={"label": (file.name, file.read_bytes())},
            data={"params": json.dumps({"client_id": "poisoner"})},
        )
        assert answer.status_code == 200, answer.text
        doubts += answer.json()["doubts"]
    return doubts


def outcome_of_training(server: Server) -> str:
    assert server.ask("POST", "/train/organnet25d", json={}).status_code == 200

    def status() -> dict[str, Any]:
        payload: dict[str, Any] = server.ask("GET", "/organnet/status").json()
        return payload

    wait_until(lambda: status()["training"] is None, "the training ends", context=server.end_of_log)
    run = status()["history"]["trainings"][-1]
    return f"{run['state']}: {run['outcome']}"


def served(server: Server) -> str:
    return str(server.ask("GET", "/organnet/status").json()["served"]["version"])


def test_a_model_trained_on_poisoned_labels_is_rejected(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "openkbp"
    (tmp_path / "studies").mkdir()
    for case in (*CLEAN, *POISONED):
        (tmp_path / "studies" / f"{case}.nii.gz").write_bytes(
            (data / case / "ct.nii.gz").read_bytes()
        )
    recipe = tmp_path / "brief.yaml"
    recipe.write_text(yaml.safe_dump(BRIEF.as_dict()))
    with running(tmp_path, conf={**CONF, "recipe": str(recipe)}) as server:
        before = served(server)
        assert submit(server, data, CLEAN, None, tmp_path / "label.nii.gz") == []
        for poison in (lambda a: MIRRORED[a], lambda a: np.roll(a, 5, axis=0)):
            doubts = submit(server, data, POISONED, poison, tmp_path / "label.nii.gz")
            assert len(doubts) >= len(POISONED)
            outcome = outcome_of_training(server)
            assert outcome.startswith("rejected: "), outcome
            assert served(server) == before
        rejected = server.ask("GET", "/organnet/models/").json()["models"]
        assert [m["decision"] for m in rejected if m["version"] != before] == ["rejected"] * 2


def test_without_usable_evaluation_cases_the_candidate_is_rejected(
    shared_data: Path, tmp_path: Path
) -> None:
    data = shared_data / "openkbp"
    (tmp_path / "studies").mkdir()
    for case in POISONED:
        (tmp_path / "studies" / f"{case}.nii.gz").write_bytes(
            (data / case / "ct.nii.gz").read_bytes()
        )
    recipe = tmp_path / "brief.yaml"
    brief = replace(BRIEF, schedule=replace(BRIEF.schedule, steps_per_epoch=2))
    recipe.write_text(yaml.safe_dump(brief.as_dict()))
    with running(tmp_path, conf={**CONF, "recipe": str(recipe), "retrain_epochs": "1"}) as server:
        before = served(server)
        submit(server, data, POISONED, lambda a: MIRRORED[a], tmp_path / "label.nii.gz")
        outcome = outcome_of_training(server)
        assert outcome.startswith("rejected: no usable evaluation case"), outcome
        assert served(server) == before
