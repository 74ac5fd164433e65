"""MONAI Label's training task: what clients see of `lib.retrain`."""

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from lib.errors import TrainingError
from lib.retrain import status
from lib.retrain.service import RetrainingService


class OrganNetTrainTask(TrainTask):
    """Lists the trainer, its settings and how it does; `POST /train/` goes to `lib.retrain` itself.

    MONAI Label's own loop is not used: it publishes the first epoch of every run and validates on cases it was
    trained on (defects 7 and 8).
    """

    def __init__(self, retraining: RetrainingService) -> None:
        super().__init__(f"OrganNet2.5D, recipe {retraining.recipe.name}")
        self._retraining = retraining

    def info(self) -> dict[str, Any]:
        """Return what clients show of the task."""
        return {
            "description": self.description,
            "labels": dict(self._retraining.recipe.labels),
            "config": self.config(),
        }

    def config(self) -> dict[str, Any]:
        """Return only what means something here: the clients show every key as a setting."""
        epochs = self._retraining.default_epochs()
        return {"max_epochs": epochs, "max_minutes": 0, "seed": 0, "pretrained": True}

    def stats(self) -> dict[str, Any]:
        """Return the progress of the run, or of the last one."""
        return status.train_stats(self._retraining.runs.last())

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:  # noqa: ARG002 - the base's
        """Refuse: a training is queued by its route, and runs in a process of its own.

        Raises:
            TrainingError: Always.
        """
        raise TrainingError(
            "trainings are started by POST /train/organnet25d, or python -m apps.train"
        )
