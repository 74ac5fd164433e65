"""Simulation of active learning: select labels, train, test, round by round, in one process or several.

A finished round is stored and not computed again. An interrupted round is repeated with the same result.
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
import torch

from lib.activelearning.pool import Choice, ScoreKind
from lib.activelearning.selection.catalogue import METHODS
from lib.errors import CheckpointError, ConfigError, TrainingError
from lib.evaluation.metrics import organ_dice
from lib.experiments.pool_scoring import (
    PreparedVolumes,
    build_pool,
    images_to_score,
    read_scores,
    score_pool,
    select_batch,
    write_scores,
)
from lib.experiments.protocol import Protocol, derived_seed, initial_labels
from lib.experiments.round_records import (
    FOLDER,
    START,
    LabelCost,
    Round,
    RoundKey,
    label_cost,
    read_round,
    read_rounds,
    round_keys,
    write_round,
)
from lib.inference.preprocessing import Pipeline
from lib.inference.single_pass import StageTimer, contour_prepared
from lib.jobs.child_process import PARENT_GONE, end_with_parent
from lib.models.registry import Model, load_model, save_model
from lib.storage.process_locks import ProcessLock
from lib.training.cases import Case
from lib.training.run import RunCallbacks, RunOptions, train

LOCK = ".simulation.lock"
WORK = "work"
CACHE = "cache"
RUN = "run"
OnRound = Callable[[Round], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A protocol with its files; small, so that it can be sent to worker processes."""

    protocol: Protocol
    cases: Mapping[str, Case]
    """Image id -> case, of pool and test."""
    output: Path
    """Folder for `rounds`, and for `work` and `cache`, which can be removed after the simulation."""

    @property
    def volumes(self) -> PreparedVolumes:
        """The prepared cases."""
        digests = {**self.protocol.pool, **self.protocol.test}
        cache = self.output / CACHE
        return PreparedVolumes(self.cases, digests, Pipeline(self.protocol.recipe), cache)

    def folder(self, key: RoundKey) -> Path:
        """Return the folder of a round's checkpoint, model and scores, kept as long as they are needed."""
        return self.output / WORK / key.name


def simulate(
    simulation: Simulation, *, processes: int, on_ready: Callable[[str], object], on_round: OnRound
) -> dict[RoundKey, Round]:
    """Return every round; those that are not finished are computed.

    Args:
        simulation: Protocol, cases and output folder.
        processes: Number of parallel rounds, each on an equal share of the cores; 1 uses the calling process.
        on_ready: Called with the id of each prepared case.
        on_round: Called with each finished round, those of an earlier call first.

    Raises:
        ConfigError: If `processes` is below 1, or another process uses the output folder.
        OrganNetError: If a round fails; finished rounds are kept.
    """
    if processes < 1:
        raise ConfigError(f"processes must be at least 1, not {processes}")
    with _locked(simulation.output):
        keys = round_keys(simulation.protocol)
        finished = read_rounds(simulation.output, keys)
        for stored in finished.values():
            on_round(stored)

        def finish(new: Round) -> None:
            finished[new.place] = new
            _remove_unneeded_work(simulation, finished)
            on_round(new)

        _remove_unneeded_work(simulation, finished)
        if len(finished) < len(keys) and processes == 1:
            for image_id in sorted(simulation.cases):
                on_ready(_prepare(simulation, image_id))
            for key in keys:
                if key not in finished:
                    finish(run_round(simulation, key))
        elif len(finished) < len(keys):
            _run_in_processes(simulation, processes, finished, on_ready=on_ready, finish=finish)
        return {key: finished[key] for key in keys}


def run_round(simulation: Simulation, key: RoundKey) -> Round:
    """Return a round; if it is not finished, it is computed and its file written.

    Raises:
        OrganNetError: If it cannot be computed.
    """
    if (finished := read_round(simulation.output, key)) is not None:
        return finished
    protocol, timer = simulation.protocol, StageTimer()
    earlier = _previous_round(simulation, key)
    model = None
    if earlier is not None and (_score_kinds(protocol, key) or protocol.start == "previous"):
        model = _load_round_model(simulation, earlier.place)
    picks = _select_labels(simulation, key, earlier, model, timer)
    labelled = (*(earlier.labelled if earlier else ()), *(pick.image_id for pick in picks))
    initial = model if protocol.start == "previous" else None
    trained = _train(simulation, key, labelled, initial)
    timer.lap("train")
    per_case = evaluate_on_test(trained, simulation.volumes, protocol.test, device=protocol.device)
    timer.lap("test")
    if earlier is None:
        # Every strategy starts with this model: its scores are computed once for all of them.
        images = images_to_score(_score_kinds(protocol, key), pool=protocol.pool, labelled=labelled)
        scores = score_pool(
            simulation.volumes, images, trained, device=protocol.device, earlier_scores={}
        )
        write_scores(simulation.folder(key), scores)
        timer.lap("score")
    labels = (simulation.volumes.read(image_id).label for image_id in labelled)
    result = Round(
        place=key,
        picks=tuple(picks),
        labelled=labelled,
        cost=sum((label_cost(label.array, label.grid) for label in labels), start=LabelCost()),
        per_case=per_case,
        seconds=timer.seconds,
        model_version=trained.version,
        initial_version=initial.version if initial else None,
        steps=int(trained.card["training"]["steps"]),
    )
    write_round(simulation.output, result)
    return result


def evaluate_on_test(
    model: Model, volumes: PreparedVolumes, test: Collection[str], *, device: str
) -> dict[str, dict[str, float]]:
    """Return the DSC by test case and organ, as `lib.training.validate.validate` computes it.

    Organs that a reference does not contain are unknown, and left out.
    """
    per_case = {}
    for image_id in sorted(test):
        case = volumes.read(image_id)
        prediction = contour_prepared(case.prepared, model, device=device).label
        per_case[image_id] = organ_dice(case.label.array, prediction.array, model.recipe.labels)
    return per_case


