"""The backend of each model version on this machine, chosen by a self-test in the background."""

import hashlib
import json
import logging
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lib.backends.eager import EagerBackend, Precision
from lib.backends.interface import Backend
from lib.backends.openvino import OpenVinoBackend
from lib.config import BackendSetting
from lib.errors import CheckpointError
from lib.inference import self_test
from lib.inference.self_test import REFERENCE, Measurement, choose, machine
from lib.jobs.child_process import start_child
from lib.jobs.supervisor import PeriodicTask, tail
from lib.models.registry import Model
from lib.models.served_model import ServedModel
from lib.storage.atomic_files import make_folder

logger = logging.getLogger(__name__)

CHECK_S = 30.0
"""Time from the start of a server to the self-test, in s, and between checks for a new version."""
VERSIONS_KEPT = 3
"""Number of versions whose files and backends are kept."""
TEST_SCANS = 2
"""Number of scans that the self-test compares, besides a phantom."""
TIMEOUT_S = 3600.0
LOG = "self_test.log"


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend of a version, and why."""

    name: str
    reason: str


class BackendChoice:
    """Gives each model its backend; PyTorch in float32 until the self-test of the version has ended.

    Args:
        folder: Folder of the exported networks and of the results.
        served: The active model.
        setting: `auto` for the fastest backend that agrees, or one backend.
        state: Folder of the lock by which background work waits for inference.
        scans: Returns scans to compare the backends on.
    """

    def __init__(
        self,
        folder: Path,
        served: ServedModel,
        *,
        setting: BackendSetting,
        state: Path,
        scans: Callable[[], Sequence[Path]],
    ) -> None:
        self._folder = folder
        self._served = served
        self._setting = setting
        self._state = state
        self._scans = scans
        self._ready: dict[str, tuple[Choice, Backend | None]] = {}
        self._mutex = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_first_check = True
        self._task = PeriodicTask(
            "backends", self._prepare_active, every_s=CHECK_S,
            error_message="the backends could not be tested",
        )  # fmt: skip

    def start(self) -> "BackendChoice":
        """Start the background thread, and return this object."""
        self._task.start()
        return self

    def stop(self) -> None:
        """End the background thread and a running self-test."""
        child = self._child
        if child is not None and child.poll() is None:
            child.kill()
        self._task.stop()

    def backend_of(self, model: Model) -> Backend:
        """Return the backend of a model, at once."""
        with self._mutex:
            choice, backend = self._ready.get(model.version, (None, None))
        if choice is None and self._setting != REFERENCE:
            self._is_first_check = False
            self._task.wake()
        return backend or self._eager(model, choice)

    def choice_for(self, version: str) -> Choice:
        """Return which backend computes a version now, and why."""
        if self._setting == REFERENCE:
            return Choice(REFERENCE, "set by --conf backend")
        with self._mutex:
            choice, _ = self._ready.get(version, (None, None))
        return choice or Choice(REFERENCE, "the self-test of this version has not ended yet")

    def _eager(self, model: Model, choice: Choice | None) -> Backend:
        precision: Precision = "fp32"
        if choice is not None and choice.name in ("eager-bf16", "eager-fp16"):
            precision = "bf16" if choice.name == "eager-bf16" else "fp16"
        return EagerBackend(model.network, self._served.device, precision)

    def _prepare_active(self) -> None:
        """Choose the backend of the active version, if that has not been done."""
        if self._setting == REFERENCE:
            return
        if self._is_first_check:
            # The start of the server, and its first requests, come first.
            self._is_first_check = False
            return
        try:
            model = self._served.get()
        except CheckpointError:
            return
        if model.version in self._ready:
            return
        choice, backend = self._prepare(model)
        with self._mutex:
            self._ready[model.version] = (choice, backend)
            while len(self._ready) > VERSIONS_KEPT:
                del self._ready[next(iter(self._ready))]
        logger.info("%s: backend %s: %s", model.version, choice.name, choice.reason)

    def _prepare(self, model: Model) -> tuple[Choice, Backend | None]:
        threads = torch.get_num_threads()
        about = machine(self._served.device, threads)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        stem = hashlib.sha256(model.version.encode()).hexdigest()[:16]
        result, onnx_file = self._folder / f"{stem}-{digest}.json", self._folder / f"{stem}.onnx"
        make_folder(self._folder)
        record = _read(result)
        scans = self._scans()[:TEST_SCANS]
        was_without_scan = record is not None and record.get("scans") == 0 and len(scans) > 0
        if record is None or record.get("sha256") != model.card.get("sha256") or was_without_scan:
            result.unlink(missing_ok=True)
            onnx_file.unlink(missing_ok=True)
            record = self._run_self_test(model, result, onnx_file, scans)
        try:
            measurements = [
                Measurement(**{**m, "lost": tuple(m["lost"])}) for m in record["measurements"]
            ]
            choice = Choice(*choose(measurements, self._setting, scans=record["scans"]))
            if not choice.name.startswith("openvino"):
                return choice, None
            precision = choice.name.partition("-")[2] or "f32"
            return choice, OpenVinoBackend(onnx_file, precision=precision, threads=threads)
        except (LookupError, TypeError, RuntimeError, ImportError) as error:
            reason = str(record.get("error") or f"{type(error).__name__}: {error}")
            return Choice(REFERENCE, f"the self-test failed: {reason}"), None

    def _run_self_test(
        self, model: Model, result: Path, onnx_file: Path, scans: Sequence[Path]
    ) -> dict[str, Any]:
        """Run the self-test in a process of its own; return its result, which is kept for this machine."""
        self._remove_old_files()
        threads = torch.get_num_threads()
        flags = ["--weights", str(self._served.registry.weights_path(model.version)),
                 "--onnx", str(onnx_file), "--result", str(result), "--state", str(self._state),
                 "--device", self._served.device, "--threads", str(threads)]  # fmt: skip
        log = self._folder / LOG
        log.unlink(missing_ok=True)
        self._child = start_child(
            self_test.__name__,
            [*flags, *map(str, scans)],
            threads=threads,
            log=log,
            has_pipes=False,
        )
        try:
            code = self._child.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        record = _read(result)
        if record is None:
            # Not kept: the next start of the server tries again.
            lines = tail(log, 1)
            last = lines[0][:200] if lines else "no message"
            record = {"error": f"its process ended with {code}: {last}"}
        return record

    def _remove_old_files(self) -> None:
        """Keep the exported networks and the results of the last versions only."""
        for suffix in (".onnx", ".json"):
            files = sorted(self._folder.glob(f"*{suffix}"), key=lambda f: f.stat().st_mtime)
            for file in files[: -VERSIONS_KEPT + 1]:
                file.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
