"""The routes to the reader studies: who has read an image, and how far the readers agree.

The numbers come with the consensus, which is made beside the requests: nothing is computed here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.assignment.reader_studies import MAX_READERS, readings_by_reader
from lib.assignment.readings import is_made_from, newest_consensus, reading_numbers
from lib.errors import ConfigError
from lib.labels.history import CONSENSUS, FINAL
from lib.server.requests import as_number
from lib.server.roles import REVIEWER, USER, author_of
from lib.storage.identifiers import require_image_id
from lib.storage.tables import LabelVersion, ReaderStudy

router = APIRouter(prefix="/organnet/readers")


def _about(
    image_id: str, wanted: int, study: ReaderStudy | None, versions: Sequence[LabelVersion]
) -> dict[str, Any]:
    found = readings_by_reader(versions)
    made = newest_consensus(versions)
    agreement = {} if made is None else made.info.get(CONSENSUS, {}).get("agreement", {})
    return {
        "image": image_id,
        "readers": wanted,
        "by": None if study is None else study.by,
        "since": None if study is None else study.since.isoformat(),
        "have_read": list(found),
        "is_finished": len(found) >= wanted,
        "mean_dsc": agreement.get("mean"),
        "consensus": None if made is None else _about_consensus(made, versions),
    }


def _about_consensus(made: LabelVersion, versions: Sequence[LabelVersion]) -> dict[str, Any]:
    found = list(readings_by_reader(versions).values())
    visible = [version for version in versions if version.hidden_at is None]
    return {
        "number": made.number,
        "method": made.info.get(CONSENSUS, {}).get("method"),
        "of": reading_numbers(made),
        "submitted_at": made.submitted_at.isoformat(),
        "is_of_all_readings": is_made_from(made, found, versions),
        "is_current": visible[-1].id == made.id,
    }


def _pairs(versions: Sequence[LabelVersion], made: LabelVersion | None) -> list[dict[str, Any]]:
    """Return the DSC of each two readers, as the newest consensus found it."""
    if made is None:
        return []
    names = _readers_by_number(versions)
    agreement: Mapping[str, Any] = made.info.get(CONSENSUS, {}).get("agreement", {})
    return [
        {
            "readers": [names.get(number) for number in pair["of"]],
            "of": pair["of"],
            "dsc": pair["dsc"],
        }
        for pair in agreement.get("pairs", [])
    ]


def _readers_by_number(versions: Sequence[LabelVersion]) -> dict[int, str]:
    """Return who drew each version, also those that a newer reading took the place of."""
    return {
        version.number: reader
        for end in range(1, len(versions) + 1)
        for reader, version in readings_by_reader(versions[:end]).items()
    }


@router.get("")
def list_studies(_user: User = USER) -> list[dict[str, Any]]:
    """Return every reader study: who has read, and the mean DSC between readers of each organ."""
    app = app_instance()
    return [
        _about(s.image_id, s.readers, s, app.label_history.history(s.image_id, FINAL))
        for s in app.readers.all()
    ]


@router.get("/{image}")
def show_study(image: str, _user: User = USER) -> dict[str, Any]:
    """Return the readings of an image, the DSC of each two, and the consensus; also without a study."""
    app = app_instance()
    image_id = require_image_id(image)
    app.image_path(image_id)
    study = next((s for s in app.readers.all() if s.image_id == image_id), None)
    versions = app.label_history.history(image_id, FINAL)
    readings = [
        {
            "reader": reader,
            "number": version.number,
            "source": version.source,
            "organs": version.organs,
            "submitted_at": version.submitted_at.isoformat(),
        }
        for reader, version in readings_by_reader(versions).items()
    ]
    wanted = 1 if study is None else study.readers
    return {
        **_about(image_id, wanted, study, versions),
        "readings": readings,
        "pairs": _pairs(versions, newest_consensus(versions)),
    }


@router.post("/{image}")
def open_study(image: str, body: dict[str, Any], user: User = REVIEWER) -> dict[str, Any]:
    """Let several people contour an image, each for themselves; one reader ends the study."""
    app = app_instance()
    image_id = require_image_id(image)
    app.image_path(image_id)
    readers = as_number("readers", body.get("readers"), 1, MAX_READERS)
    if readers != int(readers):
        raise ConfigError(f"readers: {readers:g} is no whole number")
    app.readers.set_readers(image_id, int(readers), author_of(user))
    app.assignments.wake()
    return show_study(image, user)
