"""Clients that send requests continuously: labels, corrections, removals, infer and status."""

import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests

from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import LabelVolume
from tests.chaos.ledger import CaseLedger, Event, RequestOutcome, voxels_of
from tests.chaos.stage import Stage
from tests.server.running import TINY, small_ct
from tests.waiting import LIMIT_S

CASES = 12
SUBMITTERS = 2
PAUSE_S = 0.3
REQUEST_LIMIT_S = LIMIT_S
ADOPTED_WITHIN_S = 300.0
"""Limit in s; the server adopts a copied file once it is unchanged for 2 s, and looks every 2 s."""
ORGANS = ("Brainstem", "Parotid_L")

_Refused = requests.RequestException
"""What a client gets from a server that is killed."""


class Load:
    """Client threads that work on the cases independently until they are paused.

    Args:
        stage: The folders and the server that receives the requests.
        seed: Seed of the requests; their timing depends on the machine.
    """

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.cases = [CaseLedger(f"case_{number:02d}") for number in range(CASES)]
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self._go = threading.Event()
        self._over = threading.Event()
        self._locks: list[threading.Lock] = []
        self._threads: list[threading.Thread] = []
        (stage.folder / "made").mkdir(exist_ok=True)
        self.submitters = [
            Submitter(self, self.cases[number::SUBMITTERS], seed=seed + number)
            for number in range(SUBMITTERS)
        ]
        for submitter in self.submitters:
            self._run(submitter.step)
        self._run(RequestingClient(self, seed=seed + SUBMITTERS).step)

    def resume(self) -> None:
        """Let the clients send requests."""
        self._go.set()

    def pause(self) -> None:
        """Stop sending, and return when no request is pending."""
        self._go.clear()
        for lock in self._locks:
            with lock:
                pass

    def end(self) -> None:
        """End the clients."""
        self._over.set()
        self._go.set()
        for thread in self._threads:
            thread.join()

    def ask(self, what: str, method: str, path: str, **given: Any) -> requests.Response | None:
        """Return the answer to a request; None where the server died before or during it."""
        try:
            answer = requests.request(
                method, self.stage.url + path, timeout=REQUEST_LIMIT_S, **given
            )
        except requests.Timeout:
            self.wrong.append(f"{what}: no answer within {REQUEST_LIMIT_S:g} s")
            return None
        except _Refused:
            return None
        self.done[what] += 1
        return answer

    def _run(self, step: Callable[[], None]) -> None:
        lock = threading.Lock()

        def live() -> None:
            while not self._over.is_set():
                self._go.wait()
                with lock:
                    if self._go.is_set() and not self._over.is_set():
                        self._step(step)
                time.sleep(PAUSE_S)

        thread = threading.Thread(target=live, daemon=True)
        self._locks.append(lock)
        self._threads.append(thread)
        thread.start()

    def _step(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a client that ended silently would test nothing
            self.wrong.append(f"a client failed: {error!r}")


class Submitter:
    """A client that submits, corrects and removes the labels of its own cases."""

    def __init__(self, load: Load, cases: Sequence[CaseLedger], *, seed: int) -> None:
        self._load = load
        self._cases = cases
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._voxels = np.random.default_rng(seed)
        self._copied_at: dict[str, float] = {}

    def step(self) -> None:
        """Make one change to one case."""
        self._check_copied_in()
        free = [case for case in self._cases if not case.is_waiting]
        if not free:
            return
        case = self._chance.choice(free)
        new = [case for case in self._cases if not case.is_there]
        if new and self._chance.random() < 0.5:
            case = new[0]
        if not case.is_there:
            self._submit_scan(case)
        if not case.is_there:
            return
        what = self._chance.random()
        if what < 0.08 and case.is_labelled:
            self._remove(case)
        elif what < 0.18:
            self.copy_in(case)
        else:
            self._submit(case, is_new=what < 0.95 or not case.is_labelled)

    def copy_in_any(self) -> None:
        """Copy in a label of one of the cases while no server is watching."""
        there = [case for case in self._cases if case.is_there and not case.is_waiting]
        if there:
            self.copy_in(self._chance.choice(there))

    def copy_in(self, case: CaseLedger) -> None:
        """Copy a label file into the studies folder by hand, without a request to the server."""
        file = self._make_label(case)
        target = self._load.stage.studies / "labels" / "final" / f"{case.image_id}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        case.events.append(Event(voxels_of(file), RequestOutcome.COPIED_IN))
        self._copied_at[case.image_id] = time.monotonic()
        self._load.done["copied in by hand"] += 1

    def _submit_scan(self, case: CaseLedger) -> None:
        file = self._load.stage.folder / "made" / f"{case.image_id}.nii.gz"
        if not file.exists():
            write_ct(file, small_ct(case.image_id))
        with file.open("rb") as content:
            answer = self._load.ask(
                "scan", "PUT", f"/datastore/?image={case.image_id}", files={"file": content}
            )
        case.is_there = self._is_good(answer, f"{case.image_id}: scan")

    def _submit(self, case: CaseLedger, *, is_new: bool) -> None:
        file = self._label_file(case)
        if is_new or not file.exists():
            file = self._make_label(case)
        event = Event(voxels_of(file), RequestOutcome.UNKNOWN)
        case.events.append(event)
        info = [{"name": name, "idx": TINY.labels[name]} for name in ORGANS]
        with file.open("rb") as content:
            answer = self._load.ask(
                "label",
                "PUT",
                f"/datastore/label?image={case.image_id}&tag=final",
                files={"label": (file.name, content)},
                data={"params": json.dumps({"label_info": info})},
            )
        if self._is_good(answer, f"{case.image_id}: label"):
            event.outcome = RequestOutcome.ANSWERED

    def _remove(self, case: CaseLedger) -> None:
        event = Event(None, RequestOutcome.UNKNOWN)
        case.events.append(event)
        answer = self._load.ask(
            "removal", "DELETE", f"/datastore/label?id={case.image_id}&tag=final"
        )
        if self._is_good(answer, f"{case.image_id}: removal"):
            event.outcome = RequestOutcome.ANSWERED

    def _check_copied_in(self) -> None:
        for case in self._cases:
            if not case.is_waiting:
                continue
            answer = self._load.ask("history", "GET", f"/organnet/labels/{case.image_id}")
            if answer is None:
                # The server is gone: the waiting time starts again.
                self._copied_at[case.image_id] = time.monotonic()
            elif answer.status_code == 200 and self._is_adopted(case, answer.json()):
                case.events[-1].outcome = RequestOutcome.ANSWERED
            elif time.monotonic() - self._copied_at[case.image_id] > ADOPTED_WITHIN_S:
                self._load.wrong.append(
                    f"{case.image_id}: a file copied in by hand is no version yet"
                )

    def _is_adopted(self, case: CaseLedger, history: list[dict[str, Any]]) -> bool:
        path = self._load.stage.state / "labels" / history[-1]["sha256"][:2]
        return voxels_of(path / f"{history[-1]['sha256']}.nii.gz") == case.events[-1].voxels

    def _is_good(self, answer: requests.Response | None, what: str) -> bool:
        if answer is None:
            return False
        if answer.status_code != 200:
            self._load.wrong.append(f"{what}: {answer.status_code} {answer.text[:300]}")
        return answer.status_code == 200

    def _label_file(self, case: CaseLedger) -> Path:
        return self._load.stage.folder / "made" / f"label-{case.image_id}.nii.gz"

    def _make_label(self, case: CaseLedger) -> Path:
        """Write a label with new random voxels."""
        ct = small_ct(case.image_id)
        array = np.zeros(ct.grid.shape_vox, np.uint8)
        for value, start in zip((TINY.labels[name] for name in ORGANS), (5, 16), strict=True):
            inside = self._voxels.random((8, 8, 8)) < 0.9
            array[start : start + 8, 4:12, 2:10][inside] = value
        file = self._label_file(case)
        write_label(file, LabelVolume(array, ct.grid, TINY.labels))
        return file


class RequestingClient:
    """A client that requests contours and the status."""

    def __init__(self, load: Load, *, seed: int) -> None:
        self._load = load
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._is_served = False

    def step(self) -> None:
        """Send one request."""
        there = [case for case in self._load.cases if case.is_there]
        if there and self._chance.random() < 0.5:
            self._infer(self._chance.choice(there).image_id)
            return
        answer = self._load.ask("status", "GET", "/organnet/status")
        if answer is not None and answer.status_code != 200:
            self._load.wrong.append(f"status: {answer.status_code} {answer.text[:300]}")

    def _infer(self, image_id: str) -> None:
        answer = self._load.ask("infer", "POST", f"/infer/organnet25d?image={image_id}")
        if answer is None:
            return
        if answer.status_code == 200:
            self._is_served = True
        elif self._is_served or answer.status_code != 409:
            self._load.wrong.append(f"infer: {answer.status_code} {answer.text[:300]}")
