import json

import pytest
from monailabel.interfaces.exception import (  # noqa: TID251 - what is answered
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
    ScanError,
    TrainingError,
)
from lib.server.responses import answer_monailabel_error, answer_organnet_error

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
