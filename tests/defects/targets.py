"""The two servers that the tests run against, and where each of them stores its data."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from lib.recipes.schema import AugmentConfig, LossConfig, NetworkConfig, ScheduleConfig
from tests.server import running as servers
from tests.server.running import TINY, Server, put_model

NO_AUGMENTATION: Any = {
    name: 0.0 for name in AugmentConfig.__dataclass_fields__ if name.endswith("_probability")
}

LEARNING = replace(
    TINY,
    name="learning",
    network=NetworkConfig(width=4),
    loss=LossConfig(focal_gamma=1.0, background_weight=1.0),
    augment=replace(AugmentConfig(), **NO_AUGMENTATION),
    schedule=ScheduleConfig(
        epochs=10,
        steps_per_epoch=8,
        learning_rate=0.05,
        decay="cosine",
        gradient_clip=5.0,
        validate_every=10,
    ),
)
"""A recipe that learns the two organs of `tests.defects.scans` in a few seconds."""


@dataclass(frozen=True, slots=True)
class Run:
    """The training and the evaluation cases of one training."""

    training: frozenset[str]
    validation: frozenset[str]


class Target(Protocol):
    """The interface of both servers, with what differs between them."""

    model: str
    """The name of the model in `/infer/` and `/train/`."""

    def running(
        self, folder: Path, *, studies: Path | None = None
    ) -> AbstractContextManager[Server]:
        """Start a server over `folder`, with the studies folder of another server if `studies` is given."""

    def put_model(self, folder: Path) -> None:
        """Store a model for the next server that is started over `folder`."""

    def broken_model(self, server: Server) -> AbstractContextManager[None]:
        """Replace the active model by one that cannot be loaded, as long as the block lasts."""

    def runs(self, server: Server) -> list[Run]:
        """Return the trainings so far, oldest first."""


class OrganNetLabel:
    """This repository's app."""

    model = "organnet25d"

    @contextmanager
    def running(self, folder: Path, *, studies: Path | None = None) -> Iterator[Server]:
        recipe = folder / "learning.yaml"
        recipe.write_text(yaml.safe_dump(LEARNING.as_dict()))
        conf = {"recipe": str(recipe)}
        with servers.running(folder, conf=conf, studies=studies) as server:
            yield server

    def put_model(self, folder: Path) -> None:
        (folder / "models").mkdir()
        put_model(folder / "models", LEARNING)

    @contextmanager
    def broken_model(self, server: Server) -> Iterator[None]:
        pointer = server.models / "served.json"
        before = pointer.read_text()
        served = server.models / json.loads(before)["version"]
        broken = server.models / "organnet25d-broken-00000000"
        shutil.copy(served.with_suffix(".json"), broken.with_suffix(".json"))
        broken.with_suffix(".safetensors").write_bytes(
            served.with_suffix(".safetensors").read_bytes()[:1000]
        )
        pointer.write_text(json.dumps({"version": broken.name}))
        yield
        pointer.write_text(before)

    def runs(self, server: Server) -> list[Run]:
        cards = [json.loads(path.read_text()) for path in server.models.glob("*-*.json")]
        cards = [card for card in cards if card["training"].get("cases")]
        return [_run(card["training"]["cases"], card["validation"]["cases"])
                for card in sorted(cards, key=lambda card: str(card["created"]))]  # fmt: skip


class PlainMonaiLabel:
    """MONAI Label's own classes: `plain_app/main.py`."""

    model = "plain"
    environment: Mapping[str, str] = {"MONAI_LABEL_TRACKING_ENABLED": "false"}

    @contextmanager
    def running(self, folder: Path, *, studies: Path | None = None) -> Iterator[Server]:
        # A copy, because MONAI Label makes folders beside main.py.
        app = folder / "app"
        app.mkdir(exist_ok=True)
        shutil.copy(Path(__file__).parent / "plain_app" / "main.py", app)
        with servers.running(
            folder, app=app, studies=studies, environment=self.environment
        ) as server:
            # The server closes the connection after every unexpected error.
            server.http.headers["Connection"] = "close"
            yield server

    def put_model(self, folder: Path) -> None:
        """Do nothing: without a model, plain MONAI Label contours with an untrained network."""

    @contextmanager
    def broken_model(self, server: Server) -> Iterator[None]:
        published = server.models / "model.pt"
        published.write_bytes(b"PK\x03\x04 half a checkpoint")
        yield
        published.unlink()

    def runs(self, server: Server) -> list[Run]:
        lines = (server.models / "runs.jsonl").read_text().splitlines()
        return [_run(**json.loads(line)) for line in lines]


def _run(training: list[str], validation: list[str]) -> Run:
    return Run(frozenset(training), frozenset(validation))
