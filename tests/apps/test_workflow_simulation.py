import io
from typing import Any

import matplotlib.image
import numpy as np

from apps.support.workflow_simulation import timeline_chart, trainings

EVENTS: list[dict[str, Any]] = [
    {"s": 5.0, "kind": "label", "case": "a"},
    {"s": 10.0, "kind": "training", "id": 1, "state": "queued"},
    {"s": 12.0, "kind": "training", "id": 1, "state": "running"},
    {"s": 70.0, "kind": "training", "id": 1, "state": "promoted"},
    {"s": 71.0, "kind": "serves", "version": "m"},
    {"s": 80.0, "kind": "training", "id": 2, "state": "queued"},
    {"s": 140.0, "kind": "training", "id": 2, "state": "rejected"},
    {"s": 150.0, "kind": "training", "id": 3, "state": "queued"},
]


def test_a_training_lasts_from_its_first_event_to_its_end() -> None:
    assert trainings(EVENTS) == [(10.0, 70.0, "promoted"), (80.0, 140.0, "rejected")]


def test_the_chart_shows_what_happened() -> None:
    pictures = [
        matplotlib.image.imread(io.BytesIO(timeline_chart(events, versions)))
        for events, versions in ((EVENTS, [{"since_s": 71.0, "mean_dsc": 0.6}]), ([], []))
    ]
    full, empty = (np.mean(picture[..., :3] < 0.95) for picture in pictures)
    assert full > 1.5 * empty
