"""Command-line options that several programs share."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

from typer import BadParameter, Option

from lib.config import best_device, default_model_dir, default_starter_dir

MODEL_DIR, STARTER_DIR = default_model_dir(), default_starter_dir()

Studies = Annotated[
    str, Option(help="Studies folder or DICOMweb URL with which the server is started.")
]
LabelledStudies = Annotated[
    Path, Option(help="Studies folder with labels, or a folder with one subfolder per case.")
]
ModelDir = Annotated[
    Path, Option(help="Folder of the trained models.", show_default="model/registry")
]
RecipeName = Annotated[str, Option(help="Name of a recipe, or a YAML file.")]


def _resolve_device(device: str) -> str:
    """Return the device to use: `auto` is the GPU if there is one, else the CPU."""
    return best_device() if device == "auto" else device


Device = Annotated[
    str,
    Option(
        help="cpu, cuda or cuda:N; auto: cuda if there is a GPU, else cpu.",
        callback=_resolve_device,
    ),
]


def one_of(names: Callable[[], Collection[str]]) -> Callable[[Any], Any]:
    """Return a Typer callback that refuses a value, or a list with a value, that is not among the names.

    Args:
        names: Returns the names; called when a value is checked: their modules can be slow to import.
    """

    def check(value: Any) -> Any:
        values = [value] if isinstance(value, str) else value or []
        for unknown in [item for item in values if item not in names()]:
            raise BadParameter(f"{unknown!r} is unknown; choose from {', '.join(names())}")
        return value

    return check
