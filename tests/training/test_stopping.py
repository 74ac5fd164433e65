from collections.abc import Sequence

import pytest

from lib.training.schedule import StoppingState, should_stop, stopping_state


@pytest.mark.parametrize(
    ("values", "min_delta", "expected"),
    [
        ([], 0.0, StoppingState(None, 0)),
        ([0.5], 0.0, StoppingState(0, 0)),
        ([0.5, 0.6, 0.55], 0.0, StoppingState(1, 1)),
        # An equal value is no gain: the earlier weights stay.
        ([0.6, 0.6, 0.6], 0.0, StoppingState(0, 2)),
        ([0.5, 0.5 + 1e-9], 0.0, StoppingState(1, 0)),
        # Gains below min_delta count once they add up to it.
        ([0.50, 0.51, 0.52, 0.53], 0.02, StoppingState(2, 1)),
        ([0.50, 0.515, 0.5, 0.519], 0.02, StoppingState(0, 3)),
        ([0.0, 0.0], 0.0, StoppingState(0, 1)),
    ],
)
def test_the_best_validation_and_how_many_followed_it(
    values: Sequence[float], min_delta: float, expected: StoppingState
) -> None:
    assert stopping_state(values, min_delta=min_delta) == expected


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([], 1, "goes on"),
        ([0.5], 1, "goes on"),
        ([0.5, 0.5], 1, "stops"),
        ([0.5, 0.4], 2, "goes on"),
        ([0.5, 0.4, 0.45], 2, "stops"),
        ([0.5, 0.4, 0.51], 2, "goes on"),
        ([0.5, 0.4, 0.3, 0.2], 0, "goes on"),
    ],
)
def test_a_run_stops_after_patience_validations_without_a_gain(
    values: Sequence[float], patience: int, expected: str
) -> None:
    stops = should_stop(values, patience=patience, min_delta=0.0)
    assert ("stops" if stops else "goes on") == expected
