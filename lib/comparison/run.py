"""A comparison from end to end: train whoever is missing, judge all, write the table."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from lib.comparison.contenders import Contender, train_each
from lib.comparison.outcomes import Outcome, outcome_of
from lib.comparison.report import write_comparison
from lib.comparison.standings import Standing, standings
from lib.errors import OrganNetError, TrainingError
from lib.organs import ORGANS
from lib.training.cases import Case

logger = logging.getLogger(__name__)


def compare(
    everyone: Sequence[Contender],
    command: Sequence[str],
    output: Path,
    held_out: Sequence[Case],
    *,
    device: str,
    jobs: int,
    conditions: Sequence[str],
    on_end: Callable[[Contender, str | None], object],
) -> list[Standing]:
    """Train `everyone`, judge each on `held_out`, and write the comparison into `output`.

    Runs that earlier comparisons left in `output` stand in the table too, so that seeds or networks can be
    added one by one. A run that fails is named in the table, and the others are compared.

    Args:
        everyone: The contenders; the first is the one that the others are compared with.
        command: The program that trains one; see `lib.comparison.contenders.train_each`.
        output: Gets a folder for each run, and `comparison.csv`, `comparison.md` and `comparison.png`.
        held_out: Cases that none of them is trained on.
        device: Where the held-out cases are contoured.
        jobs: Trainings at once.
        conditions: What is the same for all, a sentence each, for the page.
        on_end: Called when a run ends, with why it failed or None.

    Raises:
        TrainingError: If no run came to an end.
    """
    failed: dict[str, str] = {}

    def ended(contender: Contender, why: str | None) -> None:
        if why is not None:
            failed[contender.folder] = why
        on_end(contender, why)

    train_each(everyone, command, output, jobs=jobs, on_end=ended)
    outcomes: list[Outcome] = []
    for folder in _folders(everyone, output):
        if folder.name in failed:
            continue
        try:
            outcomes.append(outcome_of(folder, held_out, device=device))
        except OrganNetError as error:
            failed[folder.name] = str(error)
            logger.warning("not in the comparison: %s", error)
    if not outcomes:
        raise TrainingError("; ".join(f"{run}: {why}" for run, why in failed.items()))
    organs = [name for name in ORGANS if any(r.organ == name for o in outcomes for r in o.rows)]
    found = standings(outcomes, organs)
    write_comparison(output, found, organs, conditions=conditions, failed=failed)
    return found


def _folders(everyone: Sequence[Contender], output: Path) -> list[Path]:
    """Return the folders of the contenders in their order, then those of earlier comparisons."""
    asked = [output / contender.folder for contender in everyone]
    earlier = sorted(path.parent for path in output.glob("*/*.safetensors"))
    return list(dict.fromkeys([*asked, *earlier]))
