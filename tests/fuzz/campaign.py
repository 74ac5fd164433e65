"""The requests of a campaign: mutated files, several in flight, while the server is watched."""

import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from apps.support.server_process import free_port
from lib.dicom.ct_writer import write_ct_series
from lib.errors import PacsError
from lib.imaging.scans import write_ct
from lib.pacs.orthanc import Orthanc, find_orthanc
from tests.chaos.stage import until
from tests.fuzz import ways
from tests.fuzz.good_files import FORMATS, OBJECTS, GoodFile, good_files, small_ct
from tests.fuzz.mutations import mutated
from tests.fuzz.results import FormatCounts, Results, quantile, server_record
from tests.fuzz.watch import Outside, Watcher
from tests.fuzz.ways import Client, Outcome, Way
from tests.server.running import Server, put_model, running
from tests.waiting import wait_until

WATCHED = [f"watched-{number}" for number in range(24)]
"""Images whose labels are copied into the labels folder, one batch at a time."""
IN_FLIGHT = 6
BATCH = 240
"""Files between two reports; after the first batch the server's memory counts as that of the start."""
REMOVAL_LIMIT_S = 120.0


def say(text: str) -> None:
    """Print a line and flush it at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def chance_of(seed: int, format_name: str, number: int) -> random.Random:
    """Return the source of all choices for one file."""
    return random.Random(f"{seed}/{format_name}/{number}")  # noqa: S311 - no secret


@dataclass(slots=True)
class Campaign:
    """Mutated files of one or several formats.

    Attributes:
        folder: Working folder.
        seed: Seed of the choices; a file follows from seed, format and number.
        results: Counts, to which this run adds.
        results_file: Where they are written after each batch.
        info_limit_s: Longest time of an answer of `/info/`; None for any.
        growth_limit_mib: Largest growth of the server's memory after the first files; None for any.
        with_pacs: Whether DICOM files also go to a server over a PACS, if Orthanc is installed.
    """

    folder: Path
    seed: int
    results: Results = field(default_factory=Results)
    results_file: Path | None = None
    info_limit_s: float | None = 1.0
    growth_limit_mib: float | None = 200.0
    with_pacs: bool = True
    _pacs: Orthanc | None = None
    _in_pacs: frozenset[str] = frozenset()
    _is_warm: bool = False
    _known: set[Path] = field(default_factory=set)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def run(self, requests_per_format: int, formats: Sequence[str] = FORMATS) -> bool:
        """Send files, first those for a studies folder, then those for a PACS; return whether all is well."""
        has_pacs = self.with_pacs and _has_orthanc()
        with_pacs = [name for name in formats if has_pacs and name in (*OBJECTS, "dicom")]
        share = {name: requests_per_format // (2 if name in with_pacs else 1) for name in formats}
        with self._folder_server() as (server, goods):
            self._watched(server, goods, share)
        if with_pacs:
            with self._pacs_server() as (server, goods):
                self._watched(server, goods, {name: share[name] for name in with_pacs})
        return self.results.is_clean

    @contextmanager
    def _folder_server(self) -> Iterator[tuple[Server, Mapping[str, list[GoodFile]]]]:
        place = _new_folder(self.folder / "server")
        with running(place, conf={"quarantine_gib": "0.05"}) as server:
            for image in (ways.CASE, *WATCHED):
                write_ct(server.studies / f"{image}.nii.gz", small_ct(image))
            wait_until(lambda: ways.CASE in server.images(), "the case is listed")
            yield server, good_files(_made(self.folder / "good"))

    @contextmanager
    def _pacs_server(self) -> Iterator[tuple[Server, Mapping[str, list[GoodFile]]]]:
        place = _new_folder(self.folder / "server-with-pacs")
        series = self.folder / "pacs-series"
        with ExitStack() as stack:
            pacs = stack.enter_context(Orthanc(self.folder / "orthanc", free_port()))
            uid = write_ct_series(small_ct(), series, patient_id="fuzz")
            pacs.upload(sorted(series.iterdir()))
            server = stack.enter_context(
                running(place, studies=pacs.dicomweb_url, conf={"quarantine_gib": "0.05"})
            )
            wait_until(lambda: uid in server.images(), "the series is listed")
            self._pacs, self._in_pacs = pacs, ways.instances(pacs)
            yield server, good_files(_made(self.folder / "good-with-pacs"), series=series)
            self._pacs = None

    def _watched(
        self, server: Server, goods: Mapping[str, list[GoodFile]], share: Mapping[str, int]
    ) -> None:
        self._is_warm = False
        self._known = set(_scratch_files(server))
        outside = Outside(server.studies.parent / "outside")
        watcher = Watcher(server)
        watcher.start()
        try:
            for name, count in share.items():
                self._send_format(server, watcher, name, goods[name], count)
        finally:
            watcher.stop()
        self._take(watcher, sum(share.values()))
        self._blame(outside.wrong())
        self._blame(self._remains(server))
        if not outside.can_see_reads:
            say(
                "this file system keeps no times of access: reads outside the data folders cannot be seen"
            )

    def _send_format(
        self,
        server: Server,
        watcher: Watcher,
        name: str,
        goods: Sequence[GoodFile],
        count: int,
    ) -> None:
        counts = self.results.of(name)
        local = threading.local()

        def send(number: int) -> None:
            if not hasattr(local, "client"):
                local.client = Client(server)
            chance = chance_of(self.seed, name, number)
            good = chance.choice(goods)
            way_name, way = _way(good, chance, has_pacs=self._pacs is not None)
            self._send(local.client, counts, number, good, mutated(good, chance), way_name, way)

        end = counts.next_number + count
        while counts.next_number < end and watcher.is_alive:
            began = time.monotonic()
            last = min(end, counts.next_number + BATCH)
            numbers = list(range(counts.next_number, last))
            together = self._send_batch(server, counts, goods, numbers)
            with ThreadPoolExecutor(IN_FLIGHT) as pool:
                list(pool.map(send, [number for number in numbers if number not in together]))
            if self._pacs is not None:
                ways.remove_instances(self._pacs, kept=self._in_pacs)
            if not self._is_warm:
                watcher.restart_memory()
                self._is_warm = True
            counts.next_number = last
            counts.seconds += time.monotonic() - began
            self.results.save(self.results_file)
            say(f"{name}: {counts.ways.total()} files, {len(counts.failures)} failures")

    def _send_batch(
        self,
        server: Server,
        counts: FormatCounts,
        goods: Sequence[GoodFile],
        numbers: Sequence[int],
    ) -> list[int]:
        """Send the last numbers of a batch by the labels folder or by the PACS, and return them.

        The server looks there every few seconds, so that many files go together.
        """
        labels = [good for good in goods if good.is_label]
        is_object = goods[0].format in OBJECTS
        if not labels or len(numbers) < 2 * len(WATCHED) or is_object != (self._pacs is not None):
            return []
        chosen = list(numbers[-len(WATCHED) :])
        files = []
        for number in chosen:
            chance = chance_of(self.seed, goods[0].format, number)
            good = chance.choice(labels)
            files.append((good, mutated(good, chance)))
        client = Client(server)
        if self._pacs is None:
            name, outcomes = "labels folder", ways.watch_labels(client, files, WATCHED)
        else:
            name, outcomes = "PACS", ways.watch_pacs(client, self._pacs, files)
        for number, (good, content), outcome in zip(chosen, files, outcomes, strict=True):
            self._count(counts, number, good, content, name, outcome)
        return chosen

    def _send(  # noqa: PLR0917
        self,
        client: Client,
        counts: FormatCounts,
        number: int,
        good: GoodFile,
        content: bytes,
        way_name: str,
        way: Way,
    ) -> None:
        try:
            outcome = way(client, good, content, number)
        except requests.RequestException as error:
            outcome = Outcome("none", f"no answer: {type(error).__name__}: {error}"[:300])
        if outcome.answer == "502":
            outcome = self._without_pacs(outcome)
        self._count(counts, number, good, content, way_name, outcome)

    def _without_pacs(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a request that the PACS did not answer; start the PACS again if it ended."""
        pacs = self._pacs
        if pacs is None or "the PACS" not in outcome.failure:
            return outcome
        with self._mutex:
            if pacs.process is not None and pacs.process.poll() is not None:
                pacs.start()
                return Outcome("502, the PACS ended")
        return Outcome("502, the PACS failed")

    def _count(  # noqa: PLR0917
        self,
        counts: FormatCounts,
        number: int,
        good: GoodFile,
        content: bytes,
        way_name: str,
        outcome: Outcome,
    ) -> None:
        with self._mutex:
            counts.ways[way_name] += 1
            counts.answers[outcome.answer] += 1
            if not outcome.failure:
                return
            place = self.folder / "failures"
            place.mkdir(exist_ok=True)
            file = place / f"{self.seed}-{good.format}-{number}-{good.name}"
            file.write_bytes(content)
            counts.failures.append(
                f"{good.format} {number} by {way_name}: {outcome.failure} ({file.name})"
            )

    def _take(self, watcher: Watcher, files: int) -> None:
        self.results.info_ms += watcher.info_ms
        what = "folder" if self._pacs is None else "PACS"
        self.results.servers.append(
            server_record(what, files, watcher.info_ms, watcher.rss_mib, watcher.readers_mib)
        )
        self._blame(watcher.wrong)
        if self.info_limit_s is not None and watcher.info_ms:
            slow = sum(n for ms, n in watcher.info_ms.items() if ms > 1000 * self.info_limit_s)
            if slow:
                most, p99 = max(watcher.info_ms), quantile(watcher.info_ms, 0.99)
                limit = f"{self.info_limit_s:g} s, at most {most} ms (p99 {p99} ms)"
                self._blame([f"{slow} answers of /info/ took more than {limit}"])
        growth = watcher.rss_mib.get("end", 0) - watcher.rss_mib.get("start", 0)
        if self.growth_limit_mib is not None and growth > self.growth_limit_mib:
            self._blame([f"the server's memory grew by {growth:.0f} MiB"])

    def _remains(self, server: Server) -> list[str]:
        """Return what requests left in the folder for temporary files, and errors in the log."""
        wrong = []

        def remaining() -> list[Path]:
            return [path for path in _scratch_files(server) if path not in self._known]

        if not until(lambda: not remaining(), REMOVAL_LIMIT_S):
            wrong = [f"{path.name} remains among the temporary files" for path in remaining()]
        log = server.log.read_text(errors="replace")
        if count := log.count("unexpected error"):
            wrong.append(f"{count} unexpected errors in the server's log")
        return wrong

    def _blame(self, wrong: Sequence[str]) -> None:
        self.results.failures += dict.fromkeys(wrong)


def _scratch_files(server: Server) -> list[Path]:
    sessions = server.scratch.with_name("sessions")
    return [*server.scratch.iterdir(), *sessions.iterdir()]


def _way(good: GoodFile, chance: random.Random, *, has_pacs: bool) -> tuple[str, Way]:
    if has_pacs:
        known = ways.OBJECTS_WITH_PACS
    elif good.format in OBJECTS:
        known = ways.OBJECTS
    else:
        known = ways.LABELS if good.is_label else ways.SCANS
    (name,) = chance.choices(list(known), [weight for _, weight in known.values()])
    return name, known[name][0]


def _has_orthanc() -> bool:
    try:
        find_orthanc()
    except PacsError:
        return False
    return True


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _new_folder(path: Path) -> Path:
    _made(path / "models")
    put_model(path / "models")
    return path
