"""MONAI Label's server, cured: called once, in the server process, before the first request."""

import logging
import sys

import monailabel
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints import activelearning, infer, info, model, session, train, wsi_infer
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib.config import AppConfig
from lib.server import failures
from lib.server.access import AccessGuard
from lib.server.routes import router

logger = logging.getLogger(__name__)

TESTED_WITH = "0.8.5"

REPLACED = (info, infer, activelearning, session, train)
"""Modules whose every route has its better in `lib.server.routes`."""
DROPPED = (model, wsi_infer)
"""`model` hands out and takes in weights by a path; `wsi_infer` is for pathology (defect 11)."""


def in_server_process() -> bool:
    """Return whether this process answers requests: trainings build the app too, in their own."""
    return "monailabel.app" in sys.modules


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
    failures.install(app)
    _put_access_rules(app, config)
    # The stack was built when the application started up, which is where we are called from.
    app.middleware_stack = app.build_middleware_stack()


def _put_routes(app: FastAPI) -> None:
    unwanted = [module.router for module in (*REPLACED, *DROPPED)]
    app.router.routes[:] = [
        route
        for route in app.router.routes
        # Defect 12: anybody could make the server forget its app.
        if getattr(route, "path", None) != "/reload"
        and not any(getattr(route, "original_router", None) is one for one in unwanted)
    ]
    before = len(app.router.routes)
    app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    # Ours come first: a few replace single routes of a router that stays.
    app.router.routes[:] = app.router.routes[before:] + app.router.routes[:before]


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
    app.user_middleware.insert(0, Middleware(AccessGuard, access=access, origins=origins))
