"""The OpenAPI schema: every operation is typed, and docs/openapi.json is current."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lib.config import RetrainConfig
from tools.openapi import DEFAULT_OUTPUT, main, schema

Schema = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Schema:
    return schema()


def operations(document: Schema) -> Iterator[tuple[str, Schema]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def is_typed(schema: Schema, document: Schema) -> bool:
    """Return whether a schema has a type, and for an object its properties or the type of its values."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return is_typed(document["components"]["schemas"][name], document)
    if "anyOf" in schema:
        return all(is_typed(one, document) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return is_typed(schema["items"], document)
    if schema.get("type") == "object":
        is_free_form = schema.get("additionalProperties") is True and "title" in schema
        extra = schema.get("additionalProperties")
        has_value_type = isinstance(extra, dict) and is_typed(extra, document)
        # `Removed` is the one object without keys.
        return (
            "properties" in schema or has_value_type or is_free_form or schema["title"] == "Removed"
        )
    return "type" in schema


def test_every_response_is_typed(document: Schema) -> None:
    untyped = []
    for name, operation in operations(document):
        content = operation["responses"]["200"].get("content", {})
        if not name.startswith("HEAD") and not content:
            untyped.append(name)
        untyped += [
            f"{name}: {media_type}"
            for media_type, body in content.items()
            if not is_typed(body["schema"], document)
        ]
    assert untyped == []


def test_every_json_body_is_typed(document: Schema) -> None:
    bodies = {
        name: operation["requestBody"]["content"]["application/json"]["schema"]
        for name, operation in operations(document)
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    assert len(bodies) == 8
    assert [name for name, schema in bodies.items() if not is_typed(schema, document)] == []
    change = document["components"]["schemas"]["SettingsChange"]
    assert set(change["properties"]) == {field.name for field in fields(RetrainConfig)}


def test_every_error_response_has_the_same_model(document: Schema) -> None:
    expected = {"$ref": "#/components/schemas/ErrorResponse"}
    for name, operation in operations(document):
        for status in ("4XX", "5XX"):
            content = operation["responses"][status]["content"]
            assert content["application/json"]["schema"] == expected, name


def test_the_published_schema_is_current(document: Schema) -> None:
    published = json.loads(DEFAULT_OUTPUT.read_text(encoding="utf-8"))
    assert published == document, "run `make openapi`"


def test_the_program_writes_the_schema(document: Schema, tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path / "schema.json")]) == 0
    assert json.loads((tmp_path / "schema.json").read_text(encoding="utf-8")) == document
