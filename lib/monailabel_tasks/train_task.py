"""MONAI Label's training task, which describes the trainer to the clients."""

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from lib.errors import TrainingError
from lib.retrain import views
from lib.retrain.service import RetrainingService


class OrganNetTrainTask(TrainTask):
    """Description, options and progress of the trainer; the routes start trainings through `lib.retrain`.

    MONAI Label's own training loop is not used: it publishes the first epoch of every run, and validates on
    cases that the model was trained on (defects 7 and 8).
    """

    def __init__(self, retraining: RetrainingService) -> None:
        super().__init__(f"OrganNet2.5D, recipe {retraining.recipe.name}")
        self._retraining = retraining

    def info(self) -> dict[str, Any]:
        """Return the description of the task for the clients."""
        return {
            "description": self.description,
            "labels": dict(self._retraining.recipe.labels),
            "config": self.config(),
        }

    def config(self) -> dict[str, Any]:
        """Return the options; clients show every key to the user, so only those with an effect are listed."""
        epochs = self._retraining.default_epochs()
        return {"max_epochs": epochs, "max_minutes": 0, "seed": 0, "pretrained": True}

    def stats(self) -> dict[str, Any]:
        """Return the progress of the current or last run."""
        return views.train_stats(self._retraining.runs.last())

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:  # noqa: ARG002 - base class
        """Refuse: a training is started by its route and runs in a process of its own.

        Raises:
            TrainingError: Always.
        """
        raise TrainingError("start trainings with POST /train/organnet25d or python -m apps.train")
