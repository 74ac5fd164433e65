"""Kill servers and trainings at random, round after round; end with 1 if anything is lost or inconsistent."""

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
        "--seed", type=int, help="of what is killed and asked; the machine's pace is its own"
    )
    flags.add_argument("--folder", type=Path, help="where everything lies; kept, and begun empty")
    flags.add_argument(
        "--cold", action="store_true", help="every server imports its libraries itself"
    )
    given = flags.parse_args(argv)
    seed = time.time_ns() % 1_000_000 if given.seed is None else given.seed
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        flags.error(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    say(f"seed {seed}, in {folder}")
    if not given.cold:
        forked_processes.install()
    is_clean = Campaign(folder, seed).run(given.rounds)
    if not is_clean:
        say(f"not clean with seed {seed}: everything is kept in {folder}")
        return 1
    if given.folder is None:
        shutil.rmtree(folder)
    say(f"{given.rounds} rounds clean, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
