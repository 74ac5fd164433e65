"""The thread that has scores computed, one after another, for the model that serves.

Of several servers over one studies folder one does it; when it ends, another takes over. What is computed next
is decided anew each time (`order`), so that a submitted label or a new model counts at once.
"""

import json
import logging
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.activelearning.known import Known
from lib.activelearning.order import Backlog, Work, next_work
from lib.background.priority import fewer_threads
from lib.background.start import start_child
from lib.errors import OrganNetError
from lib.locks import Claim
from lib.state.scores import Computed, Kind, Scores

logger = logging.getLogger(__name__)

LOCK = "scoring.lock"
LOG = "scoring.log"
IDLE_S = 2.0
"""Between two looks where nothing is to be done."""
KEEP_S = 60.0
"""An idle process is ended after so long: it holds a network in memory."""
LIMIT_S = 1800.0
"""For one answer: serving goes first, so a busy day makes it slow; after this the process is taken for hung."""
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Studies:
    """What there is to look at.

    Attributes:
        unlabelled: Images that may be asked for.
        labelled: Image id -> SHA-256 of its final label.
    """

    unlabelled: tuple[str, ...]
    labelled: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where things lie; each raises an `OrganNetError` where there is none.

    Attributes:
        image: Image id -> scan.
        label: SHA-256 -> label.
        model: Version -> weights.
    """

    image: Callable[[str], Path]
    label: Callable[[str], Path]
    model: Callable[[str], Path]


class Scorer:
    """Keeps the scores up to date.

    Args:
        folder: The workflow's.
        scores: Where they are kept.
        known: Where they are read from.
        studies: Returns what there is to look at.
        served: Returns the version that serves.
        files: Where things lie.
        flags: Of the worker process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        scores: Scores,
        known: Known,
        studies: Callable[[], Studies],
        served: Callable[[], str | None],
        files: Files,
        flags: list[str],
    ) -> None:
        self._folder = folder
        self._scores = scores
        self._known = known
        self._studies = studies
        self._served = served
        self._files = files
        self._flags = flags
        self._claim = Claim(folder / LOCK)
        self._wake = threading.Event()
        self._ending = threading.Event()
        # One thread for all its life: a child is told to die with the thread that started it.
        self._thread = threading.Thread(target=self._live, name="scorer", daemon=True)
        self._child: subprocess.Popen[bytes] | None = None
        self._used = 0.0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and the process with it; what it was at is computed again by the next server."""
        self._ending.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._end_child()
        self._claim.release()

    def wake(self) -> None:
        """Look now: something has changed."""
        self._wake.set()

    def _live(self) -> None:
        while not self._ending.is_set():
            try:
                is_busy = self._claim.take() and self.step()
            except Exception:
                # A full disk or a locked database must not end the loop for ever.
                logger.exception("scoring goes on after an error")
                is_busy = False
            if not is_busy:
                if time.monotonic() - self._used > KEEP_S:
                    self._end_child()
                self._wake.wait(IDLE_S)
                self._wake.clear()

    def step(self) -> bool:
        """Compute the next score, if there is one; return whether there was."""
        work = self._next()
        if work is None:
            return False
        try:
            answer = self._ask(self._order(work))
        except OrganNetError as error:
            answer = {"found": {}, "trouble": str(error), "seconds": 0.0}
        except (OSError, ValueError) as error:
            self._end_child()
            if self._ending.is_set():
                return False
            answer = {"found": {}, "trouble": f"its process ended: {error}", "seconds": 0.0}
        if answer["trouble"]:
            logger.warning("%s, %s: %s", work.image_id, work.kind.value, answer["trouble"])
        self._scores.keep(
            Computed(
                image_id=work.image_id,
                model_version=work.model_version,
                kind=work.kind,
                found=answer["found"],
                trouble=answer["trouble"],
                seconds=answer["seconds"],
            )
        )
        return True

    def _next(self) -> Work | None:
        self._known.refresh()
        studies, served = self._studies(), self._served()
        interest = {i: dated.score.entropy for i, dated in self._known.scores(served).items()}
        return next_work(
            Backlog(
                unlabelled=studies.unlabelled,
                labelled=studies.labelled,
                served=served,
                known=self._known.keys(),
                interest=interest,
            )
        )

    def _order(self, work: Work) -> dict[str, Any]:
        order = {
            "kind": work.kind.value,
            "image_id": work.image_id,
            "image": str(self._files.image(work.image_id)),
        }
        if work.kind is Kind.DRAWN:
            order["label"] = str(self._files.label(work.model_version))
        elif work.kind is not Kind.APPEARANCE:
            order["model"] = str(self._files.model(work.model_version))
        return order

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Return the worker's answer.

        Raises:
            OSError: If its process has ended, or does not answer.
        """
        child = self._child_process()
        if child.stdin is None or child.stdout is None:
            raise OSError("no pipes")
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
        deadline = time.monotonic() + LIMIT_S
        while not select.select([child.stdout], [], [], _LOOK_S)[0]:
            if self._ending.is_set():
                raise OSError("the server ends")
            if time.monotonic() > deadline:
                raise OSError(f"no answer within {LIMIT_S:.0f} s")
        line = child.stdout.readline()
        if not line:
            raise OSError(f"exit code {child.wait(10)}; its log is {self._folder / LOG}")
        self._used = time.monotonic()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _child_process(self) -> "subprocess.Popen[bytes]":
        if self._child is None or self._child.poll() is not None:
            with (self._folder / LOG).open("ab") as log:
                self._child = start_child(
                    "lib.activelearning.worker", self._flags, threads=fewer_threads(),
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )  # fmt: skip
        return self._child

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait(10)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
