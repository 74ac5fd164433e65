"""People at work: somebody submits contours one by one, somebody else asks for contours every second."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import requests

from lib.training.cases import Case

LIMIT_S = 120.0
SOON_S = 300.0
"""A training that is due later than this is not waited for."""


@dataclass(slots=True)
class Timeline:
    """What happened when, told as it happens.

    Attributes:
        tell: Called with each line.
        events: Seconds since the start, kind, and what is known of it.
    """

    tell: Callable[[str], None]
    events: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, kind: str, text: str, **about: Any) -> None:
        """Add an event, and tell it."""
        now = round(time.monotonic() - self.began, 1)
        self.events.append({"s": now, "kind": kind, **about})
        self.tell(f"{int(now) // 60:3d}:{int(now) % 60:02d}  {text}")


class SimulatedViewer(threading.Thread):
    """Asks for the contours of one case after another, every so many seconds, until told to end."""

    def __init__(self, url: str, image_ids: Sequence[str], *, every_s: float) -> None:
        super().__init__(name="reader", daemon=True)
        self._url = url
        self._image_ids = image_ids
        self._every_s = every_s
        self._ending = threading.Event()
        self.answers: list[dict[str, Any]] = []

    def run(self) -> None:
        """Ask."""
        number = 0
        while not self._ending.is_set():
            began = time.monotonic()
            self.answers.append(self._ask(self._image_ids[number % len(self._image_ids)]))
            number += 1
            self._ending.wait(max(0.0, self._every_s - (time.monotonic() - began)))

    def _ask(self, image_id: str) -> dict[str, Any]:
        began = time.monotonic()
        try:
            answer = requests.post(
                f"{self._url}/infer/organnet25d",
                params={"image": image_id, "output": "json"},
                timeout=LIMIT_S,
            )
            status = answer.status_code
            version = answer.json().get("model_version") if answer.ok else None
        except requests.RequestException as error:
            status, version = 0, type(error).__name__
        return {"status": status, "version": version, "s": time.monotonic() - began}

    def end(self) -> None:
        """Stop asking."""
        self._ending.set()
        self.join(LIMIT_S)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The answers that were none: 409 says that no model serves yet, which is true at first."""
        served = [n for n, one in enumerate(self.answers) if one["status"] == 200]
        first = served[0] if served else len(self.answers)
        return [
            one for n, one in enumerate(self.answers)
            if one["status"] != 200 and not (one["status"] == 409 and n < first)
        ]  # fmt: skip


class SimulatedAnnotator:
    """Submits contours as 3D Slicer does, and watches what the server makes of them."""

    def __init__(self, url: str, timeline: Timeline) -> None:
        self._url = url
        self._timeline = timeline
        self._seen: dict[str, Any] = {}

    def submit(self, case: Case, labels: dict[str, int]) -> None:
        """Submit one case's contours as final.

        Raises:
            requests.HTTPError: If the server does not take them.
        """
        info = [{"name": name, "idx": value} for name, value in labels.items()]
        with case.label.open("rb") as file:
            answer = requests.put(
                f"{self._url}/datastore/label",
                params={"image": case.image_id, "tag": "final"},
                data={"params": json.dumps({"label_info": info, "client_id": "rehearsal"})},
                files={"label": (case.label.name, file)},
                timeout=LIMIT_S,
            )
        answer.raise_for_status()
        self._timeline.add("label", f"label of {case.image_id} submitted", case=case.image_id)

    def look(self) -> dict[str, Any]:
        """Return the server's status, and tell what is new in it."""
        answer = requests.get(f"{self._url}/organnet/status", timeout=LIMIT_S)
        answer.raise_for_status()
        status: dict[str, Any] = answer.json()
        for run in status["history"]["trainings"]:
            self._tell_run(run)
        version = (status["served"] or {}).get("version")
        if version != self._seen.get("served"):
            self._seen["served"] = version
            self._timeline.add("serves", f"{version or 'nothing'} serves", version=version)
        return status

    def _tell_run(self, run: dict[str, Any]) -> None:
        key = f"run {run['id']}"
        if self._seen.get(key) == run["state"]:
            return
        self._seen[key] = run["state"]
        text = f"training {run['id']}: {run['state']}"
        if run["state"] == "running":
            text += f" on {run['labels']} labels, {run['new_labels']} of them new ({run['why']})"
        if run["outcome"]:
            text += f": {run['outcome']}"
        self._timeline.add(
            "training", text, **{k: run[k] for k in ("id", "state", "candidate", "outcome")}
        )

    def wait_until_idle(self, limit_s: float) -> dict[str, Any]:
        """Return the status once no training runs and none is due, or the time is over."""
        deadline = time.monotonic() + limit_s
        status = self.look()
        while time.monotonic() < deadline and not _is_idle(status):
            time.sleep(1.0)
            status = self.look()
        return status


def _is_idle(status: dict[str, Any]) -> bool:
    """Return whether nothing runs, and nothing will within the next minutes."""
    upcoming = status["next_training"]
    if status["training"] is not None or upcoming["starts_now"]:
        return False
    if upcoming["next_look"] is None:
        return True
    looks = datetime.fromisoformat(upcoming["next_look"])
    return looks > datetime.now(timezone.utc) + timedelta(seconds=SOON_S)
