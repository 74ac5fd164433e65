"""Bring labelled cases from elsewhere into a studies folder: PDDCA, OpenKBP, NIfTI pairs, DICOM.

python -m apps.prepare_data --input DIR --output STUDIES --organ-set openkbp
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lib.errors import ConfigError, OrganNetError
from lib.importers.cases import OrganNames, SourceCase, read_names
from lib.importers.detect import SOURCES, find_cases
from lib.importers.run import IMPORTED, NO_CONTOURS, REPORT, UNCHANGED, import_cases, summary_lines
from lib.organs.table import ORGAN_SETS


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.prepare_data", description=__doc__.splitlines()[0]
    )
    add = flags.add_argument
    add("--input", type=Path, required=True, help="looked through at any depth")
    add("--output", type=Path, help=f"the studies folder; gets {REPORT} too")
    add("--organ-set", choices=sorted(ORGAN_SETS), default="openkbp", help="organs to import")
    add("--names", type=Path, help="YAML: 'Name in file: TG-263 name', or 'Name in file: ignore'")
    add(
        "--source",
        choices=SOURCES,
        help="import from this source only; default: all are looked for",
    )
    add("--list", action="store_true", help="show where each case lies, and import nothing")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0 if no case was refused, else 1."""
    options = parser().parse_args(argv)
    try:
        return _list(options) if options.list else _import(options)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _list(options: argparse.Namespace) -> int:
    for case in find_cases(options.input, source=options.source, leave_out=options.output):
        print(f"{case.case_id}\t{case.source}\t{case.location}")
    return 0


def _import(options: argparse.Namespace) -> int:
    if options.output is None:
        raise ConfigError("--output is missing: the studies folder to import into")
    table = read_names(options.names) if options.names else {}
    names = OrganNames(organ_set=options.organ_set, table=table)
    cases = find_cases(options.input, source=options.source, leave_out=options.output)
    outcomes: dict[str, str] = {}
    with tqdm(total=len(cases), unit="case") as bar:

        def progress(case: SourceCase, outcome: str) -> None:
            outcomes[case.case_id] = outcome
            if outcome not in (IMPORTED, UNCHANGED, NO_CONTOURS):
                tqdm.write(f"refused: {outcome}", file=sys.stderr)
            bar.update()

        report = import_cases(cases, options.output, names, progress=progress)
    for line in summary_lines(report, outcomes):
        print(line)
    print(f"details: {options.output / REPORT}")
    return 1 if report["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
