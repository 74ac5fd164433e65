"""MONAI Label's server, cured: called once, in the server process, before the first request."""

import logging
import sys

import monailabel
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib.config import AppConfig
from lib.server import (
    edit_cost_routes,
    error_responses,
    export_routes,
    label_routes,
    lease_routes,
    model_routes,
    reader_routes,
    routes,
    session_routes,
    status_routes,
    store_routes,
    train_routes,
)
from lib.server.access import AccessGuard, BodyLimit
from lib.server.dicomweb import routes as dicomweb_routes
from lib.server.ohif import routes as ohif_routes

logger = logging.getLogger(__name__)

TESTED_WITH = "0.8.5"

REPLACED = (info, infer, activelearning, session, train, datastore, proxy, ohif)
"""Modules whose every route has its better here."""

OURS = (
    routes.router,
    store_routes.router,
    label_routes.router,
    session_routes.router,
    train_routes.router,
    status_routes.router,
    model_routes.router,
    lease_routes.router,
    reader_routes.router,
    edit_cost_routes.router,
    export_routes.router,
)

OURS_WITH_PACS = (dicomweb_routes.router, ohif_routes.router)
"""Where the studies are in a PACS."""

OURS_WITHOUT_PACS = (ohif_routes.without_pacs,)
"""Where they are files."""

DROPPED = (model, wsi_infer, batch_infer, scoring, logs)
"""What neither client calls and nobody is served by.

`model` hands out weights and takes in others unseen; `wsi_infer` is for pathology; `batch_infer` and `scoring`
take paths and run in the server if asked to (`python -m apps.infer` does the first, and there are no scoring
methods yet); `logs` shows image ids and the server's paths to everybody (defect 11).
"""


def install(config: AppConfig) -> None:
    """Put our routes, error answers and access rules on MONAI Label's application."""
    if monailabel.__version__ != TESTED_WITH:
        logger.warning(
            "MONAI Label %s is installed, %s was tested: routes, access rules and the store lean on its inside",
            monailabel.__version__,
            TESTED_WITH,
        )
    app: FastAPI = sys.modules["monailabel.app"].app
    _put_routes(app)
    error_responses.install(app)
    _put_access_rules(app, config)
    # The stack was built when the application started up, which is where we are called from.
    app.middleware_stack = app.build_middleware_stack()


def _put_routes(app: FastAPI) -> None:
    unwanted = [module.router for module in (*REPLACED, *DROPPED)]
    has_pacs = str(settings.MONAI_LABEL_STUDIES).startswith(("http://", "https://"))
    app.router.routes[:] = [
        route
        for route in app.router.routes
        # Defect 12: anybody could make the server forget its app.
        if getattr(route, "path", None) != "/reload"
        and not any(getattr(route, "original_router", None) is one for one in unwanted)
    ]
    for router in (*OURS, *(OURS_WITH_PACS if has_pacs else OURS_WITHOUT_PACS)):
        app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)


def _put_access_rules(app: FastAPI, config: AppConfig) -> None:
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    app.user_middleware[:] = [
        m for m in app.user_middleware if getattr(m, "cls", None) is not CORSMiddleware
    ]
    if origins:
        app.user_middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_credentials=True,
                allow_methods=["*"],
                allow_headers=["*"],
            ),
        )
    access = "network" if settings.MONAI_LABEL_AUTH_ENABLE else config.access
    app.user_middleware.insert(0, Middleware(BodyLimit))
    app.user_middleware.insert(0, Middleware(AccessGuard, access=access, origins=origins))
