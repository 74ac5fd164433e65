"""The running app as the routes see it, and hooks into the server process."""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypedDict

from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.sessions import Sessions

from lib.activelearning.case_assigner import NextCase
from lib.activelearning.service import ActiveLearningService
from lib.assignment.service import Assignments
from lib.config import AppConfig
from lib.datastores.local import FolderStore
from lib.inference.backend_choice import BackendChoice
from lib.inference.prediction_records import PredictionRecords
from lib.jobs.inference_queue import InferenceQueue
from lib.labels.history import LabelHistory
from lib.models.model_history import ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Registry
from lib.models.served_model import ServedModel
from lib.pacs.folder_series import FolderPacs
from lib.pacs_sync.dicom_labels import DicomImporter
from lib.pacs_sync.sync import PacsSync
from lib.prompts.service import PromptService
from lib.retrain.service import RetrainingService


class AppDescription(TypedDict):
    """Models, trainers and strategies by name, as MONAI Label's `MONAILabelApp.info` returns them."""

    name: str
    description: str
    version: str
    labels: Mapping[str, int]
    models: Mapping[str, Mapping[str, Any]]
    trainers: Mapping[str, Mapping[str, Any]]
    strategies: Mapping[str, Mapping[str, Any]]
    scoring: Mapping[str, Mapping[str, Any]]
    train_stats: Mapping[str, Mapping[str, Any]]
    datastore: Mapping[str, Any]


class RunningApp(Protocol):
    """The parts of `lib.app.OrganNetApp` that the routes use.

    A protocol, because `lib.app` imports this package.
    """

    config: AppConfig
    registry: Registry
    served: ServedModel
    backends: BackendChoice
    inference_queue: InferenceQueue
    predictions: PredictionRecords
    prompts: PromptService
    models: ModelHistory
    promoter: Promoter
    label_history: LabelHistory
    assignments: Assignments
    store: FolderStore
    pacs_sync: PacsSync | None
    folder_pacs: FolderPacs | None
    dicom_importer: DicomImporter | None
    retraining: RetrainingService
    active_learning: ActiveLearningService

    def info(self) -> AppDescription:
        """Return the models, trainers and strategies of the app."""

    def sessions(self) -> Sessions | None:
        """Return the session store; None where sessions are turned off."""

    def infer(self, request: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
        """Contour a scan; return a temporary label file, and the parameters for the client."""

    def next_sample(self, request: Mapping[str, Any]) -> NextCase:
        """Return the image to contour next."""


def get_app() -> RunningApp:
    """Return the app of this server process."""
    app: RunningApp = app_instance()
    return app


def in_server_process() -> bool:
    """Return whether this process answers requests; scripts may build the app without a server."""
    return "monailabel.app" in sys.modules


def end_start(reason: str) -> NoReturn:
    """End a server process that cannot start, with a sentence for its user."""
    sys.stdout.flush()
    sys.stderr.write(f"The server cannot start: {reason}\n")
    sys.stderr.flush()
    # Any exception, SystemExit too, would be reported by the web server with a traceback.
    os._exit(1)


def at_shutdown(action: Callable[[], object]) -> None:
    """Call `action` when the running event loop ends: after the last request, before Python waits for threads.

    MONAI Label itself waits for a running training: a server that is asked to stop would continue until the
    training ends (defect 10).
    """
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        try:
            await loop.create_future()
        finally:
            action()

    task = loop.create_task(wait())
    _shutdown_tasks.add(task)
    task.add_done_callback(_shutdown_tasks.discard)


_shutdown_tasks: set[asyncio.Task[None]] = set()
"""Tasks of `at_shutdown`; kept here because an event loop holds only weak references to its tasks."""
