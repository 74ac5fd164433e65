"""Curves of a run: TensorBoard in its folder, MLflow through a database.

A tracker that fails (a full disk, a server that is gone) is named once in the log and left alone until the run
is started again: no training ends for its curves.
"""

import logging
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import IO, Any, Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text

from lib.imaging.volumes import CtVolume, LabelVolume
from lib.reports.ct_overlays import contour_picture
from lib.training.record import as_yaml

logger = logging.getLogger(__name__)

FINISHED, STOPPED, FAILED = "FINISHED", "KILLED", "FAILED"
"""How a run ended, in MLflow's words."""


class Tracker(Protocol):
    """Something that draws a run's curves. What it raises ends its tracking, not the run."""

    def start(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Begin, or go on after the epochs of `history`: what was tracked beyond them is void.

        Args:
            record: What the run is (`lib.training.record`).
            history: One entry for each epoch that is done.
        """

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Track an epoch: `epoch`, `loss`, `learning_rate`, `spent_s`, and `organ_dice` where validated."""

    def contours(self, epoch: int, ct: CtVolume, label: LabelVolume) -> None:
        """Track what the network drew on the first validation case."""

    def end(self, status: str, /) -> None:
        """Close: the run is `FINISHED`, `KILLED` or `FAILED`."""


class Trackers:
    """Trackers that are told together; one that fails is named once and not told again."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._working = list(trackers)

    def start(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Tell each tracker to begin."""
        self._tell(lambda tracker: tracker.start(record, history))

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Tell each tracker of an epoch."""
        self._tell(lambda tracker: tracker.epoch(entry))

    def contours(self, epoch: int, ct: CtVolume, label: LabelVolume) -> None:
        """Show each tracker what was drawn."""
        self._tell(lambda tracker: tracker.contours(epoch, ct, label))

    def end(self, status: str) -> None:
        """Tell each tracker that the run ended."""
        self._tell(lambda tracker: tracker.end(status))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in list(self._working):
            try:
                what(tracker)
            # Database drivers and servers raise what they like; none of it is worth a training.
            except Exception as error:  # noqa: BLE001
                self._working.remove(tracker)
                logger.warning(
                    "%s stopped working (%s: %s); the training goes on without it",
                    type(tracker).__name__,
                    type(error).__name__,
                    str(error).splitlines()[0] if str(error) else "no reason given",
                )


def metrics_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return an epoch's numbers by the names that the curves carry."""
    organs = entry.get("organ_dice") or {}
    metrics = {name: float(entry[name]) for name in ("loss", "learning_rate", "spent_s")}
    metrics.update({f"dice/{organ}": float(value) for organ, value in organs.items()})
    if organs:
        metrics["dice/mean"] = sum(organs.values()) / len(organs)
    return metrics


class TensorBoard:
    """Event files for `tensorboard --logdir`.

    Written without `SummaryWriter`, whose thread meets a full disk where nobody can catch it.
    """

    def __init__(self, folder: Path, *, pictures: bool = False) -> None:
        self.folder = folder
        self.pictures = pictures
        self._file: IO[bytes] | None = None

    def start(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Open a new file, which voids what earlier ones hold of the epochs to come."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns():020d}"
        self._file = (self.folder / name).open("xb")
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=len(history) + 1, session_log=SessionLog(status=SessionLog.START)))
        # Markdown shows indented lines as they are.
        shown = text("config", indent(as_yaml(record), "    "))  # type: ignore[no-untyped-call]
        self._write(Event(summary=shown))
        self._flush()

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Write the epoch's numbers."""
        values = [Summary.Value(tag=k, simple_value=v) for k, v in metrics_of(entry).items()]
        self._write(Event(step=entry["epoch"], summary=Summary(value=values)))
        self._flush()

    def contours(self, epoch: int, ct: CtVolume, label: LabelVolume) -> None:
        """Write a picture of the contours, where pictures are wanted; the last one lies beside the events."""
        if not self.pictures:
            return
        path = self.folder / "contours.png"
        contour_picture(ct, label, path, title=f"{ct.image_id}, epoch {epoch}")
        png = path.read_bytes()
        # PNG specification, section 11.2.1: the header chunk begins with width and height.
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        value = Summary.Value(tag="contours", image=image)
        self._write(Event(step=epoch, summary=Summary(value=[value])))
        self._flush()

    def end(self, _status: str, /) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: Event) -> None:
        if self._file is not None:
            event.wall_time = time.time()
            RecordWriter(self._file).write(event.SerializeToString())

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()
