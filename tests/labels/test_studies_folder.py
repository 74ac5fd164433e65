"""Tests of the listing of a studies folder: which entries are images, and why others are none."""

import errno
import hashlib
import os
import socket
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from lib.labels import studies_folder
from lib.labels.studies_folder import Listing, StudiesFolder
from tests.permissions import forbidden

SLICE = bytes(128) + b"DICM" + bytes(8)
"""Beginning of a DICOM file, all that a listing reads of it."""
DENIED = "cannot be read (Permission denied)"


def studies_in(folder: Path, harmful: Mapping[Path, str] = MappingProxyType({})) -> StudiesFolder:
    return StudiesFolder(folder, reserved={"labels": ""}, harmful=lambda: harmful)


def listing_of(folder: Path) -> Listing:
    return studies_in(folder).listing()


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def put(folder: Path, *names: str, content: bytes = SLICE) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def paths(listing: Listing) -> dict[str, str]:
    return {image_id: entry.path for image_id, entry in listing.images.items()}


def test_names_of_all_kinds_are_images(tmp_path: Path) -> None:
    names = ["DOE^JOHN_123", "_anon01", "Case%20", "A{1}", "Pat 1 - 2019!", "M\u00fcller", "\u75c5\u4eba3",
             "-odd", "dots..", "x" * 250]  # fmt: skip
    put(tmp_path, *(f"{name}/IM1" for name in names), "UP.NII.GZ", "CD/DICOM/PA1/ST1/SE1/IM1")
    listing = listing_of(tmp_path)
    assert sorted(paths(listing).values()) == sorted([*names, "UP.NII.GZ", "CD/DICOM/PA1/ST1/SE1"])
    assert listing.refused == {}
    assert paths(listing)["UP"] == "UP.NII.GZ"
    # SHA-256 of "Müller" in UTF-8 begins with a7842989, that of the path on the CD with ea3ad543.
    assert paths(listing)["Muller-a7842989"] == "M\u00fcller"
    assert paths(listing)["CD_DICOM_PA1_ST1_SE1-ea3ad543"] == "CD/DICOM/PA1/ST1/SE1"


def test_both_unicode_forms_of_a_name_have_one_id(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "M\u00fcller")
    decomposed = unicodedata.normalize("NFD", composed)
    put(tmp_path, f"one/{composed}.nii", f"two/{decomposed}.nii")
    assert listing_of(tmp_path / "one").images.keys() == listing_of(tmp_path / "two").images.keys()
    put(tmp_path, f"one/{decomposed}.nii")
    listing = listing_of(tmp_path / "one")
    assert len(listing.images) == 1
    (reason,) = listing.refused.values()
    assert "has the image id Muller-a7842989, as" in reason


def test_a_name_that_is_not_utf8_is_an_image(tmp_path: Path) -> None:
    put(tmp_path, os.fsdecode(b"M\xfcller.nii"))
    put(tmp_path, os.fsdecode(b"\xff.nii"), content=b"")
    listing = listing_of(tmp_path)
    ((image_id, entry),) = listing.images.items()
    assert image_id.isascii()
    assert os.fsencode(entry.path) == b"M\xfcller.nii"
    (reason,) = listing.refused.values()
    assert reason.startswith("\\xff.nii is empty")


def test_names_that_differ_in_case_only_are_two_images(tmp_path: Path) -> None:
    put(tmp_path, "Case.nii", "case.nii")
    assert paths(listing_of(tmp_path)) == {"Case": "Case.nii", "case": "case.nii"}


def test_of_two_entries_with_one_id_the_second_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.nrrd", "a.nii.gz", "a/IM1", "M\u00fcller/IM1", "Muller-a7842989.nii.gz")
    listing = listing_of(tmp_path)
    # A file named like the id of another entry was downloaded from the server.
    assert paths(listing) == {"a": "a.nii.gz", "Muller-a7842989": "M\u00fcller"}
    assert listing.refused == {
        "a": "a has the image id a, as a.nii.gz has; rename one of them",
        "a.nrrd": "a.nrrd has the image id a, as a.nii.gz has; rename one of them",
        "Muller-a7842989.nii.gz": (
            "Muller-a7842989.nii.gz has the image id Muller-a7842989, as M\u00fcller has; rename one of them"
        ),
    }


