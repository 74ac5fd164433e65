"""Changes to MONAI Label's web application: routes, error answers and access rules.

docs/monailabel-defects.md lists the defects of MONAI Label by number, and where each is avoided.
"""

import logging
import sys

import monailabel
from fastapi import FastAPI
from monailabel import endpoints
from monailabel.config import settings
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib.config import AppConfig
from lib.server import (
    assignment_routes,
    datastore_routes,
    inference_routes,
    label_routes,
    model_routes,
    prediction_routes,
    prompt_routes,
    responses,
    series_routes,
    session_routes,
    status_routes,
    training_routes,
)
from lib.server.dicomweb import proxy_routes, stow_routes
from lib.server.middleware import AccessGuard, BodyLimit, RequestForm
from lib.server.ohif import viewer_routes
from lib.server.slow_connections import close_slow_connections
from lib.storage.database import is_url

logger = logging.getLogger(__name__)

TESTED_WITH = "0.8.5"

REPLACED = ("info", "infer", "activelearning", "session", "train", "datastore", "proxy", "ohif")
"""MONAI Label's modules whose routes are replaced by those below."""

REMOVED = ("model", "wsi_infer", "batch_infer", "scoring", "logs")
"""MONAI Label's modules whose routes are removed: neither client uses them, and some are unsafe (defect 11).

`model` sends and receives weights without a check; `wsi_infer` is for pathology; `batch_infer` and `scoring`
accept paths (`python -m apps.infer` contours many scans); `logs` shows image ids and the server's paths.
"""

ROUTERS = (
    inference_routes.router,
    datastore_routes.router,
    label_routes.router,
    prediction_routes.router,
    prompt_routes.router,
    series_routes.router,
    session_routes.router,
    training_routes.router,
    status_routes.router,
    model_routes.router,
    assignment_routes.router,
)
ROUTERS_WITH_PACS = (proxy_routes.router, stow_routes.router, viewer_routes.router)
ROUTERS_WITHOUT_PACS = (viewer_routes.without_pacs,)


def install(config: AppConfig) -> None:
    """Change MONAI Label's application; called once, in the server process, before the first request."""
    if monailabel.__version__ != TESTED_WITH:
        logger.warning(
            "MONAI Label %s is installed, but this app was tested with %s: its routes, access rules and "
            "datastore depend on internals that may have changed",
            monailabel.__version__,
            TESTED_WITH,
        )
    app: FastAPI = sys.modules["monailabel.app"].app
    _replace_routes(app, has_viewer=config.ohif_folder)
    responses.install_error_handlers(app)
    _add_access_rules(app, config)
    close_slow_connections()
    # MONAI Label builds the app in its startup event, after the middleware stack was built: build it again.
    app.middleware_stack = app.build_middleware_stack()


def _replace_routes(app: FastAPI, *, has_viewer: bool) -> None:
    unwanted = [getattr(endpoints, module).router for module in (*REPLACED, *REMOVED)]
    has_viewer = has_viewer or is_url(str(settings.MONAI_LABEL_STUDIES))
    app.router.routes[:] = [
        route
        for route in app.router.routes
        # Defect 12: every client could make the server drop its app.
        if getattr(route, "path", None) != "/reload"
        and not any(getattr(route, "original_router", None) is router for router in unwanted)
    ]
    for router in (*ROUTERS, *(ROUTERS_WITH_PACS if has_viewer else ROUTERS_WITHOUT_PACS)):
        app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)


def _add_access_rules(app: FastAPI, config: AppConfig) -> None:
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    access = "network" if settings.MONAI_LABEL_AUTH_ENABLE else config.access
    own = [
        Middleware(RequestForm),
        Middleware(AccessGuard, access=access, origins=origins),
        Middleware(BodyLimit),
    ]
    if origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
        )
        own.append(cors)
    others = [m for m in app.user_middleware if getattr(m, "cls", None) is not CORSMiddleware]
    app.user_middleware[:] = [*own, *others]
