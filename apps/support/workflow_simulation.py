"""Functions to simulate the whole workflow: a server, simulated users, an evaluation of each active model."""

import json
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace as Options
from typing import Any

import requests

from apps.support.options import STARTER_DIR
from apps.support.server_process import serving
from lib.config import best_device
from lib.errors import OrganNetError
from lib.imaging.scans import read_ct, write_ct
from lib.models.model_cards import trained_cases
from lib.models.registry import load_model
from lib.recipes.yaml_files import find_recipe
from lib.reports.figures import png, styled_figure
from lib.storage.atomic_files import write_json
from lib.training.cases import Case, find_labelled_cases
from lib.training.validate import validate

REQUEST_TIMEOUT_S = 120.0
MAX_WAIT_S = 300.0
"""Longest wait for a training that is scheduled later, in s."""
END_STATES = ("promoted", "rejected", "failed", "stopped")
COLOURS = {"promoted": "tab:green", "rejected": "tab:red"}


@dataclass(slots=True)
class Timeline:
    """Events of a simulation.

    Attributes:
        write_line: Called with a line of text for each event.
        events: Of each event the seconds since the start, its kind and its details.
    """

    write_line: Callable[[str], None]
    events: list[dict[str, Any]] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    def add(self, kind: str, text: str, **details: Any) -> None:
        """Record an event and write its line."""
        now = round(time.monotonic() - self.start, 1)
        self.events.append({"s": now, "kind": kind, **details})
        self.write_line(f"{int(now) // 60:3d}:{int(now) % 60:02d}  {text}")


class SimulatedViewer(threading.Thread):
    """A thread that requests the contours of one case after another, at a fixed interval."""

    def __init__(self, url: str, image_ids: Sequence[str], *, every_s: float) -> None:
        super().__init__(name="viewer", daemon=True)
        self._url = url
        self._image_ids = image_ids
        self._every_s = every_s
        self._stopping = threading.Event()
        self.answers: list[dict[str, Any]] = []

    def run(self) -> None:
        """Send requests until `stop`."""
        number = 0
        while not self._stopping.is_set():
            start = time.monotonic()
            self.answers.append(self._request(self._image_ids[number % len(self._image_ids)]))
            number += 1
            self._stopping.wait(max(0.0, self._every_s - (time.monotonic() - start)))

    def _request(self, image_id: str) -> dict[str, Any]:
        start = time.monotonic()
        try:
            answer = requests.post(
                f"{self._url}/infer/organnet25d",
                params={"image": image_id, "output": "json"},
                timeout=REQUEST_TIMEOUT_S,
            )
            status = answer.status_code
            version = answer.json().get("model_version") if answer.ok else None
        except requests.RequestException as error:
            status, version = 0, type(error).__name__
        return {"status": status, "version": version, "s": time.monotonic() - start}

    def stop(self) -> None:
        """Stop sending requests."""
        self._stopping.set()
        self.join(REQUEST_TIMEOUT_S)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Failed answers; status 409 before the first model is expected and does not count."""
        first = next(
            (n for n, answer in enumerate(self.answers) if answer["status"] == 200),
            len(self.answers),
        )
        return [
            answer
            for n, answer in enumerate(self.answers)
            if answer["status"] != 200 and not (answer["status"] == 409 and n < first)
        ]

    def summary(self) -> dict[str, Any]:
        """Return the number of requests and answers, and the durations in s."""
        seconds = sorted(answer["s"] for answer in self.answers if answer["status"] == 200)
        return {
            "asked": len(self.answers),
            "answered": len(seconds),
            "before_the_first_model": len(self.answers) - len(seconds) - len(self.failed),
            "failed": self.failed,
            "median_s": statistics.median(seconds) if seconds else None,
            "p95_s": seconds[int(0.95 * (len(seconds) - 1))] if seconds else None,
        }


class SimulatedAnnotator:
    """A client that submits labels like 3D Slicer and records the changes of the server's status."""

    def __init__(self, url: str, timeline: Timeline) -> None:
        self._url = url
        self._timeline = timeline
        self._last: dict[str, Any] = {}

    def submit(self, case: Case, labels: dict[str, int]) -> None:
        """Submit the label of one case as final.

        Raises:
            requests.HTTPError: If the server refuses it.
        """
        info = [{"name": name, "idx": value} for name, value in labels.items()]
        with case.label.open("rb") as file:
            answer = requests.put(
                f"{self._url}/datastore/label",
                params={"image": case.image_id, "tag": "final"},
                data={"params": json.dumps({"label_info": info, "client_id": "rehearsal"})},
                files={"label": (case.label.name, file)},
                timeout=REQUEST_TIMEOUT_S,
            )
        answer.raise_for_status()
        self._timeline.add("label", f"label of {case.image_id} submitted", case=case.image_id)

    def read_status(self) -> dict[str, Any]:
        """Return the server's status, after recording what is new in it."""
        answer = requests.get(f"{self._url}/organnet/status", timeout=REQUEST_TIMEOUT_S)
        answer.raise_for_status()
        status: dict[str, Any] = answer.json()
        for run in status["history"]["trainings"]:
            self._record_run(run)
        version = (status["served"] or {}).get("version")
        if version != self._last.get("served"):
            self._last["served"] = version
            self._timeline.add("serves", f"active model: {version or 'none'}", version=version)
        return status

    def _record_run(self, run: dict[str, Any]) -> None:
        key = f"run {run['id']}"
        if self._last.get(key) == run["state"]:
            return
        self._last[key] = run["state"]
        text = f"training {run['id']}: {run['state']}"
        if run["state"] == "running":
            text += f" on {run['labels']} labels, {run['new_labels']} of them new ({run['why']})"
        if run["outcome"]:
            text += f": {run['outcome']}"
        self._timeline.add(
            "training", text, **{k: run[k] for k in ("id", "state", "candidate", "outcome")}
        )

    def wait_until_idle(self, limit_s: float) -> dict[str, Any]:
        """Return the status once no training runs or is due soon, at the latest after `limit_s`."""
        deadline = time.monotonic() + limit_s
        status = self.read_status()
        while time.monotonic() < deadline and not _is_idle(status):
            time.sleep(1.0)
            status = self.read_status()
        return status


