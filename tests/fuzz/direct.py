"""Mutated files given to the readers directly, in a process of their own: many more files in the same time."""

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from pydicom.dataset import FileDataset

from lib.dicom.objects import read_object
from lib.errors import OrganNetError
from lib.imaging.archives import unpack_zip
from lib.imaging.dicom_series import read_headers
from lib.imaging.geometry import Grid
from lib.imaging.scans import read_ct, read_label
from tests.fuzz.campaign import chance_of, say
from tests.fuzz.good_files import OBJECTS, GoodFile, good_files
from tests.fuzz.mutations import mutated
from tests.fuzz.results import Results

BATCH = 1000
_SERIES = "FUZZ_SERIES"
MEMORY_BYTES = 8 * 2**30
"""Limit of the address space of the process that reads."""


def run_direct(
    folder: Path,
    seed: int,
    share: Mapping[str, int],
    results: Results,
    results_file: Path | None = None,
) -> bool:
    """Read mutated files; return whether each was read or refused with a reason."""
    for name, count in share.items():
        counts = results.of(name)
        end = counts.next_number + count
        while counts.next_number < end:
            began = time.monotonic()
            first, last = counts.next_number, min(end, counts.next_number + BATCH)
            for number, answer in _read_all(folder, seed, name, range(first, last)):
                is_expected = answer in ("accepted", "refused")
                counts.answers[answer if is_expected else "failed"] += 1
                counts.ways["reader"] += 1
                if not is_expected:
                    counts.failures.append(f"{name} {number} by the reader: {answer}")
            counts.next_number = last
            counts.seconds += time.monotonic() - began
            results.save(results_file)
            say(f"{name}: {counts.ways.total()} files, {len(counts.failures)} failures")
    return results.is_clean


def _read_all(folder: Path, seed: int, name: str, numbers: range) -> Iterator[tuple[int, str]]:
    """Yield what became of each file; a file that ends the process is reported as well."""
    start = numbers.start
    while start < numbers.stop:
        _progress(folder, name).write_bytes(b"")
        with ProcessPoolExecutor(1) as pool:
            reading = pool.submit(_read_numbers, folder, seed, name, range(start, numbers.stop))
            try:
                yield from reading.result()
                return
            except BrokenProcessPool:
                text = _progress(folder, name).read_text() or str(start)
                done = [line.split(" ", 1) for line in text.splitlines()]
        # The last line has only the number of the file that was being read.
        yield from ((int(words[0]), words[1]) for words in done if len(words) == 2)
        start = int(done[-1][0]) + 1
        yield start - 1, "the process of the reader ended"


def _read_numbers(folder: Path, seed: int, name: str, numbers: range) -> list[tuple[int, str]]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    found = []
    with _progress(folder, name).open("wb", buffering=0) as lines:
        for number in numbers:
            lines.write(f"{number}".encode())
            chance = chance_of(seed, name, number)
            good = chance.choice(_goods(folder)[name])
            found.append((number, read_one(good, mutated(good, chance))))
            lines.write(f" {found[-1][1]}\n".encode())
    return found


def _progress(folder: Path, name: str) -> Path:
    return folder / f"progress-{name}"


@cache
def _goods(folder: Path) -> dict[str, list[GoodFile]]:
    """Return the good files that this process reads changed copies of."""
    place = folder / f"good-{os.getpid()}"
    place.mkdir()
    os.environ[_SERIES] = str(place / "series")
    return dict(good_files(place))


def read_one(good: GoodFile, content: bytes) -> str:
    """Return `accepted`, `refused`, or the unexpected exception of the reader of a format."""
    with TemporaryDirectory(prefix="fuzz-") as place:
        try:
            _reader(good)(Path(place), good, content)
        except OrganNetError as error:
            return "refused" if str(error) else "refused without a reason"
        except Exception as error:  # noqa: BLE001 - what is looked for
            return f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
    return "accepted"


def _reader(good: GoodFile) -> Callable[[Path, GoodFile, bytes], None]:
    if good.format in OBJECTS:
        return _read_object
    if good.format == "zip":
        return _read_zip
    return _read_series if good.others else _read_volume


def _read_volume(place: Path, good: GoodFile, content: bytes) -> None:
    path = place / good.name
    path.write_bytes(content)
    if good.is_label:
        read_label(path, image_id="fuzz", image_grid=None)
    else:
        read_ct(path, image_id="fuzz")


def _read_series(place: Path, good: GoodFile, content: bytes) -> None:
    for number, slice_ in enumerate((content, *good.others)):
        (place / f"{number:03d}.dcm").write_bytes(slice_)
    read_ct(place, image_id="fuzz")


def _read_zip(place: Path, good: GoodFile, content: bytes) -> None:
    path = place / good.name
    path.write_bytes(content)
    read_ct(unpack_zip(path, place / "unpacked", "fuzz"), image_id="fuzz")


def _read_object(place: Path, good: GoodFile, content: bytes) -> None:
    path = place / good.name
    path.write_bytes(content)
    headers, grid = _series_headers(Path(os.environ[_SERIES]))
    read_object(path, headers, grid, image_id="fuzz")


@cache
def _series_headers(series: Path) -> tuple[list[FileDataset], Grid]:
    """Return the headers of the good series that objects refer to."""
    return read_headers(series, image_id="fuzz")
