"""Transfer of arrays between two threads, one of which may be a reader that means harm."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import numpy as np
import pytest

from lib.isolation.array_transfer import (
    Array,
    ArrayReceiver,
    ArrayStream,
    ArrayTooLargeError,
    ArrayTransferError,
    Arrived,
)
from lib.isolation.transfer_window import PART_BYTES, PARTS, WINDOW_BYTES, mapped, new_window

LONG_S = 600.0


class Link:
    """Both ends of a transfer."""

    def __init__(self) -> None:
        self.window = new_window()
        self.ours, self.theirs = socket.socketpair()
        self.announced: Queue[Any] = Queue()
        self.stream = ArrayStream(self.announced.put, self.theirs, self.window)

    def receive(self, arrived: Arrived | None = None, *, within_s: float = LONG_S) -> Array:
        """Return the array that is announced next."""
        receiver = ArrayReceiver(
            self.ours, self.window, limit_bytes=2**30, deadline=time.monotonic() + within_s
        )
        return receiver.receive(self.announced.get(timeout=LONG_S), arrived)

    def close(self) -> None:
        """Close all that is open."""
        self.ours.close()
        self.theirs.close()
        os.close(self.window)


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.close()


def meanwhile(send: Callable[[], object]) -> threading.Thread:
    """Run the reader's side in a thread."""
    thread = threading.Thread(target=send)
    thread.start()
    return thread


def numbers(*shape: int) -> Array:
    """Return an array in which each value names its place."""
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape, order="F")


# --- what arrives


@pytest.mark.parametrize(
    "shape",
    [(1,), (7, 5, 3), (512, 512, 30), (2000, 1500, 2), (3, 5, 300_000), (2_000_000,), (2, 3, 4, 90_000)],
)  # fmt: skip
def test_each_voxel_arrives_and_is_shown_once(link: Link, shape: tuple[int, ...]) -> None:
    array = numbers(*shape)
    shown: list[tuple[int, int]] = []
    copies: list[Array] = []

    def arrived(whole: Array, start: int, stop: int) -> None:
        shown.append((start, stop))
        copies.append(whole[..., start:stop].copy(order="F"))

    thread = meanwhile(lambda: link.stream.send(array))
    received = link.receive(arrived)
    thread.join()
    np.testing.assert_array_equal(received, array)
    np.testing.assert_array_equal(np.concatenate(copies, axis=-1), array)
    assert [start for start, _ in shown] == [0, *(stop for _, stop in shown[:-1])]
    assert shown[-1][1] == shape[-1]


def test_pieces_of_any_size_follow_each_other_over_several_arrays(link: Link) -> None:
    sizes = [1, 1000, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * WINDOW_BYTES + 5]
    arrays = [np.arange(size, dtype=np.uint8) for size in (sum(sizes), 3, sum(sizes))]

    def send() -> None:
        for array in arrays:
            link.stream.begin(array.shape, array.dtype)
            start = 0
            for size in [*sizes, array.size]:
                link.stream.write(array[start : start + size])
                start += size

    thread = meanwhile(send)
    receiver = ArrayReceiver(
        link.ours, link.window, limit_bytes=2**30, deadline=time.monotonic() + LONG_S
    )
    for array in arrays:
        np.testing.assert_array_equal(receiver.receive(link.announced.get(timeout=LONG_S)), array)
    thread.join()


def test_more_voxels_than_announced_are_not_sent(link: Link) -> None:
    link.stream.begin((3,), np.dtype(np.uint8))
    with pytest.raises(ArrayTransferError, match="4 bytes, 3 are missing"):
        link.stream.write(np.zeros(4, np.uint8))


# --- a reader that means harm


