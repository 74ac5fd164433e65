"""Accuracy against clicks: the DSC of each organ after a number of simulated clicks.

Protocol of Sakinis et al. (2019) and DeepEdit (Diaz-Pinto et al. 2022): the model contours the case; then each
click is made in the middle of the largest error that is left, and all clicks so far correct the contour.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.backends.eager import EagerBackend
from lib.backends.interface import Backend
from lib.evaluation.metrics import dice
from lib.imaging.quantities import LabelArray, MaskArray
from lib.imaging.volumes import CtVolume
from lib.inference.resampling import Box
from lib.inference.single_pass import contour
from lib.models.registry import Model
from lib.prompts.guided import ClickGuided
from lib.prompts.kept_runs import KeptRun
from lib.prompts.organ_prompts import OrganPrompts
from lib.prompts.refinement import Prompt
from lib.prompts.service import RunKeeper, box_of, click_guided, corrected
from lib.prompts.simulated_clicks import next_click
from lib.storage.atomic_files import replacing

CLICKS = (0, 1, 3, 5)
"""Numbers of clicks that are reported."""
_MARGIN_VOX = 2
_HEADER = ("case", "organ", "clicks", "dsc")


@dataclass(frozen=True, slots=True)
class ClickRow:
    """DSC of one organ of one case after a number of clicks."""

    case: str
    organ: str
    clicks: int
    dsc: float


def click_curve(
    ct: CtVolume,
    reference: LabelArray,
    model: Model,
    *,
    backend: Backend | None = None,
    clicks: int = max(CLICKS),
) -> list[ClickRow]:
    """Return the DSC after 0, 1, ... `clicks` simulated clicks, for each organ that the reference has.

    Args:
        ct: The scan.
        reference: `(X, Y, Z)` on its voxels, with the values of the model's labels; an organ without a voxel is
            unknown, and left out.
        model: The model.
        backend: Computes its network; by default PyTorch.
        clicks: Largest number of clicks for one organ.
    """
    keeper = RunKeeper(ct)
    run = keeper.run(contour(ct, model, backend=backend, on_probabilities=keeper.take))
    network = backend or EagerBackend.usual(model.network, "cpu")

    def guide(prompts: OrganPrompts, box: Box) -> ClickGuided | None:
        return click_guided(run, prompts, model, box, network) if model.recipe.has_clicks else None

    rows = []
    for organ, value in model.recipe.labels.items():
        expected = reference == value
        if expected.any():
            scores = _scores(run, expected, organ, value, clicks=clicks, guide=guide)
            rows += [ClickRow(ct.image_id, organ, n, score) for n, score in enumerate(scores)]
    return rows


def _scores(
    run: KeptRun,
    expected: MaskArray,
    organ: str,
    value: int,
    *,
    clicks: int,
    guide: Callable[[OrganPrompts, Box], ClickGuided | None],
) -> list[float]:
    mask = run.label.array == value
    prompts: list[Prompt] = []
    scores = [dice(expected, mask)]
    for _ in range(clicks):
        click = _next_click(expected, mask, run)
        if click is not None:
            prompts.append(click)
            wanted = OrganPrompts(organ=organ, prompts=prompts)
            box = box_of(wanted, run.ct, image_id=run.ct.image_id)
            mask = run.label.array == value
            mask[box], _ = corrected(run, wanted, value, box, guided=guide(wanted, box))
        scores.append(dice(expected, mask))
    return scores


def _next_click(expected: MaskArray, mask: MaskArray, run: KeptRun) -> Prompt | None:
    """Return the next simulated click; searched where one of the masks is, with a margin."""
    box = _bounding_box(expected | mask)
    click = next_click(expected[box], mask[box], run.ct.grid.spacing_mm)
    if click is None:
        return None
    return Prompt(click.voxels + [side.start for side in box], click.is_add)


def _bounding_box(mask: MaskArray) -> Box:
    sides = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        start, stop = int(inside[0]) - _MARGIN_VOX, int(inside[-1]) + 1 + _MARGIN_VOX
        sides.append(slice(max(0, start), stop))
    return (sides[0], sides[1], sides[2])


def means(rows: Iterable[ClickRow]) -> dict[str, dict[int, float]]:
    """Return organ -> number of clicks -> mean DSC over the cases."""
    values: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        values.setdefault(row.organ, {}).setdefault(row.clicks, []).append(row.dsc)
    return {
        organ: {clicks: float(np.mean(dsc)) for clicks, dsc in by_clicks.items()}
        for organ, by_clicks in values.items()
    }


def as_markdown(rows: Sequence[ClickRow], shown: Sequence[int] = CLICKS) -> str:
    """Return the table of mean DSC: a row for each organ, and one for their mean."""
    table = means(rows)
    numbers = [n for n in shown if all(n in by_clicks for by_clicks in table.values())]
    cases = {organ: sum(r.organ == organ and r.clicks == 0 for r in rows) for organ in table}
    lines = [
        "| organ | cases | " + " | ".join(_clicks(n) for n in numbers) + " |",
        "|---|---|" + "---|" * len(numbers),
    ]
    lines += [_line(organ, str(cases[organ]), table[organ], numbers) for organ in table]
    if table:
        mean = {n: float(np.mean([by_clicks[n] for by_clicks in table.values()])) for n in numbers}
        lines.append(_line("**mean of the organs**", "", mean, numbers))
    return "\n".join(lines)


def _clicks(number: int) -> str:
    return {0: "no click", 1: "1 click"}.get(number, f"{number} clicks")


def _line(name: str, cases: str, dsc: Mapping[int, float], numbers: Sequence[int]) -> str:
    return f"| {name} | {cases} | " + " | ".join(f"{dsc[n]:.3f}" for n in numbers) + " |"


def write_csv(path: Path, rows: Iterable[ClickRow]) -> None:
    """Write one line for each case, organ and number of clicks."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows((r.case, r.organ, r.clicks, f"{r.dsc:.4f}") for r in rows)
