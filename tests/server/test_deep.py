"""The option `deep` in the parameters of an infer request, as clients send it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.imaging.geometry import Grid
from lib.imaging.volume_reading import read_volume
from lib.recipes.schema import OPENKBP
from tests.server.running import Server, parts, put_case

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def grid(server: Server) -> Grid:
    return put_case(server, "deep_case")


def ask(server: Server, params: dict[str, Any]) -> dict[str, tuple[str, bytes]]:
    answer = server.ask(
        "POST", "/infer/organnet25d?image=deep_case", data={"params": json.dumps(params)}
    )
    assert answer.status_code == 200, answer.text
    return parts(answer)


def volume(part: tuple[str, bytes], folder: Path) -> tuple["np.ndarray[Any, Any]", Grid]:
    path = folder / part[0]
    path.write_bytes(part[1])
    return read_volume(path, "answer")


def test_clients_are_offered_deep_but_not_the_uncertainty_map(
    server: Server,
) -> None:
    config = server.ask("GET", "/info/").json()["models"]["organnet25d"]["config"]
    assert config["deep"] is False
    assert "uncertainty_map" not in config


@pytest.mark.parametrize("deep", [True, "true", [True]], ids=["bool", "text", "list"])
def test_deep_contours_come_with_their_uncertainty(
    server: Server, grid: Grid, tmp_path: Path, deep: Any
) -> None:
    answer_parts = ask(server, {"deep": deep, "overlap": 0.5})
    params = json.loads(answer_parts["params"][1])
    label, its_grid = volume(answer_parts["image"], tmp_path)
    assert its_grid.is_same_as(grid)
    assert sorted(params["label_names"].values()) == [v for v in np.unique(label) if v]
    assert set(params["uncertainty"]) == set(OPENKBP.labels)
    for organ in params["uncertainty"].values():
        assert organ["samples"] == 4
    assert params["deep"]["passes"] == 4
    assert params["deep"]["models"] == [params["model_version"]]
    assert params["deep"]["overlap"] == 0.6
    stages = ["read", "models", "prepare", "network", "restore", "uncertainty", "summary",
              "write", "total"]  # fmt: skip
    assert list(params["seconds"]) == stages


def test_the_uncertainty_map_replaces_the_label_on_request(
    server: Server, grid: Grid, tmp_path: Path
) -> None:
    before = server.disk()
    answer_parts = ask(server, {"deep": True, "uncertainty_map": True, "result_extension": ".nrrd"})
    assert answer_parts["image"][0].endswith(".nrrd")
    values, its_grid = volume(answer_parts["image"], tmp_path)
    assert its_grid.is_same_as(grid)
    assert values.dtype == np.float32
    assert 0 <= values.min() < values.max() <= 1
    params = json.loads(answer_parts["params"][1])
    assert params["label_names"] == {}
    assert set(params["uncertainty"]) == set(OPENKBP.labels)
    assert server.disk() == before, "no file is left behind"


def test_an_infer_without_options_is_answered_without_uncertainty(
    server: Server, grid: Grid
) -> None:
    for params in ({}, {"deep": False}, {"deep": "false"}):
        answer = json.loads(ask(server, params)["params"][1])
        assert set(answer) == {"label_names", "volumes_ml", "model_version", "recipe", "seconds",
                               "latencies", "centroids", "organs"}  # fmt: skip
        assert list(answer["seconds"]) == [
            "read", "prepare", "network", "restore", "summary", "write", "total"]  # fmt: skip


def test_the_same_scan_gives_the_same_deep_answer(server: Server, grid: Grid) -> None:
    first, second = (ask(server, {"deep": True, "result_extension": ".nii"}) for _ in range(2))
    assert first["image"][1] == second["image"][1]
    numbers = [json.loads(parts["params"][1])["uncertainty"] for parts in (first, second)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"deep": "perhaps"}, "deep: 'perhaps' is neither true nor false"),
        ({"uncertainty_map": True}, "uncertainty_map: the map needs deep inference"),
        (
            {"deep": True, "uncertainty_map": True, "save_label": True},
            "uncertainty_map: the map cannot be saved as a label",
        ),
    ],
)
def test_contradicting_options_are_refused(
    server: Server, grid: Grid, params: dict[str, Any], message: str
) -> None:
    before = server.disk()
    answer = server.ask(
        "POST", "/infer/organnet25d?image=deep_case", data={"params": json.dumps(params)}
    )
    assert answer.status_code == 400
    assert message in answer.text
    assert server.disk() == before
