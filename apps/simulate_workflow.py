"""Simulate the whole workflow on labelled cases: a server, submitted labels, trainings and promotions.

python -m apps.simulate_workflow --data DIR --cases 30 --test 8 --from nothing --output DIR

The data folder is not changed: its scans are copied into a studies folder. The server never gets the test
cases. Every model that was active is evaluated on them at the end.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from typer import BadParameter, Option

from apps.support.console import program
from apps.support.options import LabelledStudies, RecipeName


def simulate_workflow(
    data: LabelledStudies,
    output: Path = Option(..., help="New or empty folder for the results."),
    cases: int = Option(30, help="Number of cases to submit."),
    test: int = Option(8, help="Number of held-out test cases."),
    start: Literal["starter", "nothing"] = Option(
        "nothing", "--from", help="First model: the starter model, or none."
    ),
    recipe: RecipeName = "openkbp",
    every: float = Option(10.0, help="Seconds between two submitted labels."),
    infer_every: float = Option(1.0, help="Seconds between two inference requests."),
    limit_minutes: float = Option(
        240.0, help="Longest wait for the trainings after the last label, in minutes."
    ),
    conf: list[str] | None = Option(
        None, metavar="KEY VALUE", help="Setting of the server, as for MONAI Label; repeatable."
    ),
) -> int:
    """Simulate the whole workflow on labelled cases: a server, submitted labels, trainings and promotions.

    The data folder is not changed. The server never gets the test cases; every model that was active is
    evaluated on them at the end. The exit code is 0 if no request failed and at least one model was active.
    """
    options = SimpleNamespace(**locals())
    words = conf or []
    if len(words) % 2:
        raise BadParameter(f"--conf {words[-1]}: give a key and a value")
    options.conf = dict(zip(words[::2], words[1::2], strict=True))
    from apps.support import workflow_simulation

    return workflow_simulation.simulate_workflow(options)


main = program(simulate_workflow, "simulate_workflow")

if __name__ == "__main__":
    sys.exit(main())
