"""Patches of OHIF's bundle: single lines that are replaced when a file is sent, where each occurs exactly once.

The bundle is that of MONAI Label 0.8.5 and stays unchanged on disk. Defects above 26 are those of the viewer
(docs/adr/0023). The functions that the new lines call are in `viewer/`.
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

SCRIPTS = ("hooks.js", "contours.js", "brushes.js", "panel.js")
"""Scripts in `viewer/`, in loading order."""

_SCRIPT_TAGS = "".join(f'<script src="/ohif/organnet/{name}"></script>' for name in SCRIPTS)
_FONTS = "https://fonts.googleapis.com"


@dataclass(frozen=True, slots=True)
class BundlePatch:
    """One replacement.

    Attributes:
        defect: Number of the defect.
        file: Pattern of the file name.
        old: The text to replace.
        new: Its replacement.
    """

    defect: int
    file: str
    old: str
    new: str


PATCHES: tuple[BundlePatch, ...] = (
    # 25: OHIF calls its store command without a data source, so that it fails.
    BundlePatch(
        25,
        _SEGMENTATION,
        "await dataSource.store.dicom(naturalizedReport);",
        "return window.organnet.store(naturalizedReport, segmentationId, { extensionManager });",
    ),
    # 39: opening the folded panel connects again, which would delete the contours.
    BundlePatch(
        39,
        _PANEL,
        "const volumeLoadObject = dist_esm.cache.getVolume('1');",
        "const volumeLoadObject = window.organnet.seriesOfLabelmap();",
    ),
    # 38: dcmjs makes frames from the last slice to the first, but gets the slices in the opposite order.
    BundlePatch(
        38,
        _SEGMENTATION,
        "const segImages = imageIds.map(imageId => esm.cache.getImage(imageId));",
        "const segImages = window.organnet.sortLastFirst("
        "imageIds.map(imageId => esm.cache.getImage(imageId)), esm.metaData);",
    ),
    # 27: the panel expects the server on port 8000, or at an address in a cookie that all ports share.
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
    # 28: the panel is empty until the user presses a small button; it then fails on labels with values.
    BundlePatch(28, _PANEL, "// await this.onInfo();", "window.organnet.connect(this);"),
    BundlePatch(
        28,
        _PANEL,
        "const all_labels = response.data.labels;",
        "const all_labels = Object.keys(response.data.labels);",
    ),
    # 29: the panel's tabs send messages to service objects of their own, which are never shown.
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
    # 30: the panel always uses the strategy `random`, whichever is selected.
    BundlePatch(
        30,
        _PANEL,
        "onChange: this.onChangeStrategy,",
        "onChange: evt => this.setState({ strategy: evt.target.value }),",
    ),
    BundlePatch(
        30, _PANEL, "strategy: 'random',", "strategy: Object.keys(props.info.data.strategies)[0],"
    ),
    # 31: no client id is sent, "no case left" is not recognised, the reason for a case is not shown, and the
    # address of the next case is wrong.
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
        "if (!(await window.organnet.prepareLabelmap(image))) "
        "return { status: 0, data: { detail: 'The model was not run' } };",
    ),
    # 32: error messages do not give the reason.
    *(
        BundlePatch(
            32,
            _PANEL,
            f"message: {message},",
            f"message: window.organnet.reason(response, {message}),",
        )
        for message in (
            "'Failed to Run Segmentation'",
            "'Failed to Fetch Next Sample'",
            "'Failed to ' + (training ? 'STOP' : 'RUN') + ' training'",
        )
    ),
    # 33: organs have random colours.
    BundlePatch(
        33,
        _PANEL,
        "const color = getLabelColor(label);",
        "const color = window.organnet.colour(label) || getLabelColor(label);",
    ),
    # 34: the mode has no tool for correcting contours.
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
    # 35: the status of the training is not updated after the panel has connected.
    BundlePatch(
        35,
        _PANEL,
        "/*#__PURE__*/react.createElement(SettingsTable, {",
        '/*#__PURE__*/react.createElement("div", { ref: window.organnet.mount }), '
        "/*#__PURE__*/react.createElement(SettingsTable, {",
    ),
    BundlePatch(35, _PANEL, "'logs/?lines=100',", "'organnet/status',"),
    BundlePatch(35, _PANEL, '}, "Logs")))));', '}, "Status")))));'),
    # 36: fonts are loaded from another site, which learns who looks at patients, and when.
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
        f'<link href="/ohif/organnet/viewer.css" rel="stylesheet"/>{_SCRIPT_TAGS}',
    ),
    # 37: the viewer offers to reject series, a function of dcm4chee; this server deletes nothing.
    BundlePatch(37, _CONFIG, "supportsReject: true,", "supportsReject: false,"),
)


def patched(name: str, text: str, patches: Sequence[BundlePatch] = PATCHES) -> str:
    """Return the patched text of a file; a patch that does not match once is left out with a warning."""
    for patch in patches:
        if not fnmatchcase(name, patch.file):
            continue
        count = text.count(patch.old)
        if count == 1:
            text = text.replace(patch.old, patch.new)
        else:
            logger.warning(
                "%s: the patch of defect %d matches %d times instead of once, so it is left out; is this the "
                "bundle of MONAI Label 0.8.5?",
                name,
                patch.defect,
                count,
            )
    return text


def is_patched(name: str) -> bool:
    """Return whether there are patches for a file of the bundle."""
    return any(fnmatchcase(name, patch.file) for patch in PATCHES)
