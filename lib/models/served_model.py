"""The active model in memory: the one that `served.json` names, or a fallback if that does not load."""

import logging
import os
import threading
from pathlib import Path

from lib.errors import CheckpointError, NoModelError
from lib.models.registry import SERVED, Model, Registry, load_model

logger = logging.getLogger(__name__)

_Stamp = tuple[int, int, int] | None
"""Inode, modification time and size of a file, which change when it is replaced; None without a file."""


class ServedModel:
    """The active model, loaded once per version; if a new version does not load, the last one stays.

    Each call checks `served.json`, so that a version published by any process is used from the next request
    on. One thread loads it; the others continue with the previous model.
    """

    def __init__(self, registry: Registry, *, device: str = "cpu") -> None:
        self.registry = registry
        self.device = device
        self._loading = threading.Lock()
        self._current: tuple[Path, Model] | None = None
        self._rejected: Path | None = None
        self._stamps_at_choice: tuple[_Stamp, _Stamp] | None = None
        self._fallback_reason: str | None = None

    @property
    def fallback_reason(self) -> str | None:
        """Reason why the active model is not the published one; None if it is."""
        return self._fallback_reason

    def get(self, *, is_newest: bool = False) -> Model:
        """Return the active model.

        Args:
            is_newest: Wait for the published version if another thread is loading it.

        Raises:
            NoModelError: If no model was published and there is no starter.
            CheckpointError: If no model can be loaded.
        """
        current = self._current
        if current is not None and self._stamps_at_choice == self._stamps():
            return current[1]
        must_wait = current is None or is_newest
        if not self._loading.acquire(blocking=must_wait):
            # Another thread is loading; `current` is not None, or this thread would have waited.
            return current[1]  # type: ignore[index]
        try:
            stamps = self._stamps()
            if self._current is None or self._stamps_at_choice != stamps:
                self._current = self._choose()
                # The pointer's stamp is from before the choice, so that the next request sees a later change.
                self._stamps_at_choice = (stamps[0], _stamp(self._rejected))
            return self._current[1]
        finally:
            self._loading.release()

    def has_model(self) -> bool:
        """Return whether there is an active model."""
        try:
            self.get()
        except CheckpointError:
            return False
        return True

    def _stamps(self) -> tuple[_Stamp, _Stamp]:
        """Return the file stamps that invalidate the loaded model: the pointer and any rejected weights."""
        return _stamp(self.registry.folder / SERVED), _stamp(self._rejected)

    def _choose(self) -> tuple[Path, Model]:
        version = self.registry.published_version()
        if (
            version is None
            and self._current is not None
            and self._current[0] != self.registry.starter_path()
        ):
            return self._fall_back_to(self._current, f"{SERVED} is gone, or cannot be read")
        path = self.registry.served_path()
        if path is None:
            raise NoModelError(
                "there is no model yet, and an untrained network would contour noise: contour a few cases and "
                "train (POST /train/organnet25d, or python -m apps.train --publish), then try again"
            )
        if self._current is not None and self._current[0] == path:
            return self._accept(self._current)
        try:
            return self._accept((path, load_model(path, self.device)))
        except CheckpointError as error:
            self._rejected = path
            if self._current is not None:
                return self._fall_back_to(self._current, str(error))
            return self._fallback(path, error)

    def _fallback(self, rejected: Path, why: CheckpointError) -> tuple[Path, Model]:
        """Return the model promoted last before `rejected` that loads, else the starter.

        Raises:
            CheckpointError: The error of `rejected`, if none loads.
        """
        earlier = [self.registry.folder / f"{v}.safetensors" for v in self.registry.promoted()[1:]]
        starter = self.registry.starter_path()
        for path in [*earlier, *([starter] if starter else [])]:
            if path == rejected:
                continue
            try:
                model = load_model(path, self.device)
            except CheckpointError as error:
                logger.warning("%s does not load either: %s", path.name, error)
                continue
            return self._fall_back_to((path, model), str(why))
        raise why

    def _accept(self, current: tuple[Path, Model]) -> tuple[Path, Model]:
        self._rejected, self._fallback_reason = None, None
        return current

    def _fall_back_to(self, current: tuple[Path, Model], why: str) -> tuple[Path, Model]:
        self._fallback_reason = f"{why}; {current[1].version} stays the active model"
        logger.error("%s", self._fallback_reason)
        return current


def _stamp(path: Path | None) -> _Stamp:
    if path is None:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - on every request: cheaper
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
