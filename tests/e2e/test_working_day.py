"""A working day in the viewer: study list, inference, correction, submission, next patient, and a training."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from scipy.ndimage import binary_dilation, distance_transform_edt

from lib.imaging.quantities import FloatArray
from lib.organs.table import ORGAN_SETS
from tests.e2e.clinic import (
    ALREADY_LABELLED,
    LATER,
    MODEL,
    OBLIQUE,
    TODAY,
    Clinic,
    becomes_true,
    opened,
    values,
)
from tests.e2e.colours import has_hue_of, is_grey, is_inside
from tests.e2e.viewer import AXIAL, WAIT_MS, Viewer, browsing
from tests.server.ohif.installed import require_ohif
from tests.waiting import LIMIT_S

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.long]

LABELS = ORGAN_SETS["openkbp"]
BRUSHED = "Brainstem"
DRAWN_WITHIN_S = LIMIT_S
FILLING, CLOSE = 2.2, 4.0
"""Zoom factors: a generated patient fills the viewport; 1 mm of a wide scan is two pixels."""


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    require_ohif()
    with opened(tmp_path_factory.mktemp("clinic")) as started:
        yield started


@pytest.fixture
def viewer(clinic: Clinic) -> Iterator[Viewer]:
    with browsing(clinic.server.url) as opened_viewer:
        yield opened_viewer
        assert opened_viewer.foreign == []
        assert opened_viewer.errors == []


def points(image: sitk.Image, chosen_zyx: "np.ndarray[Any, np.dtype[np.intp]]") -> FloatArray:
    """Return the centres of voxels `(N, 3)`, in LPS mm."""
    return np.array(
        [image.TransformIndexToPhysicalPoint([int(i) for i in one[::-1]]) for one in chosen_zyx]
    )


def deepest(image: sitk.Image, value: int) -> tuple[int, int, int]:
    """Return the voxel deepest inside an organ, `(z, y, x)`."""
    organ = values(image) == value
    corner = np.argwhere(organ).min(axis=0)
    box = organ[
        tuple(slice(*ends) for ends in zip(corner, np.argwhere(organ).max(axis=0) + 1, strict=True))
    ]
    depth = distance_transform_edt(np.pad(box, 1))
    z, y, x = np.unravel_index(int(depth.argmax()), depth.shape) + corner - 1
    return int(z), int(y), int(x)


def middle(image: sitk.Image, value: int) -> FloatArray:
    """Return the point deepest inside an organ."""
    return np.asarray(points(image, np.array([deepest(image, value)]))[0])


def share_in_colour(
    viewer: Viewer, image: sitk.Image, name: str, zoom: float = FILLING
) -> tuple[float, float]:
    """Return the share of an organ's slice in its colour, and of the tissue beside organs in grey."""
    z, y, x = deepest(image, LABELS[name])
    label_yx = values(image)[z]
    around_yx = binary_dilation(label_yx > 0, iterations=3) & ~binary_dilation(
        label_yx > 0, iterations=2
    )

    viewer.look_at(points(image, np.array([(z, y, x)]))[0], zoom=zoom)
    picture = viewer.picture(AXIAL)

    def seen_at(chosen_yx: Any) -> FloatArray:
        chosen = np.insert(np.argwhere(chosen_yx), 0, z, axis=1)
        positions = viewer.canvas(AXIAL, points(image, chosen))
        return positions[is_inside(picture, positions)]

    right = has_hue_of(name, picture, seen_at(label_yx == LABELS[name]))
    return float(right.mean()), float(is_grey(picture, seen_at(around_yx)).mean())


def is_drawn(viewer: Viewer, image: sitk.Image, name: str, zoom: float) -> bool:
    """Return whether an organ is displayed in its own colour at its position, and no colour elsewhere."""
    in_colour, grey = share_in_colour(viewer, image, name, zoom)
    return in_colour > 0.9 and grey > 0.95


def require_contours(viewer: Viewer, image: sitk.Image, zoom: float = FILLING) -> None:
    """Fail unless every organ of a label is displayed."""
    for name in LABELS:
        seen = partial(is_drawn, viewer, image, name, zoom)
        assert becomes_true(seen, within_s=DRAWN_WITHIN_S), (
            name,
            share_in_colour(viewer, image, name, zoom),
        )


