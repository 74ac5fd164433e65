"""Contour scans: a file, a DICOM folder, or a folder of scans.

python -m apps.infer --input SCANS --output DIR
python -m apps.infer --input SCANS --output DIR --format seg rtstruct     (of DICOM series, as DICOM)
python -m apps.infer --input SCANS --output DIR --deep     (slower: steadier contours, and how sure they are)
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lib.config import default_model_dir, default_starter_dir
from lib.dicom.about import ObjectProvenance
from lib.dicom.objects import KINDS, write_object
from lib.errors import NoModelError, OrganNetError
from lib.imaging.dicom_series import read_headers, require_series
from lib.imaging.scans import find_scans, read_ct, scan_name, write_label
from lib.imaging.volumes import CtVolume
from lib.inference.ensemble import (
    DeepContours,
    DeepOptions,
    EnsemblePlan,
    contour_deeply,
    plan,
    write_uncertainty_map,
)
from lib.inference.single_pass import OVERLAP, ContourResult, contour
from lib.models.registry import Model, Registry, load_model
from lib.models.served_model import ServedModel
from lib.reports.ct_overlays import contour_picture, uncertainty_picture
from lib.storage.atomic_files import write_json

FORMATS = ("nifti", *KINDS)


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.infer", description=__doc__.splitlines()[0]
    )
    add = flags.add_argument
    add("--input", type=Path, required=True, help="a scan, a DICOM folder, or a folder of scans")
    add("--output", type=Path, required=True, help="gets the contours and NAME.json for each scan")
    add(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["nifti"],
        help="forms of the contours: NAME.nii.gz, NAME.seg.dcm, NAME.rtstruct.dcm; the DICOM ones of a "
        "DICOM series only",
    )
    add("--model", type=Path, help="weights (.safetensors); default: the model that is served")
    add("--model-dir", type=Path, default=default_model_dir(), help="where served models lie")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--overlap",
        type=float,
        default=OVERLAP,
        help="share of a window seen twice, 0 to 0.9; at least 0.6 with --deep",
    )
    add("--pictures", action="store_true", help="also write NAME.png: the contours over the CT")
    add(
        "--deep",
        action="store_true",
        help="many passes, overlap at least 0.6: also write NAME_uncertainty.nii.gz, and how sure "
        "the contours are to NAME.json",
    )
    add(
        "--ensemble",
        type=int,
        default=DeepOptions().models,
        help="with --deep: how many of the models promoted last; a model given with --model stands alone",
    )
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0 if every scan was contoured, else 1."""
    options = parser().parse_args(argv)
    try:
        model = _model(options)
        planned = _plan(model, options) if options.deep else None
        scans = _named(find_scans(options.input))
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if planned is not None:
        print(f"deep, on {options.device}: {planned}")
        for note in planned.notes:
            print(f"note: {note}")
    refused = 0
    for name, scan in tqdm(scans.items(), unit="scan"):
        try:
            seconds = _contour_one(name, scan, planned or model, options)
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


def _plan(model: Model, options: argparse.Namespace) -> EnsemblePlan:
    overlap = max(DeepOptions().overlap, options.overlap)
    deep = DeepOptions(overlap=overlap, models=options.ensemble)
    if options.model:
        return plan(model, deep)
    earlier, notes = Registry(options.model_dir).earlier(
        model, deep.models - 1, device=options.device
    )
    return plan(model, deep, earlier=earlier, notes=notes)


def _named(scans: Sequence[Path]) -> dict[str, Path]:
    """Return the scans by the name of their result; where two would collide, by their whole file name."""
    names = [scan_name(scan) for scan in scans]
    return {
        scan.name if names.count(name) > 1 else name: scan
        for name, scan in zip(names, scans, strict=True)
    }


def _contour_one(
    name: str, scan: Path, by: Model | EnsemblePlan, options: argparse.Namespace
) -> float:
    if set(options.format) & set(KINDS):
        require_series(scan, name)
    ct = read_ct(scan, image_id=name)
    if isinstance(by, EnsemblePlan):
        found: ContourResult = _contour_deeply(ct, by, options)
    else:
        found = contour(ct, by, device=options.device, overlap=options.overlap)
    _write(name, scan, found, options)
    volumes = found.label.volumes_ml()
    about: dict[str, Any] = {
        "image": name,
        "model_version": found.version,
        "labels": {organ: found.label.labels[organ] for organ in volumes},
        "volumes_ml": volumes,
        "seconds": found.seconds,
    }
    if isinstance(found, DeepContours):
        write_uncertainty_map(options.output / f"{name}_uncertainty.nii.gz", found)
        about |= found.summary()
    write_json(options.output / f"{name}.json", about)
    if options.pictures:
        contour_picture(ct, found.label, options.output / f"{name}.png", title=name)
        if isinstance(found, DeepContours):
            uncertainty_picture(
                ct,
                found.label,
                found.uncertainty_map,
                options.output / f"{name}_uncertainty.png",
                title=name,
            )
    return sum(found.seconds.values())


def _write(name: str, scan: Path, found: ContourResult, options: argparse.Namespace) -> None:
    """Write the contours in each form that was asked for."""
    if "nifti" in options.format:
        write_label(options.output / f"{name}.nii.gz", found.label)
    kinds = [kind for kind in KINDS if kind in options.format]
    if not kinds:
        return
    headers, _ = read_headers(scan, image_id=name)
    for kind in kinds:
        about = ObjectProvenance(
            model="OrganNet2.5D", model_version=found.version, is_automatic=True
        )
        path = options.output / f"{name}.{kind}.dcm"
        write_object(kind, path, found.label, headers, about, image_id=name)


def _contour_deeply(
    ct: CtVolume, planned: EnsemblePlan, options: argparse.Namespace
) -> DeepContours:
    with tqdm(total=len(planned.passes), unit="pass", desc=ct.image_id, leave=False) as bar:
        return contour_deeply(
            ct, planned, device=options.device, progress=lambda done, _: _advance(bar, done)
        )


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


if __name__ == "__main__":
    sys.exit(main())
