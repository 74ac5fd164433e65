"""What is cured in OHIF's bundle when it is served: one line each, replaced where it stands exactly once.

The bundle is MONAI Label 0.8.5's, which stays as it is on disk. Defects up to 26 are the server's, those after
it the viewer's own (docs/adr/0023). What the new lines call is in `viewer/`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

logger = logging.getLogger(__name__)

_PANEL = "3933.bundle.*.js"
_MODE = "2068.bundle.*.js"
_SEGMENTATION = "7197.bundle.*.js"
_STYLE = "app.bundle.css"
_PAGE = "index.html"
_CONFIG = "app-config.js"

OURS = ("hooks.js", "contours.js", "brushes.js", "panel.js")
"""Our scripts, in the order in which they are loaded."""

_SCRIPTS = "".join(f'<script src="/ohif/organnet/{name}"></script>' for name in OURS)
_FONTS = "https://fonts.googleapis.com"


@dataclass(frozen=True, slots=True)
class BundlePatch:
    """One replacement.

    Attributes:
        defect: Its number.
        file: Pattern of the file's name.
        old: What is replaced.
        new: What takes its place.
    """

    defect: int
    file: str
    old: str
    new: str


CURES: tuple[BundlePatch, ...] = (
    # 25: the command is called without the data source that it stores to, and fails.
    BundlePatch(
        25,
        _SEGMENTATION,
        "await dataSource.store.dicom(naturalizedReport);",
        "return window.organnet.store(naturalizedReport, segmentationId, { extensionManager });",
    ),
    # 39: connecting again, as when the panel is folded and unfolded, drops what was drawn.
    BundlePatch(
        39,
        _PANEL,
        "const volumeLoadObject = dist_esm.cache.getVolume('1');",
        "const volumeLoadObject = window.organnet.seriesOfLabelmap();",
    ),
    # 38: frames are made from the last slice to the first, of contours that run from the first to the last.
    BundlePatch(
        38,
        _SEGMENTATION,
        "const segImages = imageIds.map(imageId => esm.cache.getImage(imageId));",
        "const segImages = window.organnet.lastFirst("
        "imageIds.map(imageId => esm.cache.getImage(imageId)), esm.metaData);",
    ),
    # 27: the server is looked for on port 8000, or where a cookie says that any other port's server was.
    BundlePatch(
        27,
        _PANEL,
        "const _url = CookieUtils.getCookieString('MONAILABEL_SERVER_URL', "
        "'http://' + window.location.host.split(':')[0] + ':8000/');",
        "const _url = window.location.origin + '/';",
    ),
    BundlePatch(
        27,
        _PANEL,
        "this.serverURI = 'http://127.0.0.1:8000';",
        "this.serverURI = window.location.origin + '/';",
    ),
    # 28: nothing is there until somebody finds the small button; then labels as the server has them fail.
    BundlePatch(28, _PANEL, "// await this.onInfo();", "window.organnet.connect(this);"),
    BundlePatch(
        28,
        _PANEL,
        "const all_labels = response.data.labels;",
        "const all_labels = Object.keys(response.data.labels);",
    ),
    # 29: tabs tell what they do to services of their own, which show nothing.
    BundlePatch(
        29,
        _PANEL,
        "this.notification = new src/* UINotificationService */.v4();",
        "this.notification = window.organnet.services().uiNotificationService;",
    ),
    BundlePatch(
        29,
        _PANEL,
        "this.uiModelService = new src/* UIModalService */.zo();",
        "this.uiModelService = window.organnet.services().uiModalService;",
    ),
    # 30: whichever strategy is chosen, `random` is asked.
    BundlePatch(
        30,
        _PANEL,
        "onChange: this.onChangeStrategy,",
        "onChange: evt => this.setState({ strategy: evt.target.value }),",
    ),
    BundlePatch(
        30, _PANEL, "strategy: 'random',", "strategy: Object.keys(props.info.data.strategies)[0],"
    ),
    # 31: who asks is not said, no sample looks like one, the reason is not shown, the address is cut wrongly.
    BundlePatch(
        31,
        _PANEL,
        "const response = await this.props.client().next_sample(strategy, params);",
        "const response = window.organnet.sample(await this.props.client().next_sample("
        "strategy, { ...params, client_id: window.organnet.clientId() }));",
    ),
    BundlePatch(
        31, _PANEL, "PatientID: 'Patient ID',", "PatientID: 'Patient ID', why: 'Why this one',"
    ),
    BundlePatch(
        31,
        _PANEL,
        "const pathname = path.join('=');",
        "const pathname = window.organnet.addressOf(this.props.info);",
    ),
    BundlePatch(
        31,
        _PANEL,
        "params.restore_label_idx = false;",
        "params.restore_label_idx = false; params.client_id = window.organnet.clientId(); "
        "if (!(await window.organnet.layOn(image))) return { status: 0, data: { detail: 'Nothing was run' } };",
    ),
    # 32: what fails, fails without a reason.
    *(
        BundlePatch(
            32, _PANEL, f"message: {said},", f"message: window.organnet.reason(response, {said}),"
        )
        for said in (
            "'Failed to Run Segmentation'",
            "'Failed to Fetch Next Sample'",
            "'Failed to ' + (training ? 'STOP' : 'RUN') + ' training'",
        )
    ),
    # 33: organs have colours of chance.
    BundlePatch(
        33,
        _PANEL,
        "const color = getLabelColor(label);",
        "const color = window.organnet.colour(label) || getLabelColor(label);",
    ),
    # 34: the mode has no tool to correct a contour with.
    BundlePatch(
        34,
        _MODE,
        "// toolbarService.addButtons(segmentationButtons);",
        "toolbarService.addButtons(window.organnet.brushes);",
    ),
    BundlePatch(
        34,
        _MODE,
        "leftPanels: [ohif.leftPanel],",
        "leftPanels: [cornerstone.panelTool, ohif.leftPanel],",
    ),
    # 35: how the training stands is shown as it was when the panel connected.
    BundlePatch(
        35,
        _PANEL,
        "/*#__PURE__*/react.createElement(SettingsTable, {",
        '/*#__PURE__*/react.createElement("div", { ref: window.organnet.mount }), '
        "/*#__PURE__*/react.createElement(SettingsTable, {",
    ),
    BundlePatch(35, _PANEL, "'logs/?lines=100',", "'organnet/status',"),
    BundlePatch(35, _PANEL, '}, "Logs")))));', '}, "Status")))));'),
    # 36: fonts come from another site, which learns who looks at patients when.
    BundlePatch(
        36, _STYLE, f"@import url({_FONTS}/css2?family=Inter:wght@100..900&display=swap);", ""
    ),
    BundlePatch(
        36, _STYLE, f"@import url({_FONTS}/css?family=Inter:100,300,400,500,700&display=swap);", ""
    ),
    BundlePatch(
        36,
        _PAGE,
        '<link rel="preconnect" href="https://fonts.gstatic.com" crossorigin/>'
        f'<link href="{_FONTS}/css?family=Inter:100,300,400,500,700&display=swap" '
        'rel="stylesheet" rel="preload" as="style"/>',
        f'<link href="/ohif/organnet/viewer.css" rel="stylesheet"/>{_SCRIPTS}',
    ),
    # 37: series are offered for rejection, which is dcm4chee's own, and nothing is deleted from here.
    BundlePatch(37, _CONFIG, "supportsReject: true,", "supportsReject: false,"),
)


def cured(name: str, text: str, cures: Sequence[BundlePatch] = CURES) -> str:
    """Return a file of the bundle with its cures; where one does not fit, without it and with a warning."""
    for cure in cures:
        if not fnmatchcase(name, cure.file):
            continue
        found = text.count(cure.old)
        if found == 1:
            text = text.replace(cure.old, cure.new)
        else:
            logger.warning(
                "%s: the cure of defect %d fits %d times, not once: another bundle than MONAI Label 0.8.5's? "
                "It is served without that cure",
                name,
                cure.defect,
                found,
            )
    return text


def is_cured(name: str) -> bool:
    """Return whether a file of the bundle has cures."""
    return any(fnmatchcase(name, cure.file) for cure in CURES)
