import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.errors import CheckpointError, UnknownModelError
from lib.models.model_history import PROMOTED, REJECTED, STARTER, WAITING, Candidate, ModelHistory
from lib.models.promotion import ELSEWHERE, Promoter
from lib.models.registry import SERVED, Registry, load_model, save_model
from lib.networks.build import build_network
from lib.recipes.schema import OPENKBP, NetworkConfig
from lib.storage.database import Database

TINY = replace(OPENKBP, network=NetworkConfig(width=1))
ROOT = Path(__file__).parents[2]
PromoteInProcess = Callable[[str], int]


def make_model(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    card = {"training": {"seed": seed, "cases": [f"case_{seed}"]}}
    return save_model(folder, build_network(TINY).state_dict(), TINY, card)


@pytest.fixture
def promoter(tmp_path: Path) -> Promoter:
    return open_promoter(tmp_path)


def open_promoter(folder: Path, starter: Path | None = None) -> Promoter:
    return Promoter(
        Registry(folder, starter=starter), ModelHistory(Database(folder / "state.sqlite"))
    )


def damage(promoter: Promoter, version: str) -> None:
    (promoter.registry.folder / f"{version}.safetensors").write_bytes(b"\0" * 100)


def served(promoter: Promoter) -> str | None:
    """Return the served version, which `served.json` and the last promotion agree about."""
    version = promoter.registry.published_version()
    assert [row.version for row in promoter.models.promotions()[:1]] == (
        [version] if version else []
    )
    return version


def decision(promoter: Promoter, version: str) -> str:
    row = promoter.models.get(version)
    assert row is not None
    return row.decision


def promote(promoter: Promoter, *seeds: int) -> list[str]:
    versions = [make_model(promoter.registry.folder, seed) for seed in seeds]
    for version in versions:
        promoter.promote(version, reason="better", by="referee")
    return versions


def test_a_promoted_model_is_active_and_its_row_has_the_reason(promoter: Promoter) -> None:
    first, second = promote(promoter, 1, 2)
    assert served(promoter) == second
    row = promoter.models.get(second)
    assert row is not None
    assert (row.decision, row.reason, row.pending) == (PROMOTED, "better", None)
    assert (row.labels, row.seed) == (
        [{"image_id": "case_2", "version": None, "digest": None}], 2,
    )  # fmt: skip
    last = promoter.models.promotions()[0]
    assert (last.previous, last.reason, last.by) == (first, "better", "referee")
    promoter.promote(second, reason="again", by="ann")
    assert len(promoter.models.promotions()) == 2


def test_damaged_or_unknown_models_are_refused_and_nothing_changes(promoter: Promoter) -> None:
    (good,) = promote(promoter, 1)
    bad = make_model(promoter.registry.folder, 2)
    damage(promoter, bad)
    before = (promoter.registry.folder / SERVED).read_bytes()
    with pytest.raises(CheckpointError, match="not those that the card describes"):
        promoter.promote(bad, reason="better", by="ann")
    for unknown in ("missing", "../x", ".", "", f"../{promoter.registry.folder.name}/{good}"):
        with pytest.raises(UnknownModelError, match="no model has that version"):
            promoter.promote(unknown, reason="better", by="ann")
    assert (promoter.registry.folder / SERVED).read_bytes() == before
    assert served(promoter) == good
    assert [row.version for row in promoter.models.all()] == [good]


def test_rollback_skips_models_that_do_not_load(promoter: Promoter) -> None:
    first, second, third, _ = promote(promoter, 1, 2, 3, 4)
    damage(promoter, third)
    assert promoter.rollback(by="ann", reason="parotids look odd") == second
    assert served(promoter) == second
    last = promoter.models.promotions()[0]
    assert (last.reason, last.by) == ("parotids look odd", "ann")
    row = promoter.models.get(second)
    assert row is not None
    assert row.reason == "better"
    assert promoter.rollback(by="ann") == first
    with pytest.raises(UnknownModelError, match="no version to roll back to"):
        promoter.rollback(by="ann")
    assert served(promoter) == first


def test_rollback_from_the_first_model_goes_to_the_starter(tmp_path: Path) -> None:
    starter = make_model(tmp_path / "starter", 9)
    promoter = open_promoter(tmp_path / "models", tmp_path / "starter")
    promoter.reconcile()
    assert decision(promoter, starter) == STARTER
    with pytest.raises(UnknownModelError, match="before the starter"):
        promoter.rollback(by="ann")
    promote(promoter, 1, 2)
    promoter.rollback(by="ann")
    assert promoter.rollback(by="ann") == starter
    assert served(promoter) == starter
    with pytest.raises(UnknownModelError, match="no version to roll back to"):
        promoter.rollback(by="ann")
    assert decision(promoter, starter) == STARTER


def test_prune_removes_only_weights_that_are_not_needed(promoter: Promoter) -> None:
    folder = promoter.registry.folder
    first, second, third, fourth = promote(promoter, 1, 2, 3, 4)
    waiting, rejected = make_model(folder, 5), make_model(folder, 6)
    promoter.reconcile()
    promoter.models.decide(rejected, decision=REJECTED, reason="worse")
    assert set(promoter.prune(keep=2)) == {first, second, rejected}
    left = {path.stem for path in folder.glob("*.safetensors")}
    assert left == {third, fourth, waiting}
    assert {first, second, rejected} <= {path.stem for path in folder.glob("*.json")}
    rows = {row.version: row.pruned_at for row in promoter.models.all()}
    assert {version for version, at in rows.items() if at} == {first, second, rejected}
    assert promoter.prune(keep=2) == []
    with pytest.raises(CheckpointError, match=r"its weights were removed on .* \(prune\)"):
        promoter.promote(first, reason="", by="ann")
    assert promoter.prune(keep=0) == [third]
    assert served(promoter) == fourth


def test_nothing_is_pruned_while_the_active_model_is_damaged(promoter: Promoter) -> None:
    first, second = promote(promoter, 1, 2)
    damage(promoter, second)
    with pytest.raises(CheckpointError):
        promoter.prune(keep=1)
    load_model(promoter.registry.folder / f"{first}.safetensors")


def test_models_published_without_the_database_get_rows(promoter: Promoter) -> None:
    folder = promoter.registry.folder
    first, second, other = (make_model(folder, seed) for seed in (1, 2, 3))
    promoter.registry.publish(first, reason="the first model")
    promoter.registry.publish(second, reason="mean DSC 0.8 against 0.7")
    promoter.reconcile()
    assert served(promoter) == second
    last = promoter.models.promotions()[0]
    assert (last.reason, last.by) == ("mean DSC 0.8 against 0.7", ELSEWHERE)
    assert [decision(promoter, v) for v in (first, second, other)] == [PROMOTED, PROMOTED, WAITING]
    assert promoter.reconcile() == []
    promoter.registry.publish(other, reason="by hand")
    promoter.reconcile()
    assert served(promoter) == other
    assert decision(promoter, other) == PROMOTED


def test_a_damaged_pointer_is_restored_from_the_promotions(promoter: Promoter) -> None:
    first, second = promote(promoter, 1, 2)
    (promoter.registry.folder / SERVED).write_text('{"vers')
    promoter.reconcile()
    assert served(promoter) == second
    damage(promoter, second)
    (promoter.registry.folder / SERVED).unlink()
    promoter.reconcile()
    assert served(promoter) == first


def test_an_empty_folder_needs_no_change(promoter: Promoter) -> None:
    assert promoter.reconcile() == []
    assert served(promoter) is None


def test_invalid_cards_are_tolerated(promoter: Promoter) -> None:
    version = make_model(promoter.registry.folder, 1)
    path = promoter.registry.folder / f"{version}.json"
    odd = {"recipe": [], "training": 3, "config": {"cases": "x", "code": None}, "created": {}}
    path.write_text(json.dumps({"version": version, **odd}))
    (promoter.registry.folder / "other.json").write_text("[" * 100000)
    (promoter.registry.folder / "train_stats.json").write_text("{}")
    promoter.reconcile()
    assert [row.version for row in promoter.models.all()] == [version]


def test_a_decision_whose_process_died_is_carried_out(promoter: Promoter) -> None:
    promote(promoter, 1)
    version = make_model(promoter.registry.folder, 2)
    promoter.models.record(Candidate(version=version, recipe="tiny"))
    promoter.models.decide(version, decision=PROMOTED, reason="mean DSC 0.9")
    promoter.reconcile()
    assert served(promoter) == version
    assert promoter.models.promotions()[0].reason == "mean DSC 0.9"


def test_a_decision_that_cannot_be_carried_out_becomes_a_rejection(promoter: Promoter) -> None:
    (good,) = promote(promoter, 1)
    bad = make_model(promoter.registry.folder, 2)
    promoter.models.record(Candidate(version=bad, recipe="tiny"))
    promoter.models.decide(bad, decision=PROMOTED, reason="mean DSC 0.9")
    damage(promoter, bad)
    promoter.reconcile()
    assert served(promoter) == good
    row = promoter.models.get(bad)
    assert row is not None
    assert row.decision == REJECTED
    assert "mean DSC 0.9" in row.reason
    assert "not those that the card describes" in row.reason
    assert row.report["earlier_decisions"][0]["decision"] == PROMOTED


def test_a_later_promotion_cancels_a_pending_one(promoter: Promoter) -> None:
    folder = promoter.registry.folder
    first, late = make_model(folder, 1), make_model(folder, 2)
    promoter.models.record(Candidate(version=late, recipe="tiny"))
    promoter.models.decide(late, decision=PROMOTED, reason="better")
    promoter.promote(first, reason="by hand", by="ann")
    promoter.reconcile()
    assert served(promoter) == first
    row = promoter.models.get(late)
    assert row is not None
    assert row.decision == REJECTED
    assert row.reason == f"{first} was promoted by ann before it was active"


@pytest.fixture(scope="module")
def killed_process() -> Iterator[PromoteInProcess]:
    """Return a function that sends a line to `tests/retrain/killed.py` and returns its exit code."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.retrain.killed"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def promote_in_process(line: str) -> int:
            requests.write(line + "\n")
            requests.flush()
            return int(answers.readline())

        yield promote_in_process
        process.kill()


@pytest.mark.parametrize("step", ["decided", "served"])
def test_a_kill_between_two_steps_loses_no_decision(
    tmp_path: Path, killed_process: PromoteInProcess, step: str
) -> None:
    first, second = make_model(tmp_path, 1), make_model(tmp_path, 2)
    assert killed_process(f"{tmp_path} point {first} never") == 0
    assert killed_process(f"{tmp_path} point {second} {step}") == -signal.SIGKILL
    promoter = open_promoter(tmp_path)
    assert promoter.registry.published_version() == (first if step == "decided" else second)
    assert [row.version for row in promoter.models.promotions()] == [first]
    promoter.reconcile()
    assert served(promoter) == second
    last = promoter.models.promotions()[0]
    assert (last.previous, last.reason, last.by) == (first, f"{second} is better", "referee")
    assert promoter.models.pending() == []
    assert promoter.reconcile() == []


def test_a_killed_rollback_is_completed(tmp_path: Path, killed_process: PromoteInProcess) -> None:
    first, second = make_model(tmp_path, 1), make_model(tmp_path, 2)
    for version in (first, second):
        assert killed_process(f"{tmp_path} point {version} never") == 0
    assert killed_process(f"{tmp_path} point {first} decided") == -signal.SIGKILL
    promoter = open_promoter(tmp_path)
    assert promoter.registry.published_version() == second
    promoter.reconcile()
    assert served(promoter) == first


@pytest.mark.long
def test_after_a_kill_at_any_moment_pointer_and_record_agree(
    tmp_path: Path, killed_process: PromoteInProcess
) -> None:
    versions = [make_model(tmp_path, seed) for seed in range(4)]
    assert killed_process(f"{tmp_path} point {versions[0]} never") == 0
    draw = random.Random(0)  # noqa: S311 - moments, not secrets
    killed, whole_s = 0, 0.1
    for number in range(30):
        version = versions[(number + 1) % 4]
        began = time.perf_counter()
        is_killed = (
            killed_process(f"{tmp_path} after {version} {draw.uniform(0, whole_s):.4f}") != 0
        )
        # How long a promotion takes depends on what else the machine does.
        whole_s = whole_s * 1.2 if is_killed else time.perf_counter() - began
        killed += is_killed
        json.loads((tmp_path / SERVED).read_text())
        promoter = open_promoter(tmp_path)
        was_decided = version in [row.version for row in promoter.models.pending()]
        promoter.reconcile()
        now = served(promoter)
        assert now is not None
        assert now == version or not was_decided
        load_model(tmp_path / f"{now}.safetensors")
        assert promoter.models.pending() == []
    assert killed > 5
