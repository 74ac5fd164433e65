"""Measurements of the network on this machine: backend by backend, and against MONAI Label's own path."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from apps.support.benchmark_record import Section
from lib.imaging.scans import read_ct, write_ct, write_label
from lib.imaging.volumes import CtVolume
from lib.inference.preprocessing import Pipeline
from lib.inference.self_test import REFERENCE, candidates, measure
from lib.inference.single_pass import contour
from lib.models.registry import Model
from lib.networks.build import build_network, with_network
from lib.recipes.schema import Recipe
from lib.recipes.yaml_files import find_recipe
from phantom import head_and_neck_phantom

OVERLAP = 0.25
"""Overlap of MONAI's sliding window by default, for both sides of the comparison."""
SHAPE_VOX, SPACING_MM = (256, 256, 60), (2.0, 2.0, 2.5)
"""The CT of the comparison: the networks of MONAI would take an hour for one of 512 x 512 x 120 voxels."""
PEERS = ("dynunet", "segresnet", "organnet25d")
OURS = "this server"


def backends(recipes: Sequence[str], device: str) -> Section:
    """Return the seconds per window of each backend, a row per recipe and backend."""
    ct, _ = head_and_neck_phantom(1, grid_shape=(96, 96, 72), spacing_mm=(5.0, 5.0, 3.5), labels={})
    rows: dict[str, dict[str, float | int | str | None]] = {}
    ratios = {}
    for name in recipes:
        model = random_model(find_recipe(name))
        with TemporaryDirectory(prefix="organnet-bench-") as folder:
            makers = candidates(
                model,
                Path(folder) / "network.onnx",
                device=device,
                threads=torch.get_num_threads(),
            )
            cases = [Pipeline(model.recipe).prepare(ct)]
            measurements = {m.name: m for m in measure(model, makers, cases, device=device)}
        reference_s = measurements[REFERENCE].window_s
        for backend, result in measurements.items():
            rows[f"{name} {backend}"] = {"window": result.window_s, "error": result.error}
            if result.window_s and reference_s and backend != REFERENCE:
                ratios[f"{backend}_vs_{REFERENCE}.{name}"] = result.window_s / reference_s
    notes = ("processor seconds (on a GPU: by the clock) of one window of the recipe's crop",)
    return Section("backends", "s", rows, ratios, notes)


def against_monailabel(
    recipe_name: str, repeats: int, device: str, ct: CtVolume | None = None
) -> Section:
    """Return the seconds to contour a CT by this server's code and by MONAI Label's inference task.

    Both read the CT from a file and write the label; windows and overlap are the same. The ways alternate,
    after one run of each that does not count.
    """
    from apps.support.monailabel_path import (
        MonaiLabelPath,  # MONAI Label takes ten seconds to import
    )

    recipe = find_recipe(recipe_name)
    if ct is None:
        ct, _ = head_and_neck_phantom(1, grid_shape=SHAPE_VOX, spacing_mm=SPACING_MM, labels={})
    with TemporaryDirectory(prefix="organnet-bench-") as name:
        folder = Path(name)
        scan = folder / "ct.nii.gz"
        write_ct(scan, ct)
        ways: dict[str, Callable[[], object]] = {OURS: _ours(recipe, folder, scan, device)}
        for peer in PEERS:
            model = random_model(with_network(recipe, peer))
            task = MonaiLabelPath(model.network, model.recipe, overlap=OVERLAP, device=device)
            ways[f"MONAI Label, {peer}"] = lambda task=task: task.contour(scan)  # type: ignore[misc]
        seconds = alternately(ways, repeats)
    rows = {way: {"CPU": cpu, "clock": clock} for way, (cpu, clock) in seconds.items()}
    ours = seconds[OURS][0]
    ratios = {
        f"infer_vs_monailabel_{peer}.{recipe_name}": ours / seconds[f"MONAI Label, {peer}"][0]
        for peer in PEERS
    }
    shape = " x ".join(map(str, ct.grid.shape_vox))
    notes = (f"recipe {recipe_name}, {shape} voxels, overlap {OVERLAP}, median of {repeats}",)
    return Section(f"versus_monailabel {recipe_name}", "s", rows, ratios, notes)


def random_model(recipe: Recipe) -> Model:
    """Return a model with random weights, which takes as long as a trained one."""
    torch.manual_seed(0)
    network = build_network(recipe).eval().to(memory_format=torch.channels_last_3d)
    return Model(f"bench-{recipe.network.name}", network, recipe, {})


def alternately(
    ways: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, tuple[float, float]]:
    """Return the median processor seconds and seconds of each way; the first run of each does not count."""
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, run in ways.items():
            cpu, clock = time.process_time(), time.perf_counter()
            run()
            if number:
                runs[name].append((time.process_time() - cpu, time.perf_counter() - clock))
    return {
        name: (statistics.median(c for c, _ in values), statistics.median(w for _, w in values))
        for name, values in runs.items()
    }


def _ours(recipe: Recipe, folder: Path, scan: Path, device: str) -> Callable[[], object]:
    """Return a function that contours `scan` as the server does, by the fastest backend."""
    model = random_model(replace(recipe))
    threads = torch.get_num_threads()
    makers = candidates(model, folder / "ours.onnx", device=device, threads=threads)
    name = next(n for n in ("openvino-bf16", "eager-bf16", "openvino", REFERENCE) if n in makers)
    backend = makers[name]()

    def run() -> None:
        result = contour(read_ct(scan), model, overlap=OVERLAP, backend=backend)
        write_label(folder / "ours.nii.gz", result.label)
        json.dumps(result.label.volumes_ml())

    return run
