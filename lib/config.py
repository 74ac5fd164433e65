"""Every setting of the server app, its default, and where the default comes from."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch

from lib.errors import ConfigError
from lib.recipe_files import find_recipe
from lib.recipes import OPENKBP, Recipe

APP_DIR = Path(__file__).resolve().parents[1]

_MONAI_LABELS_OWN = frozenset({"server_mode", "auto_update_scoring", "models", "preload"})
"""Keys that MONAI Label or its other apps read from `--conf`: passed over, not refused."""


def default_model_dir() -> Path:
    """Return where models are kept unless told otherwise."""
    return APP_DIR / "model" / "registry"


def default_starter_dir() -> Path:
    """Return where the weights that come with the project lie."""
    return APP_DIR / "model" / "starter"


def best_device() -> str:
    """Return `cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """What `--conf KEY VALUE` can set.

    Attributes:
        recipe: Name of a recipe or a YAML file; what the server trains (`openkbp`: it trains on a CPU).
        model_dir: Where models are kept.
        starter_dir: Weights to serve until a model is published.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        access: `local` answers this machine only; `network` answers everybody who can reach the port: for
            use behind a proxy that authenticates, or with MONAI Label's own authentication on.
        quarantine_gib: How much of what was refused is kept (`lib.state.quarantine`).
    """

    recipe: Recipe = OPENKBP
    model_dir: Path = field(default_factory=default_model_dir)
    starter_dir: Path = field(default_factory=default_starter_dir)
    device: str = field(default_factory=best_device)
    access: Literal["local", "network"] = "local"
    quarantine_gib: float = 5.0

    def __post_init__(self) -> None:
        if self.access not in ("local", "network"):
            raise ConfigError(f"--conf access: {self.access!r} is neither 'local' nor 'network'")
        if not 0 <= self.quarantine_gib < float("inf"):
            raise ConfigError(f"--conf quarantine_gib: {self.quarantine_gib} is no size in GiB")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"--conf device: {self.device!r} is no device: {error}") from error

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> "AppConfig":
        """Return the settings that the strings of `--conf` give; defaults for all others.

        Raises:
            ConfigError: If a key is not known or a value is wrong.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(conf) - known - _MONAI_LABELS_OWN)
        if unknown:
            raise ConfigError(
                f"--conf {unknown[0]}: no such setting; the settings are {', '.join(sorted(known))}"
            )
        values: dict[str, object] = {k: v for k, v in conf.items() if k in known}
        if "recipe" in values:
            values["recipe"] = find_recipe(conf["recipe"])
        for key in ("model_dir", "starter_dir"):
            if key in values:
                values[key] = Path(conf[key]).expanduser().resolve()
        if "quarantine_gib" in values:
            values["quarantine_gib"] = _as_number("quarantine_gib", conf["quarantine_gib"])
        if values.get("device") == "auto":
            del values["device"]
        return cls(**values)  # type: ignore[arg-type]


def _as_number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--conf {key}: {text!r} is no number") from error


def is_loopback(host: str) -> bool:
    """Return whether `host`, a name or an address without port, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