def test_dicom_folders_are_images_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path, "a/IM1", "b/ct/IM1", "b/ct/old/IM1", "c/x/y/IM1", "c/x/y/z/IM2", "c/readme.txt",
        "d/DICOMDIR", "labels/final/IM1", ".hidden/IM1")  # fmt: skip
    put(tmp_path, "c/readme.txt", content=b"text")
    assert sorted(paths(listing_of(tmp_path)).values()) == ["a", "b", "b/ct/old", "c/x/y"]


def test_what_looks_like_a_scan_is_named_and_the_rest_is_ignored(tmp_path: Path) -> None:
    put(tmp_path, "pt_1/ct.nii.gz", "IM0001.dcm", "IM0002.dcm")
    put(
        tmp_path, "scan.mhd", "export.zip", "report.pdf", "notes", "pt_1/notes.txt", content=b"text"
    )
    listing = listing_of(tmp_path)
    assert listing.images == {}
    assert sorted(listing.refused) == ["IM0001.dcm", "export.zip", "pt_1/ct.nii.gz", "scan.mhd"]
    assert "put each series into a folder of its own" in listing.refused["IM0001.dcm"]
    assert "move it to the studies folder itself" in listing.refused["pt_1/ct.nii.gz"]


def test_an_empty_folder_is_named_until_it_is_filled(tmp_path: Path) -> None:
    put(tmp_path, "b/.DS_Store", "docs/plan.pdf", content=b"text")
    (tmp_path / "scan.nii.gz").mkdir()
    (tmp_path / "c" / "inner.nrrd").mkdir(parents=True)
    studies = studies_in(tmp_path)
    refused = studies.listing().refused
    assert list(refused) == ["b", "c_inner.nrrd-" + digest("c/inner.nrrd"), "scan.nii.gz"]
    assert all("is an empty folder" in reason for reason in refused.values())
    put(tmp_path, "scan.nii.gz/IM1")
    assert paths(studies.listing())["scan.nii.gz"] == "scan.nii.gz"
    assert "scan.nii.gz" not in studies.listing().refused


def test_only_an_entry_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "good.nii.gz", "bad.nii.gz", "whole/IM1", "part/IM1", "part/IM2", "e/ct/IM1", "e/other/IM1",
        "colleague/IM1")  # fmt: skip
    put(tmp_path, "lost+found/x", content=b"text")
    studies = studies_in(tmp_path)
    unreadable = [
        tmp_path / n for n in ("bad.nii.gz", "part/IM2", "e/other", "colleague/IM1", "lost+found")
    ]
    with forbidden(*unreadable):
        listing = studies.listing()
        assert listing.images.keys() == {"good", "whole"}
        assert listing.refused == {
            "bad": f"bad.nii.gz {DENIED}",
            "part": f"part holds IM2, which {DENIED}",
            "e": f"e {DENIED}",
            "colleague": f"colleague holds IM1, which {DENIED}",
            "lost+found": f"lost+found {DENIED}",
        }
        assert studies.listing() is listing
    again = studies.listing()
    assert again.images.keys() == {"good", "whole", "bad", "part", "e", "colleague"}
    assert again.refused == {}


def test_an_image_that_becomes_unreadable_is_refused_when_it_is_used(tmp_path: Path) -> None:
    put(tmp_path, "a.nii.gz", "b/IM1", "b/IM2", "c.nii.gz")
    studies = studies_in(tmp_path)
    for path in (tmp_path, tmp_path / "b"):
        os.utime(path, (0, 0))
    assert len(studies.listing().images) == 3
    with forbidden(tmp_path / "a.nii.gz", tmp_path / "b" / "IM2"):
        readable = [studies.is_readable(tmp_path / n) for n in ("a.nii.gz", "b", "c.nii.gz")]
        assert readable == [False, False, True]
        assert studies.listing().refused == {
            "a": f"a.nii.gz {DENIED}",
            "b": f"b holds IM2, which {DENIED}",
        }
    assert len(studies.listing().images) == 3


def test_the_studies_folder_itself_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, "a.nii.gz")
    studies = studies_in(tmp_path)
    studies.listing()
    with forbidden(tmp_path):
        assert studies.listing().images == {}
        assert studies.listing().refused == {".": f"the studies folder {DENIED}"}
    assert studies.listing().images.keys() == {"a"}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    put(tmp_path, "a/IM1", "empty.mha", content=SLICE)
    (tmp_path / "empty.mha").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo.nii.gz")
    os.mkfifo(tmp_path / "a" / "IM2.dcm")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "FIFO")
    (tmp_path / "zero.nrrd").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "s.nii"))
    listing = listing_of(tmp_path)
    assert listing.images == {}
    assert {key: reason.split(" ", 1)[1] for key, reason in listing.refused.items()} == {
        "a": "holds IM2.dcm, which is not a regular file",
        "empty": "is empty (0 bytes); copy it again",
        "fifo": "is not a regular file",
        "s": "is not a regular file",
        "zero": "is not a regular file",
    }


