"""Registry of model versions: a folder of weights and model cards, one of them active.

A model is two files named by the hash of its weights: `<version>.safetensors`, and `<version>.json`, its card
with recipe, training cases and validation. `served.json` names the active version, and under `promoted` the
versions that were promoted before it, newest first. All files are replaced atomically; weights are never
changed once written.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lib.errors import CheckpointError, UnknownModelError
from lib.networks.build import build_network
from lib.recipes.schema import Recipe
from lib.recipes.yaml_files import recipe_from_dict
from lib.storage.atomic_files import replacing, write_json
from lib.storage.process_locks import process_lock

logger = logging.getLogger(__name__)

SERVED = "served.json"
LOCK = ".served.lock"
_VERSION = re.compile(r"[^/\\\0]{1,120}")
"""Pattern of a version: any file name, because recipes may have any name."""
PROMOTED_KEPT = 10
"""Number of promotions listed in `served.json`."""


@dataclass(frozen=True, slots=True)
class Model:
    """A network that is ready for inference."""

    version: str
    """Network, recipe and the start of the hash of the weights."""
    network: nn.Module
    """The network in evaluation mode."""
    recipe: Recipe
    """The recipe that it was trained by, which also defines the preprocessing of a CT."""
    card: Mapping[str, Any]
    """The model card."""


def save_model(
    folder: Path, weights: Mapping[str, Tensor], recipe: Recipe, card: Mapping[str, Any]
) -> str:
    """Write a model into `folder` and return its version; it is not active yet.

    Args:
        folder: Folder of the registry.
        weights: The network's `state_dict`.
        recipe: The recipe that it was trained by.
        card: Further entries of the model card: cases, seed, metrics.

    Raises:
        CheckpointError: If a weight is not finite.
    """
    plain = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    bad = [k for k, v in plain.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"the weights {', '.join(bad[:3])} are not finite; the run has diverged"
        )
    data = save_tensors(plain)
    digest = hashlib.sha256(data).hexdigest()
    version = f"{recipe.network.name}-{recipe.name}-{digest[:8]}"
    with replacing(folder / f"{version}.safetensors") as temporary:
        temporary.write_bytes(data)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"version": version, "created": now, "sha256": digest, "recipe": recipe.as_dict()}
    write_json(folder / f"{version}.json", {**entry, **card})
    return version


def load_model(path: Path, device: str = "cpu") -> Model:
    """Return the model with the weights at `path` and the card beside them.

    Raises:
        CheckpointError: If a file is missing, damaged, or does not fit the recipe's network.
    """
    card = read_card(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path.name}: the model cannot be read ({error})") from error
    if hashlib.sha256(data).hexdigest() != card.get("sha256"):
        raise CheckpointError(f"{path.name}: the weights are not those that the card describes")
    try:
        recipe = recipe_from_dict(card["recipe"], source=path.with_suffix(".json").name)
        network = build_network(recipe)
        network.load_state_dict(load_tensors(data))
        network.eval()
        network.to(device).to(memory_format=torch.channels_last_3d)
    # A card may contain anything; ConfigError is a ValueError.
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError,
            safetensors.SafetensorError) as error:  # fmt: skip
        raise CheckpointError(f"{path.name}: does not fit its recipe's network: {error}") from error
    return Model(str(card.get("version", path.stem)), network, recipe, card)


def read_card(path: Path) -> dict[str, Any]:
    """Return the card of the model with the weights at `path`, which may have been pruned.

    Raises:
        CheckpointError: If there is no card, or it is not a JSON object.
    """
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: the model's card cannot be read ({error})") from error
    if not isinstance(card, dict):
        raise CheckpointError(f"{path.name}: the model's card is not a JSON object")
    return card


class Registry:
    """The models in one folder, of which one is active.

    Args:
        folder: Folder of weights, cards and `served.json`.
        starter: Folder with the starter weights, which are active until a first model is published.
        organ_set: If set, starter weights of another organ set are ignored: the first model that is trained
            here could not be compared with them, and so would never be promoted.
    """

    def __init__(
        self, folder: Path, *, starter: Path | None = None, organ_set: str | None = None
    ) -> None:
        self.folder = folder
        self.starter = starter
        self.organ_set = organ_set

    def published_version(self) -> str | None:
        """Return the version that `served.json` names, or None."""
        pointer = self._pointer()
        return None if pointer is None else str(pointer["version"])

    def promoted(self) -> list[str]:
        """Return the promoted versions, newest first; the first one is active.

        Versions that were rolled back are not included.
        """
        return [str(entry["version"]) for entry in self.promotions()]

    def promotions(self) -> list[dict[str, Any]]:
        """Return `version`, `since` and `reason` of the versions of `promoted()`.

        If `served.json` has no readable list, only the active version is returned.
        """
        pointer = self._pointer()
        if pointer is None:
            return []
        promoted = pointer.get("promoted")
        entries = [e for e in promoted if _is_entry(e)] if isinstance(promoted, list) else []
        if entries and entries[0]["version"] == pointer["version"]:
            return entries
        return [{key: pointer.get(key) for key in ("version", "since", "reason")}]

    def versions(self) -> list[str]:
        """Return the version of every model in the folder, sorted, including pruned models."""
        return sorted(p.stem for p in self.folder.glob("*.json") if self._is_card(p))

    def _is_card(self, path: Path) -> bool:
        try:
            return bool(read_card(path).get("version") == path.stem)
        except CheckpointError:
            return False

    def weights_path(self, version: str) -> Path:
        """Return the path of the weights of a version: in the folder, or in the starter folder.

        Raises:
            UnknownModelError: If no model has that version.
        """
        if not _VERSION.fullmatch(version):
            raise UnknownModelError(f"{version[:120]!r}: no model has that version")
        path = self.folder / f"{version}.safetensors"
        starter = self.starter_path()
        if starter is not None and starter.stem == version and not path.is_file():
            return starter
        if not path.with_suffix(".json").is_file():
            raise UnknownModelError(f"{version}: no model has that version")
        return path

    def import_starter(self, version: str) -> None:
        """Copy the starter into the folder if `version` names it: only models there can be published.

        Raises:
            UnknownModelError: If no model has that version.
            CheckpointError: If it cannot be read.
        """
        path = self.weights_path(version)
        if path.parent == self.folder:
            return
        try:
            # The weights are copied last: until then `weights_path` returns the starter's.
            for file in (path.with_suffix(".json"), path):
                with replacing(self.folder / file.name) as temporary:
                    temporary.write_bytes(file.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{version}: the starter cannot be copied ({error})") from error

    def earlier(
        self, model: Model, count: int, *, device: str = "cpu"
    ) -> tuple[list[Model], list[str]]:
        """Return at most `count` models promoted before `model`, newest first, and notes on skipped models.

        Models are skipped if they are missing or damaged, or have other organs or another preprocessing.
        """
        versions = self.promoted()
        start = versions.index(model.version) + 1 if model.version in versions else 0
        models: list[Model] = []
        notes = []
        for version in versions[start:]:
            if len(models) >= count:
                break
            try:
                older = load_model(self.folder / f"{version}.safetensors", device)
            except CheckpointError as error:
                notes.append(f"{version} is skipped: {error}")
                continue
            if older.recipe.preparation_digest() == model.recipe.preparation_digest():
                models.append(older)
            else:
                notes.append(f"{version} is skipped: it has other organs or another preprocessing")
        return models, notes

    def _pointer(self) -> dict[str, Any] | None:
        """Return the content of `served.json`; None if it is missing or cannot be read."""
        try:
            pointer = json.loads((self.folder / SERVED).read_text(encoding="utf-8"))
            return {**pointer, "version": str(pointer["version"])}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read (%s); no version counts as active", SERVED, error)
            return None

    def served_path(self) -> Path | None:
        """Return the weights of the active model: the published version, else the starter, else None."""
        version = self.published_version()
        if version is not None:
            return self.folder / f"{version}.safetensors"
        return self.starter_path()

    def starter_path(self) -> Path | None:
        """Return the starter's weights, or None if there are none for this registry's organ set."""
        paths = sorted(self.starter.glob("*.safetensors")) if self.starter else []
        return next((path for path in paths if self._has_organ_set(path)), None)

    def _has_organ_set(self, path: Path) -> bool:
        if self.organ_set is None:
            return True
        try:
            return bool(read_card(path)["recipe"]["organ_set"] == self.organ_set)
        except (CheckpointError, KeyError, TypeError):
            # A starter without a valid card does not load either; the error at loading tells the user why.
            return True

    def publish(self, version: str, *, reason: str) -> None:
        """Make `version` the active model from the next request on.

        If it was promoted before, or is the starter, this is a rollback: later promotions are removed from
        the list.

        Raises:
            CheckpointError: If it is missing, damaged or does not load; the active model does not change then.
        """
        load_model(self.folder / f"{version}.safetensors")
        with process_lock(self.folder / LOCK):
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            before = self.promotions()
            versions = [entry["version"] for entry in before]
            starter = self.starter_path()
            if version in versions:
                # Rollback: the versions promoted after it are not to be used again.
                before = before[versions.index(version) + 1 :]
            elif starter is not None and starter.stem == version:
                # The starter was active before all others.
                before = []
            entry = {"version": version, "since": now, "reason": reason}
            promoted = [entry, *before][:PROMOTED_KEPT]
            write_json(self.folder / SERVED, {**entry, "promoted": promoted})
        logger.info("%s is the active model now: %s", version, reason)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("version"), str)
