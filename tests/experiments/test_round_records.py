from pathlib import Path

import pytest

from lib.errors import StateError
from lib.experiments.round_records import (
    START,
    LabelCost,
    RoundKey,
    label_cost,
    read_round,
    round_keys,
    write_round,
)
from tests.experiments.strategy_rounds import make_protocol, make_round
from tests.phantoms import make_ct


def test_rounds_follow_the_shared_start_seed_by_seed() -> None:
    keys = round_keys(make_protocol("random", "entropy", seeds=2))
    assert len(keys) == 2 * (1 + 2 * 2)
    assert keys[:3] == [RoundKey(0, 0, START), RoundKey(0, 1, "random"), RoundKey(0, 1, "entropy")]
    assert RoundKey(1, 1, "entropy").previous == RoundKey(1, 0, START)
    assert RoundKey(1, 2, "entropy").previous == RoundKey(1, 1, "entropy")
    assert RoundKey(1, 0, START).previous is None


def test_a_round_is_read_as_it_was_written(tmp_path: Path) -> None:
    finished = make_round(
        RoundKey(1, 2, "entropy"), {"a": {"Larynx": 0.1 + 0.2}}, cases=3, voxels=7
    )
    write_round(tmp_path, finished)
    assert read_round(tmp_path, finished.place) == finished
    assert read_round(tmp_path, RoundKey(1, 1, "entropy")) is None
    (tmp_path / "rounds" / f"{finished.place.name}.json").write_text("{}")
    with pytest.raises(StateError, match="remove the file, and the round is computed again"):
        read_round(tmp_path, finished.place)


def test_cost_by_hand() -> None:
    ct = make_ct()
    label = (0 * ct.array_hu).astype("uint8")
    label[2:4, 2:5, 1] = 3
    label[2:4, 2, 6] = 1
    one = label_cost(label, ct.grid)
    assert one == LabelCost(cases=1, slices=2, voxels=8)
    assert one + one == LabelCost(cases=2, slices=4, voxels=16)
