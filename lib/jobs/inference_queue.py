"""Queue of inference requests: one computes at a time, in the order of arrival, and a bounded number waits.

Each request of a web server holds one of its threads while it waits. Without a bound, waiting requests would
hold all of them, and the server would not answer a status request any more.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from lib.errors import QueueFullError

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


@dataclass(slots=True)
class _Job:
    image_id: str
    followers: list[Future[Any]] = field(default_factory=list)
    """Equal requests that arrived later, and wait for the result of this one."""


class Turn:
    """The place of one request in the queue: a context manager that can be entered several times.

    While the `with` block runs, no other request computes. A request that enters again, for the next pass of an
    ensemble, waits behind those that have arrived in the meantime.
    """

    def __init__(self, waiting: "deque[Turn]", condition: threading.Condition) -> None:
        self._waiting = waiting
        self._condition = condition

    def __enter__(self) -> Self:
        with self._condition:
            self._waiting.append(self)
            self._condition.wait_for(lambda: self._waiting[0] is self)
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

    def run(
        self,
        key: Hashable,
        work: Callable[[Turn], Result],
        copy: Callable[[Result], Result],
        *,
        image_id: str = "",
    ) -> Result:
        """Return the result of `work`, or a copy of the result of an equal request that has not ended yet.

        Args:
            key: Equal for requests that have the same result.
            work: Computes the result, within `with turn:`.
            copy: Returns a copy of a result; called for each further request with the same key.
            image_id: The image, for `position`.

        Raises:
            QueueFullError: If the queue is full; nothing was computed.
            Exception: What `work` raises, for all requests with the same key.
        """
        with self._condition:
            self._raise_if_full()
            equal = self._jobs.get(key)
            if equal is None:
                self._jobs[key] = _Job(image_id)
            else:
                shared: Future[Result] = Future()
                equal.followers.append(shared)
        return self._compute(key, work, copy) if equal is None else shared.result()

    def state(self) -> QueueState:
        """Return how many requests compute and wait now."""
        with self._condition:
            return self._state()

    def position(self, image_id: str) -> int | None:
        """Return how many computations come before that of an image; None if it has none, 0 while it runs."""
        with self._condition:
            images = [job.image_id for job in self._jobs.values()]
        return images.index(image_id) if image_id in images else None

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
        self, key: Hashable, work: Callable[[Turn], Result], copy: Callable[[Result], Result]
    ) -> Result:
        began = time.monotonic()
        alone = not self._turns
        try:
            result = work(Turn(self._turns, self._condition))
        except BaseException as error:
            for follower in self._end(key):
                follower.set_exception(error)
            raise
        if alone:
            duration_s = time.monotonic() - began
            self._usual_s += _NEWEST_WEIGHT * (duration_s - self._usual_s)
        for follower in self._end(key):
            try:
                follower.set_result(copy(result))
            except BaseException as error:  # noqa: BLE001 - raised in the thread of that request
                follower.set_exception(error)
        return result

    def _end(self, key: Hashable) -> list[Future[Any]]:
        """Take a request out of the queue; return the others that wait for its result."""
        with self._condition:
            return self._jobs.pop(key).followers
