"""Simulate the whole workflow on labelled cases: a server, submitted labels, trainings and promotions.

python -m apps.simulate_workflow --data DIR --cases 30 --test 8 --from nothing --output DIR
"""

import sys
from pathlib import Path
from typing import Literal

from typer import BadParameter, Option

from apps.support.console import program
from apps.support.options import STARTER_DIR, LabelledStudies, RecipeName


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

    The data folder is not changed: its scans are copied into a studies folder. The server never gets the test
    cases; every model that was active is evaluated on them at the end. The exit code is 0 if no request failed
    and at least one model was active.
    """
    words = conf or []
    if len(words) % 2:
        raise BadParameter(f"--conf {words[-1]}: give a key and a value")
    from apps.support import workflow_simulation as simulation
    from apps.support.server_process import ended_like_ctrl_c

    starter = STARTER_DIR if start == "starter" else output / "none"
    models = output / "models"
    pool, test_cases = simulation.divide_cases(data, starter, cases=cases, test=test)
    print(f"{len(pool)} cases to submit, {len(test_cases)} test cases; start from {start}")
    settings = {"recipe": recipe, "model_dir": str(models), "starter_dir": str(starter),
                "quiet_s": "5", **dict(zip(words[::2], words[1::2], strict=True))}  # fmt: skip
    with ended_like_ctrl_c():
        results = simulation.run(
            pool,
            output,
            settings,
            every_s=every,
            infer_every_s=infer_every,
            limit_s=60 * limit_minutes,
        )
    versions = simulation.evaluate_versions(results["events"], [models, starter], test_cases)
    return simulation.report(output, {**results, "versions": versions})


main = program(simulate_workflow, "simulate_workflow")

if __name__ == "__main__":
    sys.exit(main())
