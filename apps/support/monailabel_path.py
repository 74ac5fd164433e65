"""MONAI Label's own inference task for a network of a recipe, as its radiology app has it; for comparisons."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.inferers.inferer import Inferer, SlidingWindowInferer
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.post.dictionary import Activationsd, AsDiscreted
from monai.transforms.spatial.dictionary import Orientationd, Spacingd
from monai.transforms.utility.dictionary import EnsureChannelFirstd, EnsureTyped
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.transform.post import Restored
from torch import nn

from lib.recipes.schema import Recipe


class MonaiLabelPath(BasicInferTask):  # type: ignore[misc]
    """`BasicInferTask` with the network, voxel size, window and overlap given; it loads no file of weights."""

    def __init__(self, network: nn.Module, recipe: Recipe, *, overlap: float, device: str) -> None:
        super().__init__(
            path=None,
            network=network,
            type=InferType.SEGMENTATION,
            labels=dict(recipe.labels),
            dimension=3,
            description="comparison",
        )
        self._recipe = recipe
        self._overlap = overlap
        self._device = device

    def pre_transforms(self, data: Any = None) -> Sequence[Callable[[Any], Any]]:  # noqa: ARG002 - base signature
        """Return loading, orientation, voxel size and HU window."""
        return [
            LoadImaged(keys="image", reader="ITKReader"),
            EnsureTyped(keys="image", device=torch.device("cpu")),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="RAS"),
            _without_path,
            Spacingd(keys="image", pixdim=self._recipe.spacing_mm, allow_missing_keys=True),
            self._in_windows,
        ]

    def _in_windows(self, data: dict[str, Any]) -> dict[str, Any]:
        hu = data["image"]
        channels = [
            ((hu - low) * (2.0 / (high - low)) - 1.0).clamp(-1.0, 1.0)
            for low, high in self._recipe.hu_windows
        ]
        return {**data, "image": torch.cat(channels)}

    def inferer(self, data: Any = None) -> Inferer:  # noqa: ARG002 - base signature
        """Return MONAI's sliding window."""
        return SlidingWindowInferer(
            roi_size=self._recipe.crop_vox,
            sw_batch_size=1,
            overlap=self._overlap,
            padding_mode="replicate",
        )

    def inverse_transforms(self, data: Any = None) -> None:  # noqa: ARG002 - base signature
        """Return none: `Restored` brings the label to the CT's grid."""
        return None

    def post_transforms(self, data: Any = None) -> Sequence[Callable[[Any], Any]]:  # noqa: ARG002 - base signature
        """Return softmax, the most likely class, and the CT's grid."""
        return [
            EnsureTyped(keys="pred", device=torch.device("cpu")),
            Activationsd(keys="pred", softmax=True),
            AsDiscreted(keys="pred", argmax=True),
            Restored(keys="pred", ref_image="image"),
        ]

    def writer(
        self,
        data: Any,
        extension: Any = None,  # noqa: ARG002 - base signature
        dtype: Any = None,  # noqa: ARG002 - base signature
    ) -> tuple[str, dict[str, Any]]:
        """Write the label by nibabel: MONAI Label's writer needs `itk`, which is not installed (ADR 24)."""
        path = Path(tempfile.mkdtemp(prefix="organnet-bench-")) / "label.nii.gz"
        label = np.asarray(data["pred"]).squeeze().astype(np.uint8)
        affine = np.asarray(data["image"].affine)
        nibabel.save(nibabel.Nifti1Image(label, affine), path)  # type: ignore[no-untyped-call]
        return str(path), {}

    def contour(self, scan: Path) -> tuple[str, Mapping[str, Any]]:
        """Contour a scan; the label file is removed, and its path and parameters are returned."""
        file, params = self(
            {"image": str(scan), "device": self._device, "result_extension": ".nii.gz"}
        )
        shutil.rmtree(Path(file).parent)
        return file, params


def _without_path(data: dict[str, Any]) -> dict[str, Any]:
    """Remove an entry that MONAI's `Spacingd` fails on (defect 1 in docs/monailabel-defects.md)."""
    return {key: value for key, value in data.items() if key != "image_path"}
