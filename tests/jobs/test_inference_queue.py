import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from lib.errors import CancelledRequestError, QueueFullError, ScanError
from lib.jobs.inference_queue import InferenceQueue, Turn
from tests.waiting import LIMIT_S, wait_until


class Work:
    """Work that lasts until it is allowed to end, and records the order in which it ran."""

    def __init__(self, queue: InferenceQueue) -> None:
        self.queue = queue
        self.order: list[str] = []
        self.may_end = threading.Event()
        self.pool = ThreadPoolExecutor(8)

    def __call__(self, name: str, turn: Turn) -> str:
        with turn:
            self.order.append(name)
            assert self.may_end.wait(LIMIT_S)
        return name

    def start(self, key: str, *, copy: Callable[[str], str] = str.upper) -> "Future[str]":
        """Send a request, and wait until it is in the queue."""
        before = self.queue.state()
        future = self.pool.submit(
            self.queue.run, key, lambda turn: self(key, turn), copy, image_id=key
        )
        expected = before.computing + before.waiting + 1
        wait_until(
            lambda: self.queue.state().computing + self.queue.state().waiting == expected,
            "one more request in the queue",
        )
        wait_until(lambda: bool(self.order), "a request that computes")
        return future


def wait_for_turns(queue: InferenceQueue, number: int) -> None:
    wait_until(lambda: len(queue._turns) == number, f"{number} requests that wait for their turn")


def _position(queue: InferenceQueue, image_id: str) -> int | None:
    place = queue.place(image_id)
    return None if place is None else place.position


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work(InferenceQueue(limit=4))
    yield work
    work.may_end.set()
    work.pool.shutdown()


def test_requests_run_in_the_order_of_their_arrival(work: Work) -> None:
    futures = []
    for number, key in enumerate("abcd"):
        futures.append(work.start(key))
        wait_for_turns(work.queue, number + 1)
    assert [_position(work.queue, key) for key in "abcdx"] == [0, 1, 2, 3, None]
    work.may_end.set()
    assert [future.result(LIMIT_S) for future in futures] == list("abcd")
    assert work.order == list("abcd")


def test_equal_requests_share_one_computation(work: Work) -> None:
    first, second, third = work.start("a"), work.start("a"), work.start("b")
    assert (work.queue.state().computing, work.queue.state().waiting) == (1, 2)
    work.may_end.set()
    assert (first.result(LIMIT_S), second.result(LIMIT_S), third.result(LIMIT_S)) == ("a", "A", "b")
    assert sorted(work.order) == ["a", "b"]
    assert work.queue.run("a", lambda turn: work("a", turn), str.upper) == "a"
    assert sorted(work.order) == ["a", "a", "b"]


def test_a_full_queue_refuses_and_names_the_time_to_wait(work: Work) -> None:
    futures = [work.start(key) for key in "aabc"]
    with pytest.raises(QueueFullError, match=r"4 requests .* try again in 10 s") as refusal:
        work.queue.run("d", lambda turn: work("d", turn), str.upper)
    assert refusal.value.retry_after_s == 10
    with pytest.raises(QueueFullError):
        work.queue.run("a", lambda turn: work("a", turn), str.upper)
    work.may_end.set()
    for future in futures:
        future.result(LIMIT_S)
    assert work.queue.state().waiting == work.queue.state().computing == 0
    assert work.queue.run("d", lambda turn: work("d", turn), str.upper) == "d"


def test_an_error_reaches_all_that_share_the_computation(work: Work) -> None:
    def fail(turn: Turn) -> str:
        work("a", turn)
        raise ScanError("a: not a CT")

    first = work.pool.submit(work.queue.run, "a", fail, str.upper)
    wait_for_turns(work.queue, 1)
    second = work.start("a")
    work.may_end.set()
    for future in (first, second):
        with pytest.raises(ScanError, match="not a CT"):
            future.result(LIMIT_S)
    assert work.queue.run("a", lambda turn: work("a", turn), str.upper) == "a"


def test_a_copy_that_fails_concerns_its_own_request_only(work: Work) -> None:
    def fail(_: str) -> str:
        raise OSError("no space left")

    first = work.start("a", copy=fail)
    second = work.start("a")
    work.may_end.set()
    assert first.result(LIMIT_S) == "a"
    with pytest.raises(OSError, match="no space"):
        second.result(LIMIT_S)
    assert work.queue.state().computing == 0


