import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib.experiments.click_curve import ClickRow, as_markdown, click_curve, means, write_csv
from lib.models.registry import Model
from lib.recipes.schema import OPENKBP
from tests.phantoms import SPACING_MM, make_ct, make_grid

RECIPE = replace(
    OPENKBP, spacing_mm=SPACING_MM, spacing_tolerance=0.0, hu_windows=((-1000.0, 1000.0),),
    crop_vox=(24, 24, 16),
)  # fmt: skip
ROWS = [
    ClickRow("one", "Brainstem", 0, 0.5),
    ClickRow("one", "Brainstem", 1, 0.7),
    ClickRow("two", "Brainstem", 0, 0.7),
    ClickRow("two", "Brainstem", 1, 0.8),
    ClickRow("two", "Larynx", 0, 0.2),
    ClickRow("two", "Larynx", 1, 0.25),
]


class BoneIsMandible(nn.Module):
    """A network that labels voxels above 400 HU as mandible (7), and all others as background."""

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.full((image.shape[0], 8, *image.shape[2:]), -20.0)
        logits[:, 7] = torch.where(image[:, 0] > 0.4, 3.0, -3.0)
        logits[:, 0] = -logits[:, 7]
        return logits


def test_clicks_repair_an_organ_of_which_the_model_misses_a_part() -> None:
    ct = make_ct(make_grid((40, 36, 24)))
    reference = np.zeros(ct.array_hu.shape, np.uint8)
    reference[(ct.array_hu > 400)] = 7
    found = int((reference == 7).sum())
    # The model cannot see this part, which is as dense as its surroundings.
    reference[16:24, 4:9, 2:8] = 7
    missed = int((reference == 7).sum()) - found
    rows = click_curve(ct, reference, Model("bone", BoneIsMandible(), RECIPE, {}), clicks=3)
    assert [(row.case, row.organ, row.clicks) for row in rows] == [
        ("phantom", "Bone_Mandible", n) for n in range(4)
    ]
    dsc = [row.dsc for row in rows]
    assert dsc[0] == pytest.approx(2 * found / (2 * found + missed))
    assert dsc[0] < dsc[1] < dsc[2] <= dsc[3]


def test_an_equal_contour_needs_no_click() -> None:
    ct = make_ct(make_grid((40, 36, 24)))
    reference = np.where(ct.array_hu > 400, 7, 0).astype(np.uint8)
    rows = click_curve(ct, reference, Model("bone", BoneIsMandible(), RECIPE, {}), clicks=2)
    assert [row.dsc for row in rows] == [1, 1, 1]


def test_means_are_over_the_cases_that_have_the_organ() -> None:
    assert means(ROWS) == {
        "Brainstem": {0: pytest.approx(0.6), 1: pytest.approx(0.75)},
        "Larynx": {0: 0.2, 1: 0.25},
    }


def test_the_table_has_a_row_for_each_organ_and_for_their_mean() -> None:
    assert as_markdown(ROWS).splitlines() == [
        "| organ | cases | no click | 1 click |",
        "|---|---|---|---|",
        "| Brainstem | 2 | 0.600 | 0.750 |",
        "| Larynx | 1 | 0.200 | 0.250 |",
        "| **mean of the organs** |  | 0.400 | 0.500 |",
    ]


def test_the_csv_has_a_line_for_each_number_of_clicks(tmp_path: Path) -> None:
    write_csv(tmp_path / "clicks.csv", ROWS)
    with (tmp_path / "clicks.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[:2] == [["case", "organ", "clicks", "dsc"], ["one", "Brainstem", "0", "0.5000"]]
    assert len(lines) == 1 + len(ROWS)
