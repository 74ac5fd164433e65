"""Recipes in YAML files, with error messages that name the line and the reason.

extends: openkbp            # a recipe of the project to start from; if left out, all fields are required
name: clinic
spacing_mm: [1.0, 1.0, 2.5]
network: {width: 16}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from lib.errors import ConfigError
from lib.recipes.schema import RECIPES, Recipe

_ADAPTER = TypeAdapter(Recipe)


def recipe_from_dict(values: Mapping[str, Any], *, source: str) -> Recipe:
    """Return the recipe from the plain values of `Recipe.as_dict`.

    Raises:
        ConfigError: If a field is missing, unknown or wrong; the message begins with `source`.
    """
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field_path = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise ConfigError(f"{source}: {field_path}: {first['msg']}") from error


def find_recipe(name_or_file: str) -> Recipe:
    """Return the project's recipe of that name, or the recipe in that YAML file.

    Raises:
        ConfigError: If neither exists, or the file is invalid; the message has the line and the reason.
    """
    if name_or_file in RECIPES:
        return RECIPES[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        raise ConfigError(
            f"recipe {name_or_file!r} is neither a known recipe ({', '.join(RECIPES)}) nor a file"
        )
    return _read(path)


def _read(path: Path) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path.name}{line}: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path.name}:1: a recipe is a mapping of fields, such as 'extends: openkbp'"
        )
    base = values.pop("extends", None)
    if base is not None:
        if base not in RECIPES:
            line_number = _line_of(node, ("extends",))
            raise ConfigError(
                f"{path.name}:{line_number}: extends: unknown recipe {base!r}; known: {', '.join(RECIPES)}"
            )
        values = _merged(RECIPES[base].as_dict(), values)
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field_path = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise ConfigError(
            f"{path.name}:{_line_of(node, first['loc'])}: {field_path}: {_reason(first)}"
        ) from error


def _reason(error: Any) -> str:
    kinds = {"unexpected_keyword_argument": "no such field", "missing": "this field is missing"}
    if error["type"] in kinds:
        return kinds[error["type"]]
    value = "" if error["type"] == "value_error" else f" (found {error['input']!r})"
    return f"{error['msg']}{value}"


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        # Class weights belong to an organ set: those of the file replace those of the base completely.
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = (
            _merged(merged[key], value) if is_section and key != "class_weights" else value
        )
    return merged


def _line_of(node: yaml.Node, where: tuple[Any, ...]) -> int:
    """Return the 1-based line of the deepest part of `where` that the file contains."""
    line = int(node.start_mark.line) + 1
    for part in where:
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, child = int(key.start_mark.line) + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            child = node.value[part] if part < len(node.value) else None
            line = int(child.start_mark.line) + 1 if child is not None else line
        if child is None:
            break
        node = child
    return line
