"""Send mutated files to a server of its own, and exit with 1 if anything happens that must not."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests import forked_processes
from tests.fuzz.campaign import Campaign, say
from tests.fuzz.good_files import FORMATS
from tests.fuzz.results import Results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign, and return the exit code."""
    flags = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    flags.add_argument("--requests", type=int, default=1000, help="files of each format")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS)
    flags.add_argument("--first", type=int, help="number of the first file, to repeat a failure")
    flags.add_argument(
        "--direct", action="store_true", help="give the files to the readers, without a server"
    )
    flags.add_argument(
        "--results", type=Path, help="JSON file with the counts; those of earlier runs are added to"
    )
    flags.add_argument(
        "--folder", type=Path, help="a new working folder; it is not removed at the end"
    )
    given = flags.parse_args(argv)
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = Results.load(given.results)
    if given.first is not None:
        for name in given.format:
            results.of(name).next_number = given.first
    say(f"seed {given.seed}, in {folder}")
    if given.direct:
        from tests.fuzz.direct import run_direct

        share = dict.fromkeys(given.format, given.requests)
        is_clean = run_direct(folder, given.seed, share, results, given.results)
    else:
        forked_processes.install()
        campaign = Campaign(folder, given.seed, results, given.results)
        is_clean = campaign.run(given.requests, given.format)
        results.save(given.results)
    for line in results.lines():
        say(line)
    if not is_clean:
        say(f"failed with seed {given.seed}: all files remain in {folder}")
        return 1
    if given.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
