"""A comparison from end to end: train whoever is missing, judge all, write the table."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from lib.errors import OrganNetError, TrainingError
from lib.experiments.network_ranking import NetworkRank, network_ranks
from lib.experiments.network_report import write_comparison
from lib.experiments.network_results import NetworkResult, result_of
from lib.experiments.network_runs import NetworkRun, train_each
from lib.organs.table import ORGANS
from lib.training.cases import Case

logger = logging.getLogger(__name__)


def compare(
    everyone: Sequence[NetworkRun],
    command: Sequence[str],
    output: Path,
    held_out: Sequence[Case],
    *,
    device: str,
    jobs: int,
    conditions: Sequence[str],
    on_end: Callable[[NetworkRun, str | None], object],
) -> list[NetworkRank]:
    """Train `everyone`, judge each on `held_out`, and write the comparison into `output`.

    Runs that earlier comparisons left in `output` stand in the table too, so that seeds or networks can be
    added one by one. A run that fails is named in the table, and the others are compared.

    Args:
        everyone: The contenders; the first is the one that the others are compared with.
        command: The program that trains one; see `lib.experiments.network_runs.train_each`.
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

    def ended(contender: NetworkRun, why: str | None) -> None:
        if why is not None:
            failed[contender.folder] = why
        on_end(contender, why)

    train_each(everyone, command, output, jobs=jobs, on_end=ended)
    outcomes: list[NetworkResult] = []
    for folder in _folders(everyone, output):
        if folder.name in failed:
            continue
        try:
            outcomes.append(result_of(folder, held_out, device=device))
        except OrganNetError as error:
            failed[folder.name] = str(error)
            logger.warning("not in the comparison: %s", error)
    if not outcomes:
        raise TrainingError("; ".join(f"{run}: {why}" for run, why in failed.items()))
    organs = [name for name in ORGANS if any(r.organ == name for o in outcomes for r in o.rows)]
    found = network_ranks(outcomes, organs)
    write_comparison(output, found, organs, conditions=conditions, failed=failed)
    return found


def _folders(everyone: Sequence[NetworkRun], output: Path) -> list[Path]:
    """Return the folders of the contenders in their order, then those of earlier comparisons."""
    asked = [output / contender.folder for contender in everyone]
    earlier = sorted(path.parent for path in output.glob("*/*.safetensors"))
    return list(dict.fromkeys([*asked, *earlier]))
