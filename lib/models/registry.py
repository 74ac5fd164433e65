"""Model versions: written whole, verified before use, one of them served.

A model is two files named by the hash of its weights: `<version>.safetensors`, and `<version>.json`, its
card with the recipe, the cases it saw and how it did. `served.json` names the version that serves, and under
`promoted` the versions that were promoted before it, newest first. All are replaced atomically; no model is
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
"""What can be one file's name, whatever a recipe is called."""
PROMOTED_KEPT = 10
"""Promotions that `served.json` remembers."""


@dataclass(frozen=True, slots=True)
class Model:
    """A network that is ready to contour.

    Attributes:
        version: Its name: network, recipe and the start of its weights' hash.
        network: In evaluation mode.
        recipe: How it was trained, and so how a CT must be prepared for it.
        card: Everything else that is known of it.
    """

    version: str
    network: nn.Module
    recipe: Recipe
    card: Mapping[str, Any]


def save_model(
    folder: Path, weights: Mapping[str, Tensor], recipe: Recipe, card: Mapping[str, Any]
) -> str:
    """Write a model into `folder` and return its version; it does not serve yet.

    Args:
        folder: Where the registry's models lie.
        weights: The network's `state_dict`.
        recipe: The recipe that it was trained by.
        card: What else to remember of it: cases, seed, metrics.

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
    with replacing(folder / f"{version}.safetensors") as beside:
        beside.write_bytes(data)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"version": version, "created": now, "sha256": digest, "recipe": recipe.as_dict()}
    write_json(folder / f"{version}.json", {**entry, **card})
    return version


def load_model(path: Path, device: str = "cpu") -> Model:
    """Return the model whose weights lie at `path` and whose card lies beside them.

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
    # A card can hold anything; ConfigError is a ValueError.
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError,
            safetensors.SafetensorError) as error:  # fmt: skip
        raise CheckpointError(f"{path.name}: does not fit its recipe's network: {error}") from error
    return Model(str(card.get("version", path.stem)), network, recipe, card)


def read_card(path: Path) -> dict[str, Any]:
    """Return the card of the model whose weights lie, or lay, at `path`.

    Raises:
        CheckpointError: If there is none, or it is no object of JSON.
    """
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: the model's card cannot be read ({error})") from error
    if not isinstance(card, dict):
        raise CheckpointError(f"{path.name}: the model's card is not an object of JSON")
    return card


