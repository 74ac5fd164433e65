"""A minimal app of MONAI Label's own classes, with the settings that let it start, infer and train at all.

It is copied into a test's folder and started there. Its transforms leave out `Spacingd`, which MONAI 1.6 and
MONAI Label 0.8.5 cannot run together, and its server is started with tracking off, since MLflow 3 refuses the
file store that MONAI Label gives it. Everything else is unchanged.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers.inferer import Inferer, SimpleInferer, SlidingWindowInferer
from monai.losses.dice import DiceCELoss
from monai.transforms.intensity.dictionary import ScaleIntensityRanged
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.post.dictionary import AsDiscreted
from monai.transforms.utility.dictionary import EnsureChannelFirstd, SqueezeDimd, ToNumpyd
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.tasks.scoring.sum import Sum
from monailabel.tasks.train.basic_train import BasicTrainTask, Context
from monailabel.transform.post import Restored
from monailabel.transform.writer import Writer

MODEL = "plain"
LABELS = {"Brainstem": 1, "Bone_Mandible": 7}
CLASSES = 8


def new_network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv3d(8, 8, 1),
        torch.nn.ReLU(),
        torch.nn.Conv3d(8, CLASSES, 1),
    )


def read(*keys: str) -> list[Callable[..., Any]]:
    return [
        LoadImaged(keys=keys),
        EnsureChannelFirstd(keys=keys),
        ScaleIntensityRanged(keys="image", a_min=-300, a_max=300, b_min=-1, b_max=1, clip=True),
    ]


class Infer(BasicInferTask):
    def __init__(self, path: Path) -> None:
        super().__init__(
            path=str(path),
            network=new_network(),
            type=InferType.SEGMENTATION,
            labels=LABELS,
            dimension=3,
            description="three convolutions",
        )

    def pre_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        return read("image")

    def inferer(self, data: Any = None) -> Inferer:
        overlap = (data or {}).get("overlap", 0.25)
        return SlidingWindowInferer(roi_size=(16, 16, 16), overlap=overlap)

    def post_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        return [
            AsDiscreted(keys="pred", argmax=True),
            SqueezeDimd(keys="pred", dim=0),
            ToNumpyd(keys="pred"),
            Restored(keys="pred", ref_image="image"),
        ]

    def writer(self, data: Any, extension: Any = None, dtype: Any = None) -> Any:
        """Write with nibabel, which MONAI Label offers beside ITK and needs nothing more."""
        return Writer(label=self.output_label_key, json=self.output_json_key, nibabel=True)(data)


class Train(BasicTrainTask):
    def __init__(self, folder: Path, published: Path) -> None:
        super().__init__(
            model_dir=str(folder),
            description="three convolutions",
            load_path=str(published),
            publish_path=str(published),
            labels=LABELS,
        )

    def partition_datalist(self, context: Context, **given: Any) -> Any:
        """Note the cases of each run beside the model; the choice is MONAI Label's."""
        lists = super().partition_datalist(context, **given)
        names = [[Path(pair["image"]).name.partition(".")[0] for pair in pairs] for pairs in lists]
        with (Path(self._model_dir) / "runs.jsonl").open("a") as file:
            file.write(json.dumps(dict(zip(("training", "validation"), names, strict=True))) + "\n")
        return lists

    def network(self, context: Context) -> torch.nn.Module:
        return new_network()

    def optimizer(self, context: Context) -> torch.optim.Optimizer:
        return torch.optim.Adam(context.network.parameters(), lr=0.04)

    def loss_function(self, context: Context) -> torch.nn.Module:
        weight = torch.tensor(
            [20.0 if value in LABELS.values() else 1.0 for value in range(CLASSES)]
        )
        loss: torch.nn.Module = DiceCELoss(
            to_onehot_y=True, softmax=True, lambda_dice=0.0, weight=weight
        )
        return loss

    def train_pre_transforms(self, context: Context) -> Sequence[Callable[..., Any]]:
        return read("image", "label")

    def train_post_transforms(self, context: Context) -> Sequence[Callable[..., Any]]:
        return [
            AsDiscreted(keys=("pred", "label"), argmax=(True, False), to_onehot=(CLASSES, CLASSES))
        ]

    def val_inferer(self, context: Context) -> Inferer:
        return SimpleInferer()


class PlainApp(MONAILabelApp):
    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.model_dir = Path(conf["model_dir"])
        super().__init__(app_dir=app_dir, studies=studies, conf=conf, name="plain", labels=LABELS)

    def init_infers(self) -> dict[str, Any]:
        return {MODEL: Infer(self.model_dir / "model.pt")}

    def init_trainers(self) -> dict[str, Any]:
        return {MODEL: Train(self.model_dir, self.model_dir / "model.pt")}

    def init_scoring_methods(self) -> dict[str, Any]:
        return {"sum": Sum()}
