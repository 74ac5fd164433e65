"""Orthanc, a small PACS, as a process on this machine: for the demo, the tests and trials.

Debian: `apt-get install orthanc orthanc-dicomweb`. A system service of Orthanc is neither used nor changed.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from lib.errors import PacsError
from lib.jobs.child_process import start_child

PACKAGES = "orthanc orthanc-dicomweb"
"""Debian packages to install."""
PLUGINS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc"))
START_LIMIT_S = 30.0
"""Longest time in s from the start of the process to its first answer."""


def find_orthanc() -> tuple[Path, Path]:
    """Return the paths of the program and its DICOMweb plugin.

    Raises:
        PacsError: If one of them is not installed.
    """
    # Debian installs it into a folder that is only in root's PATH.
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    plugins = [path for folder in PLUGINS for path in folder.glob("libOrthancDicomWeb.so*")]
    if program is None or not plugins:
        missing = "Orthanc" if program is None else "Orthanc's DICOMweb plugin"
        raise PacsError(f"{missing} is not installed: apt-get install {PACKAGES}")
    return Path(program), plugins[0]


@dataclass(eq=False)
class Orthanc:
    """An Orthanc process on 127.0.0.1; it ends with the `with` block, and its folder stays."""

    folder: Path
    """Folder of its database and files."""
    port: int
    """TCP port."""
    users: Mapping[str, str] = field(default_factory=dict)
    """User name -> password; empty if no login is needed."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of its configuration file."""
    ends_with_thread: bool = False
    """Whether it ends when the thread that started it ends, however that happens, so also when the process of
    that thread is killed; Linux only."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Address of its REST API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def dicomweb_url(self) -> str:
        """DICOMweb address, for `--studies`."""
        return f"{self.url}/dicom-web"

    @property
    def auth(self) -> tuple[str, str] | None:
        """A user and the password; None if it needs no login."""
        return next(iter(self.users.items()), None)

    def __enter__(self) -> "Orthanc":
        """Start the process."""
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop the process."""
        self.stop()

    def start(self) -> None:
        """Start the process, and return when it answers.

        Raises:
            PacsError: If it is not installed, or does not start.
        """
        program, plugin = find_orthanc()
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "orthanc.json"
        settings.unlink(missing_ok=True)
        # It may hold a password.
        settings.touch(mode=0o600)
        settings.write_text(json.dumps(self._settings(plugin), indent=2))
        self.process = self._started(program, settings)
        limit = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise PacsError(
                    f"Orthanc did not start on port {self.port}; see {self.folder / 'orthanc.log'}"
                )
            time.sleep(0.05)

    def _started(self, program: Path, settings: Path) -> "subprocess.Popen[bytes]":
        log_file = self.folder / "orthanc.log"
        if self.ends_with_thread:
            arguments = [str(program), str(settings)]
            return start_child(
                "lib.pacs.orthanc_process", arguments, threads=1, log=log_file, has_pipes=False
            )
        with log_file.open("ab") as log:
            # In a separate session, so that Ctrl-C in the terminal does not end it.
            return subprocess.Popen(
                [program, settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Terminate the process, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process = None

    def kill(self) -> None:
        """Kill the process, as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def upload(self, files: Iterable[Path]) -> set[str]:
        """Store DICOM files, and return Orthanc's own ids of their series.

        Raises:
            PacsError: If it refuses one of them, or does not answer.
        """
        series = set()
        with requests.Session() as http:
            for file in files:
                try:
                    answer = http.post(
                        f"{self.url}/instances", data=file.read_bytes(), auth=self.auth, timeout=60
                    )
                except requests.RequestException as error:
                    raise PacsError(f"{file.name}: Orthanc does not answer ({error})") from error
                if not answer.ok:
                    raise PacsError(f"{file.name}: Orthanc answers {answer.status_code}")
                series.add(str(answer.json()["ParentSeries"]))
        return series

    def all_series(self) -> set[str]:
        """Return Orthanc's own ids of the series that it holds.

        Raises:
            PacsError: If it does not answer.
        """
        return {str(key) for key in self._request("GET", "/series").json()}

    def remove_series(self, orthanc_id: str) -> None:
        """Remove a series by Orthanc's own id, if it is there.

        Raises:
            PacsError: If it does not answer.
        """
        self._request("DELETE", f"/series/{orthanc_id}", missing_is_fine=True)

    def _request(
        self, method: str, path: str, *, missing_is_fine: bool = False
    ) -> requests.Response:
        try:
            answer = requests.request(method, self.url + path, auth=self.auth, timeout=60)
        except requests.RequestException as error:
            raise PacsError(f"{method} {path}: Orthanc does not answer ({error})") from error
        if not answer.ok and not (missing_is_fine and answer.status_code == 404):
            raise PacsError(f"{method} {path}: Orthanc answers {answer.status_code}")
        return answer

    def _answers(self) -> bool:
        try:
            # Any HTTP status will do: even a refused login shows that Orthanc runs.
            requests.get(f"{self.url}/system", timeout=2, auth=self.auth)
        except requests.RequestException:
            return False
        return True

    def _settings(self, plugin: Path) -> dict[str, Any]:
        return {
            "Name": "OrganNet Label",
            "StorageDirectory": str(self.folder),
            "IndexDirectory": str(self.folder),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "DicomServerEnabled": False,
            "AuthenticationEnabled": bool(self.users),
            "RegisteredUsers": self.users,
            "Plugins": [str(plugin)],
            "DicomWeb": {
                "Enable": True,
                "Root": "/dicom-web/",
                # With the port, because Orthanc builds the addresses in its responses from this value.
                "Host": f"127.0.0.1:{self.port}",
            },
            **self.options,
        }
