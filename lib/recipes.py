"""Recipes: what is contoured, how a CT is shown to which network, and how that network is trained.

A recipe is one frozen dataclass. `pddca` is the paper's, `openkbp` is for research volumes of 4 mm, `demo`
is `openkbp` cut short; a clinic writes its own as YAML (`lib.recipe_files`). A checkpoint carries its recipe,
so that it is always run as it was trained.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

from lib.errors import ConfigError
from lib.organs import ORGANS, organ_set
from lib.units import HuWindow, ShapeVox, SpacingMm

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Which network, and how wide.

    Attributes:
        name: A key of `lib.networks.build.NETWORKS`.
        width: Channels of the first level; 16 in the paper (Chen et al. 2021, fig. 1).
        dilations: Rates of each HDC block (Wang et al. 2018); the paper does not print its own.
        se_reduction: Reduction ratio of the ResSE blocks; not in the paper.
        dropout: Probability of dropping a channel; 0 is off, as in the paper.
    """

    __pydantic_config__ = _STRICT
    name: str = "organnet25d"
    width: int = 16
    dilations: tuple[int, ...] = (1, 2, 5)
    se_reduction: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.se_reduction < 1:
            raise ConfigError("network: width and se_reduction must be at least 1")
        if not self.dilations or min(self.dilations) < 1:
            raise ConfigError("network: dilations must be one or more numbers of at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"network: dropout must be in [0, 1), not {self.dropout}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """`L = L_focal + dice_weight * (1 - DSC)` (Chen et al. 2021, section 2.4).

    Attributes:
        focal_gamma: Focusing parameter of the focal loss.
        dice_weight: The paper's lambda.
        background_weight: Focal weight of the background class.
        class_weights: TG-263 name -> focal weight; 1 where an organ is not named.
    """

    __pydantic_config__ = _STRICT
    focal_gamma: float = 2.0
    dice_weight: float = 1.0
    background_weight: float = 0.5
    class_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.class_weights) - set(ORGANS))
        if unknown:
            raise ConfigError(f"loss: class_weights names no organ of ours: {', '.join(unknown)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """How long and how fast.

    Attributes:
        epochs: Passes; an epoch is `steps_per_epoch` batches, whatever the number of cases.
        steps_per_epoch: Optimiser steps in an epoch.
        batch_size: Crops in a step.
        learning_rate: Adam's, at the start.
        decay: `step` divides by 10 every `decay_epochs` (the paper's); `cosine` falls to 0 at the end.
        decay_epochs: See `decay`.
        warmup_steps: Steps over which the learning rate rises from 0.
        organ_probability: Share of crops centred on an organ, each organ equally often.
        ema_decay: Decay of the moving average of the weights, which is what gets saved; 0 is off. It is
            reached gradually (`lib.training.run`).
        gradient_clip: Largest norm of a step's gradient; 0 is off.
        validate_every: Epochs between two validations on whole volumes.
        patience: Validations in a row without a gain after which the run stops, and the weights of the best
            validation are kept; 0 is off: every epoch is trained and the last weights are kept, so that
            the validation cases choose nothing.
        min_delta: Least gain in mean DSC that counts for `patience`.
    """

    __pydantic_config__ = _STRICT
    epochs: int = 150
    steps_per_epoch: int = 250
    batch_size: int = 2
    learning_rate: float = 1e-3
    decay: Literal["step", "cosine"] = "step"
    decay_epochs: int = 50
    warmup_steps: int = 0
    organ_probability: float = 0.9
    ema_decay: float = 0.0
    gradient_clip: float = 0.0
    validate_every: int = 10
    patience: int = 0
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.steps_per_epoch, self.batch_size, self.validate_every)
        if min(counts) < 1 or self.decay_epochs < 1:
            raise ConfigError("schedule: every count must be at least 1")
        if not 0 <= self.organ_probability <= 1 or not 0 <= self.ema_decay < 1:
            raise ConfigError("schedule: organ_probability and ema_decay are shares, from 0 to 1")
        if self.learning_rate <= 0:
            raise ConfigError(f"schedule: learning_rate must be above 0, not {self.learning_rate}")
        if self.patience < 0 or not 0 <= self.min_delta < 1:
            raise ConfigError("schedule: patience must be at least 0, min_delta a DSC in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that makes a model what it is, but its training cases.

    Attributes:
        name: What people call it.
        organ_set: A key of `lib.organs.ORGAN_SETS`.
        spacing_mm: Voxel size that the network sees, x, y, z.
        spacing_tolerance: A CT whose voxels are this close to `spacing_mm`, as a ratio on every axis, is
            shown as it is: resampling by a few per cent only blurs the contours.
        hu_windows: One input channel a window, each scaled to -1..1 and clipped.
        crop_vox: Size of a training crop and of the sliding window, x, y, z.
        network: See `NetworkConfig`.
        loss: See `LossConfig`.
        schedule: See `ScheduleConfig`.
    """

    __pydantic_config__ = _STRICT
    name: str
    organ_set: str
    spacing_mm: SpacingMm
    spacing_tolerance: float = 0.0
    hu_windows: tuple[HuWindow, ...]
    crop_vox: ShapeVox
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        organ_set(self.organ_set)
        if min(self.spacing_mm) <= 0 or max(self.spacing_mm) > 20:
            raise ConfigError(f"spacing_mm must be in (0, 20] mm, not {self.spacing_mm}")
        if not 0 <= self.spacing_tolerance < 1:
            raise ConfigError("spacing_tolerance is a ratio in [0, 1)")
        if not self.hu_windows or any(low >= high for low, high in self.hu_windows):
            raise ConfigError("hu_windows: each window is [lower, upper] with lower < upper, in HU")
        if min(self.crop_vox) < 8:
            raise ConfigError(f"crop_vox must be at least 8 voxels a side, not {self.crop_vox}")

    @property
    def labels(self) -> Mapping[str, int]:
        """TG-263 name -> label value."""
        return organ_set(self.organ_set)

    @property
    def classes(self) -> int:
        """`K`: organs and background."""
        return len(self.labels) + 1

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, for JSON or YAML."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def preparation_digest(self) -> str:
        """Return a short digest of what decides how a CT and its label are prepared."""
        parts = [self.organ_set, self.spacing_mm, self.spacing_tolerance, self.hu_windows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


# Chen et al. 2021, sections 2.4 and 3.1; the window and the spacing are those of the reproductions that
# reached the published DSC (ADR 0004).
PDDCA = Recipe(
    name="pddca",
    organ_set="pddca",
    spacing_mm=(0.8, 0.8, 2.5),
    hu_windows=((-125.0, 225.0),),
    crop_vox=(256, 256, 48),
    loss=LossConfig(
        class_weights={
            "Brainstem": 1.0,
            "OpticChiasm": 4.0,
            "Bone_Mandible": 1.0,
            "OpticNrv_L": 4.0,
            "OpticNrv_R": 4.0,
            "Parotid_L": 1.0,
            "Parotid_R": 1.0,
            "Glnd_Submand_L": 3.0,
            "Glnd_Submand_R": 3.0,
        }
    ),
)

# 4 mm research volumes on two CPU cores: half the paper's width, a soft-tissue and a bone window.
OPENKBP = Recipe(
    name="openkbp",
    organ_set="openkbp",
    spacing_mm=(3.906, 3.906, 2.5),
    spacing_tolerance=0.3,
    hu_windows=((-160.0, 240.0), (-300.0, 1200.0)),
    crop_vox=(48, 48, 48),
    network=NetworkConfig(width=8),
    # Organs of a few hundred voxels that few cases were contoured for die out under the paper's weights.
    loss=LossConfig(
        focal_gamma=1.0,
        background_weight=1.0,
        class_weights={
            "Brainstem": 2.0,
            "SpinalCord": 4.0,
            "Parotid_R": 2.0,
            "Parotid_L": 2.0,
            "Esophagus": 8.0,
            "Larynx": 3.0,
            "Bone_Mandible": 2.0,
        },
    ),
    schedule=ScheduleConfig(
        epochs=60,
        steps_per_epoch=100,
        learning_rate=2e-3,
        decay="cosine",
        warmup_steps=50,
        ema_decay=0.995,
        gradient_clip=5.0,
        validate_every=10,
    ),
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (PDDCA, OPENKBP)}
"""Recipes that come with the project."""
