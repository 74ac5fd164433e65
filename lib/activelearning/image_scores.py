"""One image, and at most one model, in; numbers out, as the database keeps them in JSON.

What is found here is turned into what strategies look at by `image_score`, `shapes_of` and `features_of`. The
server's worker and the simulation measure by the same functions.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import SimpleITK as sitk

from lib.activelearning.pool import ImageScore, OrganScore, OrganShape
from lib.imaging.quantities import FloatArray, LabelArray, SpacingMm
from lib.imaging.volumes import LabelVolume
from lib.inference.ensemble import DeepOptions, most_likely, plan, run_passes
from lib.inference.preprocessing import BODY_HU, Pipeline, Prepared
from lib.inference.resampling import closest_ras, in_ras_order
from lib.inference.single_pass import OVERLAP, probabilities
from lib.inference.uncertainty import normalised_entropy, pairwise_dice, volume_variation
from lib.models.registry import Model
from lib.networks.features import pooled_features

PIECE_SHARE = 0.1
"""A connected piece below this share of its organ's volume is not counted: models leave crumbs."""
HU_EDGES = np.array([-350, -150, -90, -50, -20, 10, 40, 70, 110, 200, 350, 600, 1000, 1600, 3100])
"""Between fat, water, muscle, bone and metal; finer where soft tissue lies."""
BLOCKS = 4
DIGITS = 5


