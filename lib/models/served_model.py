"""The model that answers requests: the one that `served.json` names, or the last good one."""

import logging
import os
import threading
from pathlib import Path

from lib.errors import CheckpointError, NoModelError
from lib.models.registry import SERVED, Model, Registry, load_model

logger = logging.getLogger(__name__)

_Stamp = tuple[int, int, int] | None
"""What changes when a file is replaced; None where there is no file."""


class ServedModel:
    """The model that serves, loaded once per version; a damaged newcomer leaves the last good one serving.

    Each call looks at `served.json`, so that a version that any process published serves from the next request
    on. One thread loads it; the others go on with the model that they have.
    """

    def __init__(self, registry: Registry, *, device: str = "cpu") -> None:
        self.registry = registry
        self.device = device
        self._loading = threading.Lock()
        self._good: tuple[Path, Model] | None = None
        self._refused: Path | None = None
        self._settled: tuple[_Stamp, _Stamp] | None = None
        self._trouble: str | None = None

    @property
    def fallback_reason(self) -> str | None:
        """Why another model serves than the one that was published; None where all is well."""
        return self._trouble

    def get(self, *, is_newest: bool = False) -> Model:
        """Return the model to serve now.

        Args:
            is_newest: Wait for the published version where another thread is loading it.

        Raises:
            NoModelError: If none was ever published and there is no starter.
            CheckpointError: If none that there is can be loaded.
        """
        good = self._good
        if good is not None and self._settled == self._stamps():
            return good[1]
        must_wait = good is None or is_newest
        if not self._loading.acquire(blocking=must_wait):
            # Another thread is at it. `good` is some model, or this one would have waited.
            return good[1]  # type: ignore[index]
        try:
            stamps = self._stamps()
            if self._good is None or self._settled != stamps:
                self._good = self._choose()
                # Read before the choice: what was published since is seen by the next request.
                self._settled = (stamps[0], _stamp(self._refused))
            return self._good[1]
        finally:
            self._loading.release()

    def _stamps(self) -> tuple[_Stamp, _Stamp]:
        """Return what a change of would change the choice: the pointer, and weights that did not load."""
        return _stamp(self.registry.folder / SERVED), _stamp(self._refused)

    def _choose(self) -> tuple[Path, Model]:
        version = self.registry.published_version()
        if version is None and self._good is not None and self._good[0] != self._starter():
            return self._stay(self._good, f"{SERVED} is gone, or cannot be read")
        path = self.registry.served_path()
        if path is None:
            raise NoModelError(
                "no model is served yet, and an untrained network would draw noise: contour a few cases "
                "and train (POST /train/organnet25d, or python -m apps.train --publish), then ask again"
            )
        if self._good is not None and self._good[0] == path:
            return self._settle(self._good)
        try:
            return self._settle((path, load_model(path, self.device)))
        except CheckpointError as error:
            self._refused = path
            if self._good is not None:
                return self._stay(self._good, str(error))
            return self._fall_back(path, error)

    def _fall_back(self, refused: Path, why: CheckpointError) -> tuple[Path, Model]:
        """Return the model promoted last before `refused` that loads, else the starter.

        Raises:
            CheckpointError: That of `refused`, if none loads.
        """
        earlier = [self.registry.folder / f"{v}.safetensors" for v in self.registry.promoted()[1:]]
        starter = self._starter()
        for path in [*earlier, *([starter] if starter else [])]:
            if path == refused:
                continue
            try:
                model = load_model(path, self.device)
            except CheckpointError as error:
                logger.warning("%s does not load either: %s", path.name, error)
                continue
            return self._stay((path, model), str(why))
        raise why

    def _starter(self) -> Path | None:
        return self.registry.starter_path()

    def _settle(self, good: tuple[Path, Model]) -> tuple[Path, Model]:
        self._refused, self._trouble = None, None
        return good

    def _stay(self, good: tuple[Path, Model], why: str) -> tuple[Path, Model]:
        self._trouble = f"{why}; {good[1].version} goes on serving"
        logger.error("%s", self._trouble)
        return good


def _stamp(path: Path | None) -> _Stamp:
    if path is None:
        return None
    try:
        found = os.stat(path)  # noqa: PTH116 - on every request: cheaper
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
