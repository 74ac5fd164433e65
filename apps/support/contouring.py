"""Functions to contour scans and to write the results into files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace as Options
from typing import Any

from tqdm import tqdm

from apps.support.options import STARTER_DIR
from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.objects import KINDS, write_object
from lib.errors import NoModelError, OrganNetError
from lib.imaging.dicom_series import read_headers, require_series
from lib.imaging.scans import find_scans, read_ct, scan_name, write_label
from lib.imaging.volumes import CtVolume
from lib.inference.ensemble import (
    DeepContours,
    DeepOptions,
    EnsemblePlan,
    contour_ensemble,
    plan_passes,
    write_uncertainty_map,
)
from lib.inference.single_pass import ContourResult, contour
from lib.models.registry import Model, Registry, load_model
from lib.models.served_model import ServedModel
from lib.reports.ct_overlays import contour_picture
from lib.storage.atomic_files import write_json


def contour_scans(options: Options) -> int:
    """Contour every scan that the options of `apps.infer` name.

    Returns:
        0 if every scan was contoured, 1 if some were refused.
    """
    model = _model(options)
    deep_plan = _plan(model, options) if options.deep else None
    scans = _by_result_name(find_scans(options.input_))
    if deep_plan is not None:
        print(f"deep, on {options.device}: {deep_plan}")
        for note in deep_plan.notes:
            print(f"note: {note}")
    refused = 0
    for name, scan in tqdm(scans.items(), unit="scan"):
        try:
            seconds = _contour_one(name, scan, deep_plan or model, options)
        except OrganNetError as error:
            refused += 1
            tqdm.write(f"refused: {error}", file=sys.stderr)
        else:
            tqdm.write(f"{name}: {seconds:.1f} s")
    print(f"{len(scans) - refused} of {len(scans)} scans contoured by {model.version}")
    return 1 if refused else 0


def _model(options: Options) -> Model:
    if options.model:
        return load_model(options.model, options.device)
    registry = Registry(options.model_dir, starter=STARTER_DIR)
    try:
        return ServedModel(registry, device=options.device).get()
    except NoModelError as error:
        raise NoModelError(
            "there is no active model: train one, or give weights with --model"
        ) from error


def _plan(model: Model, options: Options) -> EnsemblePlan:
    overlap = max(DeepOptions().overlap, options.overlap)
    deep = DeepOptions(overlap=overlap, models=options.ensemble)
    if options.model:
        return plan_passes(model, deep)
    earlier, notes = Registry(options.model_dir).earlier(
        model, deep.models - 1, device=options.device
    )
    return plan_passes(model, deep, earlier=earlier, notes=notes)


def _by_result_name(scans: Sequence[Path]) -> dict[str, Path]:
    """Return the name of each result -> scan; scans that share a name go by their whole file name."""
    names = [scan_name(scan) for scan in scans]
    return {
        scan.name if names.count(name) > 1 else name: scan
        for name, scan in zip(names, scans, strict=True)
    }


def _contour_one(name: str, scan: Path, by: Model | EnsemblePlan, options: Options) -> float:
    """Contour one scan and write its files; return the seconds that the contouring took."""
    if set(options.format_) & set(KINDS):
        require_series(scan, name)
    ct = read_ct(scan, image_id=name)
    if isinstance(by, EnsemblePlan):
        result: ContourResult = _contour_deeply(ct, by, options)
    else:
        result = contour(ct, by, device=options.device, overlap=options.overlap)
    output: Path = options.output
    _write_contours(name, scan, result, options)
    volumes = result.label.volumes_ml()
    card: dict[str, Any] = {
        "image": name,
        "model_version": result.version,
        "labels": {organ: result.label.labels[organ] for organ in volumes},
        "volumes_ml": volumes,
        "seconds": result.seconds,
    }
    if isinstance(result, DeepContours):
        write_uncertainty_map(output / f"{name}_uncertainty.nii.gz", result)
        card |= result.summary()
    write_json(output / f"{name}.json", card)
    if options.pictures:
        contour_picture(ct, result.label, output / f"{name}.png", title=name)
        if isinstance(result, DeepContours):
            path = output / f"{name}_uncertainty.png"
            contour_picture(ct, result.label, path, title=name, uncertainty=result.uncertainty_map)
    return sum(result.seconds.values())


def _write_contours(name: str, scan: Path, result: ContourResult, options: Options) -> None:
    """Write the contours in each format of `--format`."""
    if "nifti" in options.format_:
        write_label(options.output / f"{name}.nii.gz", result.label)
    kinds = [kind for kind in KINDS if kind in options.format_]
    if not kinds:
        return
    headers, _ = read_headers(scan, image_id=name)
    provenance = ObjectProvenance(
        model="OrganNet2.5D", model_version=result.version, is_automatic=True
    )
    for kind in kinds:
        path = options.output / f"{name}.{kind}.dcm"
        write_object(kind, path, result.label, headers, provenance, image_id=name)


def _contour_deeply(ct: CtVolume, deep_plan: EnsemblePlan, options: Options) -> DeepContours:
    with tqdm(total=len(deep_plan.passes), unit="pass", desc=ct.image_id, leave=False) as bar:

        def progress(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        return contour_ensemble(ct, deep_plan, device=options.device, progress=progress)
