"""All rounds of a simulation, in one process or several; what is over is not done again."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import SimpleITK as sitk
import torch

from lib.errors import ConfigError, TrainingError
from lib.experiments.round_records import Round, RoundKey, places, read_rounds
from lib.experiments.strategy_round import WORK, Simulation, needed_folders, play
from lib.jobs.child_process import PARENT_GONE, end_with_parent
from lib.storage.process_locks import ProcessLock

LOCK = ".simulation.lock"
OnRound = Callable[[Round], object]


def simulate(
    simulation: Simulation, *, processes: int, on_ready: Callable[[str], object], on_round: OnRound
) -> dict[RoundKey, Round]:
    """Return every round; those that are not over are played.

    Args:
        simulation: Which.
        processes: Rounds at once, each on its share of the cores; 1 is this process itself.
        on_ready: Called with the id of each case that is prepared.
        on_round: Called with each round that is over, those of an earlier sitting first.

    Raises:
        ConfigError: If `processes` is below 1, or another process is at work in the folder.
        OrganNetError: What a round raised; the rounds that are over stay.
    """
    if processes < 1:
        raise ConfigError(f"processes must be at least 1, not {processes}")
    with _alone(simulation):
        every = places(simulation.protocol)
        over = read_rounds(simulation.output, every)
        for found in over.values():
            on_round(found)

        def ended(found: Round) -> None:
            over[found.place] = found
            _sweep(simulation, over)
            on_round(found)

        _sweep(simulation, over)
        if len(over) < len(every):
            ids = sorted(simulation.cases)
            if processes == 1:
                for image_id in ids:
                    on_ready(_prepare(simulation, image_id))
                for place in every:
                    if place not in over:
                        ended(play(simulation, place))
            else:
                _together(simulation, processes, over, on_ready=on_ready, ended=ended)
        return {place: over[place] for place in every}


def _together(
    simulation: Simulation,
    processes: int,
    over: dict[RoundKey, Round],
    *,
    on_ready: Callable[[str], object],
    ended: OnRound,
) -> None:
    """Play the rounds that are not over in processes of their own, each as soon as the one before it is."""
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _begin, (threads, os.getpid())
    ) as pool:
        try:
            prepared = {pool.submit(_prepare, simulation, name) for name in simulation.cases}
            for ready in prepared:
                on_ready(ready.result())
            waiting = [place for place in places(simulation.protocol) if place not in over]
            running: set[Future[Round]] = set()
            while waiting or running:
                for place in [p for p in waiting if p.before() is None or p.before() in over]:
                    if len(running) < processes:
                        waiting.remove(place)
                        running.add(pool.submit(play, simulation, place))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    ended(future.result())
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process of the simulation was ended from outside, or ran out of memory; the same command "
                "goes on from the rounds that are over"
            ) from error
        except Exception:
            # What is being played comes to its end, and is kept.
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            raise


def _begin(threads: int, parent: int) -> None:
    """Make a new process ready: its share of the cores, and an end with its parent."""
    # Ctrl-C is for the parent, which ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if os.getppid() != parent:
        os._exit(PARENT_GONE)
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _prepare(simulation: Simulation, image_id: str) -> str:
    simulation.volumes.prepare(image_id)
    return image_id


def _sweep(simulation: Simulation, over: dict[RoundKey, Round]) -> None:
    """Remove weights, checkpoints and scores that no round to come goes on from."""
    needed = needed_folders(simulation.protocol, over)
    work = simulation.output / WORK
    for folder in work.iterdir() if work.is_dir() else ():
        if folder.name not in needed:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(simulation: Simulation) -> Iterator[None]:
    """Hold the folder: two that play the same round would write over each other."""
    claim = ProcessLock(simulation.output / LOCK)
    try:
        if not claim.try_acquire():
            raise ConfigError(
                f"{simulation.output}: another process is at work there; wait for it, or end it"
            )
        yield
    finally:
        claim.close()
