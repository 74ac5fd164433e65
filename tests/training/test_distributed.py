"""Two processes under the real `torchrun`, against one process."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from torch import nn

from apps import train
from lib.errors import ConfigError
from lib.training.cases import Case
from lib.training.distributed import SINGLE_PROCESS, PooledBatchNorm, ProcessGroup, join_processes
from lib.training.state import CHECKPOINT_FILE
from tests.tiny import TINY
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
QUIET = replace(
    TINY,
    network=replace(TINY.network, dropout=0.0),
    schedule=replace(TINY.schedule, epochs=4, batch_size=4, learning_rate=1e-7),
)
"""Without dropout, and slow: Adam would enlarge what rounding leaves of gradients near zero."""


def test_a_batch_that_cannot_be_shared_is_refused_with_both_numbers() -> None:
    assert ProcessGroup(0, 2).share_of(4) == 2
    with pytest.raises(ConfigError, match="batch_size 3 cannot be divided equally by 2 processes"):
        ProcessGroup(0, 2).share_of(3)


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes("cpu") as group:
        assert (group.rank, group.size, group.is_first) == (0, 1, True)
        assert group.sum([1.0, 2.0]) == [1.0, 2.0]
        assert group.from_first("x") == "x"


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with (
        pytest.raises(ConfigError, match="each process takes its own GPU; give --device cuda"),
        join_processes("cuda:0"),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    none_left = "process 2 of this machine has no GPU: there are 1"
    with pytest.raises(ConfigError, match=none_left), join_processes("cuda"):
        pass


def test_pooled_batch_normalisation_is_torchs_where_a_process_is_alone() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm3d(3)
    nn.init.normal_(plain.weight)
    pooled = PooledBatchNorm.like(plain, SINGLE_PROCESS)
    assert pooled.state_dict().keys() == plain.state_dict().keys()
    for _ in range(2):
        x = torch.randn(2, 3, 4, 5, 6) * 3 + 1
        results = []
        for norm in (plain, pooled):
            own = x.clone().requires_grad_()
            norm.zero_grad()
            y = norm(own)
            y.pow(3).sum().backward()
            assert own.grad is not None
            results.append((y.detach(), own.grad, norm.weight.grad, norm.bias.grad))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(pooled.state_dict()[key], value)
    plain.eval()
    pooled.eval()
    torch.testing.assert_close(pooled(x), plain(x))


def arguments(cases: list[Case], folder: Path, output: str) -> list[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(QUIET.as_dict()), encoding="utf-8")
    studies = cases[0].image.parent
    return [
        *("--studies", str(studies), "--recipe", str(recipe), "--device", "cpu"),
        *("--precision", "float32", "--hold-out", "case_2", "--output", str(folder / output)),
    ]


def torchrun(flags: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, "--nproc-per-node", "2", "-m", "apps.train", *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.long
def test_two_processes_learn_the_weights_of_one_even_after_a_crash(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessGroup, "with_pooled_statistics", with_own_normalisation)
    assert train.main(arguments(cases, tmp_path, "one")) == 0
    flags = arguments(cases, tmp_path, "two")
    first = torchrun(flags)
    try:
        while not (tmp_path / "two" / CHECKPOINT_FILE).exists():
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.01)
        workers = [
            child
            for child in psutil.Process(first.pid).children()
            if {"-m", "apps.train"} <= set(child.cmdline())
        ]
        # They are started in the order of their ranks.
        _, second_rank = sorted(workers, key=lambda worker: worker.create_time())
        second_rank.kill()
        captured, _ = first.communicate(timeout=LIMIT_S)
    finally:
        first.kill()
    assert first.returncode != 0, captured
    assert not [w for w in workers if w.is_running() and w.status() != psutil.STATUS_ZOMBIE]

    second = torchrun(flags)
    try:
        captured, _ = second.communicate(timeout=LIMIT_S)
    finally:
        second.kill()
    assert second.returncode == 0, captured
    assert captured.count("model: ") == 1
    assert "processes: 2" in captured
    one, two = (
        torch.load(tmp_path / name / CHECKPOINT_FILE, weights_only=True) for name in ("one", "two")
    )
    assert one["epoch"] == two["epoch"] == 4
    for single, shared in zip(one["history"], two["history"], strict=True):
        assert shared["loss"] == pytest.approx(single["loss"], abs=2e-6)
    for key, value in one["network"].items():
        torch.testing.assert_close(two["network"][key], value, rtol=0, atol=1e-5, msg=key)
    # What Adam remembers is the mean of the gradients.
    single, shared = (
        torch.cat([stored["exp_avg"].flatten() for stored in saved["optimizer"]["state"].values()])
        for saved in (one, two)
    )
    assert float((shared - single).norm()) < 1e-3 * float(single.norm())


def with_own_normalisation(_: ProcessGroup, network: nn.Module) -> nn.Module:
    """Return the network with our batch normalisation: torch's rounds more coarsely on a CPU."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(network, name, PooledBatchNorm.like(child, SINGLE_PROCESS))
        else:
            with_own_normalisation(_, child)
    return network
