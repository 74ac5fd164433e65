"""Files of a folder, by what their names say."""

from pathlib import Path

from lib.imaging.formats import SCAN_SUFFIXES

CT_STEMS = ("ct", "img", "image")
LABEL_STEMS = ("label", "labels", "seg", "segmentation")


def scan_files(folder: Path) -> list[Path]:
    """Return the volumes that lie directly in `folder`, sorted."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.name.lower().endswith(SCAN_SUFFIXES) and not p.name.startswith(".") and p.is_file()
    )


def stem(path: Path) -> str:
    """Return a volume's name without its suffix."""
    suffix = next((s for s in SCAN_SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)]


def ct_file(folder: Path) -> Path | None:
    """Return the one volume that is called as the CT of a case folder."""
    return _only(folder, CT_STEMS)


def label_file(folder: Path) -> Path | None:
    """Return the one volume that is called as the label of a case folder."""
    return _only(folder, LABEL_STEMS)


def _only(folder: Path, stems: tuple[str, ...]) -> Path | None:
    found = [p for p in scan_files(folder) if stem(p).lower() in stems]
    return found[0] if len(found) == 1 else None
