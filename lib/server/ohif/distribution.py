"""OHIF's ready-made files: one pinned package of the npm registry, unpacked once into the virtual environment.

`viewer/ohif-lock.json` names version and digest. Of the package only what this server sends is unpacked:
without the ONNX runtime and the microscopy viewer these are 48 of 204 MB. The single change is the public path,
the address from which OHIF loads its files: it is built for the root of a site, and sent below `/ohif/` here.
"""

import base64
import hashlib
import json
import sys
import tarfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath

from lib.config import APP_DIR
from lib.errors import ConfigError
from lib.storage.leftovers import scratch_folder

LOCK_FILE = APP_DIR / "viewer" / "ohif-lock.json"
PUBLIC_PATH = "/ohif/"
_BUILT_FOR = b'__webpack_require__.p = "/";'
_REPLACED = {
    _BUILT_FOR: f'__webpack_require__.p = "{PUBLIC_PATH}";'.encode(),
    b"url(/": f"url({PUBLIC_PATH}".encode(),
}
"""The public path in scripts, and in style sheets."""
_ROOT = "package/dist/"
"""Folder of the files in the package."""


@dataclass(frozen=True, slots=True)
class Lock:
    """Content of the lock file.

    Attributes:
        package: Name in the npm registry.
        version: Version of the package.
        integrity: Subresource Integrity of the package's file (W3C SRI): algorithm and base64 digest.
        node: Version of the PyPI package with Node.js, for machines without npm.
        left_out: Patterns of the files that are not unpacked.
    """

    package: str
    version: str
    integrity: str
    node: str
    left_out: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """Name that `npm pack` gives the package's file."""
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


@cache
def lock() -> Lock:
    """Return the content of the lock file."""
    values = json.loads(LOCK_FILE.read_text(encoding="utf-8"))
    return Lock(**{**values, "left_out": tuple(values["left_out"])})


def folder() -> Path:
    """Return the folder for the files of the pinned version; it exists only after `unpack`."""
    return Path(sys.prefix) / "share" / "organnet-label" / f"ohif-{lock().version}"


def unpack(archive: Path, target: Path, pinned: Lock) -> None:
    """Unpack OHIF's package into `target`, which appears complete or not at all.

    Raises:
        ConfigError: If the file is not the pinned package, or its files do not have the expected form.
    """
    _require_integrity(archive, pinned)
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.parent) as scratch:
        unpacked, changed = scratch / "ohif", 0
        with tarfile.open(archive) as package:
            for member in package:
                name = member.name.removeprefix(_ROOT)
                if name == member.name or not member.isfile() or _is_left_out(name, pinned):
                    continue
                stream = package.extractfile(member)
                content = b"" if stream is None else stream.read()
                changed += content.count(_BUILT_FOR)
                path = unpacked / PurePosixPath(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_at_public_path(content, path.suffix))
        if not changed:
            raise ConfigError(
                f"{archive.name}: no file contains the public path {_BUILT_FOR.decode()!r}, so OHIF could not "
                f"load its files below {PUBLIC_PATH}; this version is built differently"
            )
        if not target.is_dir():
            unpacked.rename(target)


def _at_public_path(content: bytes, suffix: str) -> bytes:
    if suffix in (".js", ".css"):
        for old, new in _REPLACED.items():
            content = content.replace(old, new)
    return content


def _is_left_out(name: str, pinned: Lock) -> bool:
    is_inside = ".." not in PurePosixPath(name).parts and not name.startswith("/")
    return not is_inside or any(fnmatchcase(name, pattern) for pattern in pinned.left_out)


def _require_integrity(archive: Path, pinned: Lock) -> None:
    algorithm, _, expected = pinned.integrity.partition("-")
    with archive.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, algorithm).digest()).decode()
    if found != expected:
        raise ConfigError(
            f"{archive.name} is not {pinned.package} {pinned.version}: its {algorithm} is {found}, expected "
            f"{expected}; download it again"
        )
