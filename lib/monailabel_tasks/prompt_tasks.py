"""MONAI Label's tasks for clicks and scribbles, as the sections of its module for 3D Slicer use them.

Slicer replaces the whole segment by the answer, so these tasks answer with the whole organ: corrected in the
box around the prompts, and outside of it as it was.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from scipy import ndimage

from lib.errors import ConfigError
from lib.imaging.quantities import LabelArray, MaskArray
from lib.imaging.scans import read_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.resampling import Box
from lib.models.served_model import ServedModel
from lib.monailabel_tasks.infer_task import InferOptions, write_label_file
from lib.organs.naming import tg263_name
from lib.prompts.organ_prompts import DrawnMask, OrganPrompts
from lib.prompts.refinement import Prompt
from lib.prompts.service import PromptService, RefinedOrgan, require_organ
from lib.recipes.schema import Recipe
from lib.server.requests import as_flag

FOREGROUND, BACKGROUND = "foreground_scribbles", "background_scribbles"


class _PromptTask(InferTask):
    """Base of both tasks: one organ of the active model."""

    def __init__(
        self, served: ServedModel, service: PromptService, kind: InferType, description: str
    ) -> None:
        # With labels, Slicer would take the task for one in which a click on an organ says "not this one" for
        # all others, and hide its clicks to remove.
        super().__init__(type=kind, labels={}, dimension=3, description=description, config={})
        self._served = served
        self._service = service

    def is_valid(self) -> bool:
        """Return whether there is an active model; without one clients do not list the task."""
        return self._served.has_model()

    def _answer(
        self, label: LabelVolume, organ: str, options: InferOptions, refined: RefinedOrgan | None
    ) -> tuple[str, dict[str, Any]]:
        """Return the path of the organ's file, which the caller removes, and the parameters for the client."""
        params: dict[str, Any] = {
            "label_names": {organ: 1},
            "volumes_ml": label.volumes_ml(),
            "model_version": self._served.get().version if refined is None else refined.version,
            "centroids": {},
        }
        if refined is not None:
            params["changed_vox"] = refined.changed_vox
            params["seconds"] = params["latencies"] = {"refine": refined.seconds}
        return str(write_label_file(label, options)), params


class ClicksTask(_PromptTask):
    """Corrects the model's contour of one organ at clicks (`POST /infer/organnet25d_clicks`)."""

    def __init__(self, served: ServedModel, service: PromptService) -> None:
        super().__init__(
            served,
            service,
            InferType.DEEPEDIT,
            "Correction of an organ by clicks to add and to remove",
        )

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the path of a label file with the organ as value 1, and the parameters for the client.

        Keys of the request: `label`, the organ; `foreground` and `background`, lists of voxel indices
        `[i, j, k]`. Without a click the answer is the model's contour.

        Raises:
            ConfigError: If the organ is unknown, or a click is no voxel of the scan.
            ScanError: If the image is not one regular CT.
        """
        options = _options(request)
        organ, image_id = organ_of(request.get("label")), str(request.get("image_id", ""))
        prompts = [
            *clicks("foreground", request.get("foreground"), is_add=True),
            *clicks("background", request.get("background"), is_add=False),
        ]
        scan = Path(request["image"])
        run, model = self._service.whole_label(scan, image_id=image_id)
        value = require_organ(organ, model)
        mask, refined = run.label.array == value, None
        if prompts:
            wanted = OrganPrompts(organ=organ, prompts=prompts)
            refined = self._service.refine(scan, lambda _ct, _recipe: wanted, image_id=image_id)
            mask[refined.box] = refined.mask
        label = LabelVolume(mask.astype(np.uint8), run.ct.grid, {organ: 1})
        return self._answer(label, organ, options, refined)


class ScribblesTask(_PromptTask):
    """Corrects one drawn organ by scribbles (`POST /infer/organnet25d_scribbles`)."""

    def __init__(self, served: ServedModel, service: PromptService) -> None:
        super().__init__(
            served,
            service,
            InferType.SCRIBBLES,
            "Correction of an organ by scribbles to add and to remove",
        )

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the path of a label file with the organ as value 1, and the parameters for the client.

        Keys of the request: `scribbles`, the path of the label that the client sent: organs and scribbles on
        the scan's grid; `label_info`, a list of `{"name", "id"}` with the value of each in that file;
        `selected_label_name`, the organ; `roi`, `[i, i, j, j, k, k]`, outside of which nothing may change, or
        an empty list. An organ that is not drawn yet is taken from the model.

        Raises:
            ConfigError: If the organ is unknown, or the scribbles are missing.
            LabelError: If the file is no label.
            GeometryError: If it does not lie on the scan's grid.
            ScanError: If the image is not one regular CT.
        """
        options = _options(request)
        name, image_id = request.get("selected_label_name"), str(request.get("image_id", ""))
        organ = organ_of(name)
        path = request.get("scribbles")
        if path is None:
            raise ConfigError(
                f"{image_id}: no scribbles; send them as the file `label`, with `label_info` in `params`"
            )
        values = _values(request.get("label_info"))
        scan = Path(request["image"])
        sent: list[LabelArray] = []

        def prompts_on(ct: CtVolume, _recipe: Recipe) -> OrganPrompts:
            array, _ = read_label(path, image_id=image_id, image_grid=ct.grid)
            sent.append(array)
            return _scribbles(array, organ, str(name), values)

        refined = self._service.refine(scan, prompts_on, image_id=image_id)
        (array,) = sent
        drawn = _drawn(array, values.get(str(name)), values)
        if drawn is None:
            run, _ = self._service.whole_label(scan, image_id=image_id)
            before = run.label.array == refined.value
        else:
            before = drawn.within(_whole(array.shape))
        after = before.copy()
        after[refined.box] = refined.mask
        region = _roi(request.get("roi"), array.shape)
        mask = before.copy()
        mask[region] = after[region]
        label = LabelVolume(mask.astype(np.uint8), refined.grid, {organ: 1})
        return self._answer(label, organ, options, refined)