class Registry:
    """The models in one folder, of which one serves.

    Args:
        folder: Where they lie.
        starter: A folder with weights to serve until a first model is published.
        organ_set: Where set, a starter of another organ set is not served: it would stand in the way of the
            first model that is trained here, since nobody can tell which of the two is better.
    """

    def __init__(
        self, folder: Path, *, starter: Path | None = None, organ_set: str | None = None
    ) -> None:
        self.folder = folder
        self.starter = starter
        self.organ_set = organ_set

    def published_version(self) -> str | None:
        """Return the version that was published last, or None."""
        pointer = self._pointer()
        return None if pointer is None else str(pointer["version"])

    def promoted(self) -> list[str]:
        """Return the versions that were promoted, the served one first, then back in time.

        A version that was rolled back, by promoting an older one again, is not among them.
        """
        return [str(entry["version"]) for entry in self._history()]

    def promotions(self) -> list[dict[str, Any]]:
        """Return `version`, `since` and `reason` of `promoted()`, in the same order."""
        return self._history()

    def versions(self) -> list[str]:
        """Return every model of the folder, by name; one whose weights were removed is among them."""
        return sorted(p.stem for p in self.folder.glob("*.json") if self._is_card(p))

    def _is_card(self, path: Path) -> bool:
        try:
            return bool(read_card(path).get("version") == path.stem)
        except CheckpointError:
            return False

    def weights_path(self, version: str) -> Path:
        """Return where the weights of a version lie: in the folder, or with the starter.

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
        """Copy the starter into the folder, if that is what `version` names: only models there are published.

        Raises:
            UnknownModelError: If no model has that version.
            CheckpointError: If it cannot be read.
        """
        path = self.weights_path(version)
        if path.parent == self.folder:
            return
        try:
            # The weights come last: until they are there, the starter's are found.
            for file in (path.with_suffix(".json"), path):
                with replacing(self.folder / file.name) as beside:
                    beside.write_bytes(file.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{version}: the starter cannot be copied ({error})") from error

    def earlier(
        self, model: Model, count: int, *, device: str = "cpu"
    ) -> tuple[list[Model], list[str]]:
        """Return at most `count` models promoted before `model`, newest first, and what was left out, and why.

        They contour the same organs as `model` in CTs that are prepared in the same way. One that is gone or
        damaged, or is of another kind, is left out.
        """
        versions = self.promoted()
        start = versions.index(model.version) + 1 if model.version in versions else 0
        found: list[Model] = []
        notes = []
        for version in versions[start:]:
            if len(found) >= count:
                break
            try:
                older = load_model(self.folder / f"{version}.safetensors", device)
            except CheckpointError as error:
                notes.append(f"{version} is left out: {error}")
                continue
            if older.recipe.preparation_digest() == model.recipe.preparation_digest():
                found.append(older)
            else:
                notes.append(
                    f"{version} is left out: it contours other organs, or sees CTs otherwise"
                )
        return found, notes

    def _pointer(self) -> dict[str, Any] | None:
        """Return what `served.json` says; None where it is not there or cannot be read."""
        try:
            pointer = json.loads((self.folder / SERVED).read_text(encoding="utf-8"))
            return {**pointer, "version": str(pointer["version"])}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read (%s); no version counts as published", SERVED, error)
            return None

    def _history(self) -> list[dict[str, Any]]:
        """Return the promotions, newest first; the served version's alone where there is no list of them."""
        pointer = self._pointer()
        if pointer is None:
            return []
        listed = pointer.get("promoted")
        known = [e for e in listed if _is_entry(e)] if isinstance(listed, list) else []
        if known and known[0]["version"] == pointer["version"]:
            return known
        return [{key: pointer.get(key) for key in ("version", "since", "reason")}]

    def served_path(self) -> Path | None:
        """Return the weights to serve: the published version's, else the starter's, else None."""
        version = self.published_version()
        if version is not None:
            return self.folder / f"{version}.safetensors"
        return self.starter_path()

    def starter_path(self) -> Path | None:
        """Return the starter's weights, or None where there is none for our organs."""
        paths = sorted(self.starter.glob("*.safetensors")) if self.starter else []
        return next((path for path in paths if self._is_of_our_organs(path)), None)

    def _is_starter(self, version: str) -> bool:
        starter = self.starter_path()
        return starter is not None and starter.stem == version

    def _is_of_our_organs(self, path: Path) -> bool:
        if self.organ_set is None:
            return True
        try:
            return bool(read_card(path)["recipe"]["organ_set"] == self.organ_set)
        except (CheckpointError, KeyError, TypeError):
            # It will not load either, and that is what should be said of it.
            return True

    def publish(self, version: str, *, reason: str) -> None:
        """Let `version` serve from the next request on.

        If it was promoted before, or is the starter, this goes back to it: what was promoted in between is
        forgotten.

        Raises:
            CheckpointError: If it is not there, damaged or does not load: what serves then stays.
        """
        load_model(self.folder / f"{version}.safetensors")
        with process_lock(self.folder / LOCK):
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            before = self._history()
            versions = [entry["version"] for entry in before]
            if version in versions:
                # Back to an older version: what came after it was worse.
                before = before[versions.index(version) + 1 :]
            elif self._is_starter(version):
                # It served before every other.
                before = []
            entry = {"version": version, "since": now, "reason": reason}
            kept = [entry, *before][:PROMOTED_KEPT]
            write_json(self.folder / SERVED, {**entry, "promoted": kept})
        logger.info("%s is served now: %s", version, reason)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("version"), str)
