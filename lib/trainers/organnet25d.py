"""MONAI Label's training task around `lib.training`."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.basic_train import BasicTrainTask, Context

from lib.config import AppConfig
from lib.errors import CheckpointError, TrainingError
from lib.files import write_json
from lib.registry import Model, Registry, load_model, save_model
from lib.server.process import end_with_parent, in_server_process
from lib.training.cases import Case
from lib.training.gate import publish_if_not_worse
from lib.training.run import Progress, RunOptions, Watch, train
from lib.training.split import split

logger = logging.getLogger(__name__)

MIN_TRAIN_CASES = 2


class OrganNetTrainTask(BasicTrainTask):
    """`POST /train/organnet25d`: trains on the final labels, and publishes what is not worse.

    MONAI Label's own loop is not used: it publishes the first epoch of every run and validates on cases it was
    trained on (defects 7 and 8).
    """

    def __init__(self, config: AppConfig, registry: Registry) -> None:
        super().__init__(
            model_dir=str(registry.folder),
            description=f"OrganNet2.5D, recipe {config.recipe.name}",
            config={"max_epochs": config.recipe.schedule.epochs, "seed": 0, "pretrained": True},
            labels=dict(config.recipe.labels),
            stats_path=str(registry.folder / "train_stats.json"),
        )
        # Only what means something here: the clients show every key as a setting.
        self._config = {
            "max_epochs": config.recipe.schedule.epochs,
            "max_minutes": 0,
            "seed": 0,
            "pretrained": True,
        }
        self._settings = config
        self._registry = registry

    def stats(self) -> dict[str, Any]:
        """Return the progress of the run, or of the last one; empty where the file cannot be read."""
        try:
            found: dict[str, Any] = super().stats()
        except (OSError, ValueError):
            return {}
        return found

    def require_cases(self, datastore: Datastore) -> None:
        """Do nothing where enough cases are labelled.

        Raises:
            TrainingError: If they are not.
        """
        _cases(datastore)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, in the process that MONAI Label started for it; return the statistics.

        Raises:
            TrainingError: If too few cases are labelled.
        """
        if not in_server_process():
            end_with_parent()
        recipe = self._settings.recipe
        cases, held_out = _cases(datastore)
        initial = self._initial() if request.get("pretrained", True) else None
        began = time.strftime("%Y-%m-%d %H:%M:%S")
        stats: dict[str, Any] = {}

        def on_progress(progress: Progress) -> None:
            stats.clear()
            stats.update(_stats(progress, began))
            write_json(Path(self._stats_path), stats)
            logger.info(
                "epoch %d of %d, loss %.3f", progress.epoch, progress.total_epochs, progress.loss
            )

        run_dir = self._registry.folder / "runs" / recipe.name
        trained = train(
            recipe,
            cases,
            held_out,
            run_dir=run_dir,
            cache_dir=self._registry.folder / "cache",
            options=RunOptions(
                seed=int(request.get("seed") or 0),
                device=self._settings.device,
                epochs=int(request["max_epochs"]) if request.get("max_epochs") else None,
                max_minutes=float(request["max_minutes"]) if request.get("max_minutes") else None,
            ),
            initial=initial,
            watch=Watch(on_progress=on_progress),
        )
        version = save_model(self._registry.folder, trained.weights, recipe, trained.card)
        published, reason = publish_if_not_worse(
            self._registry, version, held_out, device=self._settings.device
        )
        stats.update({"version": version, "published": published, "reason": reason})
        stats["total_time"] = str(stats.get("total_time") or trained.card["training"]["seconds"])
        write_json(Path(self._stats_path), stats)
        logger.info("%s: %s, %s", version, "published" if published else "not published", reason)
        return stats

    def _initial(self) -> Model | None:
        """Return the served model to go on from; None where it is of another shape, or there is none."""
        path = self._registry.served_path()
        if path is None:
            return None
        try:
            model = load_model(path)
        except CheckpointError as error:
            logger.warning("not starting from the served model: %s", error)
            return None
        ours = self._settings.recipe
        same = (model.recipe.network, model.recipe.organ_set, len(model.recipe.hu_windows))
        return model if same == (ours.network, ours.organ_set, len(ours.hu_windows)) else None

    # MONAI Label's own loop asks for these; ours does not run it.
    def network(self, context: Context) -> None:
        """Return nothing: `lib.training.run` builds the network."""

    def optimizer(self, context: Context) -> None:
        """Return nothing: `lib.training.run` builds the optimizer."""

    def loss_function(self, context: Context) -> None:
        """Return nothing: `lib.losses` holds the loss."""

    def train_pre_transforms(self, context: Context) -> None:
        """Return nothing: `lib.transforms.pipelines` prepares the cases."""

    def train_post_transforms(self, context: Context) -> None:
        """Return nothing: see `train_pre_transforms`."""

    def val_inferer(self, context: Context) -> None:
        """Return nothing: `lib.inference` is what validation runs."""


def _cases(datastore: Datastore) -> tuple[list[Case], list[Case]]:
    """Return the cases with a final label: to train on, and held out."""
    every = [
        Case(pair["id"], Path(pair["image"]), Path(pair["label"])) for pair in datastore.datalist()
    ]
    cases, held_out = split(sorted(every, key=lambda case: case.image_id))
    if len(cases) < MIN_TRAIN_CASES:
        raise TrainingError(
            f"{len(every)} cases have a final label, {len(held_out)} of them held out for validation; training "
            f"needs {MIN_TRAIN_CASES} more than those: contour and submit a few more"
        )
    return cases, held_out


def _stats(progress: Progress, began: str) -> dict[str, Any]:
    """Return the statistics under the names that Slicer and OHIF show."""
    values = asdict(progress)
    return {
        "start_ts": began,
        "epoch": progress.epoch,
        "total_epochs": progress.total_epochs,
        "best_metric": progress.best_metric or 0.0,
        "best_metric_epoch": progress.best_epoch,
        "train": {"loss": progress.loss, "learning_rate": progress.learning_rate},
        "eval": {"val_mean_dice": progress.metric, **values["organ_dice"]},
        "elapsed_s": round(progress.elapsed_s, 1),
        "eta_s": round(progress.eta_s, 1),
        # Slicer takes a run with a total time as ended.
        "total_time": "" if progress.eta_s > 0 else str(round(progress.elapsed_s, 1)),
    }
