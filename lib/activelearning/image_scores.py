"""Values computed from one image, and at most one model or label, in the form stored as JSON.

`to_image_score`, `to_organ_shapes` and `to_features` convert the stored values to the input of strategies. The
scoring process of the server and the simulation use the same functions.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from lib.activelearning.pool import ImageScore, OrganScore, OrganShape
from lib.backends.eager import EagerBackend
from lib.evaluation.edit_cost import EditCosts, edit_cost
from lib.imaging.quantities import FloatArray, LabelArray, SpacingMm
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import LabelVolume
from lib.inference.ensemble import DeepOptions, plan_passes, run_passes
from lib.inference.preprocessing import BODY_HU, Pipeline, Prepared
from lib.inference.resampling import closest_ras, in_ras_order
from lib.inference.single_pass import OVERLAP, contour, probabilities
from lib.inference.uncertainty import ModelUncertainty, pairwise_dice, volume_variation
from lib.models.registry import Model
from lib.networks.features import pooled_features

PIECE_SHARE = 0.1
"""Smallest share of an organ's volume that counts as a piece; smaller pieces are noise of the model."""
HU_EDGES = np.array([-350, -150, -90, -50, -20, 10, 40, 70, 110, 200, 350, 600, 1000, 1600, 3100])
"""Bin edges of the density histogram, in HU: fat, water, muscle, bone, metal; finer for soft tissue."""
BLOCKS = 4
"""Number of blocks of the density map along each axis."""
DIGITS = 5
"""Number of significant digits of stored values."""
EDIT_COST = "edit_cost"
"""Job kind of edit costs; not a `ScoreKind`, because edit costs are not scores."""


