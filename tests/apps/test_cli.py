"""The `organnet` command and what all programs have in common."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from apps import cli, edit_cost, simulate_workflow
from apps.support import workflow_simulation
from lib.errors import OrganNetError
from lib.inference.ensemble import DeepOptions
from lib.inference.single_pass import OVERLAP
from tests import forked_processes

ROOT = Path(__file__).parents[2]
SLOW_MODULES = ("torch", "monai", "monailabel", "SimpleITK", "matplotlib")
PROGRAMS = {
    "backup",
    "bench",
    "demo",
    "edit-cost",
    "evaluate",
    "evaluate-clicks",
    "infer",
    "models",
    "prepare-data",
    "simulate-active-learning",
    "simulate-workflow",
    "train",
}


def run(*code: str) -> str:
    script = "import json, sys\n" + "\n".join(code)
    script += f"\nprint(json.dumps([m for m in {SLOW_MODULES} if m in sys.modules]))"
    with forked_processes.imported_anew():
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
        )
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import lib",
        "from apps.cli import main; assert main(['--help']) == 0",
        "from apps.cli import main\n"
        f"for name in {sorted(PROGRAMS)}: assert main([name, '--help']) == 0",
        "from apps.models import main; assert main(['--help']) == 0",
    ],
)
def test_help_imports_no_slow_module(code: str) -> None:
    assert json.loads(run(code).splitlines()[-1]) == []


def test_every_program_is_a_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    command = get_command(cli.app)
    assert set(command.commands) == PROGRAMS  # type: ignore[attr-defined]
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "0.1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["infer", "--input", "x"],
        ["infer", "--input", "x", "--output", "y", "--format", "dwg"],
        ["train", "--studies", "x", "--output", "y", "--network", "unknown"],
        ["simulate-workflow", "--data", "x", "--output", "y", "--conf", "key"],
    ],
)
def test_wrong_usage_ends_with_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert "Usage: organnet" in capsys.readouterr().err


def test_an_error_ends_in_one_line_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["edit-cost", "--studies", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: --studies: ")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "full"), 1)])
def test_an_interrupt_and_a_full_disk_have_exit_codes(
    error: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("lib.storage.database.state_folder", fail)
    assert edit_cost.main(["--studies", str(tmp_path)]) == code


def test_values_of_a_list_follow_one_flag_and_settings_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[dict[str, str]] = []

    def record(_pool: object, _output: object, conf: dict[str, str], **_: object) -> object:
        settings.append(conf)
        raise OrganNetError("stopped by the test")

    monkeypatch.setattr(workflow_simulation, "divide_cases", lambda *_, **__: ([], []))
    monkeypatch.setattr(workflow_simulation, "run", record)
    output = tmp_path / "y"
    flags = ["--data", "x", "--conf", "a", "-1", "--output", str(output), "--conf", "b", "2"]
    assert simulate_workflow.main(flags) == 1
    assert settings == [
        {
            "recipe": "openkbp",
            "model_dir": str(output / "models"),
            "starter_dir": str(output / "none"),
            "quiet_s": "5",
            "a": "-1",
            "b": "2",
        }
    ]


def test_defaults_of_infer_are_those_of_the_library() -> None:
    parameters = get_command(cli.app).commands["infer"].params  # type: ignore[attr-defined]
    defaults = {parameter.name: parameter.default for parameter in parameters}
    assert (defaults["overlap"], defaults["ensemble"]) == (OVERLAP, DeepOptions().models)


def test_the_former_name_of_the_workflow_simulation_still_works() -> None:
    output = run("from apps.rehearse import main; assert main(['--help']) == 0")
    assert "Usage: python -m apps.simulate_workflow" in output
