"""Functions to measure how long contouring and the choice of the next case take."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import requests
import torch

from apps.support.server_process import free_port, serving
from lib.activelearning.pool import ScoreKind
from lib.activelearning.selection.catalogue import default_method
from lib.dicom.ct_writer import write_ct_series
from lib.errors import OrganNetError, PacsError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import ShapeVox, SpacingMm
from lib.imaging.volumes import CtVolume
from lib.inference.single_pass import contour
from lib.models.registry import Model, Registry, save_model
from lib.networks.build import build_network
from lib.pacs.orthanc import Orthanc
from lib.recipes.schema import OPENKBP
from lib.recipes.yaml_files import find_recipe
from lib.storage.database import FILE, Database, state_folder
from lib.storage.tables import Score
from phantom import head_and_neck_phantom
from phantom.cohort import write_cohort

GRID_SHAPE: ShapeVox = (512, 512, 120)
SPACING_MM: SpacingMm = (1.0, 1.0, 2.5)
PACS_SHAPE_VOX: ShapeVox = (64, 64, 20)
"""Size of the series in the PACS, small because only their number matters."""
PACS_LIST_TIMEOUT_S = 900.0
PACS_REQUESTS = 20
"""Number of requests of each type over the PACS."""
STAGES = ("prepare", "network", "restore")


def print_stages(recipes: Sequence[str], repeats: int, device: str) -> None:
    """Print the seconds that each stage of contouring takes, a row for each recipe."""
    shape = "x".join(map(str, GRID_SHAPE))
    print(f"{shape} CT, {device}, {torch.get_num_threads()} threads")
    print(f"{'recipe':10}{'prepare':>10}{'network':>10}{'restore':>10}{'total s':>10}{'ratio':>8}")
    ct, _ = head_and_neck_phantom(1, grid_shape=GRID_SHAPE, spacing_mm=SPACING_MM, labels={})
    first: float | None = None
    for name in recipes:
        stages = _stage_seconds(ct, name, device, repeats)
        total = sum(stages.values())
        first = first or total
        row = "".join(f"{stages[stage]:10.2f}" for stage in STAGES)
        print(f"{name:10}{row}{total:10.2f}{total / first:8.2f}")


def _stage_seconds(ct: CtVolume, recipe_name: str, device: str, repeats: int) -> dict[str, float]:
    """Return the median seconds of each stage; random weights take as long as trained ones."""
    recipe = find_recipe(recipe_name)
    torch.manual_seed(0)
    network = build_network(recipe).eval().to(device).to(memory_format=torch.channels_last_3d)
    model = Model("bench", network, recipe, {})
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        runs.append(contour(ct, model, device=device).seconds)
        print(f"  {recipe_name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}


def beside_training(count: int, device: str) -> str:
    """Return a text: how long inference takes over HTTP, alone and beside a training on the same machine."""
    with tempfile.TemporaryDirectory(prefix="organnet-bench-") as name:
        folder = Path(name)
        write_cohort(folder / "studies", recipe=OPENKBP, cases=12, labelled=10, seed=1)
        conf = {"model_dir": str(folder / "models"), "device": device, "auto_retrain": "off"}
        with serving(folder / "studies", conf, log=folder / "server.log") as server:
            url = server.url
            _infer_seconds(url, 3)
            alone = _infer_seconds(url, count)
            started = requests.post(
                f"{url}/train/organnet25d", json={"max_epochs": 10_000}, timeout=60
            )
            started.raise_for_status()
            _wait_for_epoch(url)
            beside = _infer_seconds(url, count)
            state = requests.get(f"{url}/organnet/status", timeout=60).json()["training"]
            requests.delete(f"{url}/train/", timeout=60)
    if state is None or state["state"] != "running":
        raise OrganNetError("the training ended during the measurement; run the benchmark again")
    p95_alone, p95_beside = (statistics.quantiles(s, n=20)[-1] for s in (alone, beside))
    return (
        f"{count} infers over HTTP, 128 x 128 x 96 voxels, seconds:\n"
        f"  alone              median {statistics.median(alone):.2f}  p95 {p95_alone:.2f}\n"
        f"  beside a training  median {statistics.median(beside):.2f}  p95 {p95_beside:.2f}\n"
        f"  ratio of p95       {p95_beside / p95_alone:.2f}"
    )


def _infer_seconds(url: str, count: int) -> list[float]:
    """Return the seconds of each inference request; pauses of 0.5 s leave the training time to run."""
    seconds = []
    for number in range(count):
        start = time.perf_counter()
        answer = requests.post(
            f"{url}/infer/organnet25d",
            params={"image": f"demo_{1 + number % 12:03d}", "output": "json"},
            timeout=600,
        )
        seconds.append(time.perf_counter() - start)
        answer.raise_for_status()
        time.sleep(0.5)
    return seconds


def _wait_for_epoch(url: str) -> None:
    """Wait until the training has finished an epoch."""
    for _ in range(600):
        training = requests.get(f"{url}/organnet/status", timeout=60).json()["training"]
        if training and training["epoch"]:
            return
        time.sleep(1)
    raise OrganNetError("the training finished no epoch within ten minutes")


def next_case(studies: int, device: str) -> str:
    """Return a text: how long the default strategy takes over HTTP, with few and with many scored studies."""
    lines = [f"next case by {default_method(has_model=True)} over HTTP, milliseconds:"]
    medians = []
    for count in (10, studies):
        with tempfile.TemporaryDirectory(prefix="organnet-bench-") as name:
            seconds = _next_case_seconds(Path(name), count, device)
        medians.append(statistics.median(seconds))
        p95 = statistics.quantiles(seconds, n=20)[-1]
        lines.append(
            f"  {count:5d} scored studies  median {1000 * medians[-1]:.0f}  p95 {1000 * p95:.0f}"
        )
    return "\n".join([*lines, f"  ratio of medians     {medians[1] / medians[0]:.2f}"])


def _next_case_seconds(
    folder: Path, count: int, device: str, requests_sent: int = 40
) -> list[float]:
    """Return the seconds of each request for the next case, each request from another client."""
    studies, models = folder / "studies", folder / "models"
    write_cohort(studies, recipe=OPENKBP, cases=1, labelled=0, seed=1, dicom_cases=0)
    names = [f"scan_{number:05d}" for number in range(count)]
    scan = studies / "demo_001.nii.gz"
    for name in names:
        (studies / f"{name}.nii.gz").hardlink_to(scan)
    scan.unlink()
    torch.manual_seed(0)
    weights = build_network(OPENKBP).state_dict()
    version = save_model(models, weights, OPENKBP, {"training": {}})
    Registry(models).publish(version, reason="benchmark")
    _write_scores(Database(state_folder(str(studies), models) / FILE), names, version)
    conf = {"model_dir": str(models), "device": device, "auto_retrain": "off", "scoring": "off"}
    seconds = []
    with serving(studies, conf, log=folder / "server.log") as server, requests.Session() as http:
        # The first requests fill the server's score cache and do not count.
        for number in range(-2, requests_sent):
            start = time.perf_counter()
            answer = http.post(
                f"{server.url}/activelearning/{default_method(has_model=True)}",
                json={"client_id": f"client-{number}"},
                timeout=60,
            )
            seconds.append(time.perf_counter() - start)
            answer.raise_for_status()
    return seconds[2:]


def _write_scores(database: Database, names: Sequence[str], version: str) -> None:
    """Write a score of each image into the database, as the scoring process does."""
    rng = np.random.default_rng(1)
    with database.writing() as session:
        for name in names:
            entropy = float(rng.uniform(0.01, 0.3))
            shape = {"volume_ml": 20.0, "centroid_mm": [1.0, 2.0, 3.0], "pieces": 1}
            organs = {
                organ: {"entropy": entropy * float(rng.uniform(0.5, 1.5)), "shape": shape}
                for organ in OPENKBP.labels
            }
            features = [round(float(v), 4) for v in rng.normal(size=128)]
            result = {"entropy": entropy, "foreground": 0.1, "organs": organs, "features": features}
            session.add(
                Score(
                    image_id=name,
                    model_version=version,
                    kind=ScoreKind.PREDICTION.value,
                    found=result,
                )
            )
    database.close()


def over_pacs(studies: int) -> str:
    """Return a text: how long lists and choices take over HTTP with this number of studies in a PACS."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            seconds = _pacs_seconds(studies, Path(scratch))
        except PacsError as error:
            return f"no PACS figures: {error}"
    rows = (
        f"  {name:32} median {1000 * statistics.median(s):5.0f}  longest {1000 * max(s):5.0f}"
        for name, s in seconds.items()
    )
    return "\n".join([f"ms over a PACS with {studies} studies:", *rows])


