"""Save and restore label versions, the workflow's database and the promoted models, while the server serves.

    python -m apps.backup create --studies DIR --output FILE.tar.gz
    python -m apps.backup restore --studies DIR --input FILE.tar.gz

`create` writes the state of one moment; labels that are submitted meanwhile are in the next backup. `restore`
checks every file of the archive first, and then adds what is missing; nothing that is there is lost or
overwritten, so it can be run again, and into a folder whose server is running. Of each label the newest version
by time is then the current one. Scans are not saved.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib import backup
from lib.config import default_model_dir
from lib.errors import OrganNetError, StorageFullError
from lib.storage.atomic_files import is_disk_full


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.backup",
        description=__doc__.splitlines()[0],
        epilog="restore adds what is missing, and changes nothing that is there.",
    )
    commands = flags.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="write a backup")
    restore = commands.add_parser(
        "restore", help="add what a backup holds and what is missing here"
    )
    create.add_argument("--output", type=Path, required=True, help="FILE.tar or FILE.tar.gz")
    restore.add_argument("--input", type=Path, required=True, help="what create wrote")
    for command in (create, restore):
        command.add_argument("--studies", required=True, help="as the server was started with")
        command.add_argument(
            "--model-dir",
            type=Path,
            default=default_model_dir(),
            help="as in --conf model_dir; default: %(default)s",
        )
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0 if everything was saved or restored, else 1."""
    options = parser().parse_args(argv)
    try:
        return _create(options) if options.command == "create" else _restore(options)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if not is_disk_full(error):
            raise
        full = StorageFullError("the disk is full; everything that was there is untouched")
        print(f"error: {full}", file=sys.stderr)
    return 1


def _create(options: argparse.Namespace) -> int:
    saved = backup.create(options.studies, options.model_dir, options.output)
    print(f"{options.output}: {saved.versions} label versions, {saved.models} models")
    for name in saved.damaged:
        print(f"not saved, gone or damaged: {name}", file=sys.stderr)
    return 1 if saved.damaged else 0


def _restore(options: argparse.Namespace) -> int:
    added = backup.restore(options.input, options.studies, options.model_dir)
    print(f"added {added.versions} label versions, {added.models} models, {added.rows} other rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
