import asyncio
import json
import logging
import re
import tempfile

import httpx
import pytest
from fastapi import FastAPI
from monailabel.interfaces.exception import (  # noqa: TID251 - the errors under test
    ImageNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.requests import Request

from lib.errors import (
    CheckpointError,
    ConfigError,
    DatastoreError,
    GeometryError,
    ImageExistsError,
    LabelError,
    NoModelError,
    OrganNetError,
    QueueFullError,
    ScanError,
    TrainingError,
)
from lib.server.responses import (
    MAX_DETAIL,
    answer_monailabel_error,
    answer_organnet_error,
    install_error_handlers,
    without_folders,
)

REQUEST = Request({"type": "http"})


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (ConfigError, 400),
        (DatastoreError, 404),
        (ImageExistsError, 409),
        (NoModelError, 409),
        (TrainingError, 409),
        (ScanError, 422),
        (GeometryError, 422),
        (LabelError, 422),
        (CheckpointError, 503),
        (OrganNetError, 500),
    ],
)
def test_each_error_has_its_status_and_a_reason(kind: type[OrganNetError], status: int) -> None:
    answer = answer_organnet_error(REQUEST, kind("pt_1: why"))
    assert answer.status_code == status
    assert json.loads(bytes(answer.body)) == {"detail": "pt_1: why"}


def test_a_full_queue_says_when_to_try_again() -> None:
    answer = answer_organnet_error(REQUEST, QueueFullError("16 requests are in the queue", 12))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "12")
    assert json.loads(bytes(answer.body)) == {"detail": "16 requests are in the queue"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageNotFoundException("no image"), 404),
        (MONAILabelException(MONAILabelError.INVALID_INPUT, "no"), 400),
        (MONAILabelException(MONAILabelError.SERVER_ERROR, "no"), 500),
    ],
)
def test_monai_labels_errors_have_a_status_too(error: MONAILabelException, status: int) -> None:
    assert answer_monailabel_error(REQUEST, error).status_code == status


def test_other_errors_are_not_handled() -> None:
    for answer in (answer_organnet_error, answer_monailabel_error):
        with pytest.raises(ZeroDivisionError):
            answer(REQUEST, ZeroDivisionError())


def test_an_unexpected_error_is_logged_under_the_id_in_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/fails")
    def fail() -> None:
        raise ZeroDivisionError("/home/secret")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/fails")

    with caplog.at_level(logging.ERROR):
        answer = asyncio.run(ask())
    assert answer.status_code == 500
    detail = answer.json()["detail"]
    error_id = re.search(r"unexpected error ([0-9a-f]{12}):", detail)
    assert error_id, detail
    assert "secret" not in detail
    assert error_id[1] in caplog.text
    assert "/home/secret" in caplog.text


def test_a_message_tells_the_name_of_a_file_and_not_its_folder() -> None:
    message = (
        f'x: cannot read "{tempfile.gettempdir()}/organnet-1/a b/0.nii", see /organnet/labels/x'
    )
    assert without_folders(message) == 'x: cannot read "a b/0.nii", see /organnet/labels/x'


def test_messages_that_json_cannot_hold_are_escaped() -> None:
    answer = answer_organnet_error(REQUEST, ConfigError("\ud800 " + "x" * 2 * MAX_DETAIL))
    detail = json.loads(bytes(answer.body))["detail"]
    assert detail.startswith("\\ud800 x")
    assert len(detail) < MAX_DETAIL + 10
