"""Functions that measure how long contouring and the choice of the next case take."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from apps.support.benchmark_record import Section
from apps.support.server_process import Server, free_port, serving, wait_until
from lib.activelearning.selection.catalogue import default_method
from lib.dicom.ct_writer import write_ct_series
from lib.errors import OrganNetError, PacsError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import ShapeVox, SpacingMm
from lib.imaging.volumes import CtVolume
from lib.inference.single_pass import contour
from lib.models.registry import Model
from lib.networks.build import build_network
from lib.pacs.orthanc import Orthanc
from lib.recipes.schema import OPENKBP
from lib.recipes.yaml_files import find_recipe
from phantom import head_and_neck_phantom
from phantom.cohort import write_cohort

GRID_SHAPE: ShapeVox = (512, 512, 120)
SPACING_MM: SpacingMm = (1.0, 1.0, 2.5)
PACS_SHAPE_VOX: ShapeVox = (64, 64, 20)
"""Size of the series in the PACS, small because only their number matters."""
PACS_LIST_TIMEOUT_S, EPOCH_TIMEOUT_S = 900.0, 600.0
PACS_REQUESTS = 20
"""Number of requests of each type."""
STAGES = ("prepare", "network", "restore")


def stages(recipes: Sequence[str], repeats: int, device: str) -> Section:
    """Return the seconds that each stage of contouring takes, one row per recipe, and the peak memory."""
    ct, _ = head_and_neck_phantom(1, grid_shape=GRID_SHAPE, spacing_mm=SPACING_MM, labels={})
    rows: dict[str, dict[str, float]] = {}
    for name in recipes:
        medians = dict(zip(STAGES, _stage_seconds(ct, name, device, repeats), strict=True))
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows[name] = {**medians, "total": sum(medians.values()), "peak_gib": peak_gib}
    first, *others = recipes
    ratios = {f"{name}_vs_{first}": rows[name]["total"] / rows[first]["total"] for name in others}
    shape = " x ".join(map(str, GRID_SHAPE))
    return Section(
        "stages",
        "s",
        rows,
        ratios=ratios,
        notes=(f"CT of {shape} voxels on {device}, {torch.get_num_threads()} threads, median of {repeats}; "
               "peak_gib: largest memory of the process so far",),
    )  # fmt: skip


def _stage_seconds(ct: CtVolume, recipe_name: str, device: str, repeats: int) -> list[float]:
    """Return the median seconds of each stage; random weights take as long as trained ones."""
    recipe = find_recipe(recipe_name)
    torch.manual_seed(0)
    network = build_network(recipe).eval().to(device).to(memory_format=torch.channels_last_3d)
    model = Model("bench", network, recipe, {})
    runs = []
    for _ in range(repeats):
        runs.append(contour(ct, model, device=device).seconds)
        print(f"  {recipe_name}: {sum(runs[-1].values()):.1f} s", file=sys.stderr)
    return [statistics.median(run[stage] for run in runs) for stage in STAGES]


def beside_training(count: int, device: str) -> Section:
    """Return how long inference takes over HTTP, alone and beside a training on the same machine."""
    with TemporaryDirectory(prefix="organnet-bench-") as name:
        folder = Path(name)
        write_cohort(folder / "studies", recipe=OPENKBP, cases=12, labelled=10, seed=1)
        conf = {"model_dir": str(folder / "models"), "device": device, "auto_retrain": "off"}
        with serving(folder / "studies", conf, log=folder / "server.log") as server:
            _infer_seconds(server, 3)
            alone = _infer_seconds(server, count)
            server.request("POST", "/train/organnet25d", json={"max_epochs": 10_000})
            wait_until(
                lambda: bool((server.status()["training"] or {}).get("epoch")),
                EPOCH_TIMEOUT_S,
                "the training finished no epoch within ten minutes",
            )
            during_training = _infer_seconds(server, count)
            training = server.status()["training"]
            server.request("DELETE", "/train/")
    if training is None or training["state"] != "running":
        raise OrganNetError("the training ended during the measurement; run the benchmark again")
    return Section(
        "infer_beside_training",
        "s",
        {"alone": _spread(alone), "beside a training": _spread(during_training)},
        ratios={"infer_beside_training_vs_alone": _p95(during_training) / _p95(alone)},
        notes=(
            f"{count} requests over HTTP for each row, 128 x 128 x 96 voxels; the ratio is of p95",
        ),
    )


def _infer_seconds(server: Server, count: int) -> list[float]:
    """Return the seconds of each inference request; pauses of 0.5 s leave the training time to run."""
    return _seconds_of(
        lambda number: server.infer(f"demo_{1 + number % 12:03d}"), count, pause_s=0.5
    )


def _seconds_of(send: Callable[[int], object], count: int, *, pause_s: float = 0) -> list[float]:
    """Return the seconds of each call of `send`, which gets the number of the call."""
    seconds = []
    for number in range(count):
        start = time.perf_counter()
        send(number)
        seconds.append(time.perf_counter() - start)
        time.sleep(pause_s)
    return seconds


def _spread(seconds: Sequence[float], *, factor: float = 1) -> dict[str, float]:
    return {
        "median": factor * statistics.median(seconds),
        "p95": factor * _p95(seconds),
        "longest": factor * max(seconds),
    }


def _p95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


def _request_next_case(server: Server, number: int) -> None:
    path = f"/activelearning/{default_method(has_model=True)}"
    server.request("POST", path, json={"client_id": f"client-{number}"})


def over_pacs(studies: int) -> Section:
    """Return how long lists and choices take over HTTP with this number of studies in a PACS."""
    try:
        with TemporaryDirectory() as name, Orthanc(Path(name) / "pacs", free_port()) as pacs:
            folder = Path(name)
            for number in range(studies):
                files = folder / "series" / f"{number:04d}"
                write_ct_series(_noise_ct(number), files, patient_id=f"patient {number}")
                pacs.upload(sorted(files.glob("*.dcm")))
            conf = {"model_dir": str(folder / "models"), "auto_retrain": "off", "scoring": "off"}
            with serving(pacs.dicomweb_url, conf, log=folder / "server.log") as server:
                wait_until(
                    lambda: server.request("GET", "/datastore/").json()["total"] >= studies,
                    PACS_LIST_TIMEOUT_S,
                    f"fewer than {studies} studies are listed after {PACS_LIST_TIMEOUT_S:.0f} s",
                )
                return Section("pacs", "ms", _pacs_rows(server), notes=(f"{studies} studies",))
    except PacsError as error:
        return Section("pacs", "ms", {}, notes=(f"not measured: {error}",))


def _noise_ct(seed: int) -> CtVolume:
    affine = np.diag([4.0, 4.0, 3.0, 1.0])
    rng = np.random.default_rng(seed)
    # Air beside soft tissue, which every CT has.
    array = rng.normal(30, 60, PACS_SHAPE_VOX).astype(np.int16)
    array[: PACS_SHAPE_VOX[0] // 4] -= 1000
    return CtVolume(f"noise_{seed}", array, Grid.from_affine(PACS_SHAPE_VOX, ras_to_lps(affine)))


def _pacs_rows(server: Server) -> dict[str, dict[str, float]]:
    query = "limit=101&offset=0&includefield=00081030,00080060"
    senders: dict[str, Callable[[int], object]] = {
        "the viewer's list of studies": lambda _: server.request(
            "GET", f"/proxy/dicom/qido/studies?{query}"
        ),
        "the list of images": lambda _: server.request("GET", "/datastore/?output=all"),
        f"next sample ({default_method(has_model=True)})": lambda number: _request_next_case(
            server, number
        ),
    }
    return {
        name: _spread(_seconds_of(send, PACS_REQUESTS), factor=1000)
        for name, send in senders.items()
    }
