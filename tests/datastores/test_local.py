import json
import multiprocessing
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lib.datastores.local import FolderStore
from lib.dicom.ct_writer import write_ct_series
from lib.errors import (
    DatastoreError,
    GeometryError,
    ImageExistsError,
    LabelError,
    ScanError,
    StorageFullError,
)
from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.labels.history import LabelHistory
from lib.labels.quarantine import Quarantine
from lib.labels.submission import StoreDependencies
from lib.organs.table import ORGAN_SETS
from lib.storage.database import FILE, Database
from tests.phantoms import make_ct, make_grid, make_label, make_oblique_ct
from tests.waiting import LIMIT_S

LABELS = ORGAN_SETS["openkbp"]


def open_store(folder: Path) -> FolderStore:
    # The state is kept outside, because tests compare all files of the studies folder.
    state = folder.parent / "state"
    history = LabelHistory(Database(state / FILE), state)
    return FolderStore(
        folder, StoreDependencies(labels=LABELS, history=history, quarantine=Quarantine(state))
    )


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return open_store(tmp_path / "studies")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    return tmp_path / "studies"


@pytest.fixture
def label_file(tmp_path: Path) -> Path:
    path = tmp_path / "label.nii.gz"
    write_label(path, LabelVolume(make_label(), make_grid(), LABELS))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_and_dicom_folders_are_images(store: FolderStore, studies: Path) -> None:
    write_ct(studies / "a.nii.gz", make_ct())
    write_ct(studies / "b.v2.nrrd", make_ct())
    write_ct_series(make_ct(), studies / "c.d", patient_id="x")
    write_ct_series(make_ct(), studies / "e" / "inner", patient_id="x")
    (studies / "notes").mkdir()
    (studies / "notes" / "readme.txt").write_text("no scan")
    (studies / "readme.txt").write_text("no scan")
    write_ct(studies / ".hidden.nii.gz", make_ct())
    write_ct(studies / "-odd.nii.gz", make_ct())
    assert store.list_images() == ["a", "b.v2", "c.d", "e", "odd-7b268a2d"]
    assert store.require_image("b.v2") == studies / "b.v2.nrrd"
    assert store.require_image("c.d") == studies / "c.d"
    assert read_ct(store.require_image("e")).grid.shape_vox == (20, 16, 12)


def test_a_file_name_keeps_its_spelling_in_the_index(store: FolderStore, studies: Path) -> None:
    write_ct(studies / "b.nii.gz", make_ct())
    (studies / "b.nii.gz").rename(studies / "B.NII.GZ")
    assert store.list_images() == ["B"]
    assert store.json()["objects"]["B"]["image"]["ext"] == ".NII.GZ"
    assert store.get_image_info("B")["name"] == "B.NII.GZ"
    assert store.require_image("B") == studies / "B.NII.GZ"
    assert read_ct(store.require_image("B")).grid == make_ct().grid


def test_only_a_file_has_a_path_that_slicer_may_load(store: FolderStore, studies: Path) -> None:
    write_ct(studies / "file.nii.gz", make_ct())
    write_ct_series(make_ct(), studies / "series", patient_id="x")
    assert store.get_image_info("file")["path"] == str(studies.resolve() / "file.nii.gz")
    assert "path" not in store.get_image_info("series")
    assert store.get_image_info("series")["name"] == "series.nii.gz"


def test_images_and_labels_follow_their_files(
    store: FolderStore, studies: Path, label_file: Path
) -> None:
    write_ct(studies / "a.nii.gz", make_ct())
    assert store.list_images() == ["a"]
    store.save_label("a", str(label_file), "final", {})
    assert store.get_labeled_images() == ["a"]
    (studies / "labels" / "final" / "a.nii.gz").unlink()
    assert store.get_unlabeled_images() == ["a"]
    (studies / "a.nii.gz").unlink()
    assert store.list_images() == []
    assert store.json()["objects"] == {}


def test_slices_added_to_an_existing_folder_are_listed(store: FolderStore, studies: Path) -> None:
    (studies / "late" / "ct").mkdir(parents=True)
    assert store.list_images() == []
    write_ct_series(make_ct(), studies / "late" / "ct", patient_id="x")
    assert store.list_images() == ["late"]


