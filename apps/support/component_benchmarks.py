"""Functions that measure the processor time of computations of the server, without a running server."""

import functools
import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from apps.support.benchmark_record import Section
from lib.activelearning.pool import ImageScore, OrganScore, OrganShape, Pool
from lib.activelearning.selection.catalogue import METHODS
from lib.assignment.leases import assignment_state, may_lease
from lib.datastores.local import FolderStore
from lib.evaluation.edit_cost import edit_cost
from lib.imaging.geometry import Grid
from lib.labels.history import FINAL, LabelHistory
from lib.labels.quarantine import Quarantine
from lib.labels.submission import StoreDependencies
from lib.recipes.schema import OPENKBP
from lib.storage.database import FILE, Database
from lib.storage.tables import LabelVersion, now
from phantom.cohort import write_cohort

REPEATS = 5
IMAGES_PER_LABEL_FILE = 20
"""One image in this many has a label file, as each file is read once before the measurement."""


def run(images: int) -> Section:
    """Return the processor time of each computation, with this number of images."""
    computations: dict[str, Callable[[], object]] = {}
    pool = _pool(images)
    labels = max(1, images // IMAGES_PER_LABEL_FILE)
    with TemporaryDirectory(prefix="organnet-bench-") as name:
        folder = Path(name)
        computations["who may read which image"] = _assignment(folder / "assignment", images)
        for method in METHODS.values():
            computations[f"next case by {method.name}"] = functools.partial(method.choose, pool)
        check = _folder_check(folder / "check", labels)
        computations[f"check of {labels} unchanged label files"] = check
        computations["edit cost of 7 organs"] = _edit_cost()
        rows = {name: {"median": _processor_ms(compute)} for name, compute in computations.items()}
    notes = (
        f"processor time with {images} images; one reading of each for the second reader; "
        "edit cost at 512 x 512 x 120 voxels",
    )
    return Section("components", "ms", rows, notes=notes)


def _processor_ms(compute: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        compute()
        seconds.append(time.process_time() - start)
    return 1000 * statistics.median(seconds)


def _assignment(folder: Path, images: int) -> Callable[[], object]:
    """Return the computation of which images a second reader may get, after one reading of each image."""
    database = Database(folder / FILE)
    names = [f"image_{number:05d}" for number in range(images)]
    with database.writing() as session:
        session.add_all(
            LabelVersion(
                image_id=name,
                tag=FINAL,
                number=1,
                digest=hashlib.sha256(name.encode()).hexdigest(),
                source="client",
                author="ada",
                organs=[],
                info={},
            )
            for name in names
        )

    def compute() -> list[str]:
        with database.writing() as session:
            state = assignment_state(session, now())
        return [name for name in names if may_lease("bob", name, state)]

    return compute


def _pool(images: int) -> Pool:
    """Return a pool with random scores of all images, one in ten of them labelled."""
    rng = np.random.default_rng(1)
    names = [f"image_{number:05d}" for number in range(images)]
    scores = {name: _score(name, rng) for name in names}
    labelled = names[::10]
    return Pool(
        candidates=sorted(set(names) - set(labelled)),
        taken=labelled,
        scores=scores,
        shapes={
            name: {o: s.shape for o, s in scores[name].organs.items() if s.shape is not None}
            for name in labelled
        },
        appearance={name: rng.normal(size=64).astype(np.float32) for name in names},
    )


def _score(image_id: str, rng: np.random.Generator) -> ImageScore:
    organs = {}
    for organ in OPENKBP.labels:
        x, y, z = rng.normal(0, 20, 3).tolist()
        organs[organ] = OrganScore(
            entropy=float(rng.uniform(0, 0.3)),
            shape=OrganShape(volume_ml=float(rng.uniform(10, 30)), centroid_mm=(x, y, z)),
            volume_cv=float(rng.uniform(0, 0.3)),
            pairwise_dice=float(rng.uniform(0.5, 1)),
        )
    return ImageScore(
        image_id=image_id,
        model_version="bench",
        entropy=float(rng.uniform(0, 0.3)),
        foreground=0.1,
        organs=organs,
        features=rng.normal(size=128).astype(np.float32),
        has_samples=True,
    )


def _folder_check(folder: Path, labels: int) -> Callable[[], object]:
    """Return the check of a labels folder whose files are all known."""
    studies, state = folder / "studies", folder / "state"
    write_cohort(studies, recipe=OPENKBP, cases=1, labelled=1, seed=1, dicom_cases=0)
    for number in range(labels):
        _link(studies, "demo_001", f"image_{number:05d}", ("", "labels/final"))
    store = FolderStore(
        studies,
        StoreDependencies(
            labels=OPENKBP.labels,
            history=LabelHistory(Database(state / FILE), state),
            quarantine=Quarantine(state),
        ),
    )
    store.watcher.run()
    return store.watcher.run


def _link(studies: Path, source: str, target: str, folders: Sequence[str]) -> None:
    for folder in folders:
        file = studies / folder / f"{source}.nii.gz"
        (studies / folder / f"{target}.nii.gz").hardlink_to(file)


def _edit_cost() -> Callable[[], object]:
    """Return the edit cost of organs of 5 x 10 x 18 cm, each moved by one voxel."""
    prediction = np.zeros((512, 512, 120), np.uint8)
    for number, value in enumerate(OPENKBP.labels.values()):
        prediction[10 + 70 * number : 60 + 70 * number, 100:200, 15:75] = value
    grid = Grid.from_affine(prediction.shape, np.diag([1.0, 1.0, 3.0, 1.0]))
    submitted = np.roll(prediction, 1, 0)
    return lambda: edit_cost(prediction, submitted, OPENKBP.labels, grid=grid)
