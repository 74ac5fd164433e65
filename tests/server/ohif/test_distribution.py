"""OHIF's package is unpacked complete or not at all, with its public path changed."""

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from lib.config import APP_DIR
from lib.errors import ConfigError
from lib.server.ohif import distribution
from lib.server.ohif.distribution import Lock, unpack

APP = b'a();\n__webpack_require__.p = "/";\nb();'
SERVED = b'a();\n__webpack_require__.p = "/ohif/";\nb();'
FILES = {
    "package/package.json": b"{}",
    "package/dist/app.bundle.js": APP,
    "package/dist/assets/logo.svg": b"<svg/>",
    "package/dist/app.css": b"a{src:url(/f.woff2)}b{src:url(data:x)}",
    "package/dist/ort/ort.wasm": b"large",
    "package/dist/../../outside.js": b"no",
}


def packed(folder: Path, files: Mapping[str, bytes]) -> tuple[Path, Lock]:
    """Return a package as npm makes it, and the lock that pins it."""
    archive = folder / "app.tgz"
    with tarfile.open(archive, "w:gz") as package:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    return archive, Lock("@ohif/app", "1.2.3", f"sha512-{digest}", "24", ("ort/*",))


def test_the_files_that_are_sent_are_unpacked_with_the_public_path(tmp_path: Path) -> None:
    archive, pinned = packed(tmp_path, FILES)
    target = tmp_path / "share" / "ohif"
    unpack(archive, target, pinned)
    found = {
        path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()
    }
    assert set(found) == {"app.bundle.js", "app.css", "assets/logo.svg"}
    assert found["app.css"].read_bytes() == b"a{src:url(/ohif/f.woff2)}b{src:url(data:x)}"
    assert found["app.bundle.js"].read_bytes() == SERVED
    assert not list(tmp_path.rglob("outside.js"))
    assert [path.name for path in target.parent.iterdir()] == ["ohif"], (
        "no unfinished folder is left"
    )


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    archive, pinned = packed(tmp_path, FILES)
    other = replace(pinned, integrity="sha512-" + base64.b64encode(bytes(64)).decode())
    with pytest.raises(ConfigError, match=r"app.tgz is not @ohif/app 1.2.3.* download it again"):
        unpack(archive, tmp_path / "ohif", other)
    assert not (tmp_path / "ohif").exists()


def test_a_package_with_another_public_path_is_refused(tmp_path: Path) -> None:
    archive, pinned = packed(tmp_path, {"package/dist/app.bundle.js": b"built otherwise"})
    with pytest.raises(ConfigError, match="built differently"):
        unpack(archive, tmp_path / "ohif", pinned)
    assert not (tmp_path / "ohif").exists()


def test_the_lock_file_names_the_file_that_npm_makes() -> None:
    pinned = distribution.lock()
    assert pinned.file_name == f"ohif-app-{pinned.version}.tgz"
    assert len(base64.b64decode(pinned.integrity.removeprefix("sha512-"))) == 64


def test_a_failed_installation_says_what_to_do(tmp_path: Path) -> None:
    if distribution.folder().is_dir():
        pytest.skip("OHIF is installed already")
    wrong = tmp_path / "wrong.tgz"
    wrong.write_bytes(b"not a package")
    command = [sys.executable, str(APP_DIR / "tools" / "install_viewer.py"), str(wrong)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "wrong.tgz is not @ohif/app" in answer.stderr
    assert f"make viewer OHIF=PATH/{distribution.lock().file_name}" in answer.stderr
