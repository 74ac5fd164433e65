import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lib.models.registry import SERVED, Registry, save_model
from lib.networks.build import build_network
from lib.server import model_routes
from lib.server.access import ADMIN, USER
from tests.server.running import TINY, Server, put_case, put_model, running
from tests.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.server

MODELS = "/organnet/models"


def make_model(models: Path, seed: int, **card: Any) -> str:
    torch.manual_seed(seed)
    return save_model(models, build_network(TINY).state_dict(), TINY, {"training": {}, **card})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two servers that share a studies folder and a model folder."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "models").mkdir()
    put_model(folder / "models")
    with running(folder) as one, running(folder) as other:
        put_case(one, "case")
        yield one, other


def listed(server: Server) -> Any:
    answer = server.ask("GET", f"{MODELS}/")
    assert answer.status_code == 200, answer.text
    return answer.json()


def infer(server: Server, image: str = "case") -> tuple[int, str]:
    """Return the status of an infer request, and the version of the model that answered."""
    answer = server.ask("POST", f"/infer/organnet25d?image={image}&output=json")
    return answer.status_code, answer.json().get("model_version", answer.text)


def test_a_promotion_reaches_every_server_and_no_request_fails(two: tuple[Server, Server]) -> None:
    old = listed(two[0])["served"]
    new = make_model(two[0].models, 11)
    answers: list[list[tuple[float, int, str]]] = [[], [], []]
    is_over = threading.Event()

    def send_requests(server: Server, client_answers: list[tuple[float, int, str]]) -> None:
        while not is_over.is_set():
            sent = time.monotonic()
            client_answers.append((sent, *infer(server)))

    threads = [
        threading.Thread(target=send_requests, args=(server, client_answers))
        for server, client_answers in zip((two[0], two[0], two[1]), answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: min(map(len, answers)) >= 3, "each client has three answers")
    promoted = two[0].ask("POST", f"{MODELS}/{new}/promote?reason=looked%20at%20it")
    assert promoted.status_code == 200, promoted.text
    assert promoted.json() == {"served": new, "trouble": None}
    at = time.monotonic()
    counts = [len(client_answers) for client_answers in answers]
    wait_until(
        lambda: all(len(f) >= n + 4 for f, n in zip(answers, counts, strict=True)),
        "each client has four more answers",
    )
    is_over.set()
    for thread in threads:
        thread.join(LIMIT_S)
    for client_answers in answers:
        assert {status for _, status, _ in client_answers} == {200}
        versions = [version for _, _, version in client_answers]
        assert versions == sorted(versions, key=[old, new].index), "no answer of the old one later"
        assert {version for sent, _, version in client_answers if sent > at} == {new}
        assert versions[0] == old
    assert listed(two[1])["served"] == new
    assert two[1].images() == ["case"]


def test_the_list_has_each_models_decision_and_the_active_model(
    two: tuple[Server, Server],
) -> None:
    waiting = make_model(
        two[0].models, 12, validation={"organ_dice": {"Brainstem": 0.5, "Larynx": 0.7}}
    )
    listing = listed(two[1])
    assert listing["trouble"] is None
    rows = {row["version"]: row for row in listing["models"]}
    assert [v for v, row in rows.items() if row["is_served"]] == [listing["served"]]
    assert rows[waiting]["decision"] == "waiting"
    assert rows[waiting]["mean_dice"] == pytest.approx(0.6)
    assert rows[listing["served"]]["decision"] == "promoted"


def test_one_model_is_shown_and_two_are_compared(two: tuple[Server, Server]) -> None:
    cases = [{"cases": {"x": "1", "y": "2"}}, {"cases": {"x": "1", "y": "3"}}]
    dice = [{"Brainstem": 0.5}, {"Brainstem": 0.75, "Larynx": 0.5}]
    a, b = (
        make_model(two[0].models, 20 + i, config=cases[i], validation={"organ_dice": dice[i]})
        for i in range(2)
    )
    listed(two[0])
    shown = two[0].ask("GET", f"{MODELS}/{a}").json()
    assert shown["card"]["recipe"]["name"] == "tiny"
    assert shown["labels"] == [{"image_id": "x", "version": None, "digest": "1"},
                               {"image_id": "y", "version": None, "digest": "2"}]  # fmt: skip
    assert shown["promotions"] == []
    pair = two[0].ask("GET", f"{MODELS}/compare?a={a}&b={b}").json()
    assert pair["organs"]["Brainstem"] == {"a": 0.5, "b": 0.75, "difference": 0.25}
    assert pair["organs"]["Larynx"] == {"a": None, "b": 0.5, "difference": None}
    assert [label["digest"] for label in pair["labels"]["only_a"]] == ["2"]
    assert [label["digest"] for label in pair["labels"]["only_b"]] == ["3"]
    assert (pair["labels"]["both"], pair["recipe"]) == (1, {})


def test_unknown_and_damaged_models_are_refused_and_nothing_changes(
    two: tuple[Server, Server],
) -> None:
    server = two[0]
    damaged = make_model(server.models, 13)
    (server.models / f"{damaged}.safetensors").write_bytes(b"\0" * 100)
    before = listed(server), (server.models / SERVED).read_bytes()
    answer = server.ask("POST", f"{MODELS}/{damaged}/promote")
    assert answer.status_code == 503
    assert "not those that the card describes" in answer.json()["detail"]
    assert server.ask("POST", f"{MODELS}/%00/promote").status_code == 400
    for path in ("unknown", "..%2Fx", "%2e%2e", "a" * 300):
        assert server.ask("POST", f"{MODELS}/{path}/promote").status_code == 404
        assert server.ask("GET", f"{MODELS}/{path}").status_code in (404, 200)
    assert server.ask("GET", f"{MODELS}/compare?a=unknown&b={damaged}").status_code == 404
    assert server.ask("GET", f"{MODELS}/compare").status_code == 422
    assert server.ask("POST", f"{MODELS}/prune?keep=-1").status_code == 422
    assert (listed(server), (server.models / SERVED).read_bytes()) == before
    assert infer(server) == (200, before[0]["served"])


def test_rollback_and_prune(two: tuple[Server, Server]) -> None:
    server = two[0]
    first, second = make_model(server.models, 14), make_model(server.models, 15)
    for version in (first, second):
        assert server.ask("POST", f"{MODELS}/{version}/promote").status_code == 200
    answer = server.ask("POST", f"{MODELS}/rollback?reason=odd")
    assert answer.json() == {"served": first, "trouble": None}
    assert [infer(one) for one in two] == [(200, first)] * 2
    (last,) = server.ask("GET", f"{MODELS}/{first}").json()["promotions"][:1]
    assert (last["reason"], last["by"]) == ("odd", "admin")
    pruned = server.ask("POST", f"{MODELS}/prune?keep=1").json()["pruned"]
    assert second in pruned
    assert first not in pruned
    assert [infer(one) for one in two] == [(200, first)] * 2


def test_a_server_starts_with_the_last_good_model_and_reports_the_damaged_one(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    good = put_model(models)
    bad = make_model(models, 1)
    Registry(models).publish(bad, reason="better")
    (models / f"{bad}.safetensors").write_bytes(b"\0" * 100)
    with running(tmp_path) as server:
        put_case(server, "case")
        assert infer(server) == (200, good)
        listing = listed(server)
        assert listing["served"] == good
        assert f"{bad}.safetensors" in listing["trouble"]
        assert "stays the active model" in server.log.read_text()
        (models / SERVED).write_text('{"vers')
        assert infer(server) == (200, good)
        for path in models.glob("*.json"):
            path.write_text(json.dumps({"recipe": []}))
        assert server.ask("GET", "/info/").status_code == 200
        assert infer(server) == (200, good)
        assert server.ask("POST", f"{MODELS}/rollback").status_code in (404, 503)
    with running(tmp_path) as server:
        # No model is left that can be loaded: the status reports it, and everything else works.
        assert server.ask("GET", "/info/").json()["models"] == {}
        assert infer(server)[0] in (409, 503)
        assert listed(server)["served"] is None


def test_only_an_admin_may_change_the_active_model() -> None:
    for route in model_routes.router.routes:
        needs = [d.call for d in route.dependant.dependencies]  # type: ignore[attr-defined]
        is_reading = route.methods == {"GET"}  # type: ignore[attr-defined]
        assert needs == [(USER if is_reading else ADMIN).dependency], route
