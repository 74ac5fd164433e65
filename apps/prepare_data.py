"""Import labelled cases into a studies folder: PDDCA, OpenKBP, NIfTI pairs, DICOM.

python -m apps.prepare_data --input DIR --output STUDIES --organ-set openkbp
"""

import sys
from collections.abc import Collection
from pathlib import Path

from typer import Option

from apps.support.console import program
from apps.support.options import one_of
from lib.errors import ConfigError
from lib.organs.table import ORGAN_SETS


def _sources() -> Collection[str]:
    from lib.importers.detect import SOURCES

    return SOURCES


def prepare_data(
    input_: Path = Option(
        ..., "--input", help="Folder with the cases, searched with all subfolders."
    ),
    output: Path | None = Option(
        None, help="Studies folder to import into; also gets import.json."
    ),
    organ_set: str = Option(
        "openkbp", help="Organs to import: openkbp or pddca.", callback=one_of(lambda: ORGAN_SETS)
    ),
    names: Path | None = Option(
        None, help="YAML file of lines 'Name in file: TG-263 name' or 'Name in file: ignore'."
    ),
    source: str | None = Option(
        None,
        help="Import from one source only: pddca, openkbp, nifti_pairs or dicom. Default: all sources.",
        callback=one_of(_sources),
    ),
    list_: bool = Option(False, "--list", help="List the cases and import nothing."),
) -> int:
    """Import labelled cases into a studies folder: PDDCA, OpenKBP, NIfTI pairs, DICOM.

    The exit code is 0 if no case was refused, else 1.
    """
    from tqdm import tqdm

    from lib.importers.cases import OrganNames, SourceCase, read_names
    from lib.importers.detect import find_cases
    from lib.importers.run import (
        IMPORTED,
        NO_CONTOURS,
        REPORT,
        UNCHANGED,
        import_cases,
        summary_lines,
    )

    if list_:
        for case in find_cases(input_, source=source, leave_out=output):
            print(f"{case.case_id}\t{case.source}\t{case.location}")
        return 0
    if output is None:
        raise ConfigError("--output is missing: the studies folder to import into")
    organ_names = OrganNames(organ_set=organ_set, table=read_names(names) if names else {})
    cases = find_cases(input_, source=source, leave_out=output)
    outcomes: dict[str, str] = {}
    with tqdm(total=len(cases), unit="case") as bar:

        def progress(case: SourceCase, outcome: str) -> None:
            outcomes[case.case_id] = outcome
            if outcome not in (IMPORTED, UNCHANGED, NO_CONTOURS):
                tqdm.write(f"refused: {outcome}", file=sys.stderr)
            bar.update()

        report = import_cases(cases, output, organ_names, progress=progress)
    for line in summary_lines(report, outcomes):
        print(line)
    print(f"details: {output / REPORT}")
    return 1 if report["refused"] else 0


main = program(prepare_data, "prepare_data")

if __name__ == "__main__":
    sys.exit(main())
