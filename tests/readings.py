"""Labels of several readers, as database rows and files; each volume contains a word instead of voxels."""

import gzip
from pathlib import Path
from typing import Any

from lib.labels.history import LabelHistory, Provenance
from lib.storage.tables import LabelVersion


def add_reading(
    history: LabelHistory,
    image_id: str,
    reader: str,
    content: str,
    *,
    source: str = "client",
    client: str = "",
    info: dict[str, Any] | None = None,
) -> LabelVersion:
    """Submit a final label, and return its version."""
    file = Path(history.folder).parent / "sent.nii.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content.encode(), mtime=0))
    about = Provenance(source=source, author=reader, client=client, info=info or {})
    return history.add(image_id, "final", file, about)
