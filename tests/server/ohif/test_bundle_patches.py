"""The cures fit the bundle that is installed, and another bundle is served as it is, with a warning."""

import logging
import re

import pytest
from lib.server.ohif.bundle_files import BUNDLE, OURS, known, media_type, served

from lib.organs.table import ORGANS
from lib.server.ohif.bundle_patches import CURES, BundlePatch, cured


def names_for(cure: BundlePatch) -> list[str]:
    return [path.name for path in BUNDLE.glob(cure.file)]


@pytest.mark.parametrize("cure", CURES, ids=lambda cure: f"{cure.defect}-{cure.old[:30]}")
def test_each_cure_fits_the_installed_bundle_once(cure: BundlePatch) -> None:
    (name,) = names_for(cure)
    text = (BUNDLE / name).read_text(encoding="utf-8")
    assert text.count(cure.old) == 1
    assert "\n" not in cure.old
    text = cured(name, text)
    assert cure.new in text
    assert text.count(cure.old) == cure.new.count(cure.old)


def test_cured_files_are_served_cured() -> None:
    for cure in CURES:
        (name,) = names_for(cure)
        found = served(name)
        assert found is not None
        assert found.content is not None
        assert found.content.count(cure.old.encode()) == cure.new.count(cure.old)


def test_nothing_is_written_into_the_bundle() -> None:
    before = {path: path.stat().st_mtime_ns for path in BUNDLE.rglob("*")}
    for name in known():
        served(name)
    assert {path: path.stat().st_mtime_ns for path in BUNDLE.rglob("*")} == before


def test_another_bundle_is_served_as_it_is_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = "this.serverURI = window.somewhere;"
    with caplog.at_level(logging.WARNING):
        assert cured("3933.bundle.0123456789abcdef0123.js", text) == text
    said = [record.getMessage() for record in caplog.records]
    wanted = {cure.defect for cure in CURES if cure.file.startswith("3933")}
    assert {int(re.findall(r"defect (\d+) fits 0 times", line)[0]) for line in said} == wanted


def test_a_line_that_stands_twice_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    cure = BundlePatch(1, "x.js", "old();", "new();")
    assert cured("x.js", "old(); old();", [cure]) == "old(); old();"
    assert "fits 2 times" in caplog.text
    assert cured("x.js", "old();", [cure]) == "new();"
    assert cured("y.js", "old();", [cure]) == "old();"


def test_everything_that_cured_lines_call_is_there() -> None:
    ours = (OURS / "hooks.js").read_text() + (OURS / "brushes.js").read_text()
    ours += (OURS / "panel.js").read_text()
    called = {name for cure in CURES for name in re.findall(r"window\.organnet\.(\w+)", cure.new)}
    assert called
    for name in called:
        assert re.search(rf"(function {name}\(|organnet\.{name} = )", ours), name


def test_the_page_loads_ours_before_the_bundle_and_nothing_from_elsewhere() -> None:
    page = served("index.html")
    assert page is not None
    assert page.content is not None
    text = page.content.decode()
    assert "https://" not in text
    assert text.index("/ohif/organnet/hooks.js") < text.index("/ohif/organnet/panel.js")
    assert text.index("/ohif/organnet/panel.js") < text.index("/ohif/app.bundle.")


def test_the_organ_tables_colours_are_in_the_script() -> None:
    script = served("organnet/hooks.js")
    assert script is not None
    assert script.content is not None
    for organ in ORGANS.values():
        assert (
            f'"{organ.name}": [{", ".join(map(str, organ.colour_rgb))}]' in script.content.decode()
        )


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x.js", "text/javascript"), ("x.css", "text/css"), ("x.wasm", "application/wasm"),
     ("x.html", "text/html"), ("x.svg", "image/svg+xml"), ("x.png", "image/png"),
     ("x.what", "application/octet-stream")],
)  # fmt: skip
def test_media_types(name: str, kind: str) -> None:
    assert media_type(BUNDLE / name).split(";")[0] == kind


def test_what_has_its_hash_in_its_name_is_kept_for_ever_unless_it_is_cured() -> None:
    (app,) = [name for name in known() if re.fullmatch(r"app\.bundle\.[0-9a-f]{20}\.js", name)]
    plain, changed = served(app), served(names_for(CURES[0])[0])
    assert plain is not None
    assert "immutable" in plain.caching
    assert changed is not None
    assert changed.caching == "no-cache"
    assert changed.etag


@pytest.mark.parametrize(
    "name", ["../ohif.py", "..", "", "assets/../index.html", "/etc/passwd", "organnet/"]
)
def test_what_is_no_name_of_a_file_is_not_served(name: str) -> None:
    assert served(name) is None
