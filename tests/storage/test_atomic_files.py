import json
from pathlib import Path

import pytest

from lib.storage.atomic_files import replacing, write_json


def write_half(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert path.read_text() == "old"


def test_a_finished_write_takes_the_old_files_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scan.nii.gz"
    with replacing(path) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("new")
    assert [p.name for p in path.parent.iterdir()] == ["scan.nii.gz"]
    assert path.read_text() == "new"


def test_json_has_null_where_a_number_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"dsc": [float("nan"), 0.5], "hd": {"x": float("inf")}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"dsc": [None, 0.5], "hd": {"x": None}}
