import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from apps import prepare_data
from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.importers import run
from lib.importers.cases import OrganNames, SourceCase
from lib.importers.detect import find_cases
from lib.training.cases import find_labelled_cases
from tests.importers.sources import (
    BRAINSTEM,
    OPENKBP,
    PAROTID_L,
    PAROTID_R,
    label_array,
    put_label,
    put_openkbp,
    put_pddca,
    put_rtstruct,
    put_series,
)
from tests.phantoms import make_ct

OPENKBP_LABEL = label_array({1: BRAINSTEM, 3: PAROTID_R, 4: PAROTID_L})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One case of each source, and one that must be refused."""
    folder = tmp_path / "source"
    put_openkbp(folder / "kbp" / "pt_1")
    put_pddca(folder / "pddca" / "0522c0001")
    write_ct(folder / "pairs" / "a.nii.gz", make_ct())
    put_label(folder / "pairs" / "a_seg.nii.gz", OPENKBP_LABEL)
    put_series(folder / "clinic" / "DOE^JANE")
    boxes = {
        "Brainstem": [BRAINSTEM],
        "Lt Par": [PAROTID_L],
        "Parotid (R)": [PAROTID_R],
        "PTV70": [BRAINSTEM],
    }
    put_rtstruct(folder / "clinic" / "DOE.dcm", folder / "clinic" / "DOE^JANE", boxes)
    put_openkbp(folder / "kbp" / "pt_2")
    (folder / "kbp" / "pt_2" / "label.nii.gz").write_bytes(b"<html>not found</html>")
    return folder


def prepare(source: Path, studies: Path, *flags: str) -> int:
    return prepare_data.main(["--input", str(source), "--output", str(studies), *flags])


def report(studies: Path) -> dict[str, Any]:
    imported: dict[str, Any] = json.loads((studies / "import.json").read_text())
    return imported


def label_of(studies: Path, case: str) -> Any:
    ct = read_ct(studies / f"{case}.nii.gz")
    path = studies / "labels" / "final" / f"{case}.nii.gz"
    return read_label(path, image_id=case, image_grid=ct.grid)[0]


def clinic_case(studies: Path) -> str:
    (case,) = (c for c in report(studies)["cases"] if c.startswith("case_"))
    return str(case)


def test_all_sources_become_one_studies_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies, names = tmp_path / "studies", tmp_path / "names.yaml"
    names.write_text("Lt Par: Parotid_L\n")
    assert prepare(source, studies, "--names", str(names)) == 1
    output = capsys.readouterr()
    refusals = [line for line in output.err.splitlines() if "refused: " in line]
    assert len(refusals) == 1
    assert "pt_2: label.nii.gz holds a web page" in refusals[0]
    assert "5 cases: 4 imported, 0 unchanged, 1 refused, 0 without contours" in output.out
    assert "Brainstem           4 of 4 cases" in output.out
    assert "'PTV70' in 1 cases" in output.out
    imported = report(studies)
    clinic = clinic_case(studies)
    assert set(imported["cases"]) == {"pt_1", "0522c0001", "a", clinic}
    assert set(imported["refused"]) == {"pt_2"}
    assert imported["cases"][clinic]["source"] == "dicom"
    assert imported["cases"][clinic]["unmapped"] == ["PTV70"]
    assert imported["cases"][clinic]["names"]["Lt Par"] == "Parotid_L"
    for case, entry in imported["cases"].items():
        assert entry["organs"] == ["Brainstem", "Parotid_R", "Parotid_L"]
        np.testing.assert_array_equal(label_of(studies, case), OPENKBP_LABEL)
        np.testing.assert_array_equal(
            read_ct(studies / f"{case}.nii.gz").array_hu, make_ct().array_hu
        )
        # 80 voxels of 1.5 x 2 x 3 mm
        assert entry["volumes_ml"]["Brainstem"] == pytest.approx(80 * 9 / 1000)
    assert [c.image_id for c in find_labelled_cases(studies)] == sorted(imported["cases"])
    assert "DOE" not in (studies / "import.json").read_text() + output.out + output.err


def test_a_second_run_imports_remaining_cases_only(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = tmp_path / "studies"
    assert prepare(source, studies) == 1
    written = {p: p.stat().st_mtime_ns for p in studies.rglob("*.nii.gz")}
    put_openkbp(source / "kbp" / "pt_2")
    (studies / "labels" / "final" / "a.nii.gz").unlink()
    capsys.readouterr()
    assert prepare(source, studies) == 0
    assert "2 imported, 3 unchanged, 0 refused" in capsys.readouterr().out
    assert report(studies)["refused"] == {}
    np.testing.assert_array_equal(label_of(studies, "pt_2"), OPENKBP_LABEL)
    np.testing.assert_array_equal(label_of(studies, "a"), OPENKBP_LABEL)
    unlinked = studies / "labels" / "final" / "a.nii.gz"
    del written[unlinked]
    assert {p: p.stat().st_mtime_ns for p in written} == written


def test_an_interrupted_run_continues(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = tmp_path / "studies"

    def stop(path: Path, label: Any) -> None:
        if path.name == "pt_1.nii.gz":
            raise KeyboardInterrupt
        write_label(path, label)

    monkeypatch.setattr(run, "write_label", stop)
    assert prepare(source, studies) == 130
    assert (studies / "pt_1.nii.gz").exists()
    assert "pt_1" not in report(studies)["cases"]
    before = set(report(studies)["cases"])
    assert before
    monkeypatch.undo()
    assert prepare(source, studies) == 1
    assert set(report(studies)["cases"]) > before
    np.testing.assert_array_equal(label_of(studies, "pt_1"), OPENKBP_LABEL)


def test_a_changed_source_is_imported_again(source: Path, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    prepare(source, studies)
    put_label(source / "kbp" / "pt_1" / "label.nii.gz", label_array({1: BRAINSTEM}))
    os.utime(source / "kbp" / "pt_1" / "label.nii.gz", ns=(0, 0))
    prepare(source, studies)
    assert report(studies)["cases"]["pt_1"]["organs"] == ["Brainstem"]
    assert set(np.unique(label_of(studies, "pt_1"))) == {0, 1}


def test_a_label_changed_by_a_user_is_never_overwritten(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = tmp_path / "studies"
    prepare(source, studies)
    edited = label_array({1: BRAINSTEM, 6: PAROTID_L})
    put_label(studies / "labels" / "final" / "pt_1.nii.gz", edited)
    prepare(source, studies)
    np.testing.assert_array_equal(label_of(studies, "pt_1"), edited)
    put_label(source / "kbp" / "pt_1" / "label.nii.gz", label_array({1: BRAINSTEM}))
    os.utime(source / "kbp" / "pt_1" / "label.nii.gz", ns=(0, 0))
    capsys.readouterr()
    assert prepare(source, studies) == 1
    message = "pt_1: labels/final/pt_1.nii.gz was changed since its import and was kept"
    assert message in capsys.readouterr().err
    np.testing.assert_array_equal(label_of(studies, "pt_1"), edited)


def test_existing_files_of_the_studies_folder_are_kept(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = tmp_path / "studies"
    other = make_ct()
    other.array_hu[3, 3, 3] += 1
    write_ct(studies / "pt_1.nii.gz", other)
    write_ct(studies / "0522c0001.nrrd", make_ct())
    write_ct(studies / "a.nii.gz", make_ct())
    put_label(studies / "labels" / "final" / "a.nii.gz", label_array({1: BRAINSTEM}))
    assert prepare(source, studies) == 1
    output = capsys.readouterr().err
    assert "pt_1: pt_1.nii.gz in the studies folder is another CT" in output
    assert "0522c0001: 0522c0001.nrrd is in the studies folder already" in output
    assert "a: labels/final/a.nii.gz was not made by an import" in output
    np.testing.assert_array_equal(read_ct(studies / "pt_1.nii.gz").array_hu, other.array_hu)
    assert set(np.unique(label_of(studies, "a"))) == {0, 1}
    assert len(report(studies)["cases"]) == 1


def test_two_cases_of_one_name_are_both_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("train", "test"):
        put_openkbp(tmp_path / "source" / folder / "pt_1")
    put_openkbp(tmp_path / "source" / "pt_3")
    assert prepare(tmp_path / "source", tmp_path / "studies") == 1
    assert "pt_1: 2 cases have this name" in capsys.readouterr().err
    assert set(report(tmp_path / "studies")["cases"]) == {"pt_3"}


def test_a_case_without_organs_of_the_set_is_refused_with_the_names_that_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_pddca(tmp_path / "source" / "x", {"Chiasm": BRAINSTEM, "Tumour": PAROTID_L})
    assert prepare(tmp_path / "source", tmp_path / "studies") == 1
    message = "x: no organ of the set 'openkbp' is contoured; the structures are Chiasm, Tumour"
    assert message in capsys.readouterr().err


def test_another_organ_set_needs_another_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = tmp_path / "studies"
    prepare(source / "pddca", studies, "--organ-set", "pddca")
    assert report(studies)["labels"]["OpticChiasm"] == 2
    assert prepare(source / "pddca", studies) == 1
    assert "the folder holds cases of the organ set 'pddca'" in capsys.readouterr().err
    (studies / "import.json").write_text("{")
    assert prepare(source / "pddca", studies) == 1
    assert "import.json: is damaged" in capsys.readouterr().err


def test_shared_voxels_are_counted_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger, smaller = np.s_[4:12, 4:12, 3:8], np.s_[11:14, 6:9, 4:6]
    put_pddca(tmp_path / "source" / "x", {"BrainStem": larger, "Chiasm": smaller})
    assert prepare(tmp_path / "source", tmp_path / "studies", "--organ-set", "pddca") == 0
    assert "Brainstem & OpticChiasm: 6 shared voxels" in capsys.readouterr().out
    entry = report(tmp_path / "studies")["cases"]["x"]
    assert entry["shared_vox"] == {"Brainstem & OpticChiasm": 6}
    assert entry["changes"] == [
        "'BrainStem' was stored as Brainstem",
        "'Chiasm' was stored as OpticChiasm",
        "Brainstem & OpticChiasm share 6 voxels, assigned to the smaller organ",
    ]


def test_an_implausible_label_is_imported_and_the_doubt_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The parotids, each on the other side, and a brainstem that fills the scan, mostly with air.
    put_pddca(tmp_path / "source" / "x", {"Parotid_R": PAROTID_L, "Parotid_L": PAROTID_R})
    put_pddca(tmp_path / "source" / "y", {"Brainstem": np.s_[:, :, :]})
    assert prepare(tmp_path / "source", tmp_path / "studies") == 0
    printed = capsys.readouterr().out
    swapped = "Parotid_L lies to the right of Parotid_R; are the sides swapped?"
    imported = report(tmp_path / "studies")["cases"]
    assert swapped in imported["x"]["doubts"]
    assert f"  x: {swapped}" in printed
    assert any("lies in air" in text for text in imported["y"]["doubts"])
    count = sum(len(case["doubts"]) for case in imported.values())
    assert f"{count} doubts about imported labels" in printed


def test_only_one_import_runs_in_a_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    with FileLock(studies / ".import.lock"):
        assert prepare(source, studies) == 1
    assert "another import is running here" in capsys.readouterr().err
    assert not (studies / "import.json").exists()


def test_a_file_that_vanishes_refuses_its_case_only(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fingerprint = run.__dict__["_fingerprint"]

    def vanish(case: SourceCase, names: OrganNames) -> str:
        if case.case_id == "pt_1":
            case.inputs[0].unlink()
        return str(fingerprint(case, names))

    monkeypatch.setattr(run, "_fingerprint", vanish)
    assert prepare(source, tmp_path / "studies") == 1
    assert "refused: pt_1: No such file or directory" in capsys.readouterr().err
    assert len(report(tmp_path / "studies")["cases"]) == 3


def test_a_folder_that_cannot_be_read_is_refused_and_the_others_imported(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("pt_1"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert prepare(source / "kbp", tmp_path / "studies") == 1
    assert re.search(
        r"refused: folder_[0-9a-f]{8}: a folder cannot be read \(Permission denied\)",
        capsys.readouterr().err,
    )


def test_list_shows_where_cases_lie_and_imports_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(source, tmp_path / "studies", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert any(line.endswith("DOE.dcm") and line.startswith("case_") for line in lines)
    assert not (tmp_path / "studies").exists()


def test_wrong_flags_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare_data.main(["--input", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err == "error: --output is missing: the studies folder to import into\n"
    )
    assert prepare(tmp_path, tmp_path / "studies") == 1
    assert "no case found" in capsys.readouterr().err


def test_openkbp_cases_keep_every_voxel(shared_data: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    chosen = sorted((shared_data / "openkbp").glob("pt_*"))[:3]
    for folder in chosen:
        (source / folder.name).symlink_to(folder)
    assert prepare(source, tmp_path / "studies") == 0
    contoured = json.loads((shared_data / "openkbp" / "cases.json").read_text())["cases"]
    for folder in chosen:
        before = read_ct(folder / "ct.nii.gz")
        label, _ = read_label(folder / "label.nii.gz", image_id=folder.name, image_grid=before.grid)
        after = read_ct(tmp_path / "studies" / f"{folder.name}.nii.gz")
        assert after.grid.is_same_as(before.grid)
        np.testing.assert_array_equal(after.array_hu, before.array_hu)
        np.testing.assert_array_equal(label_of(tmp_path / "studies", folder.name), label)
        organs = report(tmp_path / "studies")["cases"][folder.name]["organs"]
        assert len(organs) == len(contoured[folder.name]["contoured"])


def test_cases_of_earlier_name_rules_are_imported_again_unless_their_label_was_edited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pt_1", "pt_2"):
        put_openkbp(tmp_path / "source" / name)
    studies = tmp_path / "studies"
    assert prepare(tmp_path / "source", studies) == 0
    entries = report(studies)
    for case in find_cases(tmp_path / "source"):
        fingerprint = run.__dict__["_fingerprint"]
        entries["cases"][case.case_id]["inputs"] = fingerprint(case, OPENKBP, rules=())
    (studies / "import.json").write_text(json.dumps(entries), encoding="utf-8")
    edited = studies / "labels" / "final" / "pt_2.nii.gz"
    put_label(edited, label_array({1: PAROTID_L}))
    before = edited.read_bytes()
    assert prepare(tmp_path / "source", studies) == 0
    assert "2 cases: 1 imported, 1 unchanged, 0 refused" in capsys.readouterr().out
    assert edited.read_bytes() == before
