"""The app that MONAI Label loads: builds the parts and connects them."""

import functools
import itertools
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from sqlalchemy.exc import SQLAlchemyError
from threadpoolctl import threadpool_limits

from lib import __version__
from lib.activelearning.case_assigner import NextCase
from lib.activelearning.service import ActiveLearningService, Images
from lib.assignment.service import Assignments
from lib.config import CLICKS_TASK, SCRIBBLES_TASK, TASK_NAME, AppConfig
from lib.datastores.dicomweb import DicomWebStore, open_pacs
from lib.datastores.local import FolderStore
from lib.datastores.places import places_of
from lib.errors import ConfigError, DatastoreError, OrganNetError
from lib.inference.backend_choice import TEST_SCANS, BackendChoice
from lib.inference.prediction_records import PredictionRecords
from lib.isolation.reader_pool import readers
from lib.jobs.inference_queue import InferenceQueue
from lib.jobs.priority import ServingPriority
from lib.jobs.supervisor import PeriodicTask
from lib.labels.history import LabelHistory
from lib.labels.quarantine import Quarantine
from lib.labels.studies_folder import LABELS
from lib.labels.submission import StoreDependencies
from lib.models.model_history import ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Registry
from lib.models.served_model import ServedModel
from lib.monailabel_tasks.infer_task import OrganNetInferTask
from lib.monailabel_tasks.prompt_tasks import ClicksTask, ScribblesTask
from lib.monailabel_tasks.sessions import ScanSessions
from lib.monailabel_tasks.strategies import strategies
from lib.monailabel_tasks.train_task import OrganNetTrainTask
from lib.pacs.folder_series import FolderPacs
from lib.pacs.orthanc import find_orthanc
from lib.pacs_sync.dicom_labels import DicomImporter
from lib.pacs_sync.sync import PacsSync
from lib.prompts.service import PromptService
from lib.retrain.service import RetrainingService
from lib.server.requests import as_flag
from lib.server.running_app import AppDescription, at_shutdown, end_start, in_server_process
from lib.storage.atomic_files import finite
from lib.storage.database import FILE, Database, is_url
from lib.storage.leftovers import ABANDONED_S, remove_abandoned_scratch, remove_unfinished
from lib.storage.storage_errors import storage_trouble

logger = logging.getLogger(__name__)

FOLDER_CHECK_S = 2.0
"""Interval in seconds between checks of the labels folder for new or changed files."""


_P = ParamSpec("_P")


