"""Settings of the server app with their defaults."""

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lib.errors import ConfigError
from lib.recipes.schema import OPENKBP, Recipe
from lib.recipes.yaml_files import find_recipe

Config = TypeVar("Config")
SizeGib = Annotated[float, Field(ge=0, allow_inf_nan=False)]

BackendSetting = Literal["auto", "eager", "eager-bf16", "eager-fp16", "openvino", "openvino-bf16"]
APP_DIR = Path(__file__).resolve().parents[1]
TASK_NAME = "organnet25d"
CLICKS_TASK = "organnet25d_clicks"
SCRIBBLES_TASK = "organnet25d_scribbles"
"""Name of the only model, which is also the only trainer, in MONAI Label's addresses."""

_MONAI_LABELS_OWN = frozenset({"server_mode", "auto_update_scoring", "models", "preload"})
"""Keys of `--conf` that MONAI Label or its other apps read: ignored instead of refused."""


def default_model_dir() -> Path:
    """Return the default folder of the model registry."""
    return APP_DIR / "model" / "registry"


def default_starter_dir() -> Path:
    """Return the default folder of the weights that are part of this project."""
    return APP_DIR / "model" / "starter"


def best_device() -> str:
    """Return `cuda` if there is a GPU, else `cpu`."""
    import torch  # slow to import, and programs that only print their --help do not need it

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainConfig:
    """When the server trains automatically, how, and which models are promoted (ADR 0017).

    Set by `--conf KEY VALUE`, and by an admin while the server runs (`PUT /organnet/settings`).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    auto_retrain: bool = True
    """Whether new labels start a training; it can always be started by request."""
    min_new_labels: int = 5
    """Number of new final labels that starts a training."""
    max_wait_s: float = 24 * 3600.0
    """Longest waiting time of a new label in seconds; then fewer labels start a training too."""
    quiet_s: float = 60.0
    """Seconds without a submission before a training starts, as users often correct a label at once."""
    retry_after_s: float = 300.0
    """Seconds until the next try after a failed run; doubled after each further failure, up to a day."""
    retrain_epochs: int = 10
    """Epochs of a run that continues from the active model; a run from random weights takes the epochs of its
    recipe."""
    retrain_minutes: float = 0.0
    """Longest wall-clock time of a run in minutes; 0 sets no limit."""
    retrain_cpu_minutes: float = 6.0
    """Longest processor time, of all threads, of the steps of a run that continues from the active model, in
    minutes, if neither `retrain_minutes` nor the client limits it: a slow machine takes fewer steps, a busy one
    as many. 0 sets no limit."""
    retrain_learning_rate: float = 0.25
    """Learning rate of a run that continues from the active model, as a share of the recipe's."""
    new_label_share: float = 0.5
    """Share of training crops from labels that the active model was not trained on."""
    retrain_threads: int = 0
    """Processor threads of a run; 0 means half of the cores, or up to four cores if that is more."""
    retrain_gpu_share: float = 0.7
    """Share of GPU memory that a run may use; the rest is for inference."""
    training_cache_gib: float = 10.0
    """Size limit in GiB of the cache of prepared cases; cases of the running training always stay, of the
    others those that were used longest ago are removed first."""
    promotion_margin: float = 0.01
    """Non-inferiority margin: by how much the mean DSC of a candidate model may be lower than that of the
    active model."""
    promotion_confidence: float = 0.9
    """One-sided confidence level of the bound on the mean difference in DSC."""
    max_organ_drop: float = 0.05
    """Largest accepted decrease in the mean DSC of any organ."""
    min_first_dsc: float = 0.5
    """Mean DSC that a candidate needs to become the first active model, or replace the starter."""
    doubted_may_judge: bool = False
    """Whether implausible labels (`lib.organs.plausibility`) may be evaluation cases."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} must be finite and at least 0, not {value}")
        shares = ("new_label_share", "promotion_margin", "max_organ_drop", "min_first_dsc")
        for name in shares:
            if getattr(self, name) > 1:
                raise ConfigError(f"{name} must be a share from 0 to 1, not {getattr(self, name)}")
        if not 0.5 <= self.promotion_confidence < 1:
            raise ConfigError("promotion_confidence must be at least 0.5 and below 1")
        if not 0 < self.retrain_learning_rate <= 1 or not 0 < self.retrain_gpu_share <= 1:
            raise ConfigError(
                "retrain_learning_rate and retrain_gpu_share must be above 0 and at most 1"
            )
        if self.min_new_labels < 1 or self.retrain_epochs < 1:
            raise ConfigError("min_new_labels and retrain_epochs must be at least 1")

    def changed(self, values: Mapping[str, Any]) -> "RetrainConfig":
        """Return these settings with some of them changed; numbers and flags may be given as text.

        Raises:
            ConfigError: If a key is unknown or a value is wrong.
        """
        current = asdict(self)
        unknown = sorted(set(values) - set(current))
        if unknown:
            raise ConfigError(
                f"{unknown[0][:80]}: no such setting; the settings are {', '.join(sorted(current))}"
            )
        return _validated(RetrainConfig, {**current, **values})


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """Settings of `--conf KEY VALUE`."""

    recipe: Recipe = OPENKBP
    """Recipe of the models that the server trains: a name, or the path of a YAML file. The default,
    `openkbp`, can be trained on a CPU."""
    model_dir: Path = field(default_factory=default_model_dir)
    starter_dir: Path = field(default_factory=default_starter_dir)
    """Folder of the weights that are used until a model is promoted."""
    state_dir: Path | None = None
    """Folder of all that the server writes (labels, history, index, training runs), for studies that it may
    only read; by default the studies folder, or for a PACS the folder of the models."""
    device: str = field(default_factory=best_device)
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    backend: BackendSetting = "auto"
    """How the network is computed: `auto` chooses the fastest backend whose contours agree with those of
    PyTorch in float32 (`eager`); a single one is used only if it agrees (ADR 30)."""
    access: Literal["local", "network"] = "local"
    """`local` answers requests from this machine only; `network` answers every machine that can reach the
    port: for use behind a proxy that authenticates, or with MONAI Label's authentication."""
    pacs_cache_gib: SizeGib = 20.0
    """Size limit in GiB of the cache of scans from a PACS; scans with labels always stay."""
    quarantine_gib: SizeGib = 5.0
    """Size limit in GiB of the quarantine (`lib.labels.quarantine`)."""
    scoring: bool = True
    """Whether images are scored in the background, for the strategies that need scores."""
    lease_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 120.0
    """Duration of a lease in minutes, renewed by the activity of its holder."""
    consensus: Literal["staple", "majority"] = "staple"
    """Method that combines the readings of a reader study (`lib.assignment.consensus`)."""
    infer_queue: Annotated[int, Field(ge=1, le=32)] = 16
    """Largest number of inference requests at once, of which one computes; more are answered 503."""
    ohif_folder: bool = False
    """Whether OHIF opens the DICOM series of a studies folder; an Orthanc of this server has a copy of them."""
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    """Settings of retraining; each is a key of its own."""

    def __post_init__(self) -> None:
        import torch

        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"--conf device: {self.device!r} is not a device: {error}") from error

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> "AppConfig":
        """Return the settings of `--conf`, with defaults for all that are not given.

        Raises:
            ConfigError: If a key is unknown or a value is wrong.
        """
        retrain_keys = {f.name for f in fields(RetrainConfig)}
        own_keys = {f.name for f in fields(cls)} - {"retrain"}
        unknown = sorted(set(conf) - own_keys - retrain_keys - _MONAI_LABELS_OWN)
        if unknown:
            raise ConfigError(
                f"--conf {unknown[0]}: no such setting; the settings are "
                f"{', '.join(sorted(own_keys | retrain_keys))}"
            )
        values: dict[str, object] = {k: v for k, v in conf.items() if k in own_keys}
        if "recipe" in values:
            values["recipe"] = find_recipe(conf["recipe"])
        for key in ("model_dir", "starter_dir", "state_dir"):
            if key in values:
                values[key] = Path(conf[key]).expanduser().resolve()
        if values.get("device") == "auto":
            del values["device"]
        values["retrain"] = RetrainConfig().changed(
            {k: v for k, v in conf.items() if k in retrain_keys}
        )
        return _validated(cls, values, source="--conf ")


_ADAPTERS: dict[type, TypeAdapter[Any]] = {c: TypeAdapter(c) for c in (RetrainConfig, AppConfig)}
"""Built once, at import: pydantic parses the source for the field docstrings, which fails in threads."""


def _validated(kind: type[Config], values: Mapping[str, Any], *, source: str = "") -> Config:
    """Return settings from values that may be text; an error message begins with `source`.

    Raises:
        ConfigError: If a value is wrong.
    """
    try:
        settings: Config = _ADAPTERS[kind].validate_python(values)
        return settings
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            raise cause from error
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{source}{where}: {first['input']!r}: {first['msg']}") from error


def is_loopback(host: str) -> bool:
    """Return whether `host`, a name or an address without port, is the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
