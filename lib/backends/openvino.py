"""OpenVINO's computation of a network, on a processor."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.backends.interface import windows_at_once

SHAPES_KEPT = 2
"""Number of window sizes whose programs are kept: the recipe's, and one of a small CT."""


class OpenVinoBackend:
    """A network that OpenVINO compiles for this processor, once for each size of window.

    Several windows are computed at the same time, each by a share of the threads: they need not wait for each
    other after every layer.

    Args:
        path: The network as ONNX (`lib.backends.onnx_files.export_onnx`).
        precision: `f32` or `bf16`.
        threads: Number of threads.

    Raises:
        ImportError: If OpenVINO is not installed.
        RuntimeError: If OpenVINO cannot read the file.
    """

    def __init__(self, path: Path, *, precision: str, threads: int) -> None:
        import openvino

        self.name = "openvino" if precision == "f32" else f"openvino-{precision}"
        self._precision = precision
        self._threads = threads
        self._core = openvino.Core()
        self._network = self._core.read_model(path)
        self._queue: Callable[[Any, int], Any] = openvino.AsyncInferQueue
        self._queues: dict[tuple[int, ...], Any] = {}
        self._one_at_a_time = threading.Lock()

    def run(self, windows: Tensor) -> Tensor:
        """Return the logits of `windows`, on the processor."""
        arrays = np.ascontiguousarray(windows.numpy())
        logits: list[Any] = [None] * len(arrays)

        def keep(request: Any, number: int) -> None:
            logits[number] = request.get_output_tensor().data[0].copy()

        with self._one_at_a_time:
            queue = self._compiled(tuple(arrays.shape[1:]))
            queue.set_callback(keep)
            for number in range(len(arrays)):
                queue.start_async([arrays[number : number + 1]], number)
            queue.wait_all()
        return torch.from_numpy(np.stack(logits))

    def _compiled(self, shape: tuple[int, ...]) -> Any:
        """Return the queue of requests for windows of a shape `(C, X, Y, Z)`; compiling takes a moment."""
        queue = self._queues.pop(shape, None)
        if queue is None:
            while len(self._queues) >= SHAPES_KEPT:
                del self._queues[next(iter(self._queues))]
            streams = min(self._threads, windows_at_once(shape[1:]))
            self._network.reshape([1, *shape])
            compiled = self._core.compile_model(
                self._network,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": self._precision,
                    "INFERENCE_NUM_THREADS": self._threads,
                    "NUM_STREAMS": streams,
                },
            )
            queue = self._queue(compiled, streams)
        self._queues[shape] = queue
        return queue


def openvino_precisions() -> list[str]:
    """Return the precisions that OpenVINO has instructions for on this processor; none if it is missing."""
    try:
        import openvino

        able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (ImportError, RuntimeError):
        return []
    return ["f32", *(["bf16"] if "BF16" in able else [])]