def test_size_of_the_window_cannot_be_changed(link: Link) -> None:
    for size in (0, WINDOW_BYTES - 1, WINDOW_BYTES + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(link.window, size)
    # What a process may free are pages, in whose place others are: access does not fail.
    link.stream.begin((5,), np.dtype(np.uint8))
    link.stream.write(np.ones(5, np.uint8))
    assert link.receive().sum() == 5


def test_array_that_was_received_does_not_change_with_the_window(link: Link) -> None:
    array = numbers(WINDOW_BYTES // 4)
    thread = meanwhile(lambda: link.stream.send(array))
    received = link.receive()
    thread.join()
    mapped(link.window, writable=True)[:] = b"\xff" * WINDOW_BYTES
    np.testing.assert_array_equal(received, array)


def test_server_cannot_write_into_the_window(link: Link) -> None:
    with pytest.raises(TypeError, match="read-only"):
        mapped(link.window, writable=False)[0] = 1


def test_a_new_window_holds_nothing_of_another_reader(link: Link) -> None:
    mapped(link.window, writable=True)[:] = b"\xff" * WINDOW_BYTES
    other = new_window()
    assert bytes(mapped(other, writable=False)) == bytes(WINDOW_BYTES)
    os.close(other)


def test_more_signals_than_parts_do_no_harm(link: Link) -> None:
    link.announced.put({"shape": [3 * WINDOW_BYTES + 1], "dtype": "|u1"})
    link.theirs.sendall(bytes(10 * PARTS))
    assert link.receive().shape == (3 * WINDOW_BYTES + 1,)


def test_reader_that_ends_before_all_voxels_arrived_is_noticed(link: Link) -> None:
    link.announced.put({"shape": [WINDOW_BYTES], "dtype": "|u1"})
    link.theirs.sendall(bytes(PARTS - 1))
    link.theirs.close()
    with pytest.raises(ArrayTransferError, match=rf"{WINDOW_BYTES - PART_BYTES} bytes of"):
        link.receive()


def test_reader_that_ends_after_all_voxels_has_sent_its_array(link: Link) -> None:
    array = numbers(PARTS * PART_BYTES // 4)
    link.stream.send(array)
    link.theirs.close()
    np.testing.assert_array_equal(link.receive(), array)


@pytest.mark.parametrize("sent", [0, 1, 200])
def test_deadline_ends_the_wait_for_a_reader_that_sends_nothing_or_never_listens(
    link: Link, sent: int
) -> None:
    link.announced.put({"shape": [(sent + 1) * PART_BYTES], "dtype": "|u1"})
    link.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    link.theirs.sendall(bytes(sent))
    receiver = ArrayReceiver(
        link.ours, link.window, limit_bytes=2**30, deadline=time.monotonic() + 0.2
    )
    with pytest.raises(TimeoutError):
        receiver.receive(link.announced.get(timeout=LONG_S))


def test_deadline_also_ends_a_transfer_that_goes_on(link: Link) -> None:
    link.stream.send(numbers(100))
    with pytest.raises(TimeoutError):
        link.receive(within_s=0)


@pytest.mark.parametrize(
    "description",
    [None, [], {}, {"shape": [0], "dtype": "|u1"}, {"shape": [-5], "dtype": "|u1"},
     {"shape": [True], "dtype": "|u1"}, {"shape": [2.0], "dtype": "|u1"}, {"shape": [], "dtype": "|u1"},
     {"shape": [1] * 5, "dtype": "|u1"}, {"shape": [2**31], "dtype": "|u1"}, {"shape": "12", "dtype": "|u1"},
     {"shape": [2], "dtype": "|O"}, {"shape": [2], "dtype": ">i2"}, {"shape": [2], "dtype": ["|u1"]}],
)  # fmt: skip
def test_description_that_is_wrong_is_refused(link: Link, description: object) -> None:
    link.announced.put(description)
    with pytest.raises(ArrayTransferError):
        link.receive()


def test_array_above_the_limit_is_refused_before_memory_is_used(link: Link) -> None:
    link.announced.put({"shape": [2**30, 2**30, 2**30, 2**30], "dtype": "|u1"})
    with pytest.raises(ArrayTooLargeError):
        link.receive()


def test_reader_notices_that_the_server_has_ended(link: Link) -> None:
    link.ours.close()
    with pytest.raises((ArrayTransferError, OSError)):
        link.stream.send(numbers(WINDOW_BYTES))
