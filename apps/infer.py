"""Contour scans: a file, a DICOM folder, or a folder of scans.

python -m apps.infer --input SCANS --output DIR
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from lib.config import default_model_dir, default_starter_dir
from lib.errors import NoModelError, OrganNetError
from lib.files import write_json
from lib.inference import OVERLAP, Contours, contour
from lib.pictures import contour_picture
from lib.registry import Model, Registry, ServedModel, load_model
from lib.scans import find_scans, read_ct, scan_name, write_label


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.infer", description=__doc__.splitlines()[0]
    )
    add = flags.add_argument
    add("--input", type=Path, required=True, help="a scan, a DICOM folder, or a folder of scans")
    add("--output", type=Path, required=True, help="gets NAME.nii.gz and NAME.json for each scan")
    add("--model", type=Path, help="weights (.safetensors); default: the model that is served")
    add("--model-dir", type=Path, default=default_model_dir(), help="where served models lie")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--overlap", type=float, default=OVERLAP, help="share of a window seen twice, 0 to 0.9")
    add("--pictures", action="store_true", help="also write NAME.png: the contours over the CT")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0 if every scan was contoured, else 1."""
    options = parser().parse_args(argv)
    try:
        model = _model(options)
        scans = _named(find_scans(options.input))
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    refused = 0
    for name, scan in tqdm(scans.items(), unit="scan"):
        try:
            seconds = _contour_one(name, scan, model, options)
        except OrganNetError as error:
            refused += 1
            tqdm.write(f"refused: {error}", file=sys.stderr)
        else:
            tqdm.write(f"{name}: {seconds:.1f} s")
    print(f"{len(scans) - refused} of {len(scans)} scans contoured by {model.version}")
    return 1 if refused else 0


def _model(options: argparse.Namespace) -> Model:
    if options.model:
        return load_model(options.model, options.device)
    registry = Registry(options.model_dir, starter=default_starter_dir())
    try:
        return ServedModel(registry, device=options.device).get()
    except NoModelError as error:
        raise NoModelError("no model is served yet: train one, or give one with --model") from error


def _named(scans: Sequence[Path]) -> dict[str, Path]:
    """Return the scans by the name of their result; where two would collide, by their whole file name."""
    names = [scan_name(scan) for scan in scans]
    return {
        scan.name if names.count(name) > 1 else name: scan
        for name, scan in zip(names, scans, strict=True)
    }


def _contour_one(name: str, scan: Path, model: Model, options: argparse.Namespace) -> float:
    ct = read_ct(scan, image_id=name)
    found: Contours = contour(ct, model, device=options.device, overlap=options.overlap)
    write_label(options.output / f"{name}.nii.gz", found.label)
    volumes = found.label.volumes_ml()
    write_json(
        options.output / f"{name}.json",
        {
            "image": name,
            "model_version": found.version,
            "labels": {organ: model.recipe.labels[organ] for organ in volumes},
            "volumes_ml": volumes,
            "seconds": found.seconds,
        },
    )
    if options.pictures:
        contour_picture(ct, found.label, options.output / f"{name}.png", title=name)
    return sum(found.seconds.values())


if __name__ == "__main__":
    sys.exit(main())
