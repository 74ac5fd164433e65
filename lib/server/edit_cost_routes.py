"""The routes that say how much of the predictions people change, and whether that gets less."""

from typing import Any

from fastapi import APIRouter, Response
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.activelearning.edit_cost_chart import edit_chart
from lib.activelearning.edit_cost_curve import summary
from lib.server.roles import USER

router = APIRouter(prefix="/organnet")


@router.get("/edit-cost")
def get_edit_cost(_user: User = USER) -> dict[str, Any]:
    """Return what was changed of each submission's prediction, medians, and a sentence on their course."""
    return summary(app_instance().active_learning.edit_costs.curve())


@router.get("/edit-cost.png")
def get_edit_cost_chart(_user: User = USER) -> Response:
    """Return the same as a chart."""
    picture = edit_chart(summary(app_instance().active_learning.edit_costs.curve()))
    return Response(picture, media_type="image/png", headers={"Cache-Control": "no-store"})
