"""STAC documents as inputs, and the webhook, against a real server on this machine."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segworker import cli_nightly
from segworker.errors import ConfigError
from segworker.io.web import post_json
from segworker.sources.find import find_files, find_scenes
from segworker.synthetic.paint import write_raster

DATA = {"type": "image/tiff; application=geotiff", "roles": ["data"]}


def item(name: str, **assets: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {},
        "assets": assets,
    }


def collection(*items: dict[str, Any], links: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items), "links": list(links)}


class Server(ThreadingHTTPServer):
    """Answers GET from `pages`, and POST with the next of `codes`; keeps what was posted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.codes: list[int] = []
        self.posted: list[Any] = []
        self.root = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.server.pages.get(self.path)
        self._answer(200 if body is not None else 404, body or b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self._answer(self.server.codes.pop(0) if self.server.codes else 204, b"")

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_raster(tmp_path / "a.tif", np.zeros((3, 20, 30), np.uint8))
    return tmp_path / "a.tif"


def test_items_of_a_file_are_scenes_with_their_ids(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", np.zeros((3, 20, 30), np.uint8))
    write_raster(tmp_path / "b.tif", np.zeros((3, 40, 50), np.uint8))
    thumbnail = {"href": "t.png", "type": "image/png", "roles": ["thumbnail"]}
    found = collection(
        item("first", main={"href": "./a.tif", **DATA}, thumbnail=thumbnail, metadata={"href": "m.xml"}),
        item("second", main={"href": str(tmp_path / "b.tif"), **DATA}),
    )
    (tmp_path / "items.json").write_text(json.dumps(found))
    plan = find_scenes([str(tmp_path / "items.json")])
    assert [(s.scene_id, s.width) for s in plan.scenes] == [("first", 30), ("second", 50)]
    assert not plan.failures
    (tmp_path / "one.geojson").write_text(json.dumps(found["features"][0]))
    assert [f.scene_id for f in find_files([str(tmp_path / "one.geojson")])] == ["first"]
    assert [f.scene_id for f in find_files([], manifest=str(tmp_path / "one.geojson"))] == ["first"]


def test_the_asset_is_chosen_or_asked_for(tmp_path: Path, scene: Path) -> None:
    file = tmp_path / "items.json"
    file.write_text(json.dumps(collection(item("x", red={"href": "a.tif", **DATA}, nir={"href": "b.tif", **DATA}))))
    with pytest.raises(ConfigError, match=r"2 images to choose from in 'x'.*name one by --asset: red, nir"):
        find_files([str(file)])
    (chosen,) = find_files([str(file)], asset="red")
    assert chosen.files[0].uri == str(scene)
    with pytest.raises(ConfigError, match=r"got --asset blue in 'x'"):
        find_files([str(file)], asset="blue")


def test_pages_of_a_search_are_followed(server: Server, scene: Path) -> None:
    server.pages["/a.tif"] = scene.read_bytes()
    following = {"rel": "next", "href": "/search?q=1&page=2"}
    server.pages["/search?q=1"] = json.dumps(
        collection(item("a", i={"href": "a.tif", **DATA}), links=(following,))
    ).encode()
    server.pages["/search?q=1&page=2"] = json.dumps(collection(item("b", i={"href": "/b.tif", **DATA}))).encode()
    found = find_files([f"{server.root}/search?q=1"])
    assert [(f.scene_id, f.files[0].uri) for f in found] == [
        ("a", f"{server.root}/a.tif"),
        ("b", f"{server.root}/b.tif"),
    ]
    assert found[0].problem is None
    assert "404" in str(found[1].problem), "one that is missing does not harm the others"
    assert found[0].size_bytes == scene.stat().st_size


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ({"rel": "next", "href": "/search"}, "a search has an end"),
        ({"rel": "next", "href": "/search", "method": "POST"}, "followed by GET, got POST"),
        ({"rel": "next", "href": "http://localhost:1/search"}, "on one server"),
        ({"rel": "next", "href": "file:///etc/hosts"}, "on one server"),
    ],
)
def test_searches_that_lead_astray_are_refused(server: Server, link: dict[str, str], message: str) -> None:
    server.pages["/search"] = json.dumps(collection(item("a", i={"href": "a.tif", **DATA}), links=(link,))).encode()
    with pytest.raises(ConfigError, match=message):
        find_files([f"{server.root}/search"])


def test_what_comes_from_the_web_names_no_local_file(server: Server) -> None:
    for href, told in (("file:///etc/hosts", "http"), ("/vsicurl/x", None), ("/etc/hosts", None)):
        server.pages["/x.json"] = json.dumps(item("a", i={"href": href, **DATA})).encode()
        if told:
            with pytest.raises(ConfigError, match="are http"):
                find_files([f"{server.root}/x.json"])
        else:
            with pytest.raises(ConfigError, match="404"):  # asked of the server
                find_files([f"{server.root}/x.json"])


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"type": "FeatureCollection", "features": [{}]}', '{"type": "Point"}', "3"]
)
def test_what_is_not_stac_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match="a STAC document is an item"):
        find_files([str(tmp_path / "x.json")])


def test_ids_that_leave_the_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(item("../../x", i={"href": "a.tif", **DATA})))
    with pytest.raises(ConfigError):
        find_files([str(tmp_path / "x.json")])


# -- the webhook ----------------------------------------------------------------------------------------------------


def test_a_summary_is_posted_and_posted_again(server: Server) -> None:
    server.codes = [503, 429]
    assert post_json(f"{server.root}/hook?k=1", {"exit_code": 0}, pause_s=0) is None
    assert server.posted == [("/hook?k=1", "application/json", {"exit_code": 0})] * 3


def test_a_webhook_that_refuses_is_told_without_its_secrets(server: Server) -> None:
    server.codes = [403]
    problem = post_json(server.root.replace("//", "//me:secret@") + "/hook", {}, pause_s=0)
    assert problem is not None
    assert "403" in problem
    assert "secret" not in problem
    assert len(server.posted) == 1
    server.codes = [500] * 9
    assert "500" in str(post_json(f"{server.root}/hook", {}, pause_s=0))
    assert len(server.posted) == 4
    assert post_json("http://127.0.0.1:9/hook", {}, pause_s=0) is not None


def test_a_night_posts_its_record_and_only_tells_where_it_cannot(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    own = argparse.Namespace(summary=None, webhook=f"{server.root}/hook")
    cli_nightly._tell(own, {"exit_code": 4})
    assert server.posted[0][2] == {"exit_code": 4}
    server.codes = [403]
    cli_nightly._tell(own, {"exit_code": 0})
    assert "could not be posted" in capsys.readouterr().err
    with pytest.raises(argparse.ArgumentTypeError, match="http://"):
        cli_nightly._web_address("ftp://x")
