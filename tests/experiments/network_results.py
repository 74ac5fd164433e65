from collections.abc import Mapping

from lib.evaluation.table import Row
from lib.experiments.network_runs import NetworkResult

ORGANS = ("Brainstem", "Larynx")


def make_row(case: str, organ: str, dsc: float) -> Row:
    missed = dsc == 0
    return Row(
        case=case,
        organ=organ,
        dsc=dsc,
        hd95_mm=float("nan") if missed else 5.0,
        surface_dsc=dsc,
        tolerance_mm=2.0,
        msd_mm=float("nan") if missed else 1.0,
        volume_reference_ml=20.0,
        volume_prediction_ml=0.0 if missed else 20.0,
    )


def make_result(
    network: str, seed: int, dsc: Mapping[tuple[str, str], float], *, recipe: str = "openkbp"
) -> NetworkResult:
    """Return a run with the DSC of each case and organ."""
    return NetworkResult(
        network=network,
        recipe=recipe,
        seed=seed,
        version=f"{network}-{recipe}-{seed}",
        parameters=2_000_000,
        training={"seed": seed, "seconds": 60.0 * (seed + 1), "steps": 100 + seed},
        curve=[(0.5, 0.4), (1.0, 0.6)],
        seconds_per_case=2.5,
        rows=[make_row(case, organ, value) for (case, organ), value in dsc.items()],
    )


def all_at(dsc: float, cases: int = 8) -> dict[tuple[str, str], float]:
    """Return `dsc` for both organs of every case, except the larynx of the last case: it has no reference."""
    every = {(f"case_{n}", organ): dsc for n in range(cases) for organ in ORGANS}
    del every[f"case_{cases - 1}", "Larynx"]
    return every
