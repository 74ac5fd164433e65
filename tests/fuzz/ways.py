"""The ways by which a file reaches the server, and what is wrong with an answer."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
import requests
from pydicom.uid import generate_uid

from lib.imaging.formats import suffix_of
from lib.pacs.orthanc import Orthanc
from tests.fuzz.good_files import GoodFile, zipped
from tests.server.running import Server
from tests.waiting import LIMIT_S, wait_until

CASE = "case"
"""The image whose labels are sent."""
_BOUNDARY = "part-of-the-fuzzing"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file.

    Attributes:
        answer: Status code, or `accepted` or `refused`.
        failure: What must not happen; empty if all is well.
    """

    answer: str
    failure: str = ""


class Client:
    """One client with a connection that it keeps open."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.http = requests.Session()
        self._secret = str(server.studies.parent)

    def ask(self, method: str, path: str, **given: object) -> requests.Response:
        """Return an answer; if the server closed the connection, ask once more on a new one."""
        url = self.server.url + path
        try:
            return self.http.request(method, url, timeout=LIMIT_S, **given)  # type: ignore[arg-type]
        except requests.ConnectionError:
            self.http = requests.Session()
            return self.http.request(method, url, timeout=LIMIT_S, **given)  # type: ignore[arg-type]

    def tells_path(self, text: str) -> bool:
        """Return whether a text contains a path of the server."""
        return self._secret in text

    def judge(self, answer: requests.Response) -> Outcome:
        """Return the outcome of an answer: a refusal needs a reason, and no answer tells a path."""
        status, text = answer.status_code, answer.text[:20_000]
        failure = ""
        if status >= 500:
            failure = f"answered {status}: {text[:300]}"
        elif self.tells_path(text):
            failure = f"the answer tells a path of the server: {text[:300]}"
        elif status >= 400 and not _has_reason(answer):
            failure = f"answered {status} without a reason: {text[:300]!r}"
        return Outcome(str(status), failure)


def _has_reason(answer: requests.Response) -> bool:
    try:
        content = answer.json()
    except ValueError:
        return False
    is_dicom = "dicom" in answer.headers.get("Content-Type", "")
    return bool(content if is_dicom else isinstance(content, dict) and content.get("detail"))


Way = Callable[[Client, GoodFile, bytes, int], Outcome]


def put_image(client: Client, good: GoodFile, content: bytes, number: int) -> Outcome:
    """Store a scan (PUT /datastore/image), and remove it again."""
    image = f"sent-{number}"
    answer = client.ask(
        "PUT", f"/datastore/image?image={image}", files={"file": _as_file(good, content)}
    )
    outcome = client.judge(answer)
    if answer.status_code == 200:
        client.ask("DELETE", f"/datastore/image?id={image}")
        shutil.rmtree(client.server.studies / ".removed", ignore_errors=True)
    return outcome


def put_session(client: Client, good: GoodFile, content: bytes, number: int) -> Outcome:
    """Send a scan as a session, a series as separate files, and remove it again."""
    parts = [(good.name, content), *((f"{n}.dcm", other) for n, other in enumerate(good.others))]
    answer = client.ask("PUT", "/session/", files=[("files", part) for part in parts])
    outcome = client.judge(answer)
    if answer.status_code == 200:
        client.ask("DELETE", f"/session/{answer.json()['session_id']}")
    return outcome


def infer(client: Client, good: GoodFile, content: bytes, number: int) -> Outcome:
    """Send a scan to be contoured."""
    path = "/infer/organnet25d?output=json"
    return client.judge(client.ask("POST", path, files={"file": _as_file(good, content)}))


def study(client: Client, good: GoodFile, content: bytes, number: int) -> Outcome:
    """Write a scan into the studies folder, have it contoured, and remove it."""
    image = f"copied-{number}"
    place = client.server.studies / f"{image}{suffix_of(good.name) or ''}"
    if good.others:
        place.mkdir()
        for n, slice_ in enumerate((content, *good.others)):
            (place / f"{n:03d}.dcm").write_bytes(slice_)
    elif good.format == "zip":
        place.mkdir()
        try:
            with zipfile.ZipFile(_written(place / "x.zip", content)) as archive:
                for n, name in enumerate(archive.namelist()[:20]):
                    (place / f"{n:03d}.dcm").write_bytes(archive.read(name))
        except Exception:  # noqa: BLE001 - the zip is damaged; its folder then holds only the zip
            (place / "note.txt").write_text("x")
    else:
        place.write_bytes(content)
    try:
        answer = client.ask("POST", f"/infer/organnet25d?image={image}&output=json")
        return client.judge(answer)
    finally:
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def put_label(client: Client, good: GoodFile, content: bytes, number: int) -> Outcome:
    """Submit a label."""
    answer = client.ask(
        "PUT", f"/datastore/label?image={CASE}&tag=sent", files={"label": (good.name, content)}
    )
    return client.judge(answer)


def companion(client: Client, good: GoodFile, content: bytes, number: int) -> Outcome:
    """Send an object beside the slices of a series, as exports of a study do."""
    return put_session(client, good, content, number)


def stow(client: Client, good: GoodFile, content: bytes, number: int) -> Outcome:
    """Store an object through the DICOMweb proxy (STOW-RS)."""
    body = (
        f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        + content
        + f"\r\n--{_BOUNDARY}--\r\n".encode()
    )
    kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
    return client.judge(
        client.ask("POST", "/proxy/dicom/studies", data=body, headers={"Content-Type": kind})
    )


def _as_file(good: GoodFile, content: bytes) -> tuple[str, bytes]:
    if good.others:
        return "series.zip", zipped([content, *good.others])
    return good.name, content


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


SCANS: Mapping[str, tuple[Way, float]] = {
    "PUT image": (put_image, 4), "session": (put_session, 4), "infer": (infer, 1), "studies folder": (study, 1),
}  # fmt: skip
LABELS: Mapping[str, tuple[Way, float]] = {"PUT label": (put_label, 1)}
OBJECTS: Mapping[str, tuple[Way, float]] = {"companion in a session": (companion, 1)}
OBJECTS_WITH_PACS: Mapping[str, tuple[Way, float]] = {"STOW": (stow, 1)}


def watch_labels(
    client: Client, files: Sequence[tuple[GoodFile, bytes]], images: Sequence[str]
) -> list[Outcome]:
    """Copy labels into the labels folder, and wait until the server has adopted or refused each."""
    folder = client.server.studies / "labels" / "watched"
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for image, (good, content) in zip(images, files, strict=False):
        path = folder / f"{image}{suffix_of(good.name)}"
        path.write_bytes(content)
        # An older modification time: the server waits with files that may still be written.
        os.utime(path, (path.stat().st_mtime - 60,) * 2)
        places[image] = path
    outcomes: dict[str, Outcome] = {}

    def are_decided() -> bool:
        listed = client.ask("GET", "/organnet/labels?tag=watched")
        if listed.status_code != 200:
            outcomes.update({image: client.judge(listed) for image in places})
            return True
        answer = listed.json()
        outcomes.update({label["image"]: Outcome("accepted") for label in answer["labels"]})
        for refused in answer["refused"]:
            is_explained = bool(refused["reason"]) and not client.tells_path(refused["reason"])
            failure = "" if is_explained else json.dumps(refused)[:300]
            outcomes[refused["image"]] = Outcome("refused", failure)
        return set(places) <= set(outcomes)

    wait_until(
        are_decided,
        "the labels in the folder are adopted or refused",
        context=client.server.end_of_log,
    )
    for image, path in places.items():
        if outcomes[image].answer == "accepted":
            client.ask("DELETE", f"/datastore/label?id={image}&tag=watched")
        path.unlink(missing_ok=True)
    return [outcomes[image] for image in places]


def _put(pacs: Orthanc, content: bytes) -> tuple[str, Outcome]:
    """Store an object in the PACS; return its id there, and start the PACS again if the object ends it."""
    try:
        answer = requests.post(f"{pacs.url}/instances", data=content, timeout=LIMIT_S)
    except requests.ConnectionError:
        pacs.kill()
        pacs.start()
        return "", Outcome("the PACS ended")
    if answer.status_code != 200:
        return "", Outcome("refused by the PACS")
    return str(answer.json()["ID"]), Outcome("in the PACS")


def instances(pacs: Orthanc) -> frozenset[str]:
    """Return the ids of the objects in the PACS."""
    return frozenset(requests.get(f"{pacs.url}/instances", timeout=LIMIT_S).json())


def remove_instances(pacs: Orthanc, *, kept: frozenset[str]) -> None:
    """Remove the objects that were sent: the server's lists would grow with each of them."""
    for instance in instances(pacs) - kept:
        requests.delete(f"{pacs.url}/instances/{instance}", timeout=LIMIT_S)