def _pacs_seconds(studies: int, folder: Path) -> dict[str, list[float]]:
    """Return the type of request -> the seconds of each request, over an Orthanc of its own.

    Raises:
        PacsError: If no Orthanc is installed.
        OrganNetError: If a request fails.
    """
    with Orthanc(folder / "pacs", free_port()) as pacs:
        for number in range(studies):
            files = folder / "series" / f"{number:04d}"
            write_ct_series(_noise_ct(number), files, patient_id=f"patient {number}")
            pacs.upload(sorted(files.glob("*.dcm")))
        conf = {"model_dir": str(folder / "models"), "auto_retrain": "off", "scoring": "off"}
        with serving(pacs.dicomweb_url, conf, log=folder / "server.log") as server:
            _wait_for_studies(server.url, studies)
            return _request_seconds(server.url)


def _noise_ct(seed: int) -> CtVolume:
    affine = np.diag([4.0, 4.0, 3.0, 1.0])
    rng = np.random.default_rng(seed)
    array = rng.integers(-1000, 400, PACS_SHAPE_VOX).astype(np.int16)
    return CtVolume(f"noise_{seed}", array, Grid.from_affine(PACS_SHAPE_VOX, ras_to_lps(affine)))


def _wait_for_studies(url: str, studies: int) -> None:
    deadline = time.monotonic() + PACS_LIST_TIMEOUT_S
    while _listed_studies(url) < studies:
        if time.monotonic() > deadline:
            raise OrganNetError(
                f"{_listed_studies(url)} of {studies} studies are listed after {PACS_LIST_TIMEOUT_S:.0f} s"
            )
        time.sleep(1.0)


def _listed_studies(url: str) -> int:
    return int(requests.get(f"{url}/datastore/", timeout=60).json()["total"])


def _request_seconds(url: str) -> dict[str, list[float]]:
    strategy = default_method(has_model=True)
    with requests.Session() as http:
        senders: dict[str, Callable[[int], requests.Response]] = {
            "the viewer's list of studies": lambda _: http.get(
                f"{url}/proxy/dicom/qido/studies?limit=101&offset=0&includefield=00081030,00080060",
                timeout=60,
            ),
            "the list of images": lambda _: http.get(f"{url}/datastore/?output=all", timeout=60),
            f"next sample ({strategy})": lambda n: http.post(
                f"{url}/activelearning/{strategy}", json={"client_id": f"bench-{n}"}, timeout=60
            ),
        }
        return {
            name: [_seconds_of(send, n) for n in range(PACS_REQUESTS)]
            for name, send in senders.items()
        }


def _seconds_of(send: Callable[[int], requests.Response], number: int) -> float:
    start = time.perf_counter()
    answer = send(number)
    took = time.perf_counter() - start
    if not answer.ok or not answer.content:
        raise OrganNetError(f"{answer.url}: HTTP {answer.status_code}: {answer.text[:200]}")
    return took