def require_voxels_kept(clinic: Clinic, viewer: Viewer, patient: str) -> None:
    """Fail unless the model's contours in the viewer are submitted unchanged, voxel by voxel."""
    viewer.open_study(clinic.study(patient))
    viewer.run_model()
    expected = clinic.contoured(patient)
    viewer.submit("kept as version 1")
    kept = clinic.submitted(patient)
    there = sitk.Resample(expected, kept, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert (values(expected) > 0).any()
    np.testing.assert_array_equal(values(there), values(kept))


def test_a_working_day(clinic: Clinic, viewer: Viewer) -> None:
    assert set(viewer.open_list()) == set(clinic.series)
    viewer.open_from_list(TODAY)
    assert clinic.study(TODAY) in viewer.page.url
    first_model = viewer.wait_for("served", "Model: organnet25d-openkbp-")
    assert viewer.wait_for("labels", "submitted").startswith("Labels: 3 submitted")

    expected = clinic.contoured(TODAY)
    for name in LABELS:
        assert share_in_colour(viewer, expected, name)[0] == 0, "no contours are displayed yet"
    viewer.run_model()
    require_contours(viewer, expected)
    painted = _correct(clinic, viewer, expected)
    _submit(clinic, viewer, expected, painted)
    _next_sample(clinic, viewer)
    _train(clinic, viewer, first_model)


def _correct(clinic: Clinic, viewer: Viewer, expected: sitk.Image) -> FloatArray:
    """Paint beside the brainstem, and return the points of the patient under the stroke."""
    at = middle(expected, LABELS[BRUSHED])
    viewer.choose_organ(BRUSHED)
    viewer.look_at(at, zoom=FILLING)
    viewer.page.screenshot(path=clinic.pictures / "ohif-contours.png")
    ((x, y),) = viewer.canvas(AXIAL, at[None])
    stroke = np.array([(x + step, y) for step in range(60, 110, 10)])
    assert is_grey(viewer.picture(AXIAL), stroke).all(), "no stroke is displayed yet"
    before = viewer.voxels()
    viewer.paint(AXIAL, (x, y), (x + 110, y))
    assert becomes_true(
        lambda: bool(has_hue_of(BRUSHED, viewer.picture(AXIAL), stroke).all()),
        within_s=DRAWN_WITHIN_S,
    )
    painted = viewer.voxels()
    assert painted[LABELS[BRUSHED]] > before[LABELS[BRUSHED]]
    viewer.press("Control+z")
    viewer.wait_for_voxels(before)
    viewer.press("Control+y")
    viewer.wait_for_voxels(painted)
    viewer.page.screenshot(path=clinic.pictures / "ohif-correction.png")
    return np.array([viewer.world(AXIAL, position) for position in stroke])


def _submit(clinic: Clinic, viewer: Viewer, expected: sitk.Image, painted: FloatArray) -> None:
    assert clinic.counted() == len(ALREADY_LABELLED)
    message = viewer.submit("kept as version 1")
    assert "the case counts as labelled" in message
    assert all(name in message for name in LABELS)
    assert viewer.wait_for("labels", "4 submitted").startswith("Labels: 4 submitted, 4 new")
    assert clinic.counted() == len(ALREADY_LABELLED) + 1
    (version,) = clinic.history(TODAY)
    assert version["source"] == "client"
    assert version["client"].startswith("ohif-"), "the browser has the same id as in Next Sample"
    kept = clinic.submitted(TODAY)
    before, after = values(expected), values(kept)
    changed = np.argwhere(before != after)
    assert len(changed) > 0
    assert set(after[before != after]) == {LABELS[BRUSHED]}
    assert len(set(changed[:, 0])) == 1, "a circle paints one slice"
    assert set(before[before != after]) == {0}, "other organs are protected"
    for point in painted:
        assert (
            kept[kept.TransformPhysicalPointToIndex([float(c) for c in point])] == LABELS[BRUSHED]
        )
    _arrives(clinic)


def _arrives(clinic: Clinic) -> None:
    """Check that the PACS gets the server's own SEG of the label once, and not the viewer's."""
    assert becomes_true(lambda: bool(clinic.segmentations(TODAY))), clinic.status()
    (uid,) = clinic.segmentations(TODAY)
    at = requests.post(f"{clinic.pacs.url}/tools/lookup", data=uid, timeout=LIMIT_S).json()[0]["ID"]
    file = clinic.folder / "segmentation.dcm"
    answer = requests.get(f"{clinic.pacs.url}/instances/{at}/file", timeout=LIMIT_S)
    file.write_bytes(answer.content)
    assert {s.SegmentLabel for s in pydicom.dcmread(file).SegmentSequence} == set(LABELS)


def _next_sample(clinic: Clinic, viewer: Viewer) -> None:
    strategy = viewer.page.locator(".organnet-strategy")
    assert strategy.input_value() == "claspe"
    strategy.select_option("first")
    with viewer.page.expect_request("**/activelearning/first") as request:
        viewer.page.get_by_role("button", name="Next Sample").click()
    assert '"client_id":"ohif-' in (request.value.post_data or "")
    viewer.wait_for("reason", "the first by name")
    viewer.page.locator(".organnet-open").click()
    open_ = {clinic.study(name) for name in (LATER, OBLIQUE)}
    viewer.page.wait_for_url(lambda url: any(uid in url for uid in open_))
    viewer.wait_until_connected()
    assert viewer.asked == [], "nothing is lost, so nothing is asked"
    viewer.wait_for("lease", "This case is yours until")
    viewer.page.locator(".organnet-give-back").click()
    viewer.wait_for("reason", "The case was given back")
    assert clinic.server.ask("GET", "/organnet/leases").json() == []


def _train(clinic: Clinic, viewer: Viewer, first_model: str) -> None:
    viewer.page.get_by_role("button", name="Update Model").click()
    viewer.wait_for("training", "4 labels")
    viewer.page.get_by_role("button", name="Stop Training").wait_for()
    second_model = viewer.wait_for("served", "Model: organnet25d-e2e-")
    assert second_model != first_model
    version = second_model.removeprefix("Model: ")
    assert f"Last decision: {version}" in viewer.wait_for("decision", version)
    viewer.wait_for("training", "Training: none")
    viewer.page.screenshot(path=clinic.pictures / "ohif-trained.png")
    viewer.page.get_by_role("button", name="Update Model").click()
    # The panel still shows the state before the click until its next request, so the server is asked.
    assert becomes_true(lambda: len(clinic.training_states()) == 2), clinic.training_states()
    viewer.page.get_by_role("button", name="Stop Training").click()
    assert becomes_true(lambda: clinic.training_states() == ["promoted", "stopped"]), (
        clinic.training_states()
    )
    viewer.wait_for("training", "Training: none")
    assert clinic.server.ask("GET", "/organnet/status").json()["served"]["version"] == version


@pytest.mark.campaign
def test_an_oblique_patient_with_reversed_axes_keeps_every_voxel(
    clinic: Clinic, viewer: Viewer
) -> None:
    require_voxels_kept(clinic, viewer, OBLIQUE)


@pytest.mark.campaign
def test_a_patient_whose_label_is_in_the_pacs_can_be_reviewed(
    clinic: Clinic, viewer: Viewer
) -> None:
    patient = ALREADY_LABELLED[0]
    assert becomes_true(lambda: bool(clinic.segmentations(patient))), clinic.status()
    viewer.open_study(clinic.study(patient), "monai-label")
    assert "/ohif/organnet?" in viewer.page.url, "addresses of earlier versions open the patient"
    assert "version 1 by" in viewer.wait_for("case", "This case has a label")
    viewer.load_label()
    first = clinic.submitted(patient)
    require_contours(viewer, first)
    viewer.choose_organ("Larynx")
    at = middle(first, LABELS["Larynx"])
    viewer.look_at(at, zoom=FILLING)
    ((x, y),) = viewer.canvas(AXIAL, at[None])
    viewer.paint(AXIAL, (x + 60, y), (x + 120, y))
    viewer.submit("kept as version 2")
    viewer.wait_for("case", "version 2 by ohif-")
    assert [version["number"] for version in clinic.history(patient)] == [1, 2]
    before, after = values(first), values(clinic.submitted(patient))
    assert set(after[before != after]) == {LABELS["Larynx"]}
    with viewer.page.expect_download() as download:
        viewer.page.get_by_role("button", name="Download RTSTRUCT").click()
    structures = pydicom.dcmread(download.value.path())
    assert {str(item.ROIName) for item in structures.StructureSetROISequence} == set(LABELS)
    viewer.page.get_by_role("button", name="Send RTSTRUCT to the PACS").click()
    viewer.wait_for("outcome", "The RTSTRUCT is in the PACS")


@pytest.mark.campaign
def test_late_deep_contours_are_not_shown_on_the_next_patient(
    clinic: Clinic, viewer: Viewer
) -> None:
    first, second = ALREADY_LABELLED[1:]
    viewer.open_list()
    viewer.open_from_list(first)
    viewer.page.locator("#organnet-deep").check()
    with viewer.page.expect_response(f"**/infer/{MODEL}?**", timeout=WAIT_MS) as answered:
        viewer.press_run()
        viewer.wait_for("progress", "Running: contouring")
        viewer.page.screenshot(path=clinic.pictures / "ohif-running.png")
        assert viewer.page.locator(".organnet-run").is_disabled()
        viewer.go_back_to_list()
        viewer.open_from_list(second)
        assert clinic.study(second) in viewer.page.url
    assert '"deep":true' in (answered.value.request.post_data or "")
    assert answered.value.ok
    viewer.page.get_by_text("of another scan than the one that is open").first.wait_for()
    assert set(viewer.voxels()) == {0}


@pytest.mark.campaign
def test_a_run_is_cancelled_on_the_server_too(clinic: Clinic, viewer: Viewer) -> None:
    viewer.open_study(clinic.study(OBLIQUE))
    viewer.page.locator("#organnet-deep").check()
    viewer.press_run()
    viewer.wait_for("progress", "Running: contouring")
    viewer.page.locator(".organnet-cancel").click()
    viewer.wait_for("progress", "Cancelled: the contours are unchanged")
    assert set(viewer.voxels()) == {0}

    def is_idle() -> bool:
        queue = clinic.server.ask("GET", "/organnet/inference").json()
        return bool(queue["computing"] == queue["waiting"] == 0)

    assert becomes_true(is_idle)
    viewer.page.locator("#organnet-deep").uncheck()
    viewer.run_model()


def gained(viewer: Viewer, organ: int, draw: Callable[[], object]) -> int:
    """Draw, and return how many voxels an organ gained; undo must reverse it, and redo repeat it."""
    before = viewer.voxels()
    draw()
    after = viewer.voxels()
    others = [{v: n for v, n in one.items() if v not in (0, organ)} for one in (before, after)]
    assert others[0] == others[1], "other organs are protected"
    viewer.press("Control+z")
    viewer.wait_for_voxels(before)
    viewer.press("Control+y")
    viewer.wait_for_voxels(after)
    return after[organ] - before[organ]


@pytest.fixture
def parotid(clinic: Clinic, viewer: Viewer) -> tuple[int, float, float]:
    """Choose an organ of a contoured patient; return its value, and the middle of the axial view."""
    viewer.open_study(clinic.study(LATER))
    viewer.run_model()
    viewer.choose_organ("Parotid_L")
    _, _, width, height = viewer.box(AXIAL)
    return LABELS["Parotid_L"], width / 2, height / 2


@pytest.mark.campaign
def test_contours_are_drawn_with_every_tool_and_undone(
    clinic: Clinic, viewer: Viewer, parotid: tuple[int, float, float]
) -> None:
    organ, x, y = parotid
    square = [(x, y), (x + 80, y), (x + 80, y + 80), (x, y + 80)]
    quadrangle = [(x, y - 120), (x + 90, y - 120), (x + 90, y - 50), (x, y - 50)]

    def erase() -> None:
        viewer.press("e")
        viewer.drag(AXIAL, [(x, y), (x + 60, y)])

    def draw_freehand() -> None:
        viewer.press("f")
        viewer.drag(AXIAL, [*square, (x, y + 2)])

    def draw_spline() -> None:
        viewer.press("s")
        viewer.click(AXIAL, [*quadrangle, quadrangle[0]])

    def click() -> None:
        before = viewer.voxels()
        viewer.press("p")
        viewer.click(AXIAL, [(x - 40, y + 60)])
        assert becomes_true(lambda: viewer.voxels() != before)

    assert gained(viewer, organ, click) > 0
    assert gained(viewer, organ, lambda: viewer.paint(AXIAL, (x, y), (x + 60, y))) > 0
    assert gained(viewer, organ, erase) < 0
    assert gained(viewer, organ, draw_freehand) > 0
    assert gained(viewer, organ, draw_spline) > 0
    viewer.page.screenshot(path=clinic.pictures / "ohif-contouring.png")
    viewer.press("?")
    viewer.page.get_by_role("dialog", name="Keys").wait_for()
    viewer.page.screenshot(path=clinic.pictures / "ohif-keys.png")


@pytest.mark.campaign
def test_slices_are_filled_copied_and_smoothed(
    viewer: Viewer, parotid: tuple[int, float, float]
) -> None:
    organ, x, y = parotid

    def paint() -> None:
        viewer.paint(AXIAL, (x, y), (x + 60, y))

    # A stroke far from the organ, and another one four slices further.
    for _ in range(20):
        viewer.press("ArrowUp")
    paint()
    for _ in range(4):
        viewer.press("ArrowUp")
    one = gained(viewer, organ, paint)
    assert gained(viewer, organ, lambda: viewer.press("i")) > 2 * one
    viewer.press("ArrowUp")
    before = viewer.voxels()[organ]
    viewer.press("c")
    viewer.press("x")
    assert viewer.voxels()[organ] == before + one, "one of the two neighbours has the stroke"
    assert gained(viewer, organ, lambda: viewer.press("g")) != 0


@pytest.mark.campaign
def test_unsubmitted_contours_survive_the_end_of_the_page(
    clinic: Clinic, viewer: Viewer, parotid: tuple[int, float, float]
) -> None:
    organ, x, y = parotid
    viewer.paint(AXIAL, (x, y), (x + 60, y))
    drawn = viewer.voxels()
    kept = """async () => (await import('/ohif/organnet/modules/drafts.mjs')).draftOf(
      window.services.segmentationService.getSegmentations()[0].segmentationId.slice('organnet-'.length)
    ).then(Boolean)"""
    assert becomes_true(lambda: bool(viewer.page.evaluate(kept)))
    viewer.open_study(clinic.study(LATER))
    assert set(viewer.voxels()) == {0}
    viewer.page.get_by_role("button", name="Restore").click()
    viewer.wait_for("outcome", "The contours are restored")
    assert viewer.voxels() == drawn
    assert drawn[organ] > 0


@pytest.mark.campaign
class TestRefusedSubmission:
    def test_is_reported_with_the_reason_and_not_counted(
        self, clinic: Clinic, viewer: Viewer
    ) -> None:
        before = clinic.counted()
        viewer.open_study(clinic.study(LATER))
        assert "no contours yet" in viewer.submit("Not submitted")
        # A value that no organ has.
        viewer.page.evaluate(
            """() => {
              const [segmentation] = window.services.segmentationService.getSegmentations();
              const [id] = segmentation.representationData.Labelmap.imageIds;
              window.cornerstone.cache.getImage(id).voxelManager.getScalarData()[0] = 99;
            }"""
        )
        message = viewer.submit("99")
        assert message.startswith("Not submitted")
        assert "kept as quarantine/" in message
        assert clinic.counted() == before
        assert clinic.history(LATER) == []
        assert clinic.segmentations(LATER) == []

    def test_is_not_discarded_without_a_question(self, clinic: Clinic, viewer: Viewer) -> None:
        viewer.open_list()
        viewer.open_from_list(LATER)
        viewer.run_model()
        viewer.choose_organ("Larynx")
        _, _, width, height = viewer.box(AXIAL)
        viewer.paint(AXIAL, (width / 2, height / 2), (width / 2 + 20, height / 2))
        viewer.confirms = False
        opened_at = viewer.page.url
        viewer.go_back_to_list()
        viewer.press_run()
        viewer.wait_for("outcome", "The model was not run")
        viewer.page.evaluate("history.back()")
        viewer.wait_for_drawing()
        viewer.page.close(run_before_unload=True)
        viewer.wait_for_drawing()
        assert len(viewer.asked) == 4
        assert viewer.page.url == opened_at
        viewer.confirms = True
        viewer.go_back_to_list()
        viewer.page.get_by_text("Study List").wait_for()
        assert len(viewer.asked) == 5

    def test_an_untouched_prediction_is_asked_about(self, clinic: Clinic, viewer: Viewer) -> None:
        viewer.open_study(clinic.study(LATER))
        viewer.run_model()
        viewer.confirms = False
        viewer.submit("Not submitted")
        assert viewer.asked == [
            "These are the model's contours without any change. Submit them as they are?"
        ]
        assert clinic.history(LATER) == []
        viewer.confirms = True
        viewer.submit("kept as version 1")
        (version,) = clinic.history(LATER)
        assert version["info"]["accepted_unchanged"] is True


@pytest.mark.campaign
def test_a_clinical_ct_keeps_every_voxel(clinic: Clinic, viewer: Viewer, shared_data: Path) -> None:
    clinic.admit("clinical", sorted((shared_data / "hn-ct-dicom").glob("*.dcm")))
    require_voxels_kept(clinic, viewer, "clinical")
    require_contours(viewer, clinic.submitted("clinical"), zoom=CLOSE)
