"""The real training program, killed with SIGKILL and restarted, compared with an uninterrupted run."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.training.cases import Case
from lib.training.state import CHECKPOINT_FILE
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
EPOCHS = 14
LONG = replace(
    TINY, schedule=replace(TINY.schedule, epochs=EPOCHS, validate_every=4, patience=EPOCHS)
)
"""A recipe that also stores the best weights, so that kills during that write are tested too."""


def start(cases: Sequence[Case], folder: Path, output: str) -> subprocess.Popen[bytes]:
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text(yaml.safe_dump(LONG.as_dict()), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "apps.train", "--studies", str(cases[0].image.parent)),
        *("--recipe", str(recipe), "--device", "cpu", "--seed", "3", "--hold-out", "case_2"),
        *("--output", str(folder / output)),
    ]
    with (folder / f"{output}.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
        )


def kill_when(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> bool:
    """Kill `process` as soon as `is_time` is true; return whether it was still running."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    process.kill()
    process.wait()
    return True


def preparing(run: Path) -> bool:
    """Whether the first case has its HU on disk, and perhaps not yet its label."""
    return any((run / "cache").rglob("hu.npy"))


def writing_a_checkpoint(run: Path) -> bool:
    """Whether a checkpoint, other than the first, is half written."""
    return (run / CHECKPOINT_FILE).exists() and any(run.glob(".writing-*-" + CHECKPOINT_FILE))


def later_than(run: Path, since_ns: int, delay_s: float) -> bool:
    """Whether a checkpoint was written since, `delay_s` ago or more."""
    try:
        written_ns = (run / CHECKPOINT_FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return written_ns > since_ns and time.time_ns() > written_ns + delay_s * 1e9


@pytest.mark.long
def test_a_repeatedly_killed_run_ends_with_bit_identical_weights(
    cases: list[Case], tmp_path: Path
) -> None:
    seed = int(os.environ.get("ORGANNET_KILL_SEED") or time.time_ns() % 1_000_000)
    print(f"ORGANNET_KILL_SEED={seed} repeats these moments")  # noqa: T201 - pytest shows it on failure
    moments = random.Random(seed)  # noqa: S311 - no secret
    run = tmp_path / "killed"
    whole = start(cases, tmp_path, "whole")
    running = start(cases, tmp_path, "killed")
    try:
        kills = int(kill_when(running, lambda: preparing(run)))
        running = start(cases, tmp_path, "killed")
        kills += kill_when(running, lambda: writing_a_checkpoint(run))
        for _ in range(2):
            since_ns, delay_s = time.time_ns(), moments.uniform(0, 0.5)
            running = start(cases, tmp_path, "killed")
            kills += kill_when(running, lambda s=since_ns, d=delay_s: later_than(run, s, d))  # type: ignore[misc]
        running = start(cases, tmp_path, "killed")
        assert running.wait() == 0, (tmp_path / "killed.log").read_text()
        assert whole.wait() == 0, (tmp_path / "whole.log").read_text()
    finally:
        running.kill()
        whole.kill()
    # On a fast machine the run may have ended before the last of the random moments.
    assert kills >= 2

    (first,), (second,) = (list((tmp_path / n).glob("*.safetensors")) for n in ("whole", "killed"))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    uninterrupted, killed_run = (
        json.loads(path.with_suffix(".json").read_text()) for path in (first, second)
    )
    assert uninterrupted["validation"] == killed_run["validation"]
    for before, after in zip(uninterrupted["history"], killed_run["history"], strict=True):
        assert {**before, "spent_s": 0} == {**after, "spent_s": 0}
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("loss")]
    assert curve == [(e["epoch"], pytest.approx(e["loss"])) for e in uninterrupted["history"]]