def prediction(
    prepared: Prepared,
    model: Model,
    *,
    device: str = "cpu",
    between: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Return what one pass of `model` says of an image.

    Args:
        prepared: The image, prepared by the model's recipe.
        model: Which model.
        device: Where the network runs.
        between: Called before each window: a place to wait for others.

    Returns:
        `entropy` and `foreground` over the body, `organs` (name -> `entropy` and `shape`) and `features`; see
        `lib.activelearning.pool.ImageScore`. The entropy is that of Settles, *Active Learning* (2012), Eq.
        (2.3), over ln K.
    """
    pipeline = Pipeline(model.recipe)
    with pooled_features(model.network) as features:
        found = probabilities(
            prepared, model, pipeline=pipeline, device=device, overlap=OVERLAP, between=between
        )
    entropy = normalised_entropy(found)
    label = most_likely(found)
    body = prepared.hu > BODY_HU
    if not body.any():
        body = np.ones_like(body)
    shapes = organ_shapes(label, prepared.frame.spacing_model_mm, model.recipe.labels)
    organs = {}
    for name, value in model.recipe.labels.items():
        inside = entropy[label == value]
        shape = shapes.get(name)
        organs[name] = {
            "entropy": _rounded(inside.mean(dtype=np.float64)) if inside.size else None,
            "shape": None if shape is None else asdict(shape),
        }
    return {
        "entropy": _rounded(entropy[body].mean(dtype=np.float64)),
        "foreground": _rounded((label[body] > 0).mean()),
        "organs": organs,
        "features": [_rounded(value) for value in features.mean()],
    }


def samples(
    prepared: Prepared,
    model: Model,
    *,
    options: DeepOptions | None = None,
    device: str = "cpu",
    between: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Return how far several passes of `model` differ: `organs`, name -> `volume_cv` and `pairwise_dice`.

    The passes are views of the image (mirrored, a little brighter, a little darker), times draws of dropout
    where the model was trained with it; Roy et al., NeuroImage 195 (2019), and Wang et al., Neurocomputing
    338 (2019).
    """
    options = options or DeepOptions(overlap=OVERLAP, models=1)
    planned = plan(model, options)
    labels = model.recipe.labels
    found = run_passes(planned, prepared, device=device, between=between).samples
    agreement = pairwise_dice(found, max(labels.values()) + 1)
    organs = {}
    for name, value in labels.items():
        volumes = [int(np.count_nonzero(sample == value)) for sample in found]
        organs[name] = {
            "volume_cv": _rounded(volume_variation(volumes)),
            "pairwise_dice": _rounded(agreement[value]),
        }
    return {"organs": organs, "passes": len(planned.passes)}


def appearance(prepared: Prepared) -> dict[str, Any]:
    """Return `features` of the image alone: what the body is made of, how large it is, and where it is dense.

    Shares of the body in each of the ranges between `HU_EDGES`, the box's size in decimetres, and the mean
    density (0 air to 1 bone) in `BLOCKS` x `BLOCKS` x `BLOCKS` blocks of the box.
    """
    hu = prepared.hu
    inside = hu[hu > BODY_HU]
    counts = np.histogram(np.clip(inside, HU_EDGES[0], HU_EDGES[-1]), HU_EDGES)[0]
    shares = counts / max(1, inside.size)
    size_dm = np.array(hu.shape) * np.array(prepared.frame.spacing_model_mm) / 100.0
    density = np.clip((hu + 1000.0) / 1500.0, 0.0, 1.0)
    edges = [np.linspace(0, n, BLOCKS + 1).astype(int) for n in hu.shape]
    blocks = [
        density[x0 : max(x1, x0 + 1), y0 : max(y1, y0 + 1), z0 : max(z1, z0 + 1)].mean()
        for x0, x1 in _pairs(edges[0])
        for y0, y1 in _pairs(edges[1])
        for z0, z1 in _pairs(edges[2])
    ]
    return {"features": [_rounded(v) for v in (*shares, *size_dm, *blocks)]}


def drawn(label: LabelVolume) -> dict[str, Any]:
    """Return the shape of every organ that a person drew: name -> `Shape` as plain values."""
    array = np.ascontiguousarray(in_ras_order(label.array, label.grid), np.uint8)
    axes, _ = closest_ras(label.grid)
    x, y, z = (float(label.grid.spacing_mm[axis]) for axis in axes)
    shapes = organ_shapes(array, (x, y, z), label.labels)
    return {name: asdict(shape) for name, shape in shapes.items()}


def organ_shapes(
    label: LabelArray, spacing_mm: SpacingMm, labels: Mapping[str, int]
) -> dict[str, OrganShape]:
    """Return the shape of each organ that `label`, whose axes run to the right, front and head, holds."""
    found = {}
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    for name, value in labels.items():
        inside = np.argwhere(label == value)
        if len(inside) == 0:
            continue
        centre = inside.mean(axis=0) * np.array(spacing_mm)
        found[name] = OrganShape(
            volume_ml=_rounded(len(inside) * voxel_ml),
            centroid_mm=(_rounded(centre[0]), _rounded(centre[1]), _rounded(centre[2])),
            pieces=_pieces(label, value, inside),
        )
    return found


def image_score(
    image_id: str,
    model_version: str,
    found: Mapping[str, Any],
    sampled: Mapping[str, Any] | None = None,
) -> ImageScore:
    """Return what `prediction`, and `samples` where there is one, found, as strategies look at it."""
    of_samples = (sampled or {}).get("organs", {})
    organs = {
        name: OrganScore(
            entropy=organ["entropy"],
            shape=None if organ["shape"] is None else _shape(organ["shape"]),
            volume_cv=of_samples.get(name, {}).get("volume_cv"),
            pairwise_dice=of_samples.get(name, {}).get("pairwise_dice"),
        )
        for name, organ in found["organs"].items()
    }
    return ImageScore(
        image_id=image_id,
        model_version=model_version,
        entropy=found["entropy"],
        foreground=found["foreground"],
        organs=organs,
        features=features_of(found),
        has_samples=sampled is not None,
    )


def shapes_of(found: Mapping[str, Any]) -> dict[str, OrganShape]:
    """Return what `drawn` found, as strategies look at it."""
    return {name: _shape(values) for name, values in found.items()}


def features_of(found: Mapping[str, Any]) -> FloatArray:
    """Return the `features` of what `prediction` or `appearance` found."""
    return np.array(found["features"], np.float32)


def _shape(values: Mapping[str, Any]) -> OrganShape:
    x, y, z = values["centroid_mm"]
    return OrganShape(
        volume_ml=values["volume_ml"], centroid_mm=(x, y, z), pieces=int(values["pieces"])
    )


def _pieces(label: LabelArray, value: int, inside: "np.ndarray[Any, Any]") -> int:
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    image = sitk.GetImageFromArray((label[box] == value).astype(np.uint8))
    connected = sitk.ConnectedComponentImageFilter()
    connected.FullyConnectedOn()
    sizes = np.bincount(sitk.GetArrayFromImage(connected.Execute(image)).ravel())[1:]
    return int((sizes >= PIECE_SHARE * len(inside)).sum())


def _pairs(edges: "np.ndarray[Any, Any]") -> Sequence[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in itertools.pairwise(edges)]


def _rounded(value: Any) -> Any:
    """Return a number as JSON holds it, with no more digits than mean something."""
    return None if value is None else float(f"{float(value):.{DIGITS}g}")
