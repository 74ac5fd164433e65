"""Conditions that must hold after every kill, checked in the files, in the database and through the server.

Each function returns descriptions of the violations. The database is read with sqlite3 and labels with nibabel,
so that the code under test takes no part in the checks.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import requests

from tests.chaos.ledger import CaseLedger, Version, is_in_order, voxels_of
from tests.chaos.stage import Stage, files_below, until
from tests.waiting import LIMIT_S

SETTLED_WITHIN_S = 300.0
OVER = ("promoted", "rejected", "failed")


class Checks:
    """The checks of a campaign, with the state that they compare between rounds."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._voxels: dict[str, str] = {}
        self._sets: dict[str, str] = {}
        self._verified: dict[str, tuple[int, int]] = {}

    def all(self, cases: Iterable[CaseLedger], left: Iterable[Path]) -> list[str]:
        """Return all violations while a server runs and receives no other requests."""
        return [
            *(wrong for case in cases for wrong in self.label(case)),
            *self.database(),
            *self.registry(),
            *self.sets(),
            *self.runs(),
            *self.index(cases),
            *self.leftovers(left),
            *self.serving(cases),
        ]

    def label(self, case: CaseLedger) -> list[str]:
        """Check the history of one case against its ledger; a correct history replaces the ledger's events."""
        if not case.is_there and not case.events:
            return []
        if not until(lambda: self._is_settled(case), SETTLED_WITHIN_S, every_s=0.5):
            return [f"{case.image_id}: labels/final and the history do not agree"]
        history = self._history(case)
        recorded = [version.voxels for version in history]
        visible = [version for version in history if not version.is_hidden]
        current = visible[-1].voxels if visible else None
        sent = [event.voxels for event in case.events]
        is_same = [(v.number, v.sha256) for v in history[: len(case.seen)]] == [
            (v.number, v.sha256) for v in case.seen
        ]
        claims = {
            "a label that was answered with 200 is not in the history": is_in_order(
                case.answered(), recorded
            ),
            "the history holds a label that was not sent": set(recorded) <= set(sent),
            "a version was made twice": all(
                recorded.count(v) <= sent.count(v) for v in set(recorded)
            ),
            "the current label is not the last one": current in case.possible(),
            "an older version is current": not visible or visible[-1] == history[-1],
            "the history of the last round has changed": is_same,
            "the file copied in by hand is in no version": not case.is_waiting
            or sent[-1] in recorded,
        }
        wrong = [f"{case.image_id}: {text}" for text, holds in claims.items() if not holds]
        if not wrong:
            case.resolve(history, current)
        return wrong

    def _history(self, case: CaseLedger) -> list[Version]:
        url = f"{self._stage.url}/organnet/labels/{case.image_id}"
        answer = requests.get(url, timeout=LIMIT_S)
        listed: list[dict[str, Any]] = answer.json() if answer.status_code == 200 else []
        return [
            Version(
                row["number"],
                row["sha256"],
                self._stored_voxels(row["sha256"]),
                bool(row["hidden_at"]),
            )
            for row in listed
        ]

    def _stored_voxels(self, sha256: str) -> str:
        """Return the voxels of a stored volume; the file must still match the hash in its name."""
        path = self._stage.state / "labels" / sha256[:2] / f"{sha256}.nii.gz"
        if not path.exists():
            return f"the volume {sha256[:12]} is gone"
        if _digest(path) != sha256:
            return f"the volume {sha256[:12]} is damaged"
        if sha256 not in self._voxels:
            self._voxels[sha256] = voxels_of(path)
        return self._voxels[sha256]

    def _is_settled(self, case: CaseLedger) -> bool:
        """Return whether the file in labels/final is the current version, or absent if there is none."""
        path = self._stage.studies / "labels" / "final" / f"{case.image_id}.nii.gz"
        history = self._history(case)
        visible = [version for version in history if not version.is_hidden]
        if not visible:
            return not path.exists()
        return path.exists() and _digest(path) == visible[-1].sha256

    def database(self) -> list[str]:
        """Check the integrity of the database file."""
        rows = self._stage.rows("PRAGMA integrity_check")
        wrong = [] if [row[0] for row in rows] == ["ok"] else [f"integrity: {rows[:3]}"]
        if self._stage.rows("PRAGMA foreign_key_check"):
            wrong.append("a foreign key points nowhere")
        if list(self._stage.state.glob("*.damaged-*")):
            wrong.append("the database was set aside as damaged")
        return wrong

    def registry(self) -> list[str]:
        """Check the active model, its promotion history, and the weights of every promoted model."""
        wrong = []
        if not until(self._pointer_is_recorded, 10.0):
            wrong.append("served.json and the last promotion in the database differ")
        promotions = self._stage.rows("SELECT version, previous FROM promotions ORDER BY id")
        chain = [None, *(row["version"] for row in promotions)]
        if [row["previous"] for row in promotions] != chain[:-1]:
            wrong.append("a promotion does not refer to the one before it")
        if any(version == following for version, following in itertools.pairwise(chain)):
            wrong.append("a version was promoted twice in a row")
        models = self._stage.rows("SELECT * FROM models")
        served_once = {row["version"] for row in promotions}
        for row in models:
            version = row["version"]
            if row["decision"] == "promoted" and row["pruned_at"] is None:
                wrong += self._weights(version)
            if row["decision"] == "promoted" and row["pending"] is None:
                wrong += [] if version in served_once else [f"{version}: promoted, never served"]
            # A waiting candidate may have been registered from its files: its run will complete the row.
            has_origin = row["run_id"] is not None and all(
                label["version"] is not None for label in json.loads(row["labels"])
            )
            if row["decision"] != "waiting" and not has_origin:
                wrong.append(f"{version}: no record of the run and the labels it was trained on")
        return wrong

    def _pointer_is_recorded(self) -> bool:
        served = self.served()
        last = self._stage.rows("SELECT version FROM promotions ORDER BY id DESC LIMIT 1")
        return served == (last[0]["version"] if last else None)

    def served(self) -> str | None:
        """Return the version that `served.json` names; None where there is no such file."""
        path = self._stage.models / "served.json"
        return str(json.loads(path.read_text())["version"]) if path.exists() else None

    def _weights(self, version: str) -> list[str]:
        path = self._stage.models / f"{version}.safetensors"
        if not path.is_file():
            return [f"{version}: promoted, its weights are not there"]
        stamp = (path.stat().st_ino, path.stat().st_mtime_ns)
        if self._verified.get(version) != stamp:
            card = json.loads(path.with_suffix(".json").read_text())
            digest = _digest(path)
            if digest != card["sha256"] or not version.endswith(f"-{digest[:8]}"):
                return [f"{version}: its weights are not those of its hash"]
            self._verified[version] = stamp
        return []

    def sets(self) -> list[str]:
        """Check that no case changed its set, and that no model was trained on an evaluation case."""
        sets = {row["image_id"]: row["set"] for row in self._stage.rows("SELECT * FROM case_sets")}
        before, self._sets = self._sets, sets
        wrong = [
            f"{case}: was in the set {case_set}, and is in {sets.get(case)}"
            for case, case_set in before.items()
            if sets.get(case) != case_set
        ]
        learned = {
            (row["version"], label["image_id"])
            for row in self._stage.rows("SELECT version, labels FROM models")
            for label in json.loads(row["labels"])
        }
        for card in self._stage.models.glob("[!.]*.json"):
            about = json.loads(card.read_text())
            learned |= {(card.stem, case) for case in about.get("training", {}).get("cases", [])}
        return wrong + [
            f"{version}: was trained on {case}, an evaluation case"
            for version, case in sorted(learned)
            if sets.get(case) == "referee"
        ]

    def runs(self) -> list[str]:
        """Check that the cases and candidates of the runs agree with the other tables."""
        wrong = []
        decisions = {
            row["version"]: row["decision"]
            for row in self._stage.rows("SELECT version, decision FROM models")
        }
        runs = self._stage.rows("SELECT * FROM runs")
        if sum(run["state"] not in (*OVER, "stopped") for run in runs) > 1:
            wrong.append("more than one run is not over")
        for run in runs:
            run_sets = {case["image_id"]: case["set"] for case in json.loads(run["cases"])}
            if any(self._sets.get(case) != case_set for case, case_set in run_sets.items()):
                wrong.append(f"run {run['id']}: has a case in another set")
            if run["state"] == "failed" and run["attempts"] < 3:
                wrong.append(f"run {run['id']}: failed: {run['outcome']}")
            is_ruled = run["state"] in ("promoted", "rejected")
            if is_ruled and decisions.get(run["candidate"]) not in ("promoted", "rejected"):
                wrong.append(f"run {run['id']}: is over, its candidate is not decided about")
        return wrong

    def index(self, cases: Iterable[CaseLedger]) -> list[str]:
        """Check that the server lists all scans and labels."""
        is_labelled_by_case = {case.image_id: case.is_labelled for case in cases if case.is_there}
        listed = requests.get(f"{self._stage.url}/datastore/?output=all", timeout=LIMIT_S).json()
        wrong = [
            f"{case}: the scan is not listed"
            for case in is_labelled_by_case.keys() - listed["objects"].keys()
        ]
        for case, is_labelled in is_labelled_by_case.items():
            labels = listed["objects"].get(case, {}).get("labels", {})
            if ("final" in labels) != is_labelled:
                wrong.append(f"{case}: listed with the labels {sorted(labels)}")
        return wrong

    def leftovers(self, left: Iterable[Path]) -> list[str]:
        """Check that the start of a server removes what killed processes left."""
        files = list(left)
        if not until(lambda: not any(path.exists() for path in files), 10.0):
            remaining = [str(p.relative_to(self._stage.folder)) for p in files if p.exists()]
            return [f"left for ever: {', '.join(remaining[:5])} ({len(remaining)})"]
        over = "SELECT id FROM runs WHERE state IN ('promoted', 'rejected', 'failed')"
        ended = [row["id"] for row in self._stage.rows(over)]
        folders = [self._stage.state / "training" / f"run-{number:05d}" for number in ended]

        def checkpoints() -> list[Path]:
            return [path for folder in folders for path in folder.glob("checkpoint*")]

        if not until(lambda: not checkpoints(), 10.0):
            return [f"{len(checkpoints())} checkpoints of runs that are over are left for ever"]
        return []

    def serving(self, cases: Iterable[CaseLedger]) -> list[str]:
        """Check that infer works and answers with the active model."""
        there = next((case.image_id for case in cases if case.is_there), None)
        if there is None or self.served() is None:
            return []
        url = f"{self._stage.url}/infer/organnet25d?image={there}&output=json"
        answer = requests.post(url, timeout=LIMIT_S)
        if answer.status_code != 200:
            return [f"infer: {answer.status_code} {answer.text[:300]}"]
        version = answer.json()["model_version"]
        status = requests.get(f"{self._stage.url}/organnet/status", timeout=LIMIT_S).json()
        error = (status["served"] or {}).get("trouble")
        return self._weights(version) + ([f"serving: {error}"] if error else [])


def is_leftover(path: Path) -> bool:
    """Return whether a file name belongs to a write that was in progress when its process ended."""
    return path.name.startswith((".writing-", ".receiving-", "organnet-"))


def leftovers_of(stage: Stage) -> list[Path]:
    """Return the incomplete files that killed processes left."""
    return [
        path
        for path in files_below(stage.studies, stage.models, stage.scratch)
        if is_leftover(path)
    ]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
