"""OHIF in a browser, and what a person does in it."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib.image
import numpy as np
from playwright.sync_api import Dialog, Page, Request, sync_playwright

from lib.imaging.quantities import FloatArray
from tests.pacs.orthancs import require_program

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
WAIT_MS = 300_000
AXIAL, SAGITTAL, CORONAL = "mpr-axial", "mpr-sagittal", "mpr-coronal"
_VIEW = "window.organnet.services().cornerstoneViewportService.getCornerstoneViewport(id)"


@dataclass
class Viewer:
    """A browser's page with OHIF in it.

    Attributes:
        page: The page.
        url: Of the server.
        foreign: Addresses of other servers that it asked for.
        errors: What its scripts did not catch.
        asked: What it asked a person to confirm.
        confirms: What that person answers.
    """

    page: Page
    url: str
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    confirms: bool = True

    def watch(self) -> None:
        """Keep what the page does from now on."""
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
        self.page.locator("tbody tr").first.wait_for()
        button = self.page.get_by_text("Confirm and Hide")
        if button.is_visible():
            button.click()
        rows = self.page.locator("[data-cy^='studyRow-']").all()
        return [(row.inner_text().split() or [""])[0] for row in rows]

    def open_from_list(self, patient: str) -> None:
        """Open a patient from the list in MONAI Label's mode, as a person does."""
        self.page.get_by_text(patient, exact=True).first.click()
        self.page.get_by_role("button", name="MONAI Label").first.click()
        self.wait_until_connected()

    def open_study(self, uid: str) -> None:
        """Open a study by its address."""
        self.page.goto(f"{self.url}/ohif/monai-label?StudyInstanceUIDs={uid}")
        self.wait_until_connected()

    def wait_until_connected(self) -> None:
        """Return when the panel has the server's model and the viewports have their image."""
        self.page.locator(".modelSelector select").first.wait_for(timeout=WAIT_MS)
        wait = f"""() => {{
          const ready = id => {_VIEW}?.getImageData?.();
          return ['{AXIAL}', '{SAGITTAL}', '{CORONAL}'].every(ready)
            && window.organnet.services().segmentationService.getLabelmapVolume('1');
        }}"""
        self.page.wait_for_function(wait, timeout=WAIT_MS)

    def go_back_to_list(self) -> None:
        """Press OHIF's way back to the list of studies."""
        self.page.locator("[data-cy='return-to-work-list']").click()

    def press_run(self) -> None:
        """Press Run."""
        self.page.locator(".modelSelector button:has-text('Run')").first.click()

    def run_model(self) -> None:
        """Press Run and wait for the contours."""
        self.press_run()
        self.page.get_by_text("Running Segmentation - Successful").wait_for(timeout=WAIT_MS)
        self.settle()

    def settle(self) -> None:
        """Let the browser draw."""
        self.page.wait_for_timeout(1500)

    def submit(self, expected: str) -> str:
        """Press Submit, and return what the panel says when it says what is expected."""
        self.page.get_by_role("button", name="Submit label").click()
        return self.wait_for("outcome", expected)

    def load_label(self) -> None:
        """Press the button that lays the submitted label over the CT."""
        self.page.get_by_role("button", name="Load submitted label").click()
        self.wait_for("outcome", "The submitted label is loaded")
        self.settle()

    def wait_for(self, line: str, expected: str) -> str:
        """Return a line of our box once it holds a text."""
        found = self.page.locator(f".organnet-{line}", has_text=expected)
        found.wait_for(timeout=WAIT_MS)
        return found.inner_text()

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
        self.settle()

    def canvas(self, viewport: str, world_lps_mm: FloatArray) -> FloatArray:
        """Return where points `(N, 3)` lie in a viewport, `(N, 2)` in pixels."""
        asked = [viewport, world_lps_mm.tolist()]
        script = f"([id, all]) => {{ const v = {_VIEW}; return all.map(at => [...v.worldToCanvas(at)]); }}"
        return np.asarray(self.page.evaluate(script, asked), float)

    def world(self, viewport: str, at: Sequence[float]) -> list[float]:
        """Return the point of the patient that is drawn at a place of a viewport."""
        script = f"([id, at]) => [...{_VIEW}.canvasToWorld(at)]"
        payload: list[float] = self.page.evaluate(script, [viewport, list(at)])
        return payload

    def box(self, viewport: str) -> Any:
        """Return where a viewport lies on the page."""
        script = f"id => {_VIEW}.element.getBoundingClientRect().toJSON()"
        found = self.page.evaluate(script, viewport)
        return [found[name] for name in ("x", "y", "width", "height")]

    def picture(self, viewport: str) -> FloatArray:
        """Return a screenshot of a viewport, `(height, width, 3)` from 0 to 1."""
        x, y, width, height = self.box(viewport)
        clip = {"x": x, "y": y, "width": width, "height": height}
        taken = self.page.screenshot(clip=clip)  # type: ignore[arg-type]
        return np.asarray(matplotlib.image.imread(io.BytesIO(taken)), float)[..., :3]

    def choose_segment(self, name: str) -> None:
        """Choose the organ that the next stroke belongs to."""
        self.page.get_by_text(name, exact=True).first.click()

    def paint(self, viewport: str, start: Sequence[float], stop: Sequence[float]) -> None:
        """Draw a stroke with the brush, from one place of a viewport to another."""
        self.page.locator("[data-cy='Brush']").click()
        self.page.wait_for_timeout(300)
        x, y, *_ = self.box(viewport)
        self.page.mouse.move(x + start[0], y + start[1])
        self.page.mouse.down()
        self.page.mouse.move(x + stop[0], y + stop[1], steps=12)
        self.page.mouse.up()
        self.page.mouse.move(x + 5, y + 5)
        self.settle()

    def choose_option(self, model: str, name: str) -> None:
        """Tick an option of a model in the panel's dialog."""
        self.page.get_by_text("Options / Configurations").click()
        self.page.locator(f"[id='infer{model}{name}']").check()
        self.page.get_by_role("button", name="Confirm", exact=True).click()

    def open_active_learning(self) -> None:
        """Open the tab with the next sample and the training."""
        self.page.locator("label[for='tab-1']").click()
        self.page.get_by_role("button", name="Next Sample").wait_for()


@contextmanager
def browsing(url: str) -> Iterator[Viewer]:
    """Yield a viewer in a browser of its own."""
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
