"""Pools of generated patients: nine organs at their usual positions, and scores of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lib.activelearning.pool import ImageScore, OrganScore, OrganShape, Pool
from lib.imaging.quantities import FloatArray

USUAL: Mapping[str, tuple[float, tuple[float, float, float]]] = {
    "Brainstem": (25.0, (0.0, -10.0, 30.0)),
    "OpticChiasm": (0.5, (0.0, 30.0, 50.0)),
    "Bone_Mandible": (60.0, (0.0, 60.0, -30.0)),
    "OpticNrv_L": (0.7, (-17.0, 45.0, 48.0)),
    "OpticNrv_R": (0.7, (17.0, 45.0, 48.0)),
    "Parotid_L": (28.0, (-55.0, 10.0, 0.0)),
    "Parotid_R": (28.0, (55.0, 10.0, 0.0)),
    "Glnd_Submand_L": (9.0, (-25.0, 40.0, -45.0)),
    "Glnd_Submand_R": (9.0, (25.0, 40.0, -45.0)),
}
"""Volume in mL and centroid in mm; +x is the patient's right."""


def patient(seed: int) -> dict[str, OrganShape]:
    """Return the shapes of one patient: volumes vary by 15 %, positions by 3 mm, and the origin is random."""
    generator = np.random.default_rng(seed)
    origin_mm = generator.normal(0.0, 200.0, 3)
    shapes = {}
    for organ, (usual_ml, usual_mm) in USUAL.items():
        x, y, z = np.array(usual_mm) + origin_mm + generator.normal(0.0, 3.0, 3)
        volume_ml = usual_ml * float(np.exp(generator.normal(0.0, 0.15)))
        shapes[organ] = OrganShape(volume_ml=volume_ml, centroid_mm=(float(x), float(y), float(z)))
    return shapes


def moved(shape: OrganShape, x_mm: float = 0.0, y_mm: float = 0.0, z_mm: float = 0.0) -> OrganShape:
    x, y, z = shape.centroid_mm
    return replace(shape, centroid_mm=(x + x_mm, y + y_mm, z + z_mm))


def organ_score(entropy: float | None = 0.1, volume_ml: float | None = 10.0) -> OrganScore:
    shape = (
        None if volume_ml is None else OrganShape(volume_ml=volume_ml, centroid_mm=(0.0, 0.0, 0.0))
    )
    return OrganScore(entropy=entropy, shape=shape)


def to_image_score(
    image_id: str,
    *,
    entropy: float = 0.1,
    organs: Mapping[str, OrganScore] | None = None,
    features: Sequence[float] = (1.0, 0.0),
    has_samples: bool = False,
) -> ImageScore:
    return ImageScore(
        image_id=image_id,
        model_version="v1",
        entropy=entropy,
        foreground=0.01,
        organs={"Brainstem": organ_score()} if organs is None else organs,
        features=np.array(features, np.float32),
        has_samples=has_samples,
    )


def predicted(image_id: str, shapes: Mapping[str, OrganShape | None]) -> ImageScore:
    """Return the score by a model that predicted these shapes."""
    organs = {n: OrganScore(entropy=0.1, shape=shape) for n, shape in shapes.items()}
    return to_image_score(image_id, organs=organs)


def scored_pool(scores: Sequence[ImageScore], *, seed: int = 0, taken: Sequence[str] = ()) -> Pool:
    """Return a pool of all these images; those in `taken` are not candidates."""
    return Pool(
        candidates=[score.image_id for score in scores if score.image_id not in taken],
        taken=taken,
        scores={score.image_id: score for score in scores},
        seed=seed,
    )


def cohort(number: int, *, seed: int = 0, channels: int = 8) -> Pool:
    """Return a pool of `number` candidates with all scores, and ten labelled images."""
    generator = np.random.default_rng(seed)
    names = [f"pt_{n:04d}" for n in range(number + 10)]
    features: FloatArray = generator.normal(size=(len(names), channels)).astype(np.float32)
    scores = {}
    for n, name in enumerate(names):
        entropies, gaps = generator.uniform(0.05, 0.3, 9), generator.uniform(0.05, 0.3, 9)
        organs = {
            organ: OrganScore(
                entropy=float(entropies[k]),
                shape=shape,
                volume_cv=float(gaps[k]) / 2,
                pairwise_dice=1.0 - float(gaps[k]),
            )
            for k, (organ, shape) in enumerate(patient(n).items())
        }
        scores[name] = ImageScore(
            image_id=name,
            model_version="v1",
            entropy=float(generator.uniform(0.01, 0.05)),
            foreground=0.01,
            organs=organs,
            features=features[n],
            has_samples=True,
        )
    return Pool(
        candidates=names[:number],
        taken=names[number:],
        scores=scores,
        shapes={name: patient(10_000 + n) for n, name in enumerate(names[number:])},
        appearance={name: features[n] for n, name in enumerate(names)},
        seed=seed,
    )
