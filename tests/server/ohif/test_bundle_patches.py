"""The patches fit the installed OHIF bundle; any other bundle is served unpatched, with a warning."""

import logging
import re

import pytest

from lib.organs.table import ORGANS
from lib.server.ohif.bundle_patches import PATCHES, BundlePatch, patched
from lib.server.ohif.viewer_routes import (
    BUNDLE,
    SCRIPTS,
    media_type,
    viewer_file,
    viewer_files,
)


def names_for(patch: BundlePatch) -> list[str]:
    return [path.name for path in BUNDLE.glob(patch.file)]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: f"{patch.defect}-{patch.old[:30]}")
def test_each_patch_fits_the_installed_bundle_once(patch: BundlePatch) -> None:
    (name,) = names_for(patch)
    text = (BUNDLE / name).read_text(encoding="utf-8")
    assert text.count(patch.old) == 1
    assert "\n" not in patch.old
    text = patched(name, text)
    assert patch.new in text
    assert text.count(patch.old) == patch.new.count(patch.old)


def test_patched_files_are_sent_patched() -> None:
    for patch in PATCHES:
        (name,) = names_for(patch)
        file = viewer_file(name)
        assert file is not None
        assert file.content is not None
        assert file.content.count(patch.old.encode()) == patch.new.count(patch.old)


def test_nothing_is_written_into_the_bundle() -> None:
    before = {path: path.stat().st_mtime_ns for path in BUNDLE.rglob("*")}
    for name in viewer_files():
        viewer_file(name)
    assert {path: path.stat().st_mtime_ns for path in BUNDLE.rglob("*")} == before


def test_another_bundle_is_served_unpatched_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = "this.serverURI = window.somewhere;"
    with caplog.at_level(logging.WARNING):
        assert patched("3933.bundle.0123456789abcdef0123.js", text) == text
    messages = [record.getMessage() for record in caplog.records]
    wanted = {patch.defect for patch in PATCHES if patch.file.startswith("3933")}
    assert {
        int(re.findall(r"defect (\d+) matches 0 times", line)[0]) for line in messages
    } == wanted


def test_a_patch_that_matches_twice_is_not_applied(caplog: pytest.LogCaptureFixture) -> None:
    patch = BundlePatch(1, "x.js", "old();", "new();")
    assert patched("x.js", "old(); old();", [patch]) == "old(); old();"
    assert "matches 2 times" in caplog.text
    assert patched("x.js", "old();", [patch]) == "new();"
    assert patched("y.js", "old();", [patch]) == "old();"


def test_every_function_that_patches_call_exists() -> None:
    own_script = (SCRIPTS / "hooks.js").read_text() + (SCRIPTS / "brushes.js").read_text()
    own_script += (SCRIPTS / "panel.js").read_text()
    called = {
        name for patch in PATCHES for name in re.findall(r"window\.organnet\.(\w+)", patch.new)
    }
    assert called
    for name in called:
        assert re.search(rf"(function {name}\(|organnet\.{name} = )", own_script), name


def test_the_page_loads_our_scripts_before_the_bundle_and_nothing_from_other_sites() -> None:
    page = viewer_file("index.html")
    assert page is not None
    assert page.content is not None
    text = page.content.decode()
    assert "https://" not in text
    assert text.index("/ohif/organnet/hooks.js") < text.index("/ohif/organnet/panel.js")
    assert text.index("/ohif/organnet/panel.js") < text.index("/ohif/app.bundle.")


def test_the_organ_tables_colours_are_in_the_script() -> None:
    script = viewer_file("organnet/hooks.js")
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


def test_files_named_by_their_hash_are_cached_for_ever_unless_they_are_patched() -> None:
    (app,) = [
        name for name in viewer_files() if re.fullmatch(r"app\.bundle\.[0-9a-f]{20}\.js", name)
    ]
    plain, changed = viewer_file(app), viewer_file(names_for(PATCHES[0])[0])
    assert plain is not None
    assert "immutable" in plain.cache_control
    assert changed is not None
    assert changed.cache_control == "no-cache"
    assert changed.etag


@pytest.mark.parametrize(
    "name", ["../ohif.py", "..", "", "assets/../index.html", "/etc/passwd", "organnet/"]
)
def test_a_name_outside_the_viewers_folder_is_not_a_viewer_file(name: str) -> None:
    assert viewer_file(name) is None
