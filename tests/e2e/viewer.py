"""OHIF in a browser, controlled as a user does."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib.image
import numpy as np
from playwright.sync_api import Dialog, Page, Request, sync_playwright

from lib.imaging.quantities import FloatArray
from tests.pacs.orthancs import require_program
from tests.waiting import LIMIT_S

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
WINDOW = {"width": 1500, "height": 900}
WAIT_MS = LIMIT_S * 1000
AXIAL, SAGITTAL, CORONAL = "organnet-axial", "organnet-sagittal", "organnet-coronal"
_VIEW = "window.services.cornerstoneViewportService.getCornerstoneViewport(id)"
_VOXELS = """() => {
  const [segmentation] = window.services.segmentationService.getSegmentations();
  const counts = {};
  for (const id of segmentation?.representationData.Labelmap.imageIds ?? []) {
    for (const value of window.cornerstone.cache.getImage(id).voxelManager.getScalarData()) {
      counts[value] = (counts[value] ?? 0) + 1;
    }
  }
  return counts;
}"""


@dataclass
class Viewer:
    """A browser page with OHIF.

    Attributes:
        page: The page.
        url: URL of the server.
        foreign: Addresses of other servers that the page requested.
        errors: Uncaught errors of its scripts.
        asked: The confirmation questions that the page showed.
        confirms: The answer to those questions.
    """

    page: Page
    url: str
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    confirms: bool = True

    def watch(self) -> None:
        """Start recording requests, errors and questions of the page."""
        self.page.on("request", self._keep_foreign)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._confirm)

    def _keep_foreign(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.foreign.append(request.url)

    def _confirm(self, dialog: Dialog) -> None:
        self.asked.append(dialog.message)
        if self.confirms:
            dialog.accept()
        else:
            dialog.dismiss()

    def open_list(self) -> list[str]:
        """Open the list of studies, and return the names in it."""
        self.page.goto(f"{self.url}/ohif/")
        self.page.get_by_text("Study List").wait_for()
        rows = self.page.locator("tbody tr:not([data-filter-row])", has_text=re.compile(r"\w"))
        rows.first.wait_for()
        self._hide_notice()
        return [(row.inner_text().split() or [""])[0] for row in rows.all()]

    def _hide_notice(self) -> None:
        button = self.page.get_by_text("Confirm and hide")
        if button.is_visible():
            button.click()

    def open_from_list(self, patient: str) -> None:
        """Open a patient from the list in the mode for contouring, as a user does."""
        self.page.get_by_text(patient, exact=True).first.click()
        self.page.get_by_role("button", name="OrganNet Label").click()
        self.wait_until_connected()

    def open_study(self, uid: str, mode: str = "organnet") -> None:
        """Open a study by its address."""
        self.page.goto(f"{self.url}/ohif/{mode}?StudyInstanceUIDs={uid}")
        self.wait_until_connected()

    def wait_until_connected(self) -> None:
        """Wait until the panel has the server's model and the case, and the viewports have their images."""
        self.page.locator(".organnet-organs li.organnet-active").wait_for(timeout=WAIT_MS)
        self.page.locator(".organnet-run:enabled").wait_for(timeout=WAIT_MS)
        wait = f"""() => {{
          const ready = id => {_VIEW}?.getImageData?.();
          return ['{AXIAL}', '{SAGITTAL}', '{CORONAL}'].every(ready);
        }}"""
        self.page.wait_for_function(wait, timeout=WAIT_MS)
        self._hide_notice()

    def go_back_to_list(self) -> None:
        """Go back to the list of studies with OHIF's own link."""
        self.page.locator("[data-cy='return-to-work-list']").click()

    def press_run(self) -> None:
        """Press Run."""
        self.page.locator(".organnet-run").click()

    def run_model(self) -> None:
        """Press Run and wait for the contours."""
        self.press_run()
        self.wait_for("progress", "The model's contours are shown")
        self.wait_for_drawing()

    def voxels(self) -> dict[int, int]:
        """Return how many voxels of the contours have each value."""
        counted = self.page.evaluate(_VOXELS)
        return {int(value): int(count) for value, count in counted.items()}

    def wait_for_voxels(self, expected: dict[int, int]) -> None:
        """Wait until the contours have these numbers of voxels."""
        script = f"expected => JSON.stringify(({_VOXELS})()) === expected"
        text = json.dumps({str(k): expected[k] for k in sorted(expected)}, separators=(",", ":"))
        self.page.wait_for_function(script, arg=text, timeout=WAIT_MS)

    def press(self, key: str) -> None:
        """Press a key over the axial view."""
        x, y, width, _ = self.box(AXIAL)
        self.page.mouse.move(x + width / 2, y + 10)
        self.page.keyboard.press(key)
        self.page.wait_for_timeout(300)

    def wait_for_drawing(self) -> None:
        """Give the browser time to draw."""
        self.page.wait_for_timeout(1500)

    def submit(self, expected: str) -> str:
        """Press Submit, wait until the panel shows the expected text, and return the panel's message."""
        self.page.get_by_role("button", name="Submit label").click()
        return self.wait_for("outcome", expected)

    def load_label(self) -> None:
        """Press the button that shows the submitted label over the CT."""
        self.page.get_by_role("button", name="Load submitted label").click()
        self.wait_for("outcome", "The submitted label is loaded")
        self.wait_for_drawing()

    def wait_for(self, line: str, expected: str) -> str:
        """Wait until a line of the OrganNet box contains a text, and return the line."""
        element = self.page.locator(f".organnet-{line}", has_text=expected)
        element.wait_for(timeout=WAIT_MS)
        return element.inner_text()

    def look_at(self, world_lps_mm: FloatArray, *, zoom: float) -> None:
        """Bring a point into the middle of all three viewports."""
        script = f"""([id, at, zoom]) => {{
          const v = {_VIEW};
          v.setZoom(zoom);
          v.jumpToWorld(at);
          const {{ focalPoint, position }} = v.getCamera();
          const moved = position.map((value, axis) => value + at[axis] - focalPoint[axis]);
          v.setCamera({{ focalPoint: at, position: moved }});
          v.render();
        }}"""
        for id_ in (AXIAL, SAGITTAL, CORONAL):
            self.page.evaluate(script, [id_, world_lps_mm.tolist(), zoom])
        self.wait_for_drawing()

    def canvas(self, viewport: str, world_lps_mm: FloatArray) -> FloatArray:
        """Return the positions of points `(N, 3)` in a viewport, `(N, 2)` in pixels."""
        asked = [viewport, world_lps_mm.tolist()]
        script = f"([id, all]) => {{ const v = {_VIEW}; return all.map(at => [...v.worldToCanvas(at)]); }}"
        return np.asarray(self.page.evaluate(script, asked), float)

    def world(self, viewport: str, at: Sequence[float]) -> list[float]:
        """Return the point of the patient at a position of a viewport."""
        script = f"([id, at]) => [...{_VIEW}.canvasToWorld(at)]"
        payload: list[float] = self.page.evaluate(script, [viewport, list(at)])
        return payload

    def box(self, viewport: str) -> Any:
        """Return the rectangle of a viewport on the page."""
        script = f"id => {_VIEW}.element.getBoundingClientRect().toJSON()"
        element = self.page.evaluate(script, viewport)
        return [element[name] for name in ("x", "y", "width", "height")]

    def picture(self, viewport: str) -> FloatArray:
        """Return a screenshot of a viewport, `(height, width, 3)` from 0 to 1."""
        x, y, width, height = self.box(viewport)
        clip = {"x": x, "y": y, "width": width, "height": height}
        taken = self.page.screenshot(clip=clip)  # type: ignore[arg-type]
        return np.asarray(matplotlib.image.imread(io.BytesIO(taken)), float)[..., :3]

    def choose_organ(self, name: str) -> None:
        """Choose the organ of the next stroke; the views go to its middle."""
        self.page.locator(f"[data-organ='{name}'] .organnet-organ").click()
        self.wait_for_drawing()

    def paint(self, viewport: str, start: Sequence[float], stop: Sequence[float]) -> None:
        """Draw a stroke with the brush between two positions of a viewport."""
        self.press("b")
        self.drag(viewport, [start, stop])

    def drag(self, viewport: str, positions: Sequence[Sequence[float]]) -> None:
        """Draw from position to position of a viewport with the mouse button pressed."""
        x, y, *_ = self.box(viewport)
        first, *others = positions
        self.page.mouse.move(x + first[0], y + first[1])
        self.page.mouse.down()
        for position in others:
            self.page.mouse.move(x + position[0], y + position[1], steps=12)
        self.page.mouse.up()
        self.page.mouse.move(x + 5, y + 5)
        self.wait_for_drawing()

    def click(self, viewport: str, positions: Sequence[Sequence[float]]) -> None:
        """Click at positions of a viewport, not so fast that two are a double click."""
        x, y, *_ = self.box(viewport)
        for position in positions:
            self.page.mouse.click(x + position[0], y + position[1])
            self.page.wait_for_timeout(400)
        self.wait_for_drawing()


@contextmanager
def browsing(url: str) -> Iterator[Viewer]:
    """Yield a viewer in its own browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require_program("chromium", "chromium"), args=FLAGS
        )
        context = browser.new_context(viewport=WINDOW)  # type: ignore[arg-type]
        context.set_default_timeout(60_000)
        viewer = Viewer(context.new_page(), url)
        viewer.watch()
        try:
            yield viewer
        finally:
            browser.close()
