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
from sqlalchemy.exc import SQLAlchemyError

from lib import __version__
from lib.activelearning.service import ActiveLearningService, Images
from lib.assignment.service import Assignments
from lib.config import AppConfig
from lib.datastores.dicomweb import open_pacs, open_store
from lib.datastores.labelled_cases import labelled_cases
from lib.datastores.local import FolderStore, StoreDependencies
from lib.errors import CheckpointError, DatastoreError, OrganNetError
from lib.jobs.periodic_task import PeriodicTask
from lib.jobs.serving_priority import ServingPriority
from lib.labels.history import FINAL, LabelHistory
from lib.labels.quarantine import Quarantine
from lib.models.model_history import ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Registry
from lib.models.served_model import ServedModel
from lib.monailabel_tasks.infer_task import OrganNetInferTask
from lib.monailabel_tasks.strategies import strategies
from lib.monailabel_tasks.train_task import OrganNetTrainTask
from lib.pacs_sync.sync import PacsSync
from lib.retrain.service import RetrainingService
from lib.server.lifecycle import at_shutdown, in_server_process
from lib.server.requests import as_flag
from lib.server.sessions import ScanSessions
from lib.storage.atomic_files import finite, remove_abandoned_scratch, remove_unfinished
from lib.storage.database import FILE, Database, is_url, state_folder
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

MODEL = "organnet25d"
ADOPT_EVERY_S = 2.0
"""How often the labels' folder is looked at for files that people laid there."""


