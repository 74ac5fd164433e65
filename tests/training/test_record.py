import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from lib.training import record
from lib.training.cases import Case
from lib.training.run import RunCallbacks, RunOptions, train
from lib.training.state import CHECKPOINT_FILE
from tests.tiny import TINY


def test_one_record_is_reported_and_stored_with_checkpoint_and_card(
    cases: list[Case], tmp_path: Path
) -> None:
    started: list[object] = []
    trained = train(
        TINY,
        cases[:2],
        cases[2:],
        run_dir=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        options=RunOptions(seed=7, epochs=1),
        callbacks=RunCallbacks(on_start=started.append),
    )
    written = yaml.safe_load((tmp_path / "run" / record.RECORD_FILE).read_text(encoding="utf-8"))
    stored = torch.load(tmp_path / "run" / CHECKPOINT_FILE, weights_only=True)["record"]
    assert started == [written]
    assert stored == written == trained.card["config"]
    assert written["options"]["seed"] == 7
    assert written["recipe"]["schedule"]["epochs"] == 1
    assert written["recipe"]["network"]["dropout"] == 0.1
    assert list(written["cases"]) == ["case_0", "case_1"]
    assert list(written["validation_cases"]) == ["case_2"]
    assert len({*written["cases"].values(), *written["validation_cases"].values()}) == 3
    assert written["versions"]["torch"] == torch.__version__
    assert written["machine"]["processes"] == 1


def test_the_commit_is_recorded_in_a_checkout_only(tmp_path: Path) -> None:
    assert record._commit(tmp_path) == {"commit": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "code.py").write_text("x = 1\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    commit = record._commit(tmp_path)
    assert (len(commit["commit"]), commit["is_changed"]) == (40, False)
    (tmp_path / "code.py").write_text("x = 2\n")
    assert record._commit(tmp_path)["is_changed"] is True
    (tmp_path / "installed").mkdir()
    assert record._commit(tmp_path / "installed") == {"commit": None}


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record._commit(tmp_path) == {"commit": None}


def test_a_record_flattens_to_dotted_names() -> None:
    nested = {"recipe": {"network": {"width": 16, "dilations": [1, 2]}}, "initial": None}
    assert record.flattened(nested) == {
        "recipe.network.width": 16,
        "recipe.network.dilations": [1, 2],
        "initial": None,
    }
    assert json.loads(json.dumps(yaml.safe_load(record.as_yaml(nested)))) == nested
