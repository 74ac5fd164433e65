"""The documentation: no dead links, a README of at most 150 lines, and every page in the navigation."""

from pathlib import Path

import pytest
import yaml

from tools.check_links import dead_links

ROOT = Path(__file__).parents[1]


def test_no_link_of_the_documentation_is_dead() -> None:
    assert dead_links(ROOT) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[a](b.md)", "page.md: b.md: there is no such file"),
        ("[a](#b)", "page.md: #b: there is no such heading"),
        ("# B `c`, d\n[a](#b-c-d)", None),
        ("```\n[a](b.md)\n```\n[a](https://example.org/x)", None),
    ],
)
def test_a_dead_link_is_reported(text: str, reason: str | None, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    assert dead_links(tmp_path) == ([reason] if reason else [])


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_in_the_navigation() -> None:
    navigation = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    # tools/docs_hooks.py adds the decision records.
    missing = {page for page in pages if not page.startswith("adr/") and page not in navigation}
    assert missing == set()
