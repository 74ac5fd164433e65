import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lib.config import APP_DIR
from tests.waiting import LIMIT_S, wait_until


@pytest.mark.server
def test_bench_ends_its_server_when_it_is_terminated(tmp_path: Path) -> None:
    log = tmp_path / "bench.log"
    sizes = ("--repeats", "--versus-monailabel", "--components", "--readings", "--steps", "--infers",
             "--pacs")  # fmt: skip
    command = [sys.executable, "-m", "apps.bench", "--studies", "1"]
    with log.open("wb") as output:
        bench = subprocess.Popen(
            [*command, *(word for size in sizes for word in (size, "0"))],
            cwd=APP_DIR, stdout=output, stderr=output,
        )  # fmt: skip

    def servers() -> list[psutil.Process]:
        children = psutil.Process(bench.pid).children()
        return [child for child in children if "start_server" in child.cmdline()]

    try:
        wait_until(
            lambda: bench.poll() is not None or servers() != [],
            "the benchmark has started a server",
            context=log.read_text,
        )
        assert bench.poll() is None, log.read_text()
        (server,) = servers()
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(LIMIT_S) == 130
        assert not server.is_running()
    finally:
        bench.kill()
