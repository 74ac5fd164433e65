"""A simulation as files: the numbers as CSV, the page as Markdown and HTML, the learning curves as PNG."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lib.activelearning.selection.catalogue import METHODS
from lib.experiments.conclusion import conclusion
from lib.experiments.protocol import Protocol
from lib.experiments.strategy_charts import learning_curves
from lib.experiments.strategy_ranking import Curve, Pair, StrategyRank, pairs, strategy_ranks
from lib.experiments.strategy_tables import (
    HEAD,
    PAIR_HEAD,
    cells,
    pair_cells,
    pair_rows,
    round_rows,
    standing_rows,
)
from lib.reports.html_page import figure, page
from lib.storage.atomic_files import replacing

PICTURE = "learning-curves.png"
TITLE = "Query strategies compared"
_NOTES = (
    "Mean DSC: over the organs' means over the test cases. An organ that a reference does not contain is "
    "unknown and left out; one that was not found counts as 0.",
    "AUBC: area under the curve of mean DSC over the number of labelled cases, by the trapezoid rule, over its "
    "width (as in nnActive, Lueth et al., TMLR 2025); by voxels: the same over foreground voxels, within what "
    "all strategies of a seed spent. Mean ± sample standard deviation over seeds.",
    "Cases, slices, voxels: price of the labels after the last round, mean over seeds; slices and voxels are "
    "those of the CT that hold an organ. Asking: scores and choices of a round, without the scores of the "
    "shared start.",
    "Tested: each test case's AUBC of its mean DSC, seeds averaged; Wilcoxon's signed-rank test over the test "
    "cases, two-sided, Holm's correction for all pairs. This takes the trained models as given: it says "
    "whether other patients would see the same of them. Whether other first labels and weights would give the "
    "same is what the interval over seeds says (t, paired, not corrected). A rank test over a few seeds could "
    "not be significant (three seeds: p 0.25 at best), so none is made.",
    "A strategy beats another where p is below 0.05 and the interval over seeds excludes 0.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    found: Sequence[Curve]
    lines: Sequence[StrategyRank]
    pairs: Sequence[Pair]
    said: Sequence[str]
    conditions: Sequence[str]
    command: str


def write_report(
    output: Path,
    protocol: Protocol,
    found: Sequence[Curve],
    *,
    conditions: Sequence[str],
    command: str,
) -> list[str]:
    """Write `report.html`, `report.md`, the picture and three tables into `output`; return the conclusion.

    Args:
        output: A folder.
        protocol: What was simulated.
        found: What `lib.experiments.strategy_ranking.curves` returned; not empty.
        conditions: What was the same for all, a sentence each.
        command: What was typed.
    """
    lines, every = strategy_ranks(found), pairs(found)
    said = conclusion(lines, every)
    seeds = len({curve.seed for curve in found})
    if seeds < protocol.seeds:
        shown = f"Not over: {seeds} of {protocol.seeds} seeds have all their rounds, and are shown."
        said = [shown, *said]
    content = _Content(
        found=found, lines=lines, pairs=every, said=said, conditions=conditions, command=command
    )
    picture = learning_curves(found)
    with replacing(output / PICTURE) as beside:
        beside.write_bytes(picture)
    _write_csv(output / "standings.csv", standing_rows(lines))
    _write_csv(output / "pairs.csv", pair_rows(every))
    _write_csv(output / "rounds.csv", round_rows(found))
    with replacing(output / "report.md") as beside:
        beside.write_text(_markdown(content), encoding="utf-8")
    with replacing(output / "report.html") as beside:
        beside.write_text(page(TITLE, _html(content, picture)), encoding="utf-8")
    return said


def _markdown(content: _Content) -> str:
    first, *others = content.said
    parts = [
        f"# {TITLE}",
        "",
        f"![Mean DSC over labelled cases and over labelled voxels]({PICTURE})",
        "",
        " ".join([f"**{first}**", *others]),
        "",
        *(f"- {sentence}" for sentence in content.conditions),
        "",
        "```sh",
        content.command,
        "```",
        "",
        *_table(HEAD, [cells(line, emphasis="**{}**") for line in content.lines]),
        "",
        *_table(PAIR_HEAD, [pair_cells(pair) for pair in content.pairs]),
        "",
        *(f"{note}\n" for note in _NOTES),
        "Every round: [rounds.csv](rounds.csv); these tables: [standings.csv](standings.csv), "
        "[pairs.csv](pairs.csv).",
    ]
    return "\n".join(parts) + "\n"


def _html(content: _Content, picture: bytes) -> str:
    found = content.found
    seeds = len({curve.seed for curve in found})
    caption = f"Learning curves; thick: mean over seeds ({seeds}), thin: each seed."
    first, *others = content.said
    return "\n".join(
        [
            f"<h1>{TITLE}</h1>",
            f"<p><b>{_code(first)}</b></p>",
            *(f"<p>{_code(sentence)}</p>" for sentence in others),
            figure(1, picture, caption, alt="learning curves"),
            _html_table(
                "Table 1. The strategies, the largest area first.",
                HEAD,
                [cells(line) for line in content.lines],
            ),
            _html_table(
                "Table 2. Every two of them; the first less the second.",
                PAIR_HEAD,
                [pair_cells(pair) for pair in content.pairs],
            ),
            "<h2>Conditions</h2><ul class='notes'>",
            *(f"<li>{_code(sentence)}</li>" for sentence in content.conditions),
            f"<li><code>{escape(content.command)}</code></li></ul>",
            "<h2>Strategies</h2><ul class='notes'>",
            *(_strategy(name) for name in dict.fromkeys(curve.strategy for curve in found)),
            "</ul><h2>First choices of the first seed</h2><ul class='notes'>",
            *(_first_choice(curve) for curve in found if curve.seed == found[0].seed),
            "</ul><h2>Definitions</h2><ul class='notes'>",
            *(f"<li>{escape(note)}</li>" for note in _NOTES),
            "</ul>",
        ]
    )


def _strategy(name: str) -> str:
    method = METHODS[name]
    paper = f"; {method.paper}" if method.paper else ""
    return f"<li><code>{escape(name)}</code>: {escape(method.description + paper)}.</li>"


def _first_choice(curve: Curve) -> str:
    pick = curve.rounds[1].picks[0]
    return f"<li><code>{escape(curve.strategy)}</code>: {escape(pick.image_id)}, {escape(pick.why)}.</li>"


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _code(sentence: str) -> str:
    """Return a sentence as HTML; what stands between backticks is a name."""
    parts = escape(sentence).split("`")
    return "".join(f"<code>{p}</code>" if n % 2 else p for n, p in enumerate(parts))
