"""Functions to simulate the whole workflow: a server, simulated users, an evaluation of each active model."""

import json
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import requests

from apps.support.server_process import Server, serving
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

Record = dict[str, Any]


def divide_cases(
    data: Path, starter: Path, *, cases: int, test: int
) -> tuple[list[Case], list[Case]]:
    """Return the cases to submit and the test cases, both spread evenly over all usable cases.

    Cases that the starter model was trained on are not usable.

    Raises:
        OrganNetError: If there are too few cases.
    """
    excluded = trained_cases(starter)
    usable = [case for case in find_labelled_cases(data) if case.image_id not in excluded]
    total = cases + test
    if len(usable) < total:
        raise OrganNetError(
            f"{data}: {len(usable)} usable cases, {total} needed; lower --cases or --test"
        )
    selected = [usable[n * len(usable) // total] for n in range(total)]
    test_cases = selected[:: total // test][:test]
    return [case for case in selected if case not in test_cases], test_cases


def run(
    pool: Sequence[Case],
    output: Path,
    settings: Mapping[str, str],
    *,
    every_s: float,
    infer_every_s: float,
    limit_s: float,
) -> Record:
    """Submit the labels of cases to a server, one by one, while another client requests contours.

    Args:
        pool: Cases to submit.
        output: Folder for the studies and the log of the server.
        settings: Settings of the server, as for `--conf`.
        every_s: Seconds between two submitted labels.
        infer_every_s: Seconds between two inference requests.
        limit_s: Longest wait for the trainings after the last label.

    Returns:
        The events, a summary of the inference requests, and the last status of the server.
    """
    studies = output / "studies"
    for case in pool:
        target = studies / f"{case.image_id}.nii.gz"
        if not target.exists():
            write_ct(target, read_ct(case.image, image_id=case.image_id))
    labels = find_recipe(settings["recipe"]).labels
    image_ids = [case.image_id for case in pool]
    stopping = threading.Event()
    with (
        serving(studies, settings, log=output / "server.log") as server,
        ThreadPoolExecutor() as threads,
    ):
        viewer = threads.submit(_request_contours, server.url, image_ids, infer_every_s, stopping)
        annotator = SimulatedAnnotator(server)
        try:
            for case in pool:
                annotator.submit(case, labels)
                annotator.read_status()
                time.sleep(every_s)
            status = annotator.wait_until_idle(limit_s)
        finally:
            stopping.set()
    return {
        "events": annotator.events,
        "infers": _summary(viewer.result()),
        "status": status,
    }


def _request_contours(
    url: str, image_ids: Sequence[str], every_s: float, stopping: threading.Event
) -> list[Record]:
    """Request the contours of one case after another at a fixed interval, and return each answer's data."""
    answers: list[Record] = []
    wait_s = 0.0
    while not stopping.wait(wait_s):
        start = time.monotonic()
        image_id = image_ids[len(answers) % len(image_ids)]
        try:
            answer = requests.post(
                f"{url}/infer/organnet25d?image={image_id}&output=json", timeout=REQUEST_TIMEOUT_S
            )
            status = answer.status_code
            version = answer.json().get("model_version") if answer.ok else None
        except requests.RequestException as error:
            status, version = 0, type(error).__name__
        answers.append({"status": status, "version": version, "s": time.monotonic() - start})
        wait_s = max(0.0, every_s - answers[-1]["s"])
    return answers


def _summary(answers: Sequence[Record]) -> Record:
    """Return the number of inference requests and answers, the failed ones, and the durations in s.

    Status 409 before the first model is expected and is not a failure.
    """
    codes = [answer["status"] for answer in answers]
    first = codes.index(200) if 200 in codes else len(codes)
    failed = [
        answer
        for number, answer in enumerate(answers)
        if answer["status"] not in ({200, 409} if number < first else {200})
    ]
    seconds = sorted(answer["s"] for answer in answers if answer["status"] == 200)
    return {
        "asked": len(codes),
        "answered": len(seconds),
        "before_the_first_model": len(codes) - len(seconds) - len(failed),
        "failed": failed,
        "median_s": statistics.median(seconds) if seconds else None,
        "p95_s": seconds[int(0.95 * (len(seconds) - 1))] if seconds else None,
    }


class SimulatedAnnotator:
    """A client that submits labels like 3D Slicer and records the changes of the server's status.

    Attributes:
        events: Seconds since the start, kind and details of each event.
    """

    def __init__(self, server: Server) -> None:
        self.events: list[Record] = []
        self._server = server
        self._start = time.monotonic()
        self._states: dict[str, str | None] = {}

    def submit(self, case: Case, labels: Mapping[str, int]) -> None:
        """Submit the label of one case as final."""
        info = [{"name": name, "idx": value} for name, value in labels.items()]
        with case.label.open("rb") as file:
            self._server.request(
                "PUT",
                f"/datastore/label?image={case.image_id}&tag=final",
                data={"params": json.dumps({"label_info": info, "client_id": "rehearsal"})},
                files={"label": (case.label.name, file)},
            )
        self._add("label", f"label of {case.image_id} submitted", case=case.image_id)

    def read_status(self) -> Record:
        """Return the server's status, after recording its changes as events."""
        status = self._server.status()
        for run in status["history"]["trainings"]:
            if self._is_new(f"run {run['id']}", run["state"]):
                text = f"training {run['id']}: {run['state']}"
                if run["state"] == "running":
                    text += f" on {run['labels']} labels, {run['new_labels']} of them new ({run['why']})"
                text += f": {run['outcome']}" if run["outcome"] else ""
                details = {key: run[key] for key in ("id", "state", "candidate", "outcome")}
                self._add("training", text, **details)
        version = (status["served"] or {}).get("version")
        if self._is_new("served", version):
            self._add("serves", f"active model: {version or 'none'}", version=version)
        return status

    def _is_new(self, name: str, state: str | None) -> bool:
        """Return whether the state of a training or of the server differs from the last one."""
        last, self._states[name] = self._states.get(name), state
        return state != last

    def _add(self, kind: str, text: str, **details: Any) -> None:
        """Record an event and print its line."""
        now = round(time.monotonic() - self._start, 1)
        self.events.append({"s": now, "kind": kind, **details})
        print(f"{int(now) // 60:3d}:{int(now) % 60:02d}  {text}")

    def wait_until_idle(self, limit_s: float) -> Record:
        """Return the status once no training runs or is due soon, at the latest after `limit_s`."""
        deadline = time.monotonic() + limit_s
        while True:
            status = self.read_status()
            if _is_idle(status) or time.monotonic() > deadline:
                return status
            time.sleep(1.0)


def _is_idle(status: Mapping[str, Any]) -> bool:
    """Return whether no training runs, and none starts within `MAX_WAIT_S`."""
    upcoming = status["next_training"]
    if status["training"] is not None or upcoming["starts_now"]:
        return False
    if upcoming["next_look"] is None:
        return True
    next_check = datetime.fromisoformat(upcoming["next_look"])
    return next_check > datetime.now(timezone.utc) + timedelta(seconds=MAX_WAIT_S)


def evaluate_versions(
    events: Sequence[Record], folders: Sequence[Path], test: Sequence[Case]
) -> list[Record]:
    """Return the model versions that were active, in order, with the DSC of each on the test cases."""
    versions = []
    for event in events:
        if event["kind"] == "serves" and event["version"]:
            files = [folder / f"{event['version']}.safetensors" for folder in folders]
            weights = next(file for file in files if file.exists())
            result = validate(load_model(weights, best_device()), test, device=best_device())
            scores = {"mean_dsc": result.mean, "organ_dsc": result.organ_means}
            versions.append({"version": event["version"], "since_s": event["s"], **scores})
    return versions


def report(output: Path, results: Record) -> int:
    """Print the results, write `rehearsal.json` and `rehearsal.png`, and return the exit code."""
    versions, infers = results["versions"], results["infers"]
    write_json(output / "rehearsal.json", results)
    measured = [version for version in versions if version["mean_dsc"] is not None]
    (output / "rehearsal.png").write_bytes(timeline_chart(results["events"], measured))
    print("\nactive models, and their mean DSC on the test cases:")
    for version in versions:
        minutes, seconds = divmod(int(version["since_s"]), 60)
        print(f"{minutes:3d}:{seconds:02d}  {version['version']}  {version['mean_dsc']:.3f}")
    print(json.dumps({**infers, "failed": len(infers["failed"])}))
    return 0 if versions and not infers["failed"] else 1


def timeline_chart(events: Sequence[Record], versions: Sequence[Record]) -> bytes:
    """Return a PNG of the timeline: labels, trainings, and the DSC of the active model.

    Args:
        events: Events of a `SimulatedAnnotator`.
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


def trainings(events: Sequence[Record]) -> list[tuple[float, float, str]]:
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
