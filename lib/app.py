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
from lib.activelearning.control import ActiveLearning, Images
from lib.activelearning.strategies import strategies
from lib.background.repeating import Repeating
from lib.background.turns import Turns
from lib.config import AppConfig
from lib.datastores.dicomweb import open_pacs, open_store
from lib.datastores.labelled import labelled_cases
from lib.datastores.local import FINAL, FolderStore, StoreParts
from lib.datastores.traffic import Traffic
from lib.errors import CheckpointError, DatastoreError, OrganNetError
from lib.files import finite, remove_abandoned_scratch, remove_unfinished
from lib.infers.organnet25d import OrganNetInferTask
from lib.registry import Registry
from lib.retrain.control import Retraining
from lib.retrain.promotion import Promoter
from lib.server.desk import Desk
from lib.server.process import at_shutdown, in_server_process
from lib.server.requests import as_flag
from lib.server.sessions import ScanSessions
from lib.serving import ServedModel
from lib.state.database import FILE, Database, is_url, state_folder
from lib.state.labels import LabelHistory
from lib.state.models import Models
from lib.state.quarantine import Quarantine
from lib.state.tables import LabelVersion
from lib.trainers.organnet25d import OrganNetTrainTask

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
        self.models = Models(self.database)
        self.promoter = Promoter(self.registry, self.models)
        self.labels_kept = LabelHistory(self.database, self.state)
        self.desk = Desk(self.database, self.state, self.config, history=self.labels_kept)
        self.leases, self.readers = self.desk.leases, self.desk.readers
        self.quarantine = Quarantine(
            self.state, limit_bytes=int(self.config.quarantine_gib * 2**30)
        )
        self.traffic: Traffic | None = None
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
            from lib.server import cures

            cures.install(self.config)

    def on_init_complete(self) -> None:
        """Start what runs beside the requests; only the server calls this."""
        super().on_init_complete()
        if self.config.model_dir.is_dir():
            remove_unfinished(self.config.model_dir)
        remove_abandoned_scratch()
        self.labels_kept.restore_from_files()
        self._reconcile_models()
        store = self.store
        remove_unfinished(store.folder)
        adopting = Repeating(
            "adoption",
            lambda: self._adopt(store),
            every_s=ADOPT_EVERY_S,
            trouble="the labels' folder could not be looked at",
        )
        at_shutdown(adopting.start().stop)
        at_shutdown(self.desk.start(store).stop)
        if self.traffic is not None:
            at_shutdown(self.traffic.start().stop)
        self.retraining.scheduler.start()
        at_shutdown(self.retraining.scheduler.stop)
        if self.config.scoring:
            self.active_learning.runner.start()
            at_shutdown(self.active_learning.runner.stop)

    def _adopt(self, store: FolderStore) -> None:
        """Take up what people laid into the labels' folder, as if they had submitted it."""
        for version in store.adopt():
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
        parts = StoreParts(
            labels=self.config.recipe.labels,
            history=self.labels_kept,
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
        self.traffic = Traffic(
            store,
            pacs,
            self.database,
            self.state,
            on_label=lambda version: self.on_save_label(version.image_id, version.image_id),
            may_be_sent=self.desk.is_for_all,
            wanted=self._wanted,
        )
        return store

    def _wanted(self) -> list[str]:
        """Return the images that will be wanted: those that trainings read, then those to be contoured."""
        unlabelled = self.store.get_unlabeled_images() if self.config.scoring else []
        return [*self.labels_kept.digests(), *unlabelled]

    def served_version(self) -> str | None:
        """Return the version of the model that serves, None where none does."""
        path = self.registry.served_path()
        return None if path is None else path.stem

    def init_infers(self) -> dict[str, InferTask]:
        """Return the inference tasks by name."""
        return {MODEL: OrganNetInferTask(self.served, self.config.recipe, Turns(self.state))}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the training tasks by name."""
        self.retraining = Retraining(
            self.config,
            self.database,
            self.state,
            self.promoter,
            labelled=labelled_cases(self.store),
        )
        return {MODEL: OrganNetTrainTask(self.retraining)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the active-learning strategies by name."""
        self.active_learning = ActiveLearning(
            self.config,
            self.database,
            self.state,
            registry=self.registry,
            labels=self.labels_kept,
            images=Images(
                unlabelled=self.store.get_unlabeled_images,
                path=self.image_path,
                is_at_hand=self.store.is_at_hand,
            ),
            served=self.served_version,
        )
        return strategies(self.active_learning.handout)

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

    def take_dicom(self, file: Path, *, author: str, client: str) -> LabelVersion | None:
        """Keep a DICOM SEG or RTSTRUCT that somebody submitted; None where it is drawn on no scan of ours.

        Raises:
            As `lib.datastores.received.Receiver.take`.
        """
        if self.traffic is None:
            return None
        return self.traffic.receiver.take(file, author=author, client=client)

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:  # noqa: ARG002 - the base's
        """Do what follows from a new label, the long of it beside the requests; never raises."""
        if self.traffic is not None:
            self.traffic.wake()
        self.retraining.scheduler.wake()
        self.active_learning.runner.wake()
        self.desk.label_came(image_id)
        return {}

    def remarks_on(self, version: LabelVersion) -> dict[str, list[str]]:
        """Return what whoever submitted a label should know.

        Returns:
            `doubts`: what looks wrong about it, in sentences; `left_out`: organs of the label before it that it
            has not, which in a reader study nobody is told.
        """
        is_alone = self.readers.readers_of(version.image_id) == 1
        left_out = self.labels_kept.left_out(version) if is_alone else ()
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
