"""What the model of a round says of the pool: only what the strategies need, and by that model alone."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.activelearning import image_scores
from lib.activelearning.pool import Pool
from lib.activelearning.score_records import Kind
from lib.experiments.prepared_volumes import PreparedCase, Volumes
from lib.models.registry import Model
from lib.storage.atomic_files import write_json

Found = dict[str, dict[str, dict[str, Any]]]
"""Kind -> image id -> what was found."""
FILE = "scores.json"


def scored(
    volumes: Volumes,
    wanted: Mapping[Kind, Collection[str]],
    model: Model | None,
    *,
    device: str,
    known: Mapping[str, Mapping[str, dict[str, Any]]],
) -> Found:
    """Return what is wanted of each image, computed where `known` does not hold it.

    Args:
        volumes: The cases.
        wanted: Kind -> image ids.
        model: The round's; None where nothing that is wanted needs one.
        device: Where the network runs.
        known: What was computed by this model before.
    """
    measure: dict[Kind, Callable[[PreparedCase], dict[str, Any]]] = {
        Kind.APPEARANCE: lambda ready: image_scores.appearance(ready.prepared),
        Kind.DRAWN: lambda ready: image_scores.drawn(ready.label),
    }
    if model is not None:
        measure[Kind.PREDICTION] = lambda ready: image_scores.prediction(
            ready.prepared, model, device=device
        )
        measure[Kind.SAMPLES] = lambda ready: image_scores.samples(
            ready.prepared, model, device=device
        )
    found: Found = {kind.value: {} for kind in wanted}
    for image_id in sorted({image_id for ids in wanted.values() for image_id in ids}):
        ready: PreparedCase | None = None
        for kind, ids in wanted.items():
            if image_id not in ids:
                continue
            value = known.get(kind.value, {}).get(image_id)
            if value is None:
                ready = ready or volumes.read(image_id)
                value = measure[kind](ready)
            found[kind.value][image_id] = value
    return found


def wanted_by(
    needs: Collection[Kind], *, pool: Collection[str], labelled: Collection[str]
) -> dict[Kind, Collection[str]]:
    """Return of which images each kind is needed: contours of revealed labels alone, samples of the others."""
    of = {
        Kind.APPEARANCE: pool,
        Kind.PREDICTION: pool,
        Kind.SAMPLES: sorted(set(pool) - set(labelled)),
        Kind.DRAWN: labelled,
    }
    return {kind: of[kind] for kind in Kind if kind in needs}


def pool_of(
    found: Mapping[str, Mapping[str, dict[str, Any]]],
    *,
    pool: Collection[str],
    labelled: Sequence[str],
    model_version: str,
) -> Pool:
    """Return what a strategy may look at."""
    samples = found.get(Kind.SAMPLES.value, {})
    return Pool(
        candidates=sorted(set(pool) - set(labelled)),
        taken=tuple(labelled),
        scores={
            image_id: image_scores.image_score(
                image_id, model_version, prediction, samples.get(image_id)
            )
            for image_id, prediction in found.get(Kind.PREDICTION.value, {}).items()
        },
        shapes={
            image_id: image_scores.shapes_of(drawn)
            for image_id, drawn in found.get(Kind.DRAWN.value, {}).items()
        },
        appearance={
            image_id: image_scores.features_of(appearance)
            for image_id, appearance in found.get(Kind.APPEARANCE.value, {}).items()
        },
    )


def write_scores(folder: Path, found: Found) -> None:
    """Keep scores beside the model that they are of."""
    write_json(folder / FILE, found)


def read_scores(folder: Path) -> Found:
    """Return what was kept beside a model; nothing where nothing readable was."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
