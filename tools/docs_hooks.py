"""MkDocs hooks: the decision records in the navigation, and pages made from code and files outside docs/."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COPIES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_config(config: Any) -> Any:
    """Add every decision record to the navigation, with the title of its page."""
    records = []
    for path in sorted((ROOT / "docs" / "adr").glob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        records.append({title: f"adr/{path.name}"})
    config["nav"].append({"Decisions": records})
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the text of a page; that of a generated page is made anew."""
    path = page.file.src_uri
    if path in COPIES:
        text = (ROOT / COPIES[path]).read_text(encoding="utf-8")
        return text.replace("](docs/", "](")
    if path == "programs.md":
        return _programs()
    if path == "reference/index.md":
        return _reference()
    return markdown


def _programs() -> str:
    """Return the options of every program."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from apps.cli import app

    command = get_command(app)
    context = command.make_context("organnet", [], resilient_parsing=True)
    text = get_docs_for_click(obj=command, ctx=context, name="organnet", title="Programs")
    return _with_full_descriptions(text, command)


def _with_full_descriptions(text: str, group: Any) -> str:
    """Return the page with whole sentences in the lists of commands, which Typer cuts off."""
    for name, command in getattr(group, "commands", {}).items():
        first_line = (command.help or "").strip().partition("\n\n")[0].replace("\n", " ")
        text = re.sub(
            rf"(?m)^\* `{name}`: .*$", lambda _, n=name, d=first_line: f"* `{n}`: {d}", text
        )
        text = _with_full_descriptions(text, command)
    return text


def _reference() -> str:
    """Return a section for each package; mkdocstrings fills it from the docstrings."""
    packages = [path.parent.name for path in sorted((ROOT / "lib").glob("*/__init__.py"))]
    sections = [f"## lib.{name}\n\n::: lib.{name}\n" for name in packages]
    return "# Python reference\n\n" + "\n".join(sections)
