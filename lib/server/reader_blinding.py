"""No reader sees another's contours before he has drawn his own."""

from typing import Any

from monailabel.config import settings
from monailabel.endpoints.user.auth import User

from lib.assignment.reader_studies import may_be_seen, readings_by_reader
from lib.errors import StateError
from lib.labels.history import FINAL
from lib.server.roles import author_of, may_review


def require_label_access(
    app: Any, image_id: str, tag: str, user: User, *, is_version: bool
) -> None:
    """Do nothing where whoever asks may see the final label of an image.

    Where people log in, it is for reviewers, and for readers who have submitted, until all have. Where nobody
    logs in, nobody is known: the current label is for nobody until all have submitted, and a version, which
    has to be asked for by its number, is for everybody. The studies folder itself shows its files to all who
    can open it.

    Args:
        app: The running app.
        image_id: The image.
        tag: Of the label.
        user: Who asks.
        is_version: Whether a version is asked for, rather than what is current.

    Raises:
        StateError: If he may not.
    """
    knows_who = settings.MONAI_LABEL_AUTH_ENABLE
    if tag != FINAL or (is_version and not knows_who):
        return
    wanted = app.readers.readers_of(image_id)
    if wanted == 1:
        return
    submitted = readings_by_reader(app.label_history.history(image_id, FINAL))
    asks = author_of(user) if knows_who else None
    if not may_be_seen(wanted=wanted, submitted=submitted, asks=asks, is_reviewer=may_review(user)):
        raise StateError(
            f"{image_id}: in a reader study, {len(submitted)} of {wanted} readers have submitted; its label is "
            "shown to the others when all have, so that each draws his own. Reviewers find every version "
            "under /organnet/labels/IMAGE/NUMBER"
        )
