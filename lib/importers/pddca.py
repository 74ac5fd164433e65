"""A folder a case, with the CT and one mask per organ: PDDCA 1.4.1 and what looks like it.

PDDCA has `0522cNNNN/img.nrrd` with `structures/BrainStem.nrrd`, ...; the TCIA expert masks and
TotalSegmentator's training set have `ct.*` with `segmentations/`.
"""

from functools import partial
from pathlib import Path

from lib.errors import LabelError
from lib.imaging.quantities import MaskArray
from lib.imaging.scans import read_ct, read_label
from lib.importers.cases import Drawing, SourceCase
from lib.importers.folders import ct_file, scan_files, stem
from lib.importers.names import OrganNames

SOURCE = "pddca"
_FOLDERS = ("structures", "segmentations")


def cases_in(folder: Path) -> list[SourceCase]:
    """Return the case that `folder` is, in a list, which is empty if it is none."""
    ct = ct_file(folder)
    inner = next((folder / name for name in _FOLDERS if (folder / name).is_dir()), None)
    if ct is None or inner is None:
        return []
    masks = scan_files(inner)
    case_id = folder.absolute().name
    return [
        SourceCase(
            source=SOURCE,
            case_id=case_id,
            place=folder,
            inputs=[ct, *masks],
            read=partial(_read, ct, masks, case_id) if masks else None,
        )
    ]


def _read(ct_path: Path, files: list[Path], case_id: str, names: OrganNames) -> Drawing:
    ct = read_ct(ct_path, image_id=case_id)
    by_name = {stem(path): path for path in files}
    if len(by_name) < len(files):
        raise LabelError(f"{case_id}: two mask files have one name; keep one of each")
    naming = names.sort(list(by_name), case_id)
    masks: dict[str, MaskArray] = {}
    notes = []
    for name, organ in naming.organs.items():
        array, _ = read_label(by_name[name], image_id=case_id, image_grid=ct.grid)
        if len(set(array[array > 0].tolist())) > 1:
            raise LabelError(
                f"{case_id}: {by_name[name].name} holds several values; a mask of one organ expected"
            )
        if array.any():
            masks[organ] = array > 0
        else:
            notes.append(f"{by_name[name].name} is empty")
    return Drawing(ct=ct, masks=masks, naming=naming, notes=notes)
