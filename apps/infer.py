"""Contour scans: a file, a DICOM folder, or a folder of scans.

python -m apps.infer --input SCANS --output DIR
python -m apps.infer --input SCANS --output DIR --format seg rtstruct     (DICOM objects of DICOM series)
python -m apps.infer --input SCANS --output DIR --deep     (slower, with an uncertainty map)
"""

import sys
from pathlib import Path
from types import SimpleNamespace

from typer import Option

from apps.support.console import program
from apps.support.options import MODEL_DIR, Device, ModelDir, device_name, one_of


def infer(
    input_: Path = Option(..., "--input", help="A scan, a DICOM folder, or a folder of scans."),
    output: Path = Option(..., help="Folder for the contours and one NAME.json per scan."),
    format_: list[str] | None = Option(
        None,
        "--format",
        help="File formats: nifti (NAME.nii.gz), seg (NAME.seg.dcm), rtstruct (NAME.rtstruct.dcm). The "
        "DICOM formats need a DICOM series.",
        show_default="nifti",
        callback=one_of(lambda: ("nifti", "seg", "rtstruct")),
    ),
    model: Path | None = Option(None, help="Weights (.safetensors); default: the active model."),
    model_dir: ModelDir = MODEL_DIR,
    device: Device = "auto",
    overlap: float = Option(
        0.5, help="Sliding-window overlap, 0 to 0.9; at least 0.6 with --deep."
    ),
    pictures: bool = Option(
        False, "--pictures", help="Also write NAME.png, the contours over the CT."
    ),
    deep: bool = Option(
        False,
        "--deep",
        help="Average many passes, and write NAME_uncertainty.nii.gz and the uncertainty of each organ.",
    ),
    ensemble: int = Option(
        3, help="With --deep: number of recently promoted models to average. Ignored with --model."
    ),
) -> int:
    """Contour scans: a file, a DICOM folder, or a folder of scans.

    The exit code is 0 if every scan was contoured, else 1.
    """
    options = SimpleNamespace(**locals())
    from apps.support.contouring import contour_scans

    options.device, options.format_ = device_name(device), format_ or ["nifti"]
    return contour_scans(options)


main = program(infer, "infer")

if __name__ == "__main__":
    sys.exit(main())
