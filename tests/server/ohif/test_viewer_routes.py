"""The viewer over HTTP: its files, its page at each of its addresses, and no access outside its folder."""

import json
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from fastapi import HTTPException

from lib.organs.table import ORGANS
from lib.server.ohif import distribution, viewer_routes
from lib.server.ohif.viewer_routes import media_type, viewer_file, viewer_files
from tests.pacs.orthancs import orthanc
from tests.server.ohif.installed import require_ohif
from tests.server.running import Server, running
from tests.waiting import LIMIT_S

APP = "app.bundle.0123456789abcdef.js"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """OHIF as a few files."""
    ohif = tmp_path / "ohif"
    (ohif / "assets").mkdir(parents=True)
    for name in (APP, "app.bundle.css", "assets/logo.svg"):
        (ohif / name).write_text("content")
    monkeypatch.setattr(distribution, "folder", lambda: ohif)
    _forget()
    yield
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    viewer_files.cache_clear()
    viewer_file.cache_clear()


def content_of(name: str) -> str:
    file = viewer_file(name)
    assert file is not None
    assert file.content is not None
    return file.content.decode()


@pytest.mark.usefixtures("files")
class TestFiles:
    def test_the_page_loads_our_configuration_before_ohif_and_nothing_from_other_sites(
        self,
    ) -> None:
        page = content_of("index.html")
        assert "//" not in re.sub(r"(<!--.*?-->|// .*)", "", page)
        assert page.index("/ohif/app-config.js") < page.index(f'src="/ohif/{APP}"')

    def test_modules_import_only_files_that_are_sent(self) -> None:
        modules = [name for name in viewer_files() if name.endswith(".mjs")]
        assert "organnet/modules/extension.mjs" in modules
        for name in modules:
            for imported in re.findall(r"from '\./([^']+)'", content_of(name)):
                assert f"organnet/modules/{imported}" in modules, (name, imported)
        configuration = content_of("app-config.js")
        for address in re.findall(r"'/ohif/([^']+\.mjs)'", configuration):
            assert viewer_file(address) is not None

    def test_all_organs_are_sent_with_their_colours_in_planning_order(self) -> None:
        organs = json.loads(content_of("organnet/organs.json"))
        assert {organ["name"]: tuple(organ["colour"]) for organ in organs} == {
            name: organ.colour_rgb for name, organ in ORGANS.items()
        }
        assert [organ["name"] for organ in organs][:3] == ["Brain", "Brainstem", "SpinalCord"]

    def test_files_named_by_their_digest_are_cached_for_ever_and_ours_are_not(self) -> None:
        app, ours = viewer_file(APP), viewer_file("organnet/modules/mode.mjs")
        assert app is not None
        assert "immutable" in app.cache_control
        assert ours is not None
        assert ours.cache_control == "no-cache"
        assert ours.etag

    @pytest.mark.parametrize(
        "name",
        ["../index.html", "..", "", "assets/../index.html", "/etc/passwd", "organnet/",
         "organnet/tests/nrrd.test.mjs", "organnet/package.json", "ohif-lock.json"],
    )  # fmt: skip
    def test_other_names_are_no_files_of_the_viewer(self, name: str) -> None:
        assert viewer_file(name) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x.js", "text/javascript"), ("x.mjs", "text/javascript"), ("x.css", "text/css"),
     ("x.wasm", "application/wasm"), ("x.html", "text/html"), ("x.svg", "image/svg+xml"),
     ("x.png", "image/png"), ("x.what", "application/octet-stream")],
)  # fmt: skip
def test_media_types(name: str, kind: str) -> None:
    assert media_type(Path(name)).split(";")[0] == kind


@pytest.fixture(scope="module")
def over_pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    require_ohif()
    folder = tmp_path_factory.mktemp("viewer")
    (folder / "server").mkdir()
    with (
        orthanc(folder / "orthanc") as pacs,
        running(folder / "server", studies=pacs.dicomweb_url) as server,
    ):
        yield server


@pytest.mark.server
@pytest.mark.parametrize(
    "path", ["", "index.html", "viewer?StudyInstanceUIDs=1.2", "organnet", "organnet?x=1"]
)
def test_every_address_of_the_viewer_returns_its_page(over_pacs: Server, path: str) -> None:
    answer = over_pacs.ask("GET", f"/ohif/{path}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "/ohif/app-config.js" in answer.text


@pytest.mark.server
def test_addresses_of_earlier_versions_open_the_patient(over_pacs: Server) -> None:
    answer = over_pacs.ask(
        "GET", "/ohif/monai-label?StudyInstanceUIDs=1.2,3.4", allow_redirects=False
    )
    assert answer.status_code == 308
    assert answer.headers["Location"] == "/ohif/organnet?StudyInstanceUIDs=1.2,3.4"


@pytest.mark.server
def test_the_page_may_fetch_from_this_server_only(over_pacs: Server) -> None:
    rules = over_pacs.ask("GET", "/ohif/").headers["Content-Security-Policy"]
    assert "default-src 'self'" in rules
    assert "http" not in rules


@pytest.mark.server
def test_the_main_script_loads_its_parts_from_below_ohif(over_pacs: Server) -> None:
    (app,) = re.findall(r'src="(/ohif/app\.bundle\.[^"]+)"', over_pacs.ask("GET", "/ohif/").text)
    script = over_pacs.ask("GET", app)
    assert 'require__.p = "/ohif/";' in script.text
    assert 'require__.p = "/";' not in script.text
    assert "immutable" in script.headers["Cache-Control"]


@pytest.mark.server
def test_a_file_of_ours_is_not_sent_again_until_it_changes(over_pacs: Server) -> None:
    path = "/ohif/organnet/modules/mode.mjs"
    first = over_pacs.ask("GET", path)
    again = {"If-None-Match": first.headers["ETag"]}
    assert over_pacs.ask("GET", path, headers=again).status_code == 304
    other = {"If-None-Match": '"another"'}
    assert over_pacs.ask("GET", path, headers=other).status_code == 200


@pytest.mark.server
@pytest.mark.parametrize(
    "path",
    [
        "missing.js",
        "../../proxy.py",
        "%2e%2e/%2e%2e/proxy.py",
        "..%2f..%2fproxy.py",
        "assets/..%2f..%2f..%2fproxy.py",
        "..%5c..%5cproxy.py",
        "/etc/ld.so.conf",
        "organnet/../viewer_routes.py",
        "organnet/..%2fohif-lock.json",
    ],
)
def test_no_path_leads_out_of_the_viewers_folder(over_pacs: Server, path: str) -> None:
    connection = HTTPConnection(over_pacs.url.removeprefix("http://"), timeout=LIMIT_S)
    connection.request("GET", f"/ohif/{path}")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 404


@pytest.mark.server
def test_a_server_without_ohif_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(distribution, "folder", lambda: tmp_path / "missing")
    with pytest.raises(HTTPException, match="make viewer") as refusal:
        viewer_routes.viewer(None, "")  # type: ignore[arg-type]
    assert refusal.value.status_code == 503


@pytest.mark.server
def test_without_a_pacs_the_page_explains_that_it_needs_one(
    bare_server: Server, tmp_path: Path
) -> None:
    answer = bare_server.ask("GET", "/ohif/")
    assert answer.status_code == 404
    assert "--studies http://" in answer.json()["detail"]
    assert bare_server.ask("GET", "/proxy/dicom/qido/studies").status_code == 404