def _ends_start_in_a_sentence(start: Callable[_P, None]) -> Callable[_P, None]:
    """Return a method that ends a server with a sentence if its user can solve the error."""

    @functools.wraps(start)
    def method(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            start(*args, **kwargs)
        except (OrganNetError, OSError, SQLAlchemyError) as error:
            reason = str(error) if isinstance(error, OrganNetError) else storage_trouble(error)
            if not reason or not in_server_process():
                raise
            end_start(f"{reason} ({error})" if reason not in str(error) else reason)

    return method


class OrganNetApp(MONAILabelApp):
    """OrganNet2.5D as a MONAI Label app; the routes use it through `lib.server.running_app.RunningApp`."""

    store: FolderStore
    retraining: RetrainingService
    active_learning: ActiveLearningService
    pacs_sync: PacsSync | None = None
    folder_pacs: FolderPacs | None = None
    dicom_importer: DicomImporter | None = None

    @_ends_start_in_a_sentence
    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.config = AppConfig.from_conf(conf or {})
        self.registry = Registry(
            self.config.model_dir,
            starter=self.config.starter_dir,
            organ_set=self.config.recipe.organ_set,
        )
        self.served = ServedModel(self.registry, device=self.config.device)
        self.inference_queue = InferenceQueue(self.config.infer_queue)
        self.places = places_of(
            studies, model_dir=self.config.model_dir, state_dir=self.config.state_dir
        )
        self.state = self.places.state
        self.database = Database(self.state / FILE)
        self.models = ModelHistory(self.database)
        self.promoter = Promoter(self.registry, self.models)
        self.predictions = PredictionRecords(self.database, self.state)
        self.backends = BackendChoice(
            self.state / "backends",
            self.served,
            setting=self.config.backend,
            state=self.state,
            scans=self._scans_for_self_test,
        )
        self.priority = ServingPriority(self.state)
        self.prompts = PromptService(
            self.served, self.inference_queue, self.backends, priority=self.priority
        )
        self.label_history = LabelHistory(self.database, self.state)
        self.assignments = Assignments(
            self.database, self.state, self.config, history=self.label_history
        )
        # Defect 17: MONAI Label starts a scoring process per method with every next sample.
        settings.MONAI_LABEL_AUTO_UPDATE_SCORING = False
        # Defect 2: MLflow 3 refuses the file store that MONAI Label gives it.
        settings.MONAI_LABEL_TRACKING_ENABLED = False
        # Waiting threads of a training sleep instead of spinning, which leaves the processor to the server.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # NumPy's matrices are small here: a second thread would spend five times the processor time on waiting.
        threadpool_limits(1, user_api="blas")
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
            # Imported here, because scripts and child processes build the app without a web server.
            from lib.server import monailabel_patches

            monailabel_patches.install(self.config)

    # ---- called once by MONAI Label, in this order

    def init_datastore(self) -> Datastore:
        """Return the store over the studies folder, or over a PACS."""
        dependencies = StoreDependencies(
            labels=self.config.recipe.labels,
            history=self.label_history,
            quarantine=Quarantine(self.state, limit_bytes=int(self.config.quarantine_gib * 2**30)),
            active_model=self._active_version,
            predicted_by=lambda image_id, label: self.predictions.model_of(
                image_id, label.digest()
            ),
            on_submitted=lambda version: self.on_save_label(version.image_id, version.image_id),
        )
        if not is_url(self.studies):
            self.store = FolderStore(self.places.labels, dependencies, scans=self.places.scans)
            if self.config.ohif_folder:
                find_orthanc()
                self.folder_pacs = FolderPacs(self.store.dicom_folders, self.state)
                self.dicom_importer = DicomImporter(self.store, self.folder_pacs.image_of)
            return self.store
        if self.config.ohif_folder:
            raise ConfigError(
                "--conf ohif_folder: the studies are in a PACS, from which OHIF reads already; leave it out"
            )
        pacs = open_pacs(self.studies)
        self.store = store = DicomWebStore(
            self.places.labels,
            dependencies,
            pacs,
            self.database,
            limit_gib=self.config.pacs_cache_gib,
        )
        self.pacs_sync = PacsSync(
            store,
            pacs,
            self.database,
            self.state,
            may_be_sent=self.assignments.is_visible_to_all,
            wanted=self._images_to_fetch,
        )
        self.dicom_importer = self.pacs_sync.importer
        return store

    def init_infers(self) -> dict[str, InferTask]:
        """Return the inference tasks by name."""
        task = OrganNetInferTask(
            self.served,
            self.config.recipe,
            self.priority,
            queue=self.inference_queue,
            backends=self.backends,
            records=self.predictions,
            kept_runs=self.prompts.runs,
        )
        return {
            TASK_NAME: task,
            CLICKS_TASK: ClicksTask(self.served, self.prompts),
            SCRIBBLES_TASK: ScribblesTask(self.served, self.prompts),
        }

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the training tasks by name."""
        self.retraining = RetrainingService(
            self.config,
            self.database,
            self.state,
            self.promoter,
            labelled=self.store.labelled_cases,
        )
        return {TASK_NAME: OrganNetTrainTask(self.retraining)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the active-learning strategies by name."""
        self.active_learning = ActiveLearningService(
            self.config,
            self.database,
            self.state,
            registry=self.registry,
            labels=self.label_history,
            images=Images(
                unlabelled=self.store.unlabelled_images,
                path=self.store.require_image,
                local=self.store.available_images,
            ),
            served=self._active_version,
        )
        return strategies(self.active_learning.case_assigner)

    @_ends_start_in_a_sentence
    def on_init_complete(self) -> None:
        """Bring stored files up to date, and start the background tasks; called in the server process only."""
        super().on_init_complete()
        readers().start()
        self.label_history.restore_from_files()
        self._reconcile_models()
        leftovers = PeriodicTask(
            "leftovers",
            self._remove_leftovers,
            every_s=ABANDONED_S,
            error_message="files of killed processes could not be removed",
        )
        at_shutdown(leftovers.start().stop)
        at_shutdown(self.backends.start().stop)
        at_shutdown(self.store.watch().stop)
        folder_check = PeriodicTask(
            "labels-folder",
            self.store.watcher.run,
            every_s=FOLDER_CHECK_S,
            error_message="the labels folder could not be checked",
        )
        at_shutdown(folder_check.start().stop)
        at_shutdown(self.assignments.start(self.store).stop)
        if self.pacs_sync is not None:
            at_shutdown(self.pacs_sync.start().stop)
        if self.folder_pacs is not None:
            at_shutdown(self.folder_pacs.start().stop)
        self.retraining.scheduler.start()
        at_shutdown(self.retraining.scheduler.stop)
        if self.config.scoring:
            self.active_learning.job_runner.start()
            at_shutdown(self.active_learning.job_runner.stop)

    def _remove_leftovers(self) -> None:
        """Remove unfinished files that killed processes left in any folder that a server writes to."""
        remove_abandoned_scratch()
        for folder in (self.config.model_dir, self.state, self.places.labels / LABELS):
            remove_unfinished(folder)
        for folder in {self.places.labels, self.places.scans or self.places.labels}:
            remove_unfinished(folder, is_recursive=False)

    def _reconcile_models(self) -> None:
        """Complete promotions that a killed server left unfinished; an error does not prevent the start."""
        try:
            for action in self.promoter.reconcile():
                logger.info("models: %s", action)
        except (OrganNetError, OSError, SQLAlchemyError):
            logger.exception("the model history could not be brought up to date")

    def _images_to_fetch(self) -> list[str]:
        """Return the images to fetch from the PACS: labelled ones first, for training, then unlabelled ones."""
        unlabelled = self.store.unlabelled_images() if self.config.scoring else ()
        return [*self.label_history.current_digests(), *unlabelled]

    def _scans_for_self_test(self) -> list[Path]:
        """Return a few scans that can be read at once, labelled ones first."""
        images = itertools.chain(
            self.label_history.current_digests(), self.store.unlabelled_images()
        )
        scans: list[Path] = []
        available = self.store.available_images()
        for image_id in images:
            if len(scans) == TEST_SCANS:
                break
            with suppress(DatastoreError):  # removed in the meantime
                if available is None or image_id in available:
                    scans.append(self.store.require_image(image_id))
        return scans

    def _active_version(self) -> str | None:
        path = self.registry.served_path()
        return None if path is None else path.stem

    # ---- called by the routes

    def info(self) -> AppDescription:
        """Return models, trainers and strategies, without numbers that JSON cannot hold (defect 13)."""
        description: AppDescription = finite(super().info())
        return description

    def _load_sessions(self, load: bool = False) -> ScanSessions | None:  # noqa: FBT001, FBT002 - base signature
        if not load:
            return None
        return ScanSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY)

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:  # noqa: ARG002 - base signature
        """Wake the background tasks that a new label concerns; never raises, since the label is stored."""
        if self.pacs_sync is not None:
            self.pacs_sync.wake()
        self.retraining.scheduler.wake()
        self.active_learning.job_runner.wake()
        self.assignments.on_label_submitted(image_id)
        return {}

    def next_sample(self, request: Mapping[str, Any]) -> NextCase:
        """Return the image to contour next, and why it was chosen.

        Args:
            request: `strategy`, `holder`, and optionally `seed` and `readers`.

        Raises:
            DatastoreError: If the strategy is unknown.
        """
        strategy = _task(self._strategies, request["strategy"], "strategy")
        sample: NextCase = strategy(request, self.store)
        return sample

    def infer(
        self,
        request: Mapping[str, Any],
        datastore: Datastore | None = None,  # noqa: ARG002 - base signature
    ) -> tuple[Path, dict[str, Any]]:
        """Contour a scan, and save the label in the store if the request asks for it.

        Args:
            request: `model` and inference options. `image` is an id of the store; only `scan`, which the
                routes set, is used as a path (defect 11).
            datastore: Not used.

        Returns:
            A temporary label file, which the caller removes; and label values, volumes, model version and
            times, as the clients get them. If the label was saved, `saved_label` says as which version, and
            what differs from the file or is implausible.

        Raises:
            DatastoreError: If the model or image is unknown.
        """
        task = _task(self._infers, request["model"], "model")
        image_id, scan = request["image"], request.get("scan")
        path = Path(scan) if scan else self.store.require_image(image_id)
        file, params = task({**request, "image": str(path), "image_id": image_id})
        if not scan and as_flag("save_label", request.get("save_label", False)):
            about = {
                "model": TASK_NAME,
                "params": params,
                # The label values of the active model can differ from those of the server's recipe.
                "label_info": [{"name": n, "idx": v} for n, v in params["label_names"].items()],
                "author": str(request.get("author", "")),
            }
            tag = str(request.get("label_tag") or "original")
            try:
                version = self.store.submissions.submit(
                    image_id, tag, Path(file), about, source="infer"
                )
            except BaseException:
                Path(file).unlink(missing_ok=True)
                raise
            keys = ("tag", "number", "changes", "doubts")
            params = {**params, "saved_label": {key: getattr(version, key) for key in keys}}
        return Path(file), params


def _task(tasks: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in tasks:
        raise DatastoreError(f"{name[:80]!r}: no such {kind}; expected one of {', '.join(tasks)}")
    return tasks[name]
