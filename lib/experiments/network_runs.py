"""Who takes part in a comparison, and how each is trained: as a process of its own, resumable."""

import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lib.errors import TrainingError

LOG = "train.log"


@dataclass(frozen=True, slots=True, order=True)
class NetworkRun:
    """One run of a comparison.

    Attributes:
        recipe: As it was given: a name, or a YAML file.
        network: A key of `lib.networks.build.NETWORKS`.
        seed: Of the weights and the crops.
    """

    recipe: str
    network: str
    seed: int

    @property
    def folder(self) -> str:
        """Return the name of its folder."""
        return f"{Path(self.recipe).stem}-{self.network}-seed{self.seed}"


def network_runs(
    recipes: Sequence[str], networks: Sequence[str], seeds: Sequence[int]
) -> list[NetworkRun]:
    """Return every recipe with every network and seed; all networks of the first seed first.

    A comparison that is cut short has then seen each network once, not one network three times.
    """
    return [
        NetworkRun(recipe, network, seed)
        for seed in dict.fromkeys(seeds)
        for recipe in dict.fromkeys(recipes)
        for network in dict.fromkeys(networks)
    ]


def train_each(
    everyone: Sequence[NetworkRun],
    command: Sequence[str],
    output: Path,
    *,
    jobs: int,
    on_end: Callable[[NetworkRun, str | None], object],
) -> None:
    """Train every contender in a process of its own, `jobs` at a time, each on its share of the cores.

    A run that fails is told to `on_end`, and the others go on; one that was stopped goes on where it was.

    Args:
        everyone: The contenders.
        command: The program that trains one, with what is the same for all: studies, held-out cases, budget.
        output: Gets a folder for each, with its log.
        jobs: Runs at once.
        on_end: Called with the contender, and with why it failed or None.

    Raises:
        TrainingError: If `jobs` is below 1.
    """
    if jobs < 1:
        raise TrainingError(f"jobs must be at least 1, not {jobs}")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    running: set[subprocess.Popen[bytes]] = set()

    def one(contender: NetworkRun) -> None:
        folder = output / contender.folder
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [
            *("--recipe", contender.recipe, "--network", contender.network),
            *("--seed", str(contender.seed), "--output", str(folder)),
        ]
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
            running.add(process)
            code = process.wait()
            running.discard(process)
        on_end(contender, None if code == 0 else _reason(folder / LOG, code))

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, contender) for contender in everyone]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            for process in list(running):
                process.terminate()
            raise


def _reason(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = [line for line in lines if line.startswith("error: ")] or lines
    return f"exit code {code}: {said[-1] if said else 'it said nothing'} (see {log})"