def watch_pacs(
    client: Client, pacs: Orthanc, files: Sequence[tuple[GoodFile, bytes]]
) -> list[Outcome]:
    """Put objects into the PACS, and wait until the server has looked at them."""
    outcomes, stored = [], []
    for _, content in files:
        instance, outcome = _put(pacs, content)
        outcomes.append(outcome)
        stored += [instance] if instance else []
    # The server looks at objects in turn, and refuses this last one: it has no segments.
    last = pydicom.dcmread(io.BytesIO(files[0][0].content))
    for keyword in ("SegmentSequence", "StructureSetROISequence"):
        if keyword in last:
            del last[keyword]
    last.SOPInstanceUID = last.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    target = io.BytesIO()
    last.save_as(target)
    instance, _ = _put(pacs, target.getvalue())
    stored.append(instance)

    def is_seen() -> bool:
        listed = client.ask("GET", "/organnet/status")
        uids = [refused["sop_instance_uid"] for refused in listed.json()["pacs"]["refused_objects"]]
        return str(last.SOPInstanceUID) in uids

    wait_until(is_seen, "the server has looked at the objects", context=client.server.end_of_log)
    for instance in stored:
        requests.delete(f"{pacs.url}/instances/{instance}", timeout=LIMIT_S)
    return outcomes