def _is_idle(status: dict[str, Any]) -> bool:
    """Return whether no training runs, and none starts within `MAX_WAIT_S`."""
    upcoming = status["next_training"]
    if status["training"] is not None or upcoming["starts_now"]:
        return False
    if upcoming["next_look"] is None:
        return True
    next_check = datetime.fromisoformat(upcoming["next_look"])
    return next_check > datetime.now(timezone.utc) + timedelta(seconds=MAX_WAIT_S)


def simulate_workflow(options: Options) -> int:
    """Run the simulation that the options of `apps.simulate_workflow` describe; return the exit code."""
    pool, test = _divide_cases(options)
    studies, models = options.output / "studies", options.output / "models"
    for case in pool:
        target = studies / f"{case.image_id}.nii.gz"
        if not target.exists():
            write_ct(target, read_ct(case.image, image_id=case.image_id))
    starter = STARTER_DIR if options.start == "starter" else options.output / "none"
    conf = {"recipe": options.recipe, "model_dir": str(models), "starter_dir": str(starter),
            "quiet_s": "5", **options.conf}  # fmt: skip
    print(f"{len(pool)} cases to submit, {len(test)} test cases; start from {options.start}")
    timeline = Timeline(print)
    labels = dict(find_recipe(options.recipe).labels)
    with serving(studies, conf, log=options.output / "server.log") as server:
        image_ids = [case.image_id for case in pool]
        viewer = SimulatedViewer(server.url, image_ids, every_s=options.infer_every)
        annotator = SimulatedAnnotator(server.url, timeline)
        viewer.start()
        for case in pool:
            annotator.submit(case, labels)
            annotator.read_status()
            time.sleep(options.every)
        status = annotator.wait_until_idle(60 * options.limit_minutes)
        viewer.stop()
    versions = _evaluate_versions(timeline, models, starter, test)
    infers = viewer.summary()
    write_json(
        options.output / "rehearsal.json",
        {"events": timeline.events, "versions": versions, "infers": infers, "status": status},
    )
    measured = [version for version in versions if version["mean_dsc"] is not None]
    (options.output / "rehearsal.png").write_bytes(timeline_chart(timeline.events, measured))
    print("\nactive models, and their mean DSC on the test cases:")
    for version in versions:
        minutes, seconds = divmod(int(version["since_s"]), 60)
        print(f"{minutes:3d}:{seconds:02d}  {version['version']}  {version['mean_dsc']:.3f}")
    print(json.dumps({**infers, "failed": len(infers["failed"])}))
    return 0 if versions and not infers["failed"] else 1