def _run_in_processes(
    simulation: Simulation,
    processes: int,
    finished: dict[RoundKey, Round],
    *,
    on_ready: Callable[[str], object],
    finish: OnRound,
) -> None:
    """Compute the unfinished rounds in worker processes, each as soon as the round before it is finished."""
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    other_children = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _start_worker, (threads, os.getpid())
    ) as pool:
        try:
            prepared = {pool.submit(_prepare, simulation, name) for name in simulation.cases}
            for future in prepared:
                on_ready(future.result())
            waiting = [key for key in round_keys(simulation.protocol) if key not in finished]
            running: set[Future[Round]] = set()
            while waiting or running:
                for key in [k for k in waiting if k.previous is None or k.previous in finished]:
                    if len(running) < processes:
                        waiting.remove(key)
                        running.add(pool.submit(run_round, simulation, key))
                completed, running = wait(running, return_when=FIRST_COMPLETED)
                for round_future in completed:
                    finish(round_future.result())
        except BrokenProcessPool as error:
            raise TrainingError(
                "a worker process was killed or ran out of memory; repeat the command to continue after the "
                "finished rounds"
            ) from error
        except Exception:
            # Rounds in progress run to their end, and are stored.
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            for child in set(multiprocessing.active_children()) - other_children:
                child.kill()
            raise


def _start_worker(threads: int, parent: int) -> None:
    """Initialise a worker process: its share of the CPU cores, and its end with the parent process."""
    # Ctrl-C reaches the whole process group; the parent handles it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if os.getppid() != parent:
        os._exit(PARENT_GONE)
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _prepare(simulation: Simulation, image_id: str) -> str:
    simulation.volumes.prepare(image_id)
    return image_id


def _remove_unneeded_work(simulation: Simulation, finished: Collection[RoundKey]) -> None:
    """Remove working files, except those of unfinished rounds and of the rounds before them."""
    needed = set()
    for key in round_keys(simulation.protocol):
        if key not in finished:
            needed |= {used.name for used in (key, key.previous) if used is not None}
    work = simulation.output / WORK
    for folder in work.iterdir() if work.is_dir() else ():
        if folder.name not in needed:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Lock the output folder: two processes in it would overwrite each other's rounds."""
    lock = ProcessLock(output / LOCK)
    try:
        if not lock.try_acquire():
            raise ConfigError(
                f"{output}: another simulation uses this folder; wait for it, or stop it"
            )
        yield
    finally:
        lock.close()


def _previous_round(simulation: Simulation, key: RoundKey) -> Round | None:
    """Return the round before this one; None for the start."""
    if key.previous is None:
        return None
    earlier = read_round(simulation.output, key.previous)
    if earlier is None:
        raise TrainingError(
            f"{key.name}: the round before it, {key.previous.name}, is not finished"
        )
    return earlier


def _score_kinds(protocol: Protocol, key: RoundKey) -> set[ScoreKind]:
    """Return the scores that the round's strategy needs; after the start, those that any strategy needs."""
    names = protocol.strategies if key.strategy == START else (key.strategy,)
    return {kind for name in names for kind in METHODS[name].needs}


def _select_labels(
    simulation: Simulation,
    key: RoundKey,
    earlier: Round | None,
    model: Model | None,
    timer: StageTimer,
) -> list[Choice]:
    """Return the labels that this round adds, with the reasons."""
    protocol = simulation.protocol
    if earlier is None:
        ids = initial_labels(protocol.pool, protocol.budgets[0], seed=key.seed)
        reason = "random start, the same for all strategies"
        return [
            Choice(image_id=name, ranked_candidates=len(protocol.pool), why=reason) for name in ids
        ]
    images = images_to_score(
        _score_kinds(protocol, key), pool=protocol.pool, labelled=earlier.labelled
    )
    scores = score_pool(
        simulation.volumes,
        images,
        model,
        device=protocol.device,
        earlier_scores=read_scores(simulation.folder(earlier.place)),
    )
    timer.lap("score")
    pool = build_pool(
        scores, pool=protocol.pool, labelled=earlier.labelled, model_version=earlier.model_version
    )
    choices = select_batch(
        METHODS[key.strategy],
        pool,
        protocol.budgets[key.number] - len(earlier.labelled),
        seed_of=lambda number: derived_seed(key.seed, key.number, number),
    )
    timer.lap("choose")
    return choices


def _train(
    simulation: Simulation, key: RoundKey, labelled: Sequence[str], initial: Model | None
) -> Model:
    """Return the model trained on `labelled`, stored in the round's folder."""
    protocol, folder = simulation.protocol, simulation.folder(key)
    trained = train(
        protocol.recipe,
        [simulation.cases[image_id] for image_id in sorted(labelled)],
        (),
        run_dir=folder / RUN,
        cache_dir=simulation.output / CACHE,
        # The same seed for all strategies: their trainings differ by the labels alone.
        options=RunOptions(seed=derived_seed(key.seed, key.number), device=protocol.device),
        initial=initial,
        callbacks=RunCallbacks(),
    )
    version = save_model(folder, trained.weights, protocol.recipe, trained.card)
    return load_model(folder / f"{version}.safetensors", protocol.device)


def _load_round_model(simulation: Simulation, key: RoundKey) -> Model:
    """Return the model of a finished round."""
    folder = simulation.folder(key)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder}: one model expected, found {len(files)}; remove {key.name}.json and the later rounds of "
            f"its strategy from {simulation.output / FOLDER}, and they are computed again"
        )
    return load_model(files[0], simulation.protocol.device)