class OrganNetApp(MONAILabelApp):
    """OrganNet2.5D behind MONAI Label's routes."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.config = AppConfig.from_conf(conf or {})
        self.registry = Registry(
            self.config.model_dir,
            starter=self.config.starter_dir,
            organ_set=self.config.recipe.organ_set,
        )
        self.served = ServedModel(self.registry, device=self.config.device)
        self.state = state_folder(studies, self.config.model_dir)
        self.database = Database(self.state / FILE)
        self.models = ModelHistory(self.database)
        self.promoter = Promoter(self.registry, self.models)
        self.label_history = LabelHistory(self.database, self.state)
        self.assignments = Assignments(
            self.database, self.state, self.config, history=self.label_history
        )
        self.leases, self.readers = self.assignments.leases, self.assignments.readers
        self.quarantine = Quarantine(
            self.state, limit_bytes=int(self.config.quarantine_gib * 2**30)
        )
        self.pacs_sync: PacsSync | None = None
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
        if in_server_process():
            # Only there: a script may build the app too, and has no use for routes.
            from lib.server import monailabel_patches

            monailabel_patches.install(self.config)

    def on_init_complete(self) -> None:
        """Start what runs beside the requests; only the server calls this."""
        super().on_init_complete()
        if self.config.model_dir.is_dir():
            remove_unfinished(self.config.model_dir)
        remove_abandoned_scratch()
        self.label_history.restore_from_files()
        self._reconcile_models()
        store = self.store
        remove_unfinished(store.folder)
        adopting = PeriodicTask(
            "watcher",
            lambda: self._adopt(store),
            every_s=ADOPT_EVERY_S,
            trouble="the labels' folder could not be looked at",
        )
        at_shutdown(adopting.start().stop)
        at_shutdown(self.assignments.start(store).stop)
        if self.pacs_sync is not None:
            at_shutdown(self.pacs_sync.start().stop)
        self.retraining.scheduler.start()
        at_shutdown(self.retraining.scheduler.stop)
        if self.config.scoring:
            self.active_learning.runner.start()
            at_shutdown(self.active_learning.runner.stop)

    def _adopt(self, store: FolderStore) -> None:
        """Take up what people laid into the labels' folder, as if they had submitted it."""
        for version in store.scan_folder():
            if version.tag == FINAL:
                self.on_save_label(version.image_id, version.image_id)

    def _reconcile_models(self) -> None:
        """Bring what serves and what was decided together, as after a kill; the server starts anyhow."""
        try:
            for done in self.promoter.reconcile():
                logger.info("models: %s", done)
        except (OrganNetError, OSError, SQLAlchemyError):
            logger.exception("the models' history could not be brought up to date")

    def init_datastore(self) -> Datastore:
        """Return the store over the studies folder, or over a PACS."""
        parts = StoreDependencies(
            labels=self.config.recipe.labels,
            history=self.label_history,
            quarantine=self.quarantine,
            served=self.served_version,
        )
        if not is_url(self.studies):
            self.store = FolderStore(Path(self.studies), parts)
            return self.store
        pacs = open_pacs(self.studies)
        self.store = store = open_store(
            pacs,
            parts,
            self.database,
            folder=self.state / "pacs",
            limit_gib=self.config.pacs_cache_gib,
        )
        self.pacs_sync = PacsSync(
            store,
            pacs,
            self.database,
            self.state,
            on_label=lambda version: self.on_save_label(version.image_id, version.image_id),
            may_be_sent=self.assignments.is_visible_to_all,
            wanted=self._wanted,
        )
        return store

    def _wanted(self) -> list[str]:
        """Return the images that will be wanted: those that trainings read, then those to be contoured."""
        unlabelled = self.store.get_unlabeled_images() if self.config.scoring else []
        return [*self.label_history.current_digests(), *unlabelled]

    def served_version(self) -> str | None:
        """Return the version of the model that serves, None where none does."""
        path = self.registry.served_path()
        return None if path is None else path.stem

    def init_infers(self) -> dict[str, InferTask]:
        """Return the inference tasks by name."""
        return {
            MODEL: OrganNetInferTask(self.served, self.config.recipe, ServingPriority(self.state))
        }

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the training tasks by name."""
        self.retraining = RetrainingService(
            self.config,
            self.database,
            self.state,
            self.promoter,
            labelled=labelled_cases(self.store),
        )
        return {MODEL: OrganNetTrainTask(self.retraining)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the active-learning strategies by name."""
        self.active_learning = ActiveLearningService(
            self.config,
            self.database,
            self.state,
            registry=self.registry,
            labels=self.label_history,
            images=Images(
                unlabelled=self.store.get_unlabeled_images,
                path=self.image_path,
                is_available=self.store.is_available,
            ),
            served=self.served_version,
        )
        return strategies(self.active_learning.case_assigner)

    def info(self) -> dict[str, Any]:
        """Return what the app offers, as JSON can hold it (defect 13)."""
        plain: dict[str, Any] = finite(super().info())
        return plain

    def _load_sessions(self, load: bool = False) -> ScanSessions | None:  # noqa: FBT001, FBT002 - the base's
        if not load:
            return None
        return ScanSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY)

    def require_trainer(self, model: str) -> None:
        """Do nothing where there is a trainer of that name.

        Raises:
            DatastoreError: If there is none.
        """
        _known(self._trainers, model, "trainer")

    @property
    def trained_model(self) -> str:
        """Name of the one trainer."""
        return MODEL

    def served_now(self) -> dict[str, Any] | None:
        """Return what serves, since when and why; None where nothing does."""
        try:
            version = self.served.get().version
        except CheckpointError:
            return None
        latest = next(iter(self.registry.promotions()), None)
        is_latest = latest is not None and latest["version"] == version
        return {
            "version": version,
            "since": latest.get("since") if latest and is_latest else None,
            "reason": latest.get("reason") if latest and is_latest else None,
            "trouble": self.served.trouble,
        }

    def import_dicom(self, file: Path, *, author: str, client: str) -> LabelVersion | None:
        """Keep a DICOM SEG or RTSTRUCT that somebody submitted; None where it is drawn on no scan of ours.

        Raises:
            As `lib.pacs_sync.dicom_import.DicomImporter.import_submitted`.
        """
        if self.pacs_sync is None:
            return None
        return self.pacs_sync.importer.import_submitted(file, author=author, client=client)

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:  # noqa: ARG002 - the base's
        """Do what follows from a new label, the long of it beside the requests; never raises."""
        if self.pacs_sync is not None:
            self.pacs_sync.wake()
        self.retraining.scheduler.wake()
        self.active_learning.runner.wake()
        self.assignments.on_label_submitted(image_id)
        return {}

    def submission_warnings(self, version: LabelVersion) -> dict[str, list[str]]:
        """Return what whoever submitted a label should know.

        Returns:
            `doubts`: what looks wrong about it, in sentences; `left_out`: organs of the label before it that it
            has not, which in a reader study nobody is told.
        """
        is_alone = self.readers.readers_of(version.image_id) == 1
        left_out = self.label_history.missing_organs(version) if is_alone else ()
        return {"doubts": list(version.doubts), "left_out": list(left_out)}

    def image_path(self, image_id: str) -> Path:
        """Return where an image of the store lies: a file, or the folder of a DICOM series.

        Raises:
            DatastoreError: If there is no such image.
        """
        return self.store.require_image(image_id)

    def label_path(self, image_id: str, tag: str) -> Path:
        """Return where a label of the store lies.

        Raises:
            DatastoreError: If there is no such image or label.
        """
        return self.store.require_label(image_id, tag)

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the image to contour next, what is known of it, and why this one.

        Args:
            request: `strategy`, and of who asks `holder`, `seed` and `readers`.

        Raises:
            DatastoreError: If there is no such strategy.
        """
        strategy = _known(self._strategies, request["strategy"], "strategy")
        store = self.datastore()
        sample: dict[str, Any] = strategy(request, store)
        # What the clients load it by: a file's name and path, or the ids of its DICOM series.
        return {**store.get_image_info(sample["id"]), **sample} if "id" in sample else sample

    def infer(
        self,
        request: Mapping[str, Any],
        datastore: Datastore | None = None,  # noqa: ARG002 - the base's
    ) -> dict[str, Any]:
        """Return the label of a scan: `file`, which the caller removes, and `params`.

        Only `scan`, which the server's own routes set, is taken as a path; `image` is an id of the store
        and nothing else (defect 11).

        Raises:
            DatastoreError: If there is no such model or image.
        """
        task = _known(self._infers, request["model"], "model")
        image_id, scan = request["image"], request.get("scan")
        path = Path(scan) if scan else self.image_path(image_id)
        file, params = task({**request, "image": str(path), "image_id": image_id})
        result = {"label": file, "tag": "original", "file": file, "params": params}
        if not scan and as_flag("save_label", request.get("save_label", False)):
            result["tag"] = str(request.get("label_tag") or "original")
            try:
                author = str(request.get("author", ""))
                result["label"] = self._save_inferred(image_id, result, author)
            except OrganNetError:
                Path(file).unlink(missing_ok=True)
                raise
        return result

    def _save_inferred(
        self,
        image_id: str,
        result: Mapping[str, Any],
        author: str,
    ) -> str:
        names = result["params"]["label_names"]
        about = {
            "model": MODEL,
            "params": result["params"],
            # The served model's values need not be those that this server trains with.
            "label_info": [{"name": name, "idx": value} for name, value in names.items()],
            "author": author,
        }
        tag, file = result["tag"], result["file"]
        return self.store.save_label(image_id, file, tag, about, source="infer")


def _known(tasks: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in tasks:
        raise DatastoreError(f"{name[:80]!r}: no such {kind}; there is {', '.join(tasks)}")
    return tasks[name]