def _divide_cases(options: Options) -> tuple[list[Case], list[Case]]:
    """Return the cases to submit and the test cases, both spread evenly over all usable cases.

    Cases that the starter model was trained on are not usable when the simulation starts from it.

    Raises:
        OrganNetError: If there are too few cases.
    """
    excluded = trained_cases(STARTER_DIR) if options.start == "starter" else set()
    usable = [case for case in find_labelled_cases(options.data) if case.image_id not in excluded]
    total = options.cases + options.test
    if len(usable) < total:
        raise OrganNetError(
            f"{options.data}: {len(usable)} usable cases, {total} needed; lower --cases or --test"
        )
    selected = [usable[n * len(usable) // total] for n in range(total)]
    step = total // options.test
    test = selected[::step][: options.test]
    return [case for case in selected if case not in test], test


def _evaluate_versions(
    timeline: Timeline, models: Path, starter: Path, test: Sequence[Case]
) -> list[dict[str, Any]]:
    """Return the model versions that were active, in order, with the DSC of each on the test cases."""
    versions = []
    for event in timeline.events:
        if event["kind"] != "serves" or not event["version"]:
            continue
        folder = models if (models / f"{event['version']}.safetensors").exists() else starter
        model = load_model(folder / f"{event['version']}.safetensors", best_device())
        result = validate(model, test, device=best_device())
        versions.append(
            {
                "version": event["version"],
                "since_s": event["s"],
                "mean_dsc": result.mean,
                "organ_dsc": result.organ_means,
            }
        )
    return versions


def timeline_chart(
    events: Sequence[Mapping[str, Any]], versions: Sequence[Mapping[str, Any]]
) -> bytes:
    """Return a PNG of the timeline: labels, trainings, and the DSC of the active model.

    Args:
        events: Events of a `Timeline`.
        versions: Active model versions, each with its start time in s and its mean DSC on the test cases.
    """
    end = max((event["s"] for event in events), default=0.0) / 60
    with styled_figure(7.4, 3.6) as figure:
        axes = figure.subplots()
        for begins, ends, state in trainings(events):
            axes.axvspan(begins / 60, ends / 60, color=COLOURS.get(state, "tab:gray"), alpha=0.15)
            middle = (begins + ends) / 120
            axes.text(middle, 0.04, state, ha="center", transform=axes.get_xaxis_transform())
        labels = [event["s"] / 60 for event in events if event["kind"] == "label"]
        axes.plot(labels, [0.0] * len(labels), "k|", markersize=12, label="label submitted")
        times = [version["since_s"] / 60 for version in versions]
        scores = [version["mean_dsc"] for version in versions]
        if times:
            axes.step([*times, end], [*scores, scores[-1]], where="post", label="active model")
            axes.plot(times, scores, "o", color="tab:blue")
        axes.set(xlabel="Minutes", ylabel="Mean DSC on the test cases", ylim=(0, 1))
        axes.set_xlim(0, max(end, 1.0))
        axes.legend(loc="upper left")
        return png(figure)


def trainings(events: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, str]]:
    """Return the start and end of each training in s, and its final state."""
    starts: dict[int, float] = {}
    spans = []
    for event in events:
        if event["kind"] != "training":
            continue
        starts.setdefault(event["id"], event["s"])
        if event["state"] in END_STATES:
            spans.append((starts[event["id"]], event["s"], event["state"]))
    return spans
