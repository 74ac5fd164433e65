"""Kill servers and trainings at random, round after round; exit with 1 if anything is lost or inconsistent."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests import forked_processes
from tests.chaos.campaign import Campaign, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds, and return the exit code."""
    flags = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    flags.add_argument("--rounds", type=int, default=100)
    flags.add_argument(
        "--seed",
        type=int,
        help="seed of the kills and requests; their timing still depends on the machine",
    )
    flags.add_argument(
        "--folder", type=Path, help="an empty or new working folder; it is not removed at the end"
    )
    flags.add_argument(
        "--cold", action="store_true", help="every server imports its libraries itself"
    )
    options = flags.parse_args(argv)
    seed = time.time_ns() % 1_000_000 if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        flags.error(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    say(f"seed {seed}, in {folder}")
    if not options.cold:
        forked_processes.install()
    is_clean = Campaign(folder, seed).run(options.rounds)
    if not is_clean:
        say(f"failed with seed {seed}: all files remain in {folder}")
        return 1
    if options.folder is None:
        shutil.rmtree(folder)
    say(f"all {options.rounds} rounds passed, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