def test_requests_run_between_the_passes_of_an_ensemble(work: Work) -> None:
    order, between = [], threading.Event()

    def ensemble(turn: Turn) -> str:
        for number in range(2):
            with turn:
                order.append(f"pass {number}")
                if number == 0:
                    assert between.wait(LIMIT_S)
        return "ensemble"

    work.may_end.set()
    running = work.pool.submit(work.queue.run, "ensemble", ensemble, str.upper)
    wait_until(lambda: bool(order), "the first pass")

    def single(turn: Turn) -> str:
        with turn:
            order.append("single")
        return "single"

    other = work.pool.submit(work.queue.run, "single", single, str.upper)
    wait_for_turns(work.queue, 2)
    between.set()
    assert (running.result(LIMIT_S), other.result(LIMIT_S)) == ("ensemble", "single")
    assert order == ["pass 0", "single", "pass 1"]


class Steps:
    """Work with steps: each waits until it is allowed to go on."""

    def __init__(self, queue: InferenceQueue) -> None:
        self.queue = queue
        self.go_on = threading.Semaphore(0)
        self.began: list[str] = []
        self.pool = ThreadPoolExecutor(8)

    def start(self, key: str, request_id: str) -> "Future[str]":
        number = self.queue.state().computing + self.queue.state().waiting
        future = self.pool.submit(
            self.queue.run, key, self.work(key), str.upper, image_id=key, request_id=request_id
        )
        wait_until(
            lambda: self.queue.state().computing + self.queue.state().waiting == number + 1,
            "one more request in the queue",
        )
        return future

    def work(self, key: str) -> Callable[[Turn], str]:
        def run(turn: Turn) -> str:
            with turn:
                for number in range(3):
                    turn.progress.step("network", number, 3)
                    self.began.append(f"{key}{number}")
                    assert self.go_on.acquire(timeout=LIMIT_S)
            return key

        return run


@pytest.fixture
def steps() -> Iterator[Steps]:
    steps = Steps(InferenceQueue(limit=8))
    yield steps
    for _ in range(50):
        steps.go_on.release()
    steps.pool.shutdown()


def test_a_request_is_followed_by_its_id(steps: Steps) -> None:
    first, second = steps.start("a", "one"), steps.start("b", "two")
    wait_until(lambda: steps.began == ["a0"], "the first step")
    place = steps.queue.place(request_id="one")
    assert place is not None
    assert place.progress is not None
    assert (place.position, place.progress.stage, place.progress.total) == (0, "network", 3)
    waiting = steps.queue.place(request_id="two")
    assert waiting is not None
    assert (waiting.position, waiting.progress) == (1, None)
    assert steps.queue.place(request_id="three") is None
    for _ in range(6):
        steps.go_on.release()
    assert (first.result(LIMIT_S), second.result(LIMIT_S)) == ("a", "b")


def test_a_cancelled_request_stops_at_its_next_step_and_the_next_one_begins(steps: Steps) -> None:
    first, second = steps.start("a", "one"), steps.start("b", "two")
    wait_until(lambda: steps.began == ["a0"], "the first step")
    assert steps.queue.cancel("one")
    assert not steps.queue.cancel("one"), "it is no longer in the queue"
    again = steps.start("a", "three")
    for _ in range(1 + 3 + 3):
        steps.go_on.release()
    with pytest.raises(CancelledRequestError):
        first.result(LIMIT_S)
    assert (second.result(LIMIT_S), again.result(LIMIT_S)) == ("b", "a")
    assert steps.began == ["a0", "b0", "b1", "b2", "a0", "a1", "a2"]


def test_a_cancelled_request_that_waits_ends_at_once(steps: Steps) -> None:
    first, second = steps.start("a", "one"), steps.start("b", "two")
    wait_for_turns(steps.queue, 2)
    assert steps.queue.cancel("two")
    with pytest.raises(CancelledRequestError):
        second.result(LIMIT_S)
    assert steps.queue.state().waiting == 0
    for _ in range(3):
        steps.go_on.release()
    assert first.result(LIMIT_S) == "a"


def test_the_computation_goes_on_while_an_equal_request_waits_for_it(steps: Steps) -> None:
    first = steps.start("a", "one")
    second, third = steps.start("a", "two"), steps.start("a", "three")
    assert steps.queue.cancel("one")
    assert steps.queue.cancel("three")
    with pytest.raises(CancelledRequestError):
        third.result(LIMIT_S)
    for _ in range(3):
        steps.go_on.release()
    assert second.result(LIMIT_S) == "A"
    assert first.result(LIMIT_S) == "a"
    assert steps.began == ["a0", "a1", "a2"]


def test_requests_without_an_id_cannot_be_cancelled(steps: Steps) -> None:
    first = steps.start("a", "")
    assert not steps.queue.cancel("")
    for _ in range(3):
        steps.go_on.release()
    assert first.result(LIMIT_S) == "a"