@pytest.mark.parametrize("damage", [b"", b'{"name": "x", "obj', b"[]", b'{"objects": 3}'])
def test_a_damaged_index_of_an_earlier_server_does_not_matter(
    studies: Path, label_file: Path, damage: bytes
) -> None:
    store = open_store(studies)
    write_ct(studies / "a.nii.gz", make_ct())
    store.save_label("a", str(label_file), "final", {})
    (studies / "datastore_v2.json").write_bytes(damage)
    assert open_store(studies).get_labeled_images() == ["a"]
    assert (studies / "datastore_v2.json").read_bytes() == damage


OTHER_INDEXES = {
    "of another folder": {
        "name": "other", "description": "", "images_dir": ".", "labels_dir": "labels",
        "objects": {"other_case": {"image": {"info": {}, "ext": ".nrrd"}, "labels": {
            "final": {"info": {}, "ext": ".nrrd"}}}},
    },
    "with paths in it": {
        "name": "other", "description": "", "base_path": "/etc",
        "objects": {"../../etc/passwd": {"image": {"info": {}, "ext": ""}, "labels": {}},
                    "a": {"image": {"info": {}, "ext": ".nii.gz"}, "labels": {
                        "../..": {"info": {}, "ext": ".nii.gz"},
                        "final": {"info": {"client_id": "me"}, "ext": ".nii.gz"}}}},
    },
    "of version 1": {
        "name": "other", "description": "",
        "objects": {"a.nii.gz": {"image": {"id": "a.nii.gz", "info": {}},
                                 "labels": [{"id": "label_final_a.nii.gz", "tag": "final"}]}},
    },
    "of another program": {"openapi": "3.0", "paths": {}},
    "of nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_INDEXES)
def test_an_index_of_other_origin_lists_nothing(studies: Path, label_file: Path, kind: str) -> None:
    store = open_store(studies)
    write_ct(studies / "a.nii.gz", make_ct())
    store.save_label("a", str(label_file), "final", {})
    (studies / "datastore_v2.json").write_text(json.dumps(OTHER_INDEXES[kind]))
    for again in (store, open_store(studies)):
        assert again.list_images() == ["a"]
        assert again.get_labeled_images() == ["a"]
        assert again.status() == {"total": 1, "completed": 1, "label_tags": {"final": 1}}
        assert again.datalist()[0]["image"] == str(studies / "a.nii.gz")
        assert list(again.json()["objects"]) == ["a"]


def index_of_an_earlier_server(**info: object) -> str:
    """Return the index file of a server before revision 0003, with information about image and label of `a`."""
    info = {"ts": 5, "name": "a.nii.gz", **info}
    entry = {"info": info, "ext": ".nii.gz"}
    image = {"image": entry, "labels": {"final": entry}}
    missing = {"image": {"info": {"note": "kept"}, "ext": ".nii.gz"}, "labels": {}}
    return json.dumps({"name": "studies", "objects": {"a": image}, "unavailable": {"b": missing}})


def test_information_in_the_index_of_an_earlier_server_is_kept(
    studies: Path, label_file: Path
) -> None:
    store = open_store(studies)
    write_ct(studies / "a.nii.gz", make_ct())
    store.save_label("a", str(label_file), "final", {"client_id": "me"})
    path = studies / "datastore_v2.json"
    path.write_text(index_of_an_earlier_server(client_id="me", note="earlier"))
    before = path.read_bytes()
    again = open_store(studies)
    assert again.get_image_info("a")["note"] == "earlier"
    assert again.get_label_info("a", "final")["note"] == "earlier"
    again.update_image_info("a", {"note": "later"})
    again.update_label_info("a", "final", {"note": "later"})
    # The file is read once, and again when another program changed it.
    for one in (store, open_store(studies)):
        assert one.get_image_info("a")["note"] == "later"
        assert one.get_label_info("a", "final")["note"] == "later"
    assert path.read_bytes() == before
    write_ct(studies / "b.nii.gz", make_ct())
    assert store.get_image_info("b")["note"] == "kept"
    path.write_text(index_of_an_earlier_server(note="by MONAI Label"))
    assert open_store(studies).get_image_info("a")["note"] == "by MONAI Label"


def test_added_file_is_kept_byte_for_byte(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    write_ct(tmp_path / "sent.nrrd", make_oblique_ct())
    assert store.add_image("pt 1", str(tmp_path / "sent.nrrd"), {"client_id": "me"}) == "pt 1"
    stored = studies / "pt 1.nrrd"
    assert stored.read_bytes() == (tmp_path / "sent.nrrd").read_bytes()
    info = store.get_image_info("pt 1")
    assert (info["client_id"], info["name"]) == ("me", "pt 1.nrrd")


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"study/series/{file.name}")
    return path


def test_added_zip_becomes_a_dicom_folder(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    write_ct_series(make_ct(), tmp_path / "series", patient_id="x")
    sent = zipped(tmp_path / "series", tmp_path / "scan.zip")
    assert store.add_image("", str(sent), {}) == "scan"
    assert store.add_image("scan", str(sent), {}) == "scan"
    np.testing.assert_array_equal(read_ct(studies / "scan").array_hu, make_ct().array_hu)


def test_existing_id_accepts_the_same_scan_only(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    write_ct(tmp_path / "one.nii.gz", make_ct())
    write_ct(tmp_path / "two.nii.gz", make_oblique_ct())
    store.add_image("a", str(tmp_path / "one.nii.gz"), {})
    before = contents(studies)
    assert store.add_image("a", str(tmp_path / "one.nii.gz"), {}) == "a"
    with pytest.raises(ImageExistsError, match="a: another scan has this id already"):
        store.add_image("a", str(tmp_path / "two.nii.gz"), {})
    assert contents(studies) == before


def test_refused_upload_leaves_no_file(store: FolderStore, studies: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"garbage")
    (tmp_path / "bad.zip").write_bytes(b"garbage")
    (tmp_path / "bad.exe").write_bytes(b"garbage")
    before = contents(studies)
    for name in ("bad.nii.gz", "bad.zip", "bad.exe"):
        with pytest.raises(ScanError):
            store.add_image("bad", str(tmp_path / name), {})
    assert contents(studies) == before
    assert not list(studies.glob(".receiving-*"))


@pytest.mark.parametrize("name", ["../x", "a/b", ".a", "a\\b", "", "a" * 300, "a\n", "..", "a."])
def test_names_outside_the_folder_are_refused(
    store: FolderStore, studies: Path, label_file: Path, name: str
) -> None:
    write_ct(studies / "a.nii.gz", make_ct())
    before = contents(studies)
    with pytest.raises(DatastoreError):
        store.require_image(name)
    with pytest.raises(DatastoreError):
        store.save_label("a", str(label_file), name, {})
    with pytest.raises(DatastoreError):
        store.save_label(name, str(label_file), "final", {})
    if name:
        with pytest.raises(DatastoreError):
            store.add_image(name, str(studies / "a.nii.gz"), {})
    for remove in (store.remove_image, lambda n: store.remove_label("a", n)):
        with pytest.raises(DatastoreError):
            remove(name)
    assert contents(studies).keys() == before.keys()


def test_saved_label_has_the_servers_values_and_the_images_grid(
    store: FolderStore, studies: Path, label_file: Path
) -> None:
    write_ct(studies / "a.nii.gz", make_ct())
    # The phantom's label holds 1, 2 and 7; the client sends its own names for these values.
    info = {"label_info": [{"name": "Mandible", "idx": 1}, {"name": "left parotid", "idx": 2},
                           {"name": "Cord", "idx": 7}], "client_id": "me"}  # fmt: skip
    assert store.save_label("a", str(label_file), "final", info) == "a"
    saved, _ = read_label(store.require_label("a", "final"), image_id="a", image_grid=make_grid())
    expected = np.zeros_like(saved)
    phantom = make_label()
    expected[phantom == 1] = LABELS["Bone_Mandible"]
    expected[phantom == 2] = LABELS["Parotid_L"]
    expected[phantom == 7] = LABELS["SpinalCord"]
    np.testing.assert_array_equal(saved, expected)
    assert store.get_label_info("a", "final")["client_id"] == "me"
    assert store.datalist() == [
        {
            "id": "a",
            "image": str(studies / "a.nii.gz"),
            "label": str(studies / "labels" / "final" / "a.nii.gz"),
        }
    ]


def test_refused_label_leaves_the_previous_one(
    store: FolderStore, studies: Path, tmp_path: Path, label_file: Path
) -> None:
    write_ct(studies / "a.nii.gz", make_ct())
    store.save_label("a", str(label_file), "final", {})
    before = contents(studies)
    oblique = make_oblique_ct().grid
    on_another_grid = tmp_path / "on_another_grid.nii.gz"
    write_label(on_another_grid, LabelVolume(make_label(oblique), oblique, LABELS))
    with pytest.raises(GeometryError, match="a: the label lies on"):
        store.save_label("a", str(on_another_grid), "final", {})
    info = {"label_info": [{"name": name, "idx": v} for name, v in (("A", 1), ("B", 2), ("C", 7))]}
    with pytest.raises(LabelError, match="'A', 'B', 'C' are no organs"):
        store.save_label("a", str(label_file), "final", info)
    assert contents(studies) == before


def test_full_disk_leaves_the_previous_label(
    store: FolderStore, studies: Path, label_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ct(studies / "a.nii.gz", make_ct())
    store.save_label("a", str(label_file), "final", {})
    before = contents(studies)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFullError, match="the disk is full"):
        store.save_label("a", str(label_file), "final", {})
    assert contents(studies) == before


def test_removed_scans_and_labels_are_kept_in_a_folder(
    store: FolderStore, studies: Path, label_file: Path
) -> None:
    write_ct(studies / "a.nii.gz", make_ct())
    store.save_label("a", str(label_file), "final", {})
    label = store.require_label("a", "final").read_bytes()
    store.remove_label("a", "final")
    assert store.get_unlabeled_images() == ["a"]
    store.remove_image("a")
    assert store.list_images() == []
    removed = {p.name: p for p in (studies / ".removed").rglob("labels/final/*")}
    assert removed["a.nii.gz"].read_bytes() == label
    assert len(list((studies / ".removed").rglob("a.nii.gz"))) == 2
    with pytest.raises(DatastoreError, match="a: no such image"):
        store.remove_image("a")


def test_one_of_several_removals_of_an_image_succeeds(store: FolderStore, studies: Path) -> None:
    write_ct(studies / "a.nii.gz", make_ct())
    store.require_image("a")

    def removal(_number: int) -> str:
        try:
            store.remove_image("a")
        except DatastoreError as error:
            return str(error)
        return "removed"

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(removal, range(8)))
    assert answers.count("removed") == 1
    assert all("a: no such image" in answer for answer in answers[:-1])
    assert len(list((studies / ".removed").rglob("a.nii.gz"))) == 1


def test_status_counts_labels(store: FolderStore, studies: Path, label_file: Path) -> None:
    for name in ("a", "b"):
        write_ct(studies / f"{name}.nii.gz", make_ct())
    store.save_label("b", str(label_file), "original", {})
    store.save_label("b", str(label_file), "final", {})
    tags = {"final": 1, "original": 1}
    assert store.status() == {"total": 2, "completed": 1, "label_tags": tags}


def note(folder: Path, process: int) -> None:
    """Add 20 attributes to an image, each in a change of its own."""
    store = open_store(folder)
    for number in range(20):
        store.update_image_info("a", {f"note_{process}_{number}": True})


def test_processes_do_not_lose_each_others_changes(store: FolderStore, studies: Path) -> None:
    write_ct(studies / "a.nii.gz", make_ct())
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=note, args=(studies, n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for number in range(20):
        store.update_image_info("a", {f"note_here_{number}": True})
    for writer in writers:
        writer.join(LIMIT_S)
        assert writer.exitcode == 0
    assert len([key for key in store.get_image_info("a") if key.startswith("note_")]) == 60
