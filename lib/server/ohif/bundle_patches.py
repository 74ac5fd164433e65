"""Patches of OHIF's bundle (`bundle_patches.yaml`): single lines that are replaced when a file is sent."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BundlePatch:
    """Replacement of the text `old` by `new` in the files whose name fits the pattern `file`."""

    defect: int
    file: str
    old: str
    new: str


PATCHES = tuple(
    BundlePatch(**patch)
    for patch in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
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
