import base64
from pathlib import Path

import pytest

from lib.reports.pages import Picture, Report, Section, Table, write_csv_rows, write_page

REPORT = Report(
    title="A <title>",
    subtitle="today",
    summary=["Result: `name` is **best** & smallest."],
    sections=[
        Section(tables=[Table("First", ("organ", "n"), [("A<b>", "1")], ("all", "1"))]),
        Section(
            heading="Pictures",
            text=["Text."],
            pictures=[Picture(b"png", "Caption", "alt text", "a.png")],
            tables=[Table("Second", ("x",), [("**2**",)])],
            items=["one", "two"],
            is_numbered=True,
            command="run --x '<y>' **z**",
        ),
    ],
)


@pytest.fixture
def html(tmp_path: Path) -> str:
    write_page(tmp_path / "report.html", REPORT)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_html_escapes_text_except_for_code_and_bold(html: str) -> None:
    assert "<title>A &lt;title&gt;</title>" in html
    assert "<p>Result: <code>name</code> is <b>best</b> &amp; smallest.</p>" in html
    assert "<td>A&lt;b&gt;</td><td>1</td>" in html
    assert "<pre><code>run --x &#39;&lt;y&gt;&#39; **z**</code></pre>" in html


def test_html_numbers_tables_over_all_sections_and_embeds_pictures(html: str) -> None:
    assert "<b>Table 1.</b> First" in html
    assert "<b>Table 2.</b> Second" in html
    assert "<tfoot><tr><td>all</td><td>1</td></tr></tfoot>" in html
    assert f'src="data:image/png;base64,{base64.b64encode(b"png").decode()}"' in html


def test_wide_tables_scroll_on_screen_and_wrap_in_print(html: str) -> None:
    assert html.count('<div class="scroll"><table>') == 2
    assert ".scroll { overflow-x: auto }" in html
    assert "@media print" in html


def test_markdown_links_pictures_and_keeps_text_as_it_is(tmp_path: Path) -> None:
    write_page(tmp_path / "report.md", REPORT)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.startswith(
        "# A <title>\n\ntoday\n\nResult: `name` is **best** & smallest.\n\nFirst\n"
    )
    assert "| organ | n |\n| --- | --- |\n| A<b> | 1 |\n| all | 1 |\n" in page
    assert "## Pictures\n\nText.\n\n![alt text](a.png)\n\nCaption\n" in page
    assert "\n1. one\n1. two\n\n```sh\nrun --x '<y>' **z**\n```\n" in page


def test_csv_rows_are_written_with_quotes_where_needed(tmp_path: Path) -> None:
    write_csv_rows(tmp_path / "a.csv", [("organ", "note"), ("Larynx", "a, b")])
    assert (tmp_path / "a.csv").read_text() == 'organ,note\nLarynx,"a, b"\n'
