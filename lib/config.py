"""Every setting of the server app, its default, and where the default comes from."""

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lib.errors import ConfigError
from lib.recipes.schema import OPENKBP, Recipe
from lib.recipes.yaml_files import find_recipe

APP_DIR = Path(__file__).resolve().parents[1]
TASK_NAME = "organnet25d"
"""Name of the only model, which is also the only trainer, in MONAI Label's addresses."""

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
    import torch  # slow to import, and programs that only print their --help do not need it

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainConfig:
    """When the server trains by itself, how, and what may serve (ADR 0017).

    Set by `--conf KEY VALUE`, and by an admin while the server runs (`PUT /organnet/settings`).

    Attributes:
        auto_retrain: Whether new labels start a training; by hand it can always be started.
        min_new_labels: New final labels that start one.
        max_wait_s: How long the oldest new label waits at most, however few there are.
        quiet_s: Nobody submitted anything for so long: people correct what they have just sent.
        retry_after_s: After a run that failed; twice as long after each further one, a day at most.
        retrain_epochs: Of a run that goes on from the served model; one from nothing takes its recipe's.
        retrain_minutes: Wall-clock time of a run at most; 0 sets no limit.
        retrain_learning_rate: Of the recipe's, as a share, for a run that goes on from the served model.
        new_label_share: Share of its crops that come from labels that the served model has not seen.
        retrain_threads: Processor threads of a run; 0 is half of the cores.
        retrain_gpu_share: Share of a GPU's memory that a run may take; the rest is for contouring.
        promotion_margin: By how much mean DSC may be lower, with the confidence below, and still count as not
            worse (a non-inferiority margin).
        promotion_confidence: One-sided, of the bound on the mean difference in DSC.
        max_organ_drop: By how much the mean DSC of no organ may fall.
        doubted_may_judge: Whether a label that looks wrong (`lib.organs.plausibility`) may judge models.
        min_first_dsc: Mean DSC that the first model of all needs to take the place of none, or of the starter.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    auto_retrain: bool = True
    min_new_labels: int = 5
    max_wait_s: float = 24 * 3600.0
    quiet_s: float = 120.0
    retry_after_s: float = 300.0
    retrain_epochs: int = 10
    retrain_minutes: float = 0.0
    retrain_learning_rate: float = 0.25
    new_label_share: float = 0.5
    retrain_threads: int = 0
    retrain_gpu_share: float = 0.7
    promotion_margin: float = 0.01
    promotion_confidence: float = 0.9
    max_organ_drop: float = 0.05
    min_first_dsc: float = 0.5
    doubted_may_judge: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} must be at least 0, and finite, not {value}")
        shares = ("new_label_share", "promotion_margin", "max_organ_drop", "min_first_dsc")
        for name in shares:
            if getattr(self, name) > 1:
                raise ConfigError(f"{name} is a share, from 0 to 1, not {getattr(self, name)}")
        if not 0.5 <= self.promotion_confidence < 1:
            raise ConfigError("promotion_confidence must be from 0.5 to below 1")
        if not 0 < self.retrain_learning_rate <= 1 or not 0 < self.retrain_gpu_share <= 1:
            raise ConfigError(
                "retrain_learning_rate and retrain_gpu_share must be above 0, and 1 at most"
            )
        if self.min_new_labels < 1 or self.retrain_epochs < 1:
            raise ConfigError("min_new_labels and retrain_epochs must be at least 1")

    def changed(self, values: Mapping[str, Any]) -> "RetrainConfig":
        """Return these settings with some of them changed; text is read as what it says.

        Raises:
            ConfigError: If a key is not known or a value is wrong.
        """
        known = asdict(self)
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"{unknown[0][:80]}: no such setting; the settings are {', '.join(sorted(known))}"
            )
        try:
            return TypeAdapter(RetrainConfig).validate_python({**known, **values})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{where}: {first['input']!r}: {first['msg']}") from error


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
        pacs_cache_gib: How much of a PACS's scans is kept at hand; those with labels stay in any case.
        quarantine_gib: How much of what was refused is kept (`lib.labels.quarantine`).
        scoring: Whether the images are looked at in the background, for the strategies that need it.
        lease_minutes: How long a case that was handed out stays with whoever got it, from the last sign of him.
        consensus: What becomes of the readings of a reader study (`lib.assignment.consensus`).
        retrain: See `RetrainConfig`; each of its settings is a key of its own.
    """

    recipe: Recipe = OPENKBP
    model_dir: Path = field(default_factory=default_model_dir)
    starter_dir: Path = field(default_factory=default_starter_dir)
    device: str = field(default_factory=best_device)
    access: Literal["local", "network"] = "local"
    pacs_cache_gib: float = 20.0
    quarantine_gib: float = 5.0
    scoring: bool = True
    lease_minutes: float = 120.0
    consensus: Literal["staple", "majority"] = "staple"
    retrain: RetrainConfig = field(default_factory=RetrainConfig)

    def __post_init__(self) -> None:
        if self.access not in ("local", "network"):
            raise ConfigError(f"--conf access: {self.access!r} is neither 'local' nor 'network'")
        for name in ("quarantine_gib", "pacs_cache_gib"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"--conf {name}: {getattr(self, name)} is no size in GiB")
        if not 0 < self.lease_minutes < float("inf"):
            raise ConfigError(
                f"--conf lease_minutes: {self.lease_minutes:g} minutes; more than 0 expected"
            )
        if self.consensus not in ("staple", "majority"):
            raise ConfigError(
                f"--conf consensus: {self.consensus!r} is neither 'staple' nor 'majority'"
            )
        import torch

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
        of_training = {f.name for f in fields(RetrainConfig)}
        known = {f.name for f in fields(cls)} - {"retrain"}
        unknown = sorted(set(conf) - known - of_training - _MONAI_LABELS_OWN)
        if unknown:
            raise ConfigError(
                f"--conf {unknown[0]}: no such setting; the settings are "
                f"{', '.join(sorted(known | of_training))}"
            )
        values: dict[str, object] = {k: v for k, v in conf.items() if k in known}
        if "recipe" in values:
            values["recipe"] = find_recipe(conf["recipe"])
        for key in ("model_dir", "starter_dir"):
            if key in values:
                values[key] = Path(conf[key]).expanduser().resolve()
        for key in ("quarantine_gib", "pacs_cache_gib", "lease_minutes"):
            if key in values:
                values[key] = _as_number(key, conf[key])
        if "scoring" in values:
            values["scoring"] = _as_flag("scoring", conf["scoring"])
        if values.get("device") == "auto":
            del values["device"]
        values["retrain"] = RetrainConfig().changed(
            {k: v for k, v in conf.items() if k in of_training}
        )
        return cls(**values)  # type: ignore[arg-type]


def _as_number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--conf {key}: {text!r} is no number") from error


def _as_flag(key: str, text: str) -> bool:
    known = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
    if text.lower() not in known:
        raise ConfigError(f"--conf {key}: {text!r} is neither 'on' nor 'off'")
    return known[text.lower()]


def is_loopback(host: str) -> bool:
    """Return whether `host`, a name or an address without port, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
