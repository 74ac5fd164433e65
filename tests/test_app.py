import inspect
import sys
import threading
from pathlib import Path
from typing import get_type_hints

import pytest

from lib.app import OrganNetApp
from lib.errors import ConfigError, DatastoreError
from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.server.running_app import RunningApp
from tests.phantoms import make_ct, make_grid, make_label

ROOT = Path(__file__).parents[1]


def make_app(folder: Path, **conf: str) -> OrganNetApp:
    settings = {"model_dir": str(folder / "models"), "starter_dir": str(folder), **conf}
    return OrganNetApp(str(ROOT), str(folder / "studies"), settings)


def test_building_the_app_starts_no_thread_and_imports_no_server(tmp_path: Path) -> None:
    # A training builds the app in a process of its own.
    before = threading.active_count()
    make_app(tmp_path)
    assert threading.active_count() == before
    assert "monailabel.app" not in sys.modules


def test_the_loader_finds_the_app_in_main() -> None:
    # MONAI Label looks for a class whose direct base has this name.
    assert [base.__name__ for base in OrganNetApp.__bases__] == ["MONAILabelApp"]
    assert (ROOT / "main.py").read_text().count("import") == 1


def test_the_app_has_every_part_that_the_routes_use(tmp_path: Path) -> None:
    # MONAI Label's base class is untyped, so mypy does not check this.
    app = make_app(tmp_path)
    for name, kind in get_type_hints(RunningApp).items():
        assert isinstance(getattr(app, name), kind), name
    methods = [name for name, value in vars(RunningApp).items() if inspect.isfunction(value)]
    for name in methods:
        if not name.startswith("_"):
            wanted, has = (inspect.signature(getattr(c, name)) for c in (RunningApp, OrganNetApp))
            assert list(has.parameters)[: len(wanted.parameters)] == list(wanted.parameters), name


def test_info_is_complete_without_a_model(tmp_path: Path) -> None:
    info = make_app(tmp_path).info()
    assert info["models"] == {}
    assert list(info["trainers"]) == ["organnet25d"]
    assert info["trainers"]["organnet25d"]["config"].keys() >= {"max_epochs", "seed"}
    assert info["datastore"] == {"total": 0, "completed": 0, "label_tags": {}}


def test_the_self_test_of_the_backends_gets_labelled_scans_first(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in "abc":
        write_ct(studies / f"{name}.nii.gz", make_ct())
    app = make_app(tmp_path)
    write_label(tmp_path / "label.nii.gz", LabelVolume(make_label(), make_grid(), {"Brainstem": 1}))
    app.store.save_label("c", str(tmp_path / "label.nii.gz"), "final", {})
    assert [path.name for path in app._scans_for_self_test()] == ["c.nii.gz", "a.nii.gz"]


def test_a_wrong_setting_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such setting"):
        make_app(tmp_path, colour="blue")


@pytest.mark.parametrize("request_", [{"model": "organnet25d", "image": "/etc/passwd"},
                                      {"model": "other", "image": "x"}])  # fmt: skip
def test_infer_refuses_paths_and_unknown_models(tmp_path: Path, request_: dict[str, str]) -> None:
    with pytest.raises(DatastoreError):
        make_app(tmp_path).infer(request_)
