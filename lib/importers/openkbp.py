"""The OpenKBP challenge as volumes: `pt_N/ct.nii.gz` with `pt_N/label.nii.gz`.

The values of its organs are those of the organ set `openkbp` (Babier et al. 2021).
"""

import re
from functools import partial
from pathlib import Path

from lib.importers.cases import SourceCase
from lib.importers.folders import ct_file, label_file
from lib.importers.nifti_pairs import meaning_file, read_pair
from lib.organs.table import organ_set

SOURCE = "openkbp"
VALUES = {value: name for name, value in organ_set("openkbp").items()}


def cases_in(folder: Path) -> list[SourceCase]:
    """Return the case that `folder` is, in a list, which is empty if it is none."""
    ct, label = ct_file(folder), label_file(folder)
    case_id = folder.absolute().name
    if ct is None or not re.fullmatch(r"pt_\d+", case_id) or meaning_file(folder):
        return []
    return [
        SourceCase(
            source=SOURCE,
            case_id=case_id,
            place=folder,
            inputs=[ct] if label is None else [ct, label],
            read=None if label is None else partial(read_pair, ct, label, VALUES, case_id),
        )
    ]
