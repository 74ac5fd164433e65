import json
import subprocess
import sys

import pytest

from apps.support import benchmark_record, machine
from apps.support.benchmark_record import BenchmarkRecord, Section
from apps.support.machine import OtherLoad, _Moment

SECTION = Section(
    "infer",
    "s",
    {"this code": {"median": 2.0, "peak_gib": 1.25}, "MONAI Label": {"median": 160.0}},
    ratios={"infer_vs_monailabel_dynunet": 0.0125},
    notes=("the starter model",),
)


def moments(monkeypatch: pytest.MonkeyPatch, *values: tuple[float, float, float]) -> None:
    """Let the machine's clocks show these values (wall, busy, own) one after the other."""
    following = iter([_Moment(*value) for value in values])
    monkeypatch.setattr(machine._Moment, "now", lambda: next(following))


def test_load_of_others_is_all_load_without_that_of_this_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments(monkeypatch, (0, 100, 5), (10, 118, 13))
    with OtherLoad() as load:
        pass
    assert load.cores == pytest.approx((18 - 8) / 10)
    assert not load.is_quiet


def test_processor_time_of_children_is_that_of_this_program() -> None:
    before = _Moment.now()
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    running = _Moment.now()
    assert running.own_s - before.own_s >= 0.4
    child.communicate(b"\n")
    ended = _Moment.now()
    assert ended.own_s - before.own_s >= 0.4
    assert ended.busy_s - before.busy_s >= 0.4


def test_a_record_of_a_quiet_machine_concludes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_record, "load_at_rest", lambda: 0.02)
    record = BenchmarkRecord("organnet bench")
    record.add(SECTION, OtherLoad())
    written = json.loads(json.dumps(record.as_dict(), allow_nan=False))
    assert written["conclusive"]
    assert written["ratios"] == {"infer_vs_monailabel_dynunet": 0.0125}
    assert written["sections"]["infer"]["rows"]["MONAI Label"] == {"median": 160.0}
    assert written["machine"]["cores"] >= 1
    printed = capsys.readouterr().out
    assert "this code" in printed
    assert "1.25" in printed
    assert "the starter model" in printed


def test_a_record_of_a_busy_machine_does_not_conclude(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_record, "load_at_rest", lambda: 0.02)
    record = BenchmarkRecord("organnet bench")
    load = OtherLoad()
    load.cores = 1.5
    record.add(SECTION, load)
    written = record.as_dict()
    assert not written["conclusive"]
    assert "infer 1.50" in written["why"]
    assert "no conclusion" in capsys.readouterr().out
