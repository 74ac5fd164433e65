"""Edit cost, the difference between predictions and submitted labels, over HTTP."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lib.activelearning.edit_costs import EditCostRecords
from lib.evaluation.edit_cost import edit_cost
from lib.imaging.scans import write_ct, write_label
from lib.labels.history import LabelHistory, Provenance
from lib.storage.database import FILE, Database, state_folder
from tests.server.running import TINY, Server, running, small_ct, two_organs

pytestmark = pytest.mark.server

CASES = ("accepted", "edited", "known")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with three submissions that were measured before it started."""
    folder = tmp_path_factory.mktemp("measured")
    put_submissions(folder)
    with running(folder) as server:
        yield server


def put_submissions(folder: Path) -> None:
    studies = folder / "studies"
    state = state_folder(str(studies), folder / "models")
    database = Database(state / FILE)
    history, records = LabelHistory(database, state), EditCostRecords(database)
    file = folder / "label.nii.gz"
    for steps, image_id in enumerate(CASES):
        ct = small_ct(image_id)
        write_ct(studies / f"{image_id}.nii.gz", ct)
        label = two_organs(ct.grid)
        write_label(file, label)
        submission = Provenance(source="client", author="ada", model_version="net-tiny-0123")
        version = history.add(image_id, "final", file, submission)
        prediction = np.roll(label.array, steps, 0)
        costs = edit_cost(prediction, label.array, TINY.labels, grid=ct.grid)
        records.add(version, costs, was_trained_on=image_id == "known")
    database.close()


def test_the_curve_and_its_verdict_are_returned(measured: Server) -> None:
    answer = measured.ask("GET", "/organnet/edit-cost")
    assert answer.status_code == 200, answer.text
    edit_cost = answer.json()
    accepted, edited, trained_on = edit_cost["submissions"]
    assert [submission["image"] for submission in edit_cost["submissions"]] == list(CASES)
    assert (accepted["mean_dsc"], accepted["added_path_mm"]) == (1.0, 0.0)
    # Blocks of 7 x 5 and 4 x 5 pixels on 6 slices, moved by one along x: each gets 5 new pixels on one side
    # and 3 on the other, of 1.5 x 2 mm; 5 + 5 voxels of each slice change.
    assert edited["added_path_mm"] == pytest.approx(6 * 2 * (5 + 3) * 1.75)
    assert edited["changed_voxels"] == 6 * 2 * 10
    assert (edited["author"], edited["model_version"]) == ("ada", "net-tiny-0123")
    assert [submission["counts"] for submission in edit_cost["submissions"]] == [True, True, False]
    assert trained_on["was_trained_on"] is True
    assert edit_cost["organs"]["Parotid_L"]["n"] == 2
    assert edit_cost["unchanged_share"] == 0.5
    assert edit_cost["verdict"] == "too few submissions to say: 2 of 10"


def test_the_chart_is_a_picture(measured: Server) -> None:
    answer = measured.ask("GET", "/organnet/edit-cost.png")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    picture = imread(BytesIO(answer.content))
    assert picture.shape[1] > 1000
    assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 10


def test_a_label_that_was_removed_is_not_in_the_curve(measured: Server) -> None:
    measured.wait_for_label("edited")
    assert measured.ask("DELETE", "/datastore/label?id=edited&tag=final").status_code == 200
    edit_cost = measured.ask("GET", "/organnet/edit-cost").json()
    assert [submission["image"] for submission in edit_cost["submissions"]] == ["accepted", "known"]


def test_a_server_without_submissions_says_so(bare_server: Server) -> None:
    edit_cost = bare_server.ask("GET", "/organnet/edit-cost").json()
    assert edit_cost["verdict"].startswith("too few submissions to say: ")
    assert bare_server.ask("GET", "/organnet/edit-cost.png").status_code == 200
