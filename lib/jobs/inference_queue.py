"""Queue of inference requests: one computes at a time, in the order of arrival, and a bounded number waits.

Each request of a web server holds one of its threads while it waits. Without a bound, waiting requests would
hold all of them, and the server would not answer a status request any more.

A request with an id can be cancelled by it. Its computation ends at its next step, unless an equal one waits
for the result.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from lib.errors import CancelledRequestError, QueueFullError
from lib.jobs.progress import Progress, ProgressState

Result = TypeVar("Result")

_FIRST_GUESS_S = 10.0
"""Expected duration of a request before one was measured, in s."""
_NEWEST_WEIGHT = 0.3
"""Weight of the newest request in the moving average of the durations."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """The queue at one moment.

    Attributes:
        computing: Number of requests that compute now: 0 or 1.
        waiting: Number of the other requests.
        limit: Largest number of requests at once.
        expected_s: Expected time in s until a request that arrives now is answered.
    """

    computing: int
    waiting: int
    limit: int
    expected_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a request in the queue.

    Attributes:
        position: Number of computations before its own; 0 while it computes.
        progress: Stage of its computation; None while it waits.
    """

    position: int
    progress: ProgressState | None


@dataclass(slots=True)
class _Job:
    image_id: str
    progress: Progress
    leader_id: str
    """Id of the request that computes; empty if it has none."""
    is_leader_waiting: bool = True
    """Whether that request still wants the result."""
    followers: list[tuple[str, Future[Any]]] = field(default_factory=list)
    """Ids of equal requests that arrived later, and wait for the result of this one."""

    def is_of(self, image_id: str, request_id: str) -> bool:
        if request_id:
            ids = [follower_id for follower_id, _ in self.followers]
            return request_id in [*ids, self.leader_id if self.is_leader_waiting else ""]
        return self.image_id == image_id


class Turn:
    """The place of one request in the queue: a context manager that can be entered several times.

    While the `with` block runs, no other request computes. A request that enters again, for the next pass of an
    ensemble, waits behind those that have arrived in the meantime. Waiting ends with an error if the request is
    cancelled.
    """

    def __init__(
        self, waiting: "deque[Turn]", condition: threading.Condition, progress: Progress
    ) -> None:
        self._waiting = waiting
        self._condition = condition
        self.progress = progress

    def __enter__(self) -> Self:
        with self._condition:
            self._waiting.append(self)
            self._condition.wait_for(lambda: self.progress.is_cancelled or self._waiting[0] is self)
            if self.progress.is_cancelled:
                self._waiting.remove(self)
                self._condition.notify_all()
        self.progress.raise_if_cancelled()
        return self

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._waiting.popleft()
            self._condition.notify_all()


class InferenceQueue:
    """Inference requests in the order of their arrival; equal requests share one result.

    Args:
        limit: Largest number of requests at once: one that computes, and those that wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._condition = threading.Condition()
        self._turns: deque[Turn] = deque()
        self._jobs: dict[Hashable, _Job] = {}
        self._usual_s = _FIRST_GUESS_S
        self._usual_stages_s: dict[str, float] = {}

    def run(
        self,
        key: Hashable,
        work: Callable[[Turn], Result],
        copy: Callable[[Result], Result],
        *,
        image_id: str = "",
        request_id: str = "",
    ) -> Result:
        """Return the result of `work`, or a copy of the result of an equal request that has not ended yet.

        Args:
            key: Equal for requests that have the same result.
            work: Computes the result, within `with turn:`.
            copy: Returns a copy of a result; called for each further request with the same key.
            image_id: The image, for `place`.
            request_id: For `place` and `cancel`; chosen by the client, and unknown to others.

        Raises:
            QueueFullError: If the queue is full; nothing was computed.
            CancelledRequestError: If the request was cancelled.
            Exception: What `work` raises, for all requests with the same key.
        """
        with self._condition:
            self._raise_if_full()
            equal = self._jobs.get(key)
            if equal is None:
                job = _Job(image_id, Progress(self._usual_stages_s), request_id)
                self._jobs[key] = job
            else:
                shared: Future[Result] = Future()
                equal.followers.append((request_id, shared))
        return self._compute(key, job, work, copy) if equal is None else shared.result()

    def state(self) -> QueueState:
        """Return how many requests compute and wait now."""
        with self._condition:
            return self._state()

    def place(self, image_id: str = "", *, request_id: str = "") -> Place | None:
        """Return the place of the request with an id, or else of the first one for an image; None if none."""
        with self._condition:
            for position, job in enumerate(self._jobs.values()):
                if job.is_of(image_id, request_id):
                    return Place(position, job.progress.state())
        return None

    def cancel(self, request_id: str) -> bool:
        """Cancel the request with an id; return False if it is not in the queue.

        The request ends at once if it waits, and at the next step of its computation otherwise. The computation
        goes on while an equal request waits for its result.
        """
        with self._condition:
            found = next(
                ((key, job) for key, job in self._jobs.items() if job.is_of("", request_id)), None
            )
            if found is None or not request_id:
                return False
            key, job = found
            if request_id == job.leader_id:
                job.is_leader_waiting = False
            for item in [item for item in job.followers if item[0] == request_id]:
                job.followers.remove(item)
                item[1].set_exception(CancelledRequestError("the request was cancelled"))
            if not job.is_leader_waiting and not job.followers:
                job.progress.cancel()
                # An equal request that arrives now needs a computation of its own.
                del self._jobs[key]
                self._condition.notify_all()
        return True

    def _state(self) -> QueueState:
        number = sum(1 + len(job.followers) for job in self._jobs.values())
        computing = min(1, number)
        expected_s = (len(self._jobs) + 1) * self._usual_s
        return QueueState(computing, number - computing, self._limit, expected_s)

    def _raise_if_full(self) -> None:
        state = self._state()
        if state.computing + state.waiting < self._limit:
            return
        # A place is free when the computing request ends.
        retry_after_s = max(1, math.ceil(self._usual_s))
        raise QueueFullError(
            f"{state.computing + state.waiting} requests for contours are in the queue, as many as it takes; "
            f"try again in {retry_after_s} s",
            retry_after_s,
        )

    def _compute(
        self,
        key: Hashable,
        job: _Job,
        work: Callable[[Turn], Result],
        copy: Callable[[Result], Result],
    ) -> Result:
        began = time.monotonic()
        alone = not self._turns
        try:
            result = work(Turn(self._turns, self._condition, job.progress))
        except BaseException as error:
            for follower in self._end(key, job):
                follower.set_exception(error)
            raise
        job.progress.end()
        self._usual_stages_s = job.progress.seconds
        if alone:
            duration_s = time.monotonic() - began
            self._usual_s += _NEWEST_WEIGHT * (duration_s - self._usual_s)
        for follower in self._end(key, job):
            try:
                follower.set_result(copy(result))
            except BaseException as error:  # noqa: BLE001 - raised in the thread of that request
                follower.set_exception(error)
        return result

    def _end(self, key: Hashable, job: _Job) -> list[Future[Any]]:
        """Take a computation out of the queue; return the other requests that wait for its result."""
        with self._condition:
            if self._jobs.get(key) is job:
                del self._jobs[key]
            return [future for _, future in job.followers]
