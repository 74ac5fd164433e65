"""Writes the OpenAPI schema of the server to docs/openapi.json: `python -m apps.openapi`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEFAULT_OUTPUT = Path(__file__).parents[1] / "docs" / "openapi.json"


def schema() -> dict[str, Any]:
    """Return the OpenAPI schema of all documented routes."""
    from fastapi import FastAPI

    from lib import __version__
    from lib.server.monailabel_patches import ROUTERS

    app = FastAPI(title="OrganNet Label", version=__version__)
    for router in ROUTERS:
        app.include_router(router)
    document: dict[str, Any] = app.openapi()
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the schema, and return 0."""
    parser = argparse.ArgumentParser(prog="python -m apps.openapi", description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="file to write")
    output: Path = parser.parse_args(arguments).output
    output.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
