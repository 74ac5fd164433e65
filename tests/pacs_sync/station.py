"""A store over a PACS without its server, for tests of errors in the exchange between the two."""

from pathlib import Path

import numpy as np

from lib.datastores.dicomweb import DicomWebStore
from lib.imaging.scans import read_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.labels.history import FINAL, PACS, LabelHistory
from lib.labels.quarantine import Quarantine
from lib.labels.submission import StoreDependencies
from lib.organs.table import ORGAN_SETS
from lib.pacs.client import Pacs
from lib.pacs_sync.sync import PacsSync
from lib.storage.database import FILE, Database
from lib.storage.tables import LabelVersion

LABELS = ORGAN_SETS["openkbp"]


class Station:
    """Store and background exchange of a server over a PACS.

    Args:
        folder: State of the server; a second station over the same folder is the restarted server.
        url: Address of the PACS.
        limit_gib: Size limit of the cached scans, in GiB.
        login: Name and password.
    """

    def __init__(
        self, folder: Path, url: str, *, limit_gib: float = 1.0, login: tuple[str, str] = ("", "")
    ) -> None:
        self.folder = folder
        self.database = Database(folder / FILE)
        self.history = LabelHistory(self.database, folder)
        self.pacs = Pacs(url, user=login[0], password=login[1])
        self.quarantine = Quarantine(folder)
        self.submitted: list[LabelVersion] = []
        parts = StoreDependencies(
            labels=LABELS,
            history=self.history,
            quarantine=self.quarantine,
            active_model=lambda: "organnet25d-tiny-00000000",
            on_submitted=self.submitted.append,
        )
        self.store = DicomWebStore(
            folder / "pacs", parts, self.pacs, self.database, limit_gib=limit_gib
        )
        self.pacs_sync = PacsSync(
            self.store,
            self.pacs,
            self.database,
            folder,
            may_be_sent=lambda _: True,
            wanted=self.store.list_images,
        )

    @property
    def imported(self) -> list[LabelVersion]:
        """The versions that were made from objects in the PACS."""
        return [version for version in self.submitted if version.source == PACS]

    def look(self) -> "Station":
        """Request the lists of the PACS until all new series and objects are processed; return self."""
        self.pacs_sync.next_list_at = 0.0
        while self.pacs_sync.look():
            pass
        return self

    def send(self) -> list[str]:
        """Send all waiting labels now; return the errors of those that did not arrive."""
        self.pacs_sync.deliveries.retry_now()
        self.pacs_sync.outbox.run()
        return [row.error for row in self.pacs_sync.deliveries.waiting()]

    def submit(
        self, image_id: str, author: str = "ada", *, values: tuple[int, ...] = (1, 3)
    ) -> LabelVersion:
        """Submit a label with a block for each of `values`, and return its version."""
        ct = read_ct(self.store.require_image(image_id))
        array = np.zeros(ct.grid.shape_vox, np.uint8)
        for number, value in enumerate(values):
            array[2 + 4 * number : 5 + 4 * number, 4:9, 2:8] = value
        file = self.folder / "sent.nii.gz"
        write_label(file, LabelVolume(array, ct.grid, LABELS))
        return self.store.submissions.submit(image_id, FINAL, file, {"author": author})

    def objects(self, modality: str = "SEG") -> list[str]:
        """Return the SOPInstanceUIDs that the PACS has of a modality."""
        return [str(item.SOPInstanceUID) for item in self.pacs.instances(Modality=modality)]