def prediction_scores(
    prepared: Prepared,
    model: Model,
    *,
    device: str = "cpu",
    between: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Return entropies, organ shapes and features of one pass of `model`.

    Args:
        prepared: The image, prepared by the model's recipe.
        model: The model.
        device: Device of the network.
        between: Called before each call of a network, for instance to wait while a server runs inference.

    Returns:
        `entropy` and `foreground` over the body, `organs` (name -> `entropy` and `shape`) and `features`; see
        `lib.activelearning.pool.ImageScore`. The entropy is that of Settles, *Active Learning* (2012), Eq.
        (2.3), divided by ln K for K classes.
    """
    pipeline = Pipeline(model.recipe)
    with pooled_features(model.network) as features:
        class_probabilities = probabilities(
            prepared,
            model,
            pipeline=pipeline,
            backend=EagerBackend.usual(model.network, device),
            overlap=OVERLAP,
            before_window=between,
        )
    uncertainty = ModelUncertainty.of(class_probabilities, prepared.frame, prepared.box)
    entropy, label = uncertainty.entropy, uncertainty.likely
    body = prepared.hu > BODY_HU
    if not body.any():
        body = np.ones_like(body)
    shapes = organ_shapes(label, prepared.frame.spacing_model_mm, model.recipe.labels)
    organs = {}
    for name, value in model.recipe.labels.items():
        shape = shapes.get(name)
        organs[name] = {
            "entropy": _rounded(uncertainty.mean_of(value)),
            "shape": None if shape is None else asdict(shape),
        }
    return {
        "entropy": _rounded(entropy[body].mean(dtype=np.float64)),
        "foreground": _rounded((label[body] > 0).mean()),
        "organs": organs,
        "features": [_rounded(value) for value in features.mean()],
    }


def sample_scores(
    prepared: Prepared,
    model: Model,
    *,
    options: DeepOptions | None = None,
    device: str = "cpu",
    between: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Return the differences between several passes of `model`: `organs`, name -> `volume_cv`, `pairwise_dice`.

    The passes use views of the image (mirrored, a little brighter, a little darker), each repeated with
    dropout if the model was trained with it; Roy et al., NeuroImage 195 (2019), and Wang et al.,
    Neurocomputing 338 (2019).
    """
    options = options or DeepOptions(overlap=OVERLAP, models=1)
    planned = plan_passes(model, options)
    labels = model.recipe.labels
    predictions = run_passes(planned, prepared, device=device, before_window=between).samples
    agreement = pairwise_dice(predictions, max(labels.values()) + 1)
    organs = {}
    for name, value in labels.items():
        volumes = [int(np.count_nonzero(sample == value)) for sample in predictions]
        organs[name] = {
            "volume_cv": _rounded(volume_variation(volumes)),
            "pairwise_dice": _rounded(agreement[value]),
        }
    return {"organs": organs, "passes": len(planned.passes)}


def appearance_features(prepared: Prepared) -> dict[str, Any]:
    """Return `features` of the image alone: composition, size and density map of the body.

    These are the shares of the body's voxels in each bin of `HU_EDGES`, the size of its bounding box in
    decimetres, and the mean density (0 air to 1 bone) of `BLOCKS` x `BLOCKS` x `BLOCKS` blocks of the box.
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
        for (x0, x1), (y0, y1), (z0, z1) in itertools.product(*map(itertools.pairwise, edges))
    ]
    return {"features": [_rounded(v) for v in (*shares, *size_dm, *blocks)]}


def label_shapes(label: LabelVolume) -> dict[str, Any]:
    """Return the shape of every organ in an annotator's label: name -> `OrganShape` as plain values."""
    array = np.ascontiguousarray(in_ras_order(label.array, label.grid), np.uint8)
    axes, _ = closest_ras(label.grid)
    x, y, z = (float(label.grid.spacing_mm[axis]) for axis in axes)
    shapes = organ_shapes(array, (x, y, z), label.labels)
    return {name: asdict(shape) for name, shape in shapes.items()}


def measure_edit_cost(
    ct_path: Path,
    label_path: Path,
    model: Model,
    *,
    image_id: str,
    labels: Mapping[str, int],
    device: str = "cpu",
) -> EditCosts:
    """Return the edit cost between the contours of `model` and the submitted label.

    The model contours the scan again, in one plain pass on the CT's own grid; the annotator may have started
    from a `deep` pass.

    Args:
        ct_path: The scan; a file or the folder of a DICOM series.
        label_path: The submitted label.
        model: The model that was active at submission. Its organs and values may differ from this server's.
        image_id: Name of the case in error messages.
        labels: TG-263 name -> value in the submitted label.
        device: Device of the network.

    Raises:
        ScanError: If the scan is not one readable CT.
        LabelError: If the file is not a label.
        GeometryError: If it does not lie on the scan's grid.
    """
    ct = read_ct(ct_path, image_id=image_id)
    submitted, _ = read_label(label_path, image_id=image_id, image_grid=ct.grid)
    prediction = with_label_values(contour(ct, model, device=device).label, labels)
    return edit_cost(prediction, submitted, labels, grid=ct.grid)


def with_label_values(label: LabelVolume, labels: Mapping[str, int]) -> LabelArray:
    """Return the voxels of `label` with the values of `labels`; organs that are not in `labels` become 0."""
    values = np.zeros(256, np.uint8)
    for name, value in label.labels.items():
        values[value] = labels.get(name, 0)
    return np.asarray(values[label.array])


def organ_shapes(
    label: LabelArray, spacing_mm: SpacingMm, labels: Mapping[str, int]
) -> dict[str, OrganShape]:
    """Return the shape of each organ in `label`, whose axes run to the right, front and head."""
    shapes = {}
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    for name, value in labels.items():
        inside = np.argwhere(label == value)
        if len(inside) == 0:
            continue
        centre = inside.mean(axis=0) * np.array(spacing_mm)
        shapes[name] = OrganShape(
            volume_ml=_rounded(len(inside) * voxel_ml),
            centroid_mm=(_rounded(centre[0]), _rounded(centre[1]), _rounded(centre[2])),
            pieces=_pieces(label, value, inside),
        )
    return shapes


def to_image_score(image_id: str, model_version: str, prediction: Mapping[str, Any]) -> ImageScore:
    """Return the score for strategies, from values of `prediction_scores`."""
    organs = {
        name: OrganScore(
            entropy=organ["entropy"],
            shape=None if organ["shape"] is None else _shape(organ["shape"]),
        )
        for name, organ in prediction["organs"].items()
    }
    return ImageScore(
        image_id=image_id,
        model_version=model_version,
        entropy=prediction["entropy"],
        foreground=prediction["foreground"],
        organs=organs,
        features=to_features(prediction),
    )


def with_samples(score: ImageScore, samples: Mapping[str, Any]) -> ImageScore:
    """Return a score with values of `sample_scores` added."""
    organs = dict(score.organs)
    for name, values in samples["organs"].items():
        if name in organs:
            organs[name] = replace(
                organs[name],
                volume_cv=values["volume_cv"],
                pairwise_dice=values["pairwise_dice"],
            )
    return replace(score, organs=organs, has_samples=True)


def to_organ_shapes(values: Mapping[str, Any]) -> dict[str, OrganShape]:
    """Return organ shapes for strategies, from values of `label_shapes`."""
    return {name: _shape(organ_values) for name, organ_values in values.items()}


def to_features(values: Mapping[str, Any]) -> FloatArray:
    """Return the features in values of `prediction_scores` or `appearance_features`."""
    return np.array(values["features"], np.float32)


def _shape(values: Mapping[str, Any]) -> OrganShape:
    return OrganShape(**{**values, "centroid_mm": tuple(values["centroid_mm"])})


def _pieces(label: LabelArray, value: int, inside: "np.ndarray[Any, Any]") -> int:
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    # Voxels that share a face, an edge or a corner are connected.
    numbered, _ = ndimage.label(label[box] == value, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(numbered.ravel())[1:]
    return int((sizes >= PIECE_SHARE * len(inside)).sum())


def _rounded(value: Any) -> Any:
    """Return a number rounded to `DIGITS` significant digits."""
    return None if value is None else float(f"{float(value):.{DIGITS}g}")
