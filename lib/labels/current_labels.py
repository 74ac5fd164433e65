"""The newest visible version of each label, kept in memory."""

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from sqlalchemy import select

from lib.storage.database import Database
from lib.storage.image_changes import ImageChanges
from lib.storage.tables import LabelVersion

_NONE: Mapping[str, LabelVersion] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class CurrentVersions:
    """The newest visible version of each label at one moment; never changed."""

    by_image: Mapping[str, Mapping[str, LabelVersion]] = field(default_factory=dict)
    """Image id -> tag -> version."""

    def of_image(self, image_id: str) -> Mapping[str, LabelVersion]:
        """Return tag -> version of the labels of an image."""
        return self.by_image.get(image_id, _NONE)

    @cached_property
    def _sorted(self) -> Sequence[LabelVersion]:
        return [v for i in sorted(self.by_image) for _, v in sorted(self.by_image[i].items())]

    @cached_property
    def _digests(self) -> dict[str, Mapping[str, str]]:
        return {}

    def sorted(self, tag: str | None) -> list[LabelVersion]:
        """Return the versions with a tag, or all if it is None, sorted by image and tag."""
        return [version for version in self._sorted if tag in (None, version.tag)]

    def digests(self, tag: str) -> Mapping[str, str]:
        """Return image id -> SHA-256 of its label with a tag, sorted by image."""
        if tag not in self._digests:
            self._digests[tag] = MappingProxyType({v.image_id: v.digest for v in self.sorted(tag)})
        return self._digests[tag]


class CurrentLabels:
    """Keeps the current versions of a database; each call reads only the images that changed. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mutex = threading.Lock()
        self._changes = ImageChanges(database)
        self._versions = CurrentVersions()

    def now(self) -> CurrentVersions:
        """Return the current versions."""
        with self._mutex:
            changed = self._changes.take()
            if changed is None:
                self._versions = CurrentVersions(_by_image(self._read(None)))
            elif changed:
                by_image = dict(self._versions.by_image)
                for image_id in changed:
                    by_image.pop(image_id, None)
                self._versions = CurrentVersions(by_image | _by_image(self._read(changed)))
            return self._versions

    def _read(self, image_ids: Collection[str] | None) -> list[LabelVersion]:
        """Return the visible versions of images, or of all images if None, oldest first."""
        query = select(LabelVersion).where(LabelVersion.hidden_at.is_(None))
        query = query.order_by(LabelVersion.submitted_at, LabelVersion.number)
        with self._database.reading() as session:
            if image_ids is None:
                return list(session.scalars(query))
            found: list[LabelVersion] = []
            for image_id in image_ids:
                found += session.scalars(query.where(LabelVersion.image_id == image_id))
            return found


def _by_image(versions: Iterable[LabelVersion]) -> dict[str, Mapping[str, LabelVersion]]:
    """Return image id -> tag -> version; of several, the last one."""
    by_image: dict[str, dict[str, LabelVersion]] = {}
    for version in versions:
        by_image.setdefault(version.image_id, {})[version.tag] = version
    return dict(by_image)