def _options(request: Mapping[str, Any]) -> InferOptions:
    if as_flag("save_label", request.get("save_label", False)):
        raise ConfigError(
            "save_label: one organ is no label of its own; submit all organs together"
        )
    return InferOptions.of(request)


def organ_of(name: object) -> str:
    """Return the TG-263 name of an organ that a client names.

    Raises:
        ConfigError: If it is no known organ.
    """
    organ = tg263_name(name) if isinstance(name, str) else None
    if organ is None:
        raise ConfigError(
            f"{str(name)[:80]!r} is not a known organ; choose a segment with a TG-263 name such as Parotid_L"
        )
    return organ


def clicks(key: str, points: object, *, is_add: bool) -> list[Prompt]:
    """Return the clicks of a list of voxel indices.

    Raises:
        ConfigError: If it is not a list of three whole numbers each.
    """
    try:
        voxels = np.array(points if points else np.zeros((0, 3)), dtype=np.float64)
        if voxels.ndim != 2 or voxels.shape[1] != 3 or not (np.abs(voxels) < 1e9).all():
            raise ValueError(f"shape {voxels.shape}")
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{key}: expected a list of voxel indices [i, j, k], found {str(points)[:80]}"
        ) from error
    return [Prompt(np.rint(voxel).astype(np.intp)[None], is_add) for voxel in voxels]


def _values(label_info: object) -> dict[str, int]:
    """Return the value of each segment in the file, by its name."""
    try:
        return {str(entry["name"]): int(entry["id"]) for entry in label_info}  # type: ignore[attr-defined]
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ConfigError(
            'label_info: expected a list of {"name": ..., "id": ...}, one for each value of the file'
        ) from error


def _scribbles(array: LabelArray, organ: str, name: str, values: Mapping[str, int]) -> OrganPrompts:
    prompts = []
    for layer, is_add in ((FOREGROUND, True), (BACKGROUND, False)):
        pieces, count = ndimage.label(
            array == values[layer] if layer in values else np.zeros(array.shape, bool),
            structure=np.ones((3, 3, 3)),
        )
        for number, box in enumerate(ndimage.find_objects(pieces, count), start=1):
            offset = [side.start for side in box]
            prompts.append(Prompt(np.argwhere(pieces[box] == number) + offset, is_add))
    return OrganPrompts(organ=organ, prompts=prompts, drawn=_drawn(array, values.get(name), values))


def _drawn(array: LabelArray, value: int | None, values: Mapping[str, int]) -> DrawnMask | None:
    """Return the organ as it was before the scribbles were painted over it; None if it is not drawn.

    A scribble's voxel is taken to be in the organ if the nearest voxel without a scribble is.
    """
    if value is None or not (array == value).any():
        return None
    is_scribble = np.isin(array, [values[n] for n in (FOREGROUND, BACKGROUND) if n in values])
    x, y, z = _box_of((array == value) | is_scribble)
    mask, hidden = array[x, y, z] == value, is_scribble[x, y, z]
    if hidden.any():
        nearest = ndimage.distance_transform_edt(
            hidden, return_distances=False, return_indices=True
        )
        mask = mask[tuple(nearest)]
    return DrawnMask((x, y, z), mask)


def _box_of(mask: MaskArray) -> Box:
    """Return the bounding box of a mask, with a margin of one voxel."""
    ((x, y, z),) = ndimage.find_objects(mask.astype(np.uint8))
    return (
        slice(max(0, x.start - 1), x.stop + 1),
        slice(max(0, y.start - 1), y.stop + 1),
        slice(max(0, z.start - 1), z.stop + 1),
    )


def _whole(shape: Sequence[int]) -> Box:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def _roi(roi: object, shape: Sequence[int]) -> Box:
    """Return the box of `[i, i, j, j, k, k]`, in any order of each pair; the whole scan for an empty list."""
    if not roi:
        return _whole(shape)
    try:
        numbers = np.array(roi, dtype=np.float64)
        if numbers.shape != (6,) or not (np.abs(numbers) < 1e9).all():
            raise ValueError(f"shape {numbers.shape}")
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"roi: expected six voxel indices, found {str(roi)[:80]}") from error
    pairs = np.sort(np.rint(numbers).astype(int).reshape(3, 2), axis=1)
    x, y, z = (
        slice(max(0, int(low)), min(size, int(high) + 1))
        for (low, high), size in zip(pairs, shape, strict=True)
    )
    return (x, y, z)
