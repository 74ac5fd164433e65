"""Contour scans: a file, a DICOM folder, or a folder of scans.

python -m apps.infer --input SCANS --output DIR
python -m apps.infer --input SCANS --output DIR --format seg rtstruct     (DICOM objects of DICOM series)
python -m apps.infer --input SCANS --output DIR --deep     (slower, with an uncertainty map)
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from typer import Option

from apps.support.console import program
from apps.support.options import MODEL_DIR, STARTER_DIR, Device, ModelDir, one_of
from lib.errors import NoModelError, case_failure
from lib.storage.storage_errors import is_disk_full

if TYPE_CHECKING:
    from lib.imaging.volumes import CtVolume
    from lib.inference.ensemble import DeepContours, EnsemblePlan
    from lib.inference.single_pass import ContourResult
    from lib.models.registry import Model


@dataclass(frozen=True, kw_only=True)
class Infer:
    """Contour scans: a file, a DICOM folder, or a folder of scans.

    The exit code is 0 if every scan was contoured, else 1.
    """

    input_: Path = Option(..., "--input", help="A scan, a DICOM folder, or a folder of scans.")
    output: Path = Option(..., help="Folder for the contours and one NAME.json per scan.")
    format_: list[str] = Option(
        ["nifti"],
        "--format",
        help="File formats: nifti (NAME.nii.gz), seg (NAME.seg.dcm), rtstruct (NAME.rtstruct.dcm). The "
        "DICOM formats need a DICOM series.",
        show_default="nifti",
        callback=one_of(lambda: ("nifti", "seg", "rtstruct")),
    )
    model: Path | None = Option(None, help="Weights (.safetensors); default: the active model.")
    model_dir: ModelDir = MODEL_DIR
    device: Device = "auto"
    overlap: float = Option(0.5, help="Sliding-window overlap, 0 to 0.9; at least 0.6 with --deep.")
    pictures: bool = Option(
        False, "--pictures", help="Also write NAME.png, the contours over the CT."
    )
    deep: bool = Option(
        False,
        "--deep",
        help="Average many passes, and write NAME_uncertainty.nii.gz and the uncertainty of each organ.",
    )
    ensemble: int = Option(
        3, help="With --deep: number of recently promoted models to average. Ignored with --model."
    )

    def run(self) -> int:
        """Contour the scans, and return the exit code."""
        from lib.labels.scan_search import find_scans

        model = self._model()
        plan = self._plan(model) if self.deep else None
        found = find_scans(self.input_)
        for reason in found.refused.values():
            print(f"refused: {reason}", file=sys.stderr)
        scans, refused = found.by_name(), len(found.refused)
        for name, scan in tqdm(scans.items(), unit="scan"):
            try:
                seconds = self._contour(name, scan, model, plan)
            except Exception as error:
                if isinstance(error, OSError) and is_disk_full(error):
                    raise
                refused += 1
                tqdm.write(f"refused: {case_failure(error, name)}", file=sys.stderr)
            else:
                tqdm.write(f"{name}: {seconds:.1f} s")
        count = len(scans) + len(found.refused)
        print(f"{count - refused} of {count} scans contoured by {model.version}")
        return 1 if refused else 0

    def _model(self) -> "Model":
        from lib.models.registry import Registry, load_model
        from lib.models.served_model import ServedModel

        if self.model:
            return load_model(self.model, self.device)
        registry = Registry(self.model_dir, starter=STARTER_DIR)
        try:
            return ServedModel(registry, device=self.device).get()
        except NoModelError as error:
            raise NoModelError(
                "there is no active model: train one, or give weights with --model"
            ) from error

    def _plan(self, model: "Model") -> "EnsemblePlan":
        """Return the passes of `--deep`, and print a description of them."""
        from lib.inference.ensemble import DeepOptions, plan_passes
        from lib.models.registry import Registry

        overlap = max(DeepOptions().overlap, self.overlap)
        deep = DeepOptions(overlap=overlap, models=self.ensemble)
        earlier, notes = (
            ([], [])
            if self.model
            else Registry(self.model_dir).earlier(model, deep.models - 1, device=self.device)
        )
        plan = plan_passes(model, deep, earlier=earlier, notes=notes)
        print(f"deep, on {self.device}: {plan}")
        for note in plan.notes:
            print(f"note: {note}")
        return plan

    def _contour(self, name: str, scan: Path, model: "Model", plan: "EnsemblePlan | None") -> float:
        """Contour one scan and write its files; return the seconds that the contouring took."""
        from lib.dicom.object_attributes import frame_of_reference
        from lib.dicom.objects import KINDS
        from lib.imaging.dicom_series import read_headers, require_series
        from lib.imaging.scans import read_ct
        from lib.inference.ensemble import DeepContours, write_uncertainty_map
        from lib.inference.single_pass import contour
        from lib.reports.ct_overlays import contour_picture
        from lib.storage.atomic_files import write_json

        if set(self.format_) & set(KINDS):
            # Checked before the contouring, which takes minutes.
            headers, _ = read_headers(require_series(scan, name), image_id=name)
            frame_of_reference(headers[0], name)
        ct = read_ct(scan, image_id=name)
        if plan is None:
            result = contour(ct, model, device=self.device, overlap=self.overlap)
        else:
            result = self._contour_deeply(ct, plan)
        self._write_contours(name, scan, result)
        volumes = result.label.volumes_ml()
        card: dict[str, Any] = {
            "image": name,
            "model_version": result.version,
            "labels": {organ: result.label.labels[organ] for organ in volumes},
            "volumes_ml": volumes,
            "seconds": result.seconds,
        }
        if self.pictures:
            contour_picture(ct, result.label, self.output / f"{name}.png", title=name)
        if isinstance(result, DeepContours):
            path = self.output / f"{name}_uncertainty"
            write_uncertainty_map(path.with_name(f"{path.name}.nii.gz"), result)
            card |= result.summary()
            if self.pictures:
                picture = path.with_name(f"{path.name}.png")
                contour_picture(
                    ct, result.label, picture, title=name, uncertainty=result.uncertainty_map
                )
        write_json(self.output / f"{name}.json", card)
        return sum(result.seconds.values())

    def _contour_deeply(self, ct: "CtVolume", plan: "EnsemblePlan") -> "DeepContours":
        from lib.inference.ensemble import contour_ensemble

        with tqdm(total=len(plan.passes), unit="pass", desc=ct.image_id, leave=False) as bar:

            def progress(done: int, _total: int) -> None:
                bar.update(done - bar.n)

            return contour_ensemble(ct, plan, device=self.device, progress=progress)

    def _write_contours(self, name: str, scan: Path, result: "ContourResult") -> None:
        """Write the contours in each format of `--format`."""
        from lib.dicom.object_attributes import ObjectProvenance
        from lib.dicom.objects import KINDS, write_object
        from lib.imaging.dicom_series import read_headers
        from lib.imaging.scans import write_label

        if "nifti" in self.format_:
            write_label(self.output / f"{name}.nii.gz", result.label)
        if kinds := [kind for kind in KINDS if kind in self.format_]:
            headers, _ = read_headers(scan, image_id=name)
            provenance = ObjectProvenance(
                model="OrganNet2.5D", model_version=result.version, is_automatic=True
            )
            for kind in kinds:
                path = self.output / f"{name}.{kind}.dcm"
                write_object(kind, path, result.label, headers, provenance, image_id=name)


main = program(Infer, "infer")

if __name__ == "__main__":
    sys.exit(main())
