"""Back up and restore label versions, the workflow database and the promoted models, while the server runs.

    python -m apps.backup create --studies DIR --output FILE.tar.gz
    python -m apps.backup restore --studies DIR --input FILE.tar.gz

`create` writes a consistent snapshot; labels submitted in the meantime are in the next backup. `restore`
first checks every file of the archive and then adds what is missing. It deletes and overwrites nothing, so it
can be repeated, and its target may be a folder whose server is running. The newest version of each label by
time becomes the current one. Scans are not part of a backup.
"""

import sys
from pathlib import Path

from typer import Option

from apps.support.console import Program, new_app, program
from apps.support.options import MODEL_DIR, ModelDir, Studies

app = new_app(help=(__doc__ or "").splitlines()[0])
main = program(app, "backup")


@app.command(cls=Program)
def create(
    studies: Studies,
    output: Path = Option(..., help="Archive to write: FILE.tar or FILE.tar.gz."),
    model_dir: ModelDir = MODEL_DIR,
) -> int:
    """Write a backup."""
    from lib import backup

    saved = backup.create(studies, model_dir, output)
    print(f"{output}: {saved.versions} label versions, {saved.models} models")
    for name in saved.damaged:
        print(f"not saved, missing or damaged: {name}", file=sys.stderr)
    return 1 if saved.damaged else 0


@app.command(cls=Program)
def restore(
    studies: Studies,
    input_: Path = Option(..., "--input", help="Archive that `create` wrote."),
    model_dir: ModelDir = MODEL_DIR,
) -> int:
    """Add what a backup holds and the studies folder lacks; nothing that exists is changed."""
    from lib import backup

    added = backup.restore(input_, studies, model_dir)
    print(f"added {added.versions} label versions, {added.models} models, {added.rows} other rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
