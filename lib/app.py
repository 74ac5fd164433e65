"""The app that MONAI Label loads: builds the parts and hands them over."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from lib import __version__
from lib.activelearning.strategies import strategies
from lib.config import AppConfig
from lib.datastores.local import FolderStore
from lib.errors import DatastoreError
from lib.files import finite
from lib.infers.organnet25d import OrganNetInferTask
from lib.registry import Registry, ServedModel
from lib.server import cures
from lib.trainers.organnet25d import OrganNetTrainTask

logger = logging.getLogger(__name__)

MODEL = "organnet25d"


class OrganNetApp(MONAILabelApp):
    """OrganNet2.5D behind MONAI Label's routes."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.config = AppConfig.from_conf(conf or {})
        self.registry = Registry(self.config.model_dir, starter=self.config.starter_dir)
        self.served = ServedModel(self.registry, device=self.config.device)
        # Defect 17: a scoring process per method on every next sample, never merged.
        settings.MONAI_LABEL_AUTO_UPDATE_SCORING = False
        # Defect 2: MLflow 3 refuses the file store that MONAI Label gives it.
        settings.MONAI_LABEL_TRACKING_ENABLED = False
        # Threads of a training that wait sleep, and leave the processor to the server.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf or {}),
            name=f"OrganNet Label ({self.config.recipe.name})",
            description="Contours organs at risk in head-and-neck CT with OrganNet2.5D. Research use only.",
            version=__version__,
            labels=dict(self.config.recipe.labels),
        )
        if cures.in_server_process():
            cures.install(self.config)

    def init_datastore(self) -> Datastore:
        """Return the store over the studies folder, or MONAI Label's own over a DICOMweb server."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return FolderStore(
            Path(self.studies),
            labels=self.config.recipe.labels,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Return the inference tasks by name."""
        return {MODEL: OrganNetInferTask(self.served, self.config.recipe)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the training tasks by name."""
        return {MODEL: OrganNetTrainTask(self.config, self.registry)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the active-learning strategies by name."""
        return strategies()

    def info(self) -> dict[str, Any]:
        """Return what the app offers, as JSON can hold it (defect 13)."""
        plain: dict[str, Any] = finite(super().info())
        return plain

    def require_trainer(self, model: str) -> None:
        """Do nothing where there is a trainer of that name.

        Raises:
            DatastoreError: If there is none.
        """
        if model not in self._trainers:
            raise DatastoreError(
                f"{model[:80]!r}: no such trainer; there is {', '.join(self._trainers)}"
            )

    def infer(
        self, request: Mapping[str, Any], datastore: Datastore | None = None
    ) -> dict[str, Any]:
        """Return the label of a scan: `file`, `params`, and `is_temporary` if the caller removes the file.

        Only `scan`, which the server's own routes set, is taken as a path; `image` is an id of the store
        and nothing else (defect 11).

        Raises:
            DatastoreError: If there is no such model or image.
        """
        store = datastore or self.datastore()
        task = self._infers.get(request["model"])
        if task is None:
            raise DatastoreError(
                f"{request['model'][:80]!r}: no such model; there is {', '.join(self._infers)}"
            )
        image_id, scan = request["image"], request.get("scan")
        path = scan or store.require_image(image_id)
        file, params = task({**request, "image": str(path), "image_id": image_id})
        result = {"label": file, "file": file, "params": params, "is_temporary": True}
        if scan is None and request.get("save_label"):
            tag = str(request.get("label_tag") or "original")
            result["label"] = store.save_label(
                image_id, file, tag, {"model": MODEL, "params": params}
            )
            result["tag"] = tag
        return result
