from pathlib import Path

import numpy as np
import pytest

from tests.imaging.series_files import edit, phantom_series, put, put_along, refusal

PASSES = "case7: the series holds more than one acquisition: "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The upright phantom as a series of 12 files."""
    return phantom_series(tmp_path / "series")


KEYWORDS = {
    "AcquisitionNumber": (1, 2),
    "AcquisitionUID": ("1.2.3", "1.2.4"),
    "TemporalPositionIdentifier": (1, 2),
    "TemporalPositionIndex": (1, 2),
    "TriggerTime": ("0", "612.5"),
    "NominalCardiacTriggerDelayTime": (0.0, 412.0),
    "NominalPercentageOfCardiacPhase": (40.0, 75.0),
    "ImageType": (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "MPR"]),
    "KVP": ("80", "140"),
    "ReconstructionDiameter": ("500", "300"),
    "AcquisitionTime": ("101500", "101730.5"),
    "AcquisitionDateTime": ("20240601101500", "20240602101500.5"),
    "AcquisitionDate": ("20240601", "20240602"),
    "ContrastBolusAgent": ("none", "Iomeprol"),
    "ImageComments": ("phase 0 %", "phase 50 %"),
}
"""Attribute -> its value in the first and in the second acquisition."""


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_alternating_acquisitions_are_refused(folder: Path, keyword: str) -> None:
    edit(folder, put_along(**{keyword: lambda i: KEYWORDS[keyword][i % 2]}))
    assert refusal(folder).startswith(f"{PASSES}{keyword} is ")


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 0, 1, 1]])
def test_acquisitions_that_alternate_in_groups_are_refused(folder: Path, order: list[int]) -> None:
    edit(folder, put_along(AcquisitionNumber=lambda i: 1 + order[i % len(order)]))
    assert refusal(folder).startswith(f"{PASSES}AcquisitionNumber is 1, 2, ...")


def test_more_than_two_time_points_are_refused(folder: Path) -> None:
    edit(folder, put_along(TemporalPositionIdentifier=lambda i: 1 + i % 4))
    assert refusal(folder).startswith(f"{PASSES}TemporalPositionIdentifier is 1, 2, 3, 4, ...")


def test_time_points_are_refused_even_if_one_follows_the_other(folder: Path) -> None:
    edit(folder, put_along(TemporalPositionIdentifier=lambda i: 1 + i // 6))
    assert refusal(folder).startswith(f"{PASSES}TemporalPositionIdentifier")


@pytest.mark.parametrize("alternating", [True, False])
def test_two_kernels_are_refused(folder: Path, *, alternating: bool) -> None:
    edit(
        folder,
        put_along(ConvolutionKernel=lambda i: ("H30s", "H60f")[i % 2 if alternating else i // 6]),
    )
    assert "ConvolutionKernel has 2 values in one series (H30s; H60f), one expected" in refusal(
        folder
    )


def test_two_patients_in_one_series_are_refused_without_their_ids(folder: Path) -> None:
    edit(folder, put_along(PatientID=lambda i: f"secret{i // 6}"))
    reason = refusal(folder)
    assert "PatientID has 2 values in one series, one expected" in reason
    assert "secret" not in reason


STACKED = [
    put_along(AcquisitionNumber=lambda i: i + 1),
    put_along(AcquisitionNumber=lambda i: 1 + i // 4),
    put_along(AcquisitionNumber=lambda i: 9 - i // 6),
    put_along(AcquisitionNumber=lambda i: None if i % 2 else 1),
    put_along(AcquisitionNumber=lambda i: 1 + (i == 5)),
    put_along(AcquisitionTime=lambda i: f"1015{i:02d}"),
    put_along(AcquisitionTime=lambda i: f"101{i // 6}00"),
    put_along(AcquisitionDateTime=lambda i: f"202406011015{i:02d}.5+0200"),
    put_along(ImageComments=lambda i: f"slice {i}"),
    put_along(AcquisitionTime=lambda i: "235959" if i < 6 else "000001"),
    put_along(AcquisitionTime=lambda i: f"10150{i % 2}"),
    put_along(ContentTime=lambda i: f"10{10 + 9 * (i % 2)}00"),
    put_along(TemporalPositionIndex=lambda i: i + 1),
    put_along(TriggerTime=lambda i: str(100 * i)),
    put_along(KVP=lambda i: "100" if i < 5 else "120"),
    put_along(ConvolutionKernel=lambda i: ["Br40f", "3"]),
    put_along(ConvolutionKernel=lambda i: None if i % 3 else "B30s"),
    put(AcquisitionNumber=1, TemporalPositionIdentifier=1, NumberOfTemporalPositions=1),
]
"""Slice by slice, couch position by couch position, one slice again: ordinary scanners."""


@pytest.mark.parametrize("number", range(len(STACKED)))
def test_ordinary_series_are_read(folder: Path, number: int) -> None:
    edit(folder, STACKED[number])
    assert not refusal(folder)


def test_alternating_acquisitions_are_refused_in_any_order_of_files(folder: Path) -> None:
    edit(folder, put_along(AcquisitionNumber=lambda i: 1 + i % 2))
    names = np.random.default_rng(0).permutation(12)
    for name, path in zip(names, sorted(folder.iterdir()), strict=True):
        path.rename(folder / f"{name:02d}.dcm")
    assert refusal(folder).startswith(PASSES)
