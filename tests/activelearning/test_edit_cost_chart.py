import csv
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from lib.activelearning.edit_cost_chart import ORGAN_COLUMNS, edit_chart, write_tables
from lib.activelearning.edit_costs import SubmissionCost, summary
from tests.activelearning.edited import curve, edited, organ

RED = (0xB5, 0x33, 0x1B)


def pixels(rows: list[SubmissionCost]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return the chart as `(height, width, 3)`, 0 to 255."""
    picture = imread(BytesIO(edit_chart(summary(rows))))
    return np.asarray(np.rint(255 * picture[..., :3]), np.uint8)


def lines(rows: list[SubmissionCost]) -> int:
    """Return the number of vertical lines in the chart's lower half, including its axis."""
    is_drawn = pixels(rows)[360:600].max(axis=-1) < 215
    is_line = is_drawn.sum(axis=0) >= 20
    return int((is_line[1:] & ~is_line[:-1]).sum())


def test_each_new_model_is_marked_by_a_line() -> None:
    def submitted(*versions: str) -> list[SubmissionCost]:
        return [edited(10, hour=h, model_version=f"net-{v}") for h, v in enumerate(versions)]

    without_change = lines(submitted("a", "a", "a", "a", "a", "a"))
    assert lines(submitted("a", "a", "b", "b", "c", "c")) == without_change + 2
    assert lines(submitted("a", "a", "b", "b", "a", "a")) == without_change + 2
    assert lines(submitted("a", "b", "b", "b", "b", "b")) == without_change + 1


def test_the_running_median_starts_at_the_fifth_submission() -> None:
    def red(rows: list[SubmissionCost]) -> int:
        return int((np.abs(pixels(rows).astype(int) - RED).max(axis=-1) < 24).sum())

    assert red(curve(10, 20, 30, 40)) == 0
    assert red(curve(10, 20, 30, 40, 50, 60)) > 100


def test_a_chart_without_submissions_is_drawn() -> None:
    failed = [edited(None)]
    assert pixels([]).shape == pixels(failed).shape
    assert (pixels(failed) != pixels(curve(1))).any()


def test_the_csv_tables_contain_the_values_of_the_summary(tmp_path: Path) -> None:
    rows = [
        *curve(10, 20),
        edited({"Larynx": organ(7.5), "SpinalCord": organ(0, is_left_out=True)}, hour=2),
        edited(None, hour=3),
    ]
    paths = write_tables(tmp_path / "out", summary(rows))
    assert [path.name for path in paths] == ["edit-cost.csv", "edit-cost-organs.csv"]
    with paths[0].open(newline="", encoding="utf-8") as file:
        submissions = list(csv.DictReader(file))
    assert [row["added_path_mm"] for row in submissions] == ["10", "20", "7.5", ""]
    assert submissions[2]["left_out"] == "SpinalCord"
    assert submissions[3]["trouble"] == "the scan is gone"
    assert submissions[3]["counts"] == "False"
    with paths[1].open(newline="", encoding="utf-8") as file:
        organs = {row["organ"]: row for row in csv.DictReader(file)}
    assert list(organs) == ["Brainstem", "Larynx"]
    assert [organs["Brainstem"][key] for key in ("n", "added_path_mm")] == ["2", "15.0"]
    assert set(organs["Larynx"]) == {"organ", *ORGAN_COLUMNS}
