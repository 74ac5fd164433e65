"""Recipes: the organs, the preparation of a CT, the network, and its training.

A recipe is one frozen dataclass. `pddca` is the paper's recipe, `openkbp` is for research volumes of 4 mm,
`demo` is a shortened `openkbp`; a clinic writes its own as YAML (`lib.recipes.yaml_files`). A checkpoint
contains its recipe, so that a model is always used as it was trained.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import ConfigDict

from lib.errors import ConfigError
from lib.imaging.quantities import AnglesDeg, HuWindow, ShapeVox, SpacingMm
from lib.organs.table import ORGANS, organ_set

_STRICT = ConfigDict(extra="forbid")

NetworkName = Literal[
    "organnet25d",
    "dynunet",
    "segresnet",
    "unet",
    "vnet",
    "basicunetplusplus",
    "attentionunet",
    "swinunetr",
    "anatomynet",
]
NETWORK_NAMES: tuple[NetworkName, ...] = get_args(NetworkName)
"""Names of the networks; `lib.networks.build.NETWORKS` describes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Network and its size.

    Attributes:
        name: One of `NETWORK_NAMES`: OrganNet2.5D, or a peer to compare it with (ADR 0012).
        width: Channels of the first level; 16 in the paper (Chen et al. 2021, fig. 1).
        dilations: Rates of each HDC block (Wang et al. 2018); the paper does not give its rates. Only for
            OrganNet2.5D.
        se_reduction: Reduction ratio of the ResSE blocks; not in the paper. Only for OrganNet2.5D.
        dropout: Probability of dropping a channel; 0 is off, as in the paper. `lib.networks.peers` documents
            the layers of each peer, and whether channels or voxels are dropped.
    """

    __pydantic_config__ = _STRICT
    name: NetworkName = "organnet25d"
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
        class_weights: TG-263 name -> focal weight; 1 for organs without an entry.
        fade_until: Share of the run after which these weights have faded to 1; 0 keeps them. Large weights
            prevent small organs from being lost early in training, but would make them too large at its end.
    """

    __pydantic_config__ = _STRICT
    focal_gamma: float = 2.0
    dice_weight: float = 1.0
    background_weight: float = 0.5
    class_weights: Mapping[str, float] = field(default_factory=dict)
    fade_until: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.fade_until <= 1:
            raise ConfigError(f"loss: fade_until must be from 0 to 1, not {self.fade_until}")
        unknown = sorted(set(self.class_weights) - set(ORGANS))
        if unknown:
            raise ConfigError(f"loss: class_weights has unknown organs: {', '.join(unknown)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Length of the training, learning rate and early stopping.

    Attributes:
        epochs: Number of epochs; an epoch is `steps_per_epoch` batches, independent of the number of cases.
        steps_per_epoch: Optimiser steps in an epoch.
        batch_size: Crops in a step.
        learning_rate: Initial learning rate of Adam.
        decay: `step` divides by 10 every `decay_epochs` (as in the paper); `cosine` falls to 0 at the end.
        decay_epochs: See `decay`.
        warmup_steps: Steps over which the learning rate rises from 0.
        organ_probability: Share of crops centred on an organ, each organ equally often.
        ema_decay: Decay of the moving average of the weights, which is saved; 0 is off. It is reached
            gradually (`lib.training.state.moving_average`).
        gradient_clip: Largest norm of a step's gradient; 0 is off.
        validate_every: Epochs between two validations on whole volumes.
        patience: Number of validations without a gain after which the run stops; the weights of the best
            validation are kept. 0 is off: every epoch is trained and the last weights are kept, so that the
            validation cases have no influence.
        min_delta: Smallest gain in mean DSC that counts for `patience`.
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
class AugmentConfig:
    """Augmentation of training crops (ADR 0011); `lib.training.augment` defines the order.

    Each variation is applied to a crop with its `_probability`; its size is drawn uniformly up to the largest
    value given here. A probability of 0 switches a variation off without changing the others.

    Attributes:
        mirror_probability: Exchange of left and right; the organs of a pair swap their labels.
        rotation_probability: See `rotation_deg`.
        rotation_deg: Largest angle about x, y, z: the body turns most about its long axis.
        zoom_probability: See `zoom`.
        zoom: Largest relative change of size, independent along each axis.
        elastic_probability: See `elastic_mm`.
        elastic_mm: Largest movement of each control point of a cubic B-spline along each axis.
        elastic_grid_mm: Distance between control points. `elastic_mm` may be up to 0.4 of it, below which no
            tissue folds over (Choi and Lee 2000; Rueckert et al. 2006).
        metal_probability: Dental fillings, in crops with teeth.
        metal_fillings: Largest number of fillings in one crop.
        metal_streak_hu: Strongest streak, 20 mm from a filling.
        thick_slice_probability: See `thick_slice_mm`.
        thick_slice_mm: Largest thickness of the slices that a crop is averaged to along z, then interpolated
            from.
        blur_probability: See `blur_mm`.
        blur_mm: Largest standard deviation of a Gaussian along x and y alike, and along z.
        sharpen_probability: See `sharpen`.
        sharpen: Largest share of the detail finer than `blur_mm` that is added again, as bone kernels do.
        contrast_probability: See `contrast`.
        contrast: Largest relative change of all HU.
        shift_probability: See `shift_hu`.
        shift_hu: Largest constant added to all HU.
        noise_probability: See `noise_hu`.
        noise_hu: Largest standard deviation of white noise.
        field_of_view_probability: Cut of the crop by the edge of the scan: the reconstruction circle, or the
            first or last slice. Voxels outside become air and background.
        field_of_view_mm: Largest distance of the edge from the crop's border; the crop's centre stays inside.
    """

    __pydantic_config__ = _STRICT
    mirror_probability: float = 0.5
    rotation_probability: float = 0.2
    rotation_deg: AnglesDeg = (4.0, 4.0, 12.0)
    zoom_probability: float = 0.2
    zoom: float = 0.15
    elastic_probability: float = 0.1
    elastic_mm: float = 9.0
    elastic_grid_mm: float = 32.0
    metal_probability: float = 0.1
    metal_fillings: int = 4
    metal_streak_hu: float = 400.0
    thick_slice_probability: float = 0.1
    thick_slice_mm: float = 6.0
    blur_probability: float = 0.15
    blur_mm: float = 1.5
    sharpen_probability: float = 0.1
    sharpen: float = 1.0
    contrast_probability: float = 0.3
    contrast: float = 0.08
    shift_probability: float = 0.3
    shift_hu: float = 15.0
    noise_probability: float = 0.3
    noise_hu: float = 25.0
    field_of_view_probability: float = 0.1
    field_of_view_mm: float = 60.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if name.endswith("_probability") and not 0 <= value <= 1:
                raise ConfigError(f"augment: {name} must be from 0 to 1, not {value}")
            sizes = value if isinstance(value, tuple) else (value,)
            if not all(0 <= size < math.inf for size in sizes):
                raise ConfigError(f"augment: {name} must be at least 0, and finite, not {value}")
        if max(self.zoom, self.contrast) >= 1:
            raise ConfigError("augment: zoom and contrast are shares, in [0, 1)")
        if self.metal_fillings < 1:
            raise ConfigError("augment: metal_fillings must be at least 1")
        if max(self.rotation_deg) > 90:
            raise ConfigError("augment: rotation_deg must be at most 90 degrees about each axis")
        if self.elastic_grid_mm < 1 or self.elastic_mm > 0.4 * self.elastic_grid_mm:
            raise ConfigError(
                f"augment: elastic_mm must be at most 0.4 of elastic_grid_mm, which must be at least 1 mm, "
                f"or tissue folds over; not {self.elastic_mm} of {self.elastic_grid_mm}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickConfig:
    """Two further input channels for clicks to add and to remove, and simulated clicks in training.

    As in DeepEdit (Diaz-Pinto et al., MICCAI DALI 2022) some crops have no click, so that the network also
    contours by itself (`lib.training.click_simulation`).

    Attributes:
        probability: Share of crops with clicks; 0 is off, and the network has no such channels.
        most: Largest number of clicks in a crop.
        radius_mm: Standard deviation of the Gaussian that a click is drawn as.
    """

    __pydantic_config__ = _STRICT
    probability: float = 0.0
    most: int = 5
    radius_mm: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"clicks: probability must be from 0 to 1, not {self.probability}")
        if self.most < 1 or not 0 < self.radius_mm < math.inf:
            raise ConfigError("clicks: most must be at least 1, and radius_mm above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Complete specification of a model, except its training cases.

    Attributes:
        name: Name of the recipe.
        organ_set: A key of `lib.organs.table.ORGAN_SETS`.
        spacing_mm: Voxel size of the network's input, x, y, z.
        spacing_tolerance: Relative difference from `spacing_mm`, on every axis, up to which a CT is not
            resampled: resampling by a few per cent would only blur the contours.
        hu_windows: HU windows, one input channel each, scaled to -1..1 and clipped.
        crop_vox: Size of a training crop and of the sliding window, x, y, z.
        network: See `NetworkConfig`.
        loss: See `LossConfig`.
        schedule: See `ScheduleConfig`.
        augment: See `AugmentConfig`; older stored recipes without it get the defaults.
        clicks: See `ClickConfig`; off by default.
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
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    clicks: ClickConfig = field(default_factory=ClickConfig)

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
        if self.has_clicks and self.network.name != "organnet25d":
            raise ConfigError(
                f"clicks: only organnet25d takes clicks, not {self.network.name}; set clicks.probability to 0"
            )

    @property
    def labels(self) -> Mapping[str, int]:
        """TG-263 name -> label value."""
        return organ_set(self.organ_set)

    @property
    def has_clicks(self) -> bool:
        """Whether the network has two channels for clicks, behind those of the windows."""
        return self.clicks.probability > 0

    @property
    def in_channels(self) -> int:
        """Number of the network's input channels."""
        return len(self.hu_windows) + 2 * self.has_clicks

    @property
    def classes(self) -> int:
        """`K`: organs and background."""
        return len(self.labels) + 1

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, for JSON or YAML."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        if not self.has_clicks:
            # Stored digests of recipes from before clicks stay valid.
            del plain["clicks"]
        return plain

    def preparation_digest(self) -> str:
        """Return a short digest of all settings that affect the preparation of a CT and its label."""
        parts = [self.organ_set, self.spacing_mm, self.spacing_tolerance, self.hu_windows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


# Chen et al. 2021, sections 2.4 and 3.1; window and spacing are from reproductions that reached the
# published DSC (ADR 0004).
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
    # With the paper's weights, organs of a few hundred voxels that are contoured in few cases are lost.
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
        fade_until=0.6,
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
"""Recipes of the project, by name."""
