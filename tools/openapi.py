"""Write the OpenAPI schema of the server to docs/openapi.json.

python -m tools.openapi
"""

import json
import sys
from pathlib import Path
from typing import Any

from typer import Option

from apps.support.console import program

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


def openapi(output: Path = Option(DEFAULT_OUTPUT, help="File to write.")) -> int:
    """Write the OpenAPI schema of the server to docs/openapi.json."""
    output.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {output}")
    return 0


main = program(openapi, "openapi")

if __name__ == "__main__":
    sys.exit(main())
