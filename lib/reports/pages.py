"""Reports as HTML and Markdown pages, rendered from `lib/reports/templates`, and as CSV tables.

An HTML page embeds its pictures and needs no script, font or other file, so that it can be mailed and archived.
Text may contain names in `backticks` and **bold** words; everything else is escaped.
"""

import base64
import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lib.storage.atomic_files import replacing

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its caption; `foot` is a last row that summarises the others."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG with its caption."""

    png: bytes
    """Content of the file; an HTML page embeds it."""
    caption: str
    """Text below it."""
    alt: str
    """Text in place of the picture, for screen readers."""
    file: str = ""
    """Path relative to the page; a Markdown page links to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report; its elements are printed in the order of the attributes."""

    heading: str = ""
    """Title of the section; empty for none."""
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    """Numbered over the whole report."""
    tables: Sequence[Table] = ()
    """Numbered over the whole report, too."""
    items: Sequence[str] = ()
    command: str = ""
    is_numbered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Content of a report, independent of its format."""

    title: str
    subtitle: str = ""
    """Line below the title, such as program and date."""
    summary: Sequence[str] = ()
    """Paragraphs with the main results."""
    sections: Sequence[Section] = ()


def write_page(path: Path, report: Report) -> None:
    """Write `report` to `path`, atomically: as HTML or as Markdown, by the suffix (`.html` or `.md`)."""
    template = _environment().get_template(f"report{path.suffix}.jinja")
    with replacing(path) as temporary:
        temporary.write_text(template.render(report=report), encoding="utf-8")


def write_csv_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write `rows`, the head first, to a CSV file, atomically."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = _inline_html
    environment.filters["data_uri"] = _data_uri
    return environment


def _inline_html(text: str) -> Markup:
    """Return escaped text, with `code` and **bold** as HTML elements."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
