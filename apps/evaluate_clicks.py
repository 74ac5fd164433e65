"""Measure how much clicks improve the contours of a model, with simulated clicks on labelled cases.

python -m apps.evaluate_clicks --studies DIR --hold-out ID --output DIR
"""

import sys
from pathlib import Path

from tqdm import tqdm
from typer import Option

from apps.support.console import program
from apps.support.options import MODEL_DIR, STARTER_DIR, LabelledStudies, ModelDir
from lib.errors import CASE_ERRORS, ConfigError, case_failure


def evaluate_clicks(
    studies: LabelledStudies,
    output: Path = Option(..., help="Gets clicks.csv and clicks.md."),
    hold_out: list[str] | None = Option(
        None, metavar="ID", help="Cases to evaluate; default: those that no training uses."
    ),
    model: Path | None = Option(None, help="Weights (.safetensors); default: the active model."),
    model_dir: ModelDir = MODEL_DIR,
    clicks: int = Option(5, min=1, max=100, help="Largest number of clicks for one organ."),
) -> int:
    """Measure how much clicks improve the contours of a model, with simulated clicks on labelled cases.

    Each click is made in the middle of the largest error that is left. The exit code is 0 if every case was
    evaluated, else 1.
    """
    from lib.experiments.click_curve import ClickRow, as_markdown, click_curve, write_csv
    from lib.imaging.scans import read_ct
    from lib.models.registry import Registry, load_model
    from lib.models.served_model import ServedModel
    from lib.organs.label_files import read_organ_label
    from lib.storage.atomic_files import replacing
    from lib.training.cases import find_labelled_cases, split

    registry = Registry(model_dir, starter=STARTER_DIR)
    used = load_model(model) if model else ServedModel(registry).get()
    cases = {case.image_id: case for case in find_labelled_cases(studies)}
    if missing := sorted(set(hold_out or ()) - cases.keys()):
        raise ConfigError(f"--hold-out: no labelled case is named {', '.join(missing)}")
    chosen = hold_out or [case.image_id for case in split(list(cases.values()))[1]]
    rows: list[ClickRow] = []
    refused = []
    for image_id in tqdm(chosen, unit="case"):
        case = cases[image_id]
        try:
            ct = read_ct(case.image, image_id=image_id)
            reference = read_organ_label(
                case.label, image_id=image_id, image_grid=ct.grid, labels=used.recipe.labels
            )
            rows += click_curve(ct, reference, used, clicks=clicks)
        except CASE_ERRORS as error:
            refused.append(case_failure(error, image_id))
            tqdm.write(f"refused: {refused[-1]}", file=sys.stderr)
    table = as_markdown(rows)
    write_csv(output / "clicks.csv", rows)
    with replacing(output / "clicks.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    print(table)
    print(f"{len(chosen) - len(refused)} of {len(chosen)} cases with {used.version}")
    return 1 if refused else 0


main = program(evaluate_clicks, "evaluate-clicks")

if __name__ == "__main__":
    sys.exit(main())
