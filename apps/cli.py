"""The `organnet` command, with every program of this package as a subcommand."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from apps import backup, models
from apps.bench import bench
from apps.demo import demo
from apps.edit_cost import edit_cost
from apps.evaluate import evaluate
from apps.evaluate_clicks import evaluate_clicks
from apps.infer import Infer
from apps.prepare_data import prepare_data
from apps.simulate_active_learning import SimulateActiveLearning
from apps.simulate_workflow import simulate_workflow
from apps.support.console import Program, new_app, program
from apps.train import Train
from lib import __version__

PROGRAMS: dict[str, Callable[..., object]] = {
    "infer": Infer,
    "train": Train,
    "evaluate": evaluate,
    "evaluate-clicks": evaluate_clicks,
    "prepare-data": prepare_data,
    "edit-cost": edit_cost,
    "simulate-workflow": simulate_workflow,
    "simulate-active-learning": SimulateActiveLearning,
    "demo": demo,
    "bench": bench,
}
app = new_app(no_args_is_help=True)
for _name, _program in PROGRAMS.items():
    app.command(_name, cls=Program)(_program)
app.add_typer(models.app, name="models")
app.add_typer(backup.app, name="backup")
main = program(app, "organnet")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _organnet(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Contour organs at risk in head-and-neck CT with OrganNet2.5D, and train it on corrected contours."""


if __name__ == "__main__":
    sys.exit(main())
