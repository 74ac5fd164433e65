"""The program behind `make demo`, started as a user does: from an empty folder to a server that contours."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from lib.config import APP_DIR, default_starter_dir
from lib.models.registry import Registry
from tests.waiting import LIMIT_S, wait_until

pytestmark = [pytest.mark.server, pytest.mark.long]


def test_the_demo_serves_the_starter_and_ends_with_all_its_processes(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
    log = tmp_path / "demo.log"
    command = [sys.executable, "-m", "apps.demo", "--folder", str(tmp_path / "demo")]
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [*command, "--port", str(port)], cwd=APP_DIR, stdout=output, stderr=output
        )
        try:
            wait_until(
                lambda: "The server is up" in log.read_text() or demo.poll() is not None,
                "the demo is up",
                context=log.read_text,
            )
            assert demo.poll() is None, log.read_text()
            url = f"http://127.0.0.1:{port}"
            listed = requests.get(f"{url}/datastore/?output=all", timeout=LIMIT_S).json()["objects"]
            image = sorted(listed)[1]
            answer = requests.post(
                f"{url}/infer/organnet25d?image={image}&output=json", timeout=LIMIT_S
            ).json()
            pacs = requests.get(f"{url}/organnet/status", timeout=LIMIT_S).json()["pacs"]
        finally:
            demo.send_signal(signal.SIGINT)
            code = demo.wait(LIMIT_S)
    assert code == 0
    starter = Registry(tmp_path, starter=default_starter_dir()).served_path()
    assert starter is not None
    assert answer["model_version"] == starter.stem
    assert {"Brainstem", "Bone_Mandible", "SpinalCord"} <= set(answer["label_names"])
    for ended in [f"{url}/info/", *([f"{pacs['url']}/studies"] if pacs else [])]:
        with pytest.raises(requests.ConnectionError):
            requests.get(ended, timeout=5)