def test_links_are_followed_unless_they_lead_in_circles_or_nowhere(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/series/IM1", "studies/a/IM1", "studies/a/IM2")
    studies = tmp_path / "studies"
    (studies / "linked").symlink_to(tmp_path / "elsewhere" / "series")
    (studies / "self").symlink_to(".")
    (studies / "around").symlink_to("..")
    (studies / "loop").symlink_to("loop")
    (studies / "gone.nii").symlink_to("nowhere")
    (studies / "a" / "IM3").symlink_to("nowhere")
    listing = listing_of(studies)
    assert paths(listing)["linked"] == "linked"
    assert listing.refused["a"] == (
        "a holds IM3, which is a link to a file or folder that does not exist"
    )
    assert listing.refused["self"] == "self is a link to a folder around it"
    assert "around/studies is a link to a folder around it" in listing.refused.values()
    assert listing.refused["loop"] == "loop cannot be read (Too many levels of symbolic links)"
    assert listing.refused["gone"].endswith("does not exist")


def test_folders_are_searched_to_a_limit(tmp_path: Path) -> None:
    deep = "/".join("abcdefghijklmnop")
    put(tmp_path, f"{deep}/IM1")
    listing = listing_of(tmp_path)
    assert listing.images == {}
    (reason,) = listing.refused.values()
    assert "lies in more than 12 folders" in reason


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_an_error_of_the_disk_belongs_to_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    put(tmp_path, "a/IM1", "b/IM1", "c.nii.gz", "gone/IM1")
    scan, open_file = os.scandir, os.open

    def failing_scan(path: Path) -> "os._ScandirIterator[str]":
        if Path(path).name == "a":
            raise OSError(code, os.strerror(code))
        if Path(path).name == "gone":
            raise FileNotFoundError(errno.ENOENT, "removed meanwhile")
        return scan(path)

    def failing_open(path: Path, flags: int) -> int:
        if Path(path).name == "c.nii.gz":
            raise OSError(code, os.strerror(code))
        return open_file(path, flags)

    studies = studies_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", failing_scan)
        patched.setattr(os, "open", failing_open)
        patched.setattr(os, "access", lambda *_, **__: False)
        listing = studies.listing()
        assert listing.images.keys() == {"b"}
        assert listing.refused == {
            "a": f"a cannot be read ({os.strerror(code)})",
            "c": f"c.nii.gz cannot be read ({os.strerror(code)})",
        }
    assert studies.listing().images.keys() == {"a", "b", "c", "gone"}


def test_an_image_that_ends_its_reader_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.nii.gz", "b/ct/IM1", "c.nii.gz")
    reason = "its reader died (SIGSEGV)"
    harmful = {tmp_path / "a.nii.gz": reason, tmp_path / "b": reason, tmp_path.parent: reason}
    studies = studies_in(tmp_path, harmful)
    assert studies.listing().images.keys() == {"c"}
    assert studies.listing().refused == {"a": reason, "b": reason}
    harmful.clear()
    assert studies.listing().images.keys() == {"a", "b", "c"}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders that were opened."""
    names: list[str] = []

    def record(function: Callable[..., object]) -> Callable[..., object]:
        def recorded(path: Path, *given: object) -> object:
            names.append(Path(path).name)
            return function(path, *given)

        return recorded

    monkeypatch.setattr(os, "scandir", record(os.scandir))
    monkeypatch.setattr(os, "open", record(os.open))
    return names


def test_an_unchanged_folder_is_not_read_again(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *(f"{n}.nii" for n in range(50)), "a/IM1", "a/IM2", "b/ct/IM1", "fifo.zip")
    os.mkfifo(tmp_path / "fifo.nii")
    monkeypatch.setattr(studies_folder, "SETTLED_S", -1.0)
    studies = studies_in(tmp_path)
    first = studies.listing()
    assert len(first.images) == 52
    opened.clear()
    assert studies.listing() is first
    assert opened == []
    # Only the studies folder is read after a change in it, and no known file is opened.
    put(tmp_path, "new.nii")
    assert len(studies.listing().images) == 53
    assert opened == [tmp_path.name, "new.nii"]
    opened.clear()
    put(tmp_path, "b/ct/IM2")
    studies.listing()
    assert set(opened) == {"ct", "IM1"}
