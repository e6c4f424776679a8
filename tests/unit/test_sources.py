"""From inputs to scenes: what is found, what it is called, and what is told of the rest."""

from __future__ import annotations

import os
import pickle
import re
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning

from segworker.errors import ConfigError, SceneError
from segworker.sources import find_scenes, scene_identity
from segworker.sources.files import _glob_regex
from segworker.sources.identity import Candidate, assign_ids, safe_id
from segworker.types import InputSpec


def write(path: Path, num_bands: int = 1, driver: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    driver = driver or {".png": "PNG", ".jpg": "JPEG"}.get(path.suffix, "GTiff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver, 8, 6, num_bands, dtype="uint8") as dataset:
            dataset.write(np.full((num_bands, 6, 8), 7, np.uint8))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.tif", "b.png", "deep/a.tif", "deep/er/c.jpg", ".hidden/d.tif"):
        write(tmp_path / name, 3)
    (tmp_path / "notes.md").write_text("no raster")
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    return tmp_path


def ids(*inputs: object, **more: object) -> list[str]:
    return [scene.scene_id for scene in find_scenes([str(i) for i in inputs], **more).scenes]


def test_folders_are_searched_to_any_depth(folder: Path) -> None:
    assert ids(folder) == ["a", "b", "deep__a", "deep__er__c"]


def test_globs(folder: Path) -> None:
    assert ids(folder / "*.tif") == ["a"]
    assert ids(folder / "**" / "*.tif") == ["a", "deep__a"]
    assert ids(folder / "*") == ["a", "b"]
    assert ids(folder / "de?p" / "[ab].tif") == ["deep__a"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    write(tmp_path / "field[1].tif")
    (found,) = find_scenes([str(tmp_path / "field[1].tif")]).scenes
    assert found.scene_id.startswith("field_1_-")


def test_inputs_in_any_order_give_one_plan(folder: Path) -> None:
    names = [str(folder / n) for n in ("a.tif", "deep", "b.png", "deep/*.tif")]
    assert find_scenes(names) == find_scenes(names[::-1])
    assert ids(folder, folder / "deep") == ids(folder / "deep", folder) == ids(folder)
    assert len(find_scenes(names).scenes) == 4, "a file that is named twice is read once"


def test_relative_paths_and_file_uris_are_the_same_scene(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_scenes(["a.tif"]) == find_scenes([str(folder / "a.tif")]) == find_scenes([f"file://{folder}/a.tif"])


def test_ids_that_clash_are_told_apart(tmp_path: Path) -> None:
    for name in ("one/x.tif", "one/x.png", "two/x.tif"):
        write(tmp_path / name)
    assert ids(tmp_path / "one", tmp_path / "two") == ["two__x", "x", "x.png"]
    assert ids(tmp_path / "two", tmp_path / "one") == ["two__x", "x", "x.png"]


def test_a_later_neighbour_does_not_rename_a_tiff(tmp_path: Path) -> None:
    write(tmp_path / "x.tif")
    before = find_scenes([str(tmp_path)]).scenes[0]
    write(tmp_path / "x.png")
    after = find_scenes([str(tmp_path)]).scenes
    assert before in after


NAMES = st.text(st.sampled_from("abA_.- é/\\%"), min_size=1, max_size=12).filter(lambda t: t.strip("/. "))


@given(st.lists(st.tuples(st.sampled_from(["/r", "/s"]), NAMES), min_size=1, max_size=12, unique=True), st.randoms())
def test_ids_are_unique_safe_and_independent_of_order(files: list[tuple[str, str]], random) -> None:
    candidates = [Candidate(f"{root}/{path}", root, path.strip("/")) for root, path in files]
    names = assign_ids(candidates)
    shuffled = candidates[:]
    random.shuffle(shuffled)
    assert assign_ids(shuffled) == names
    assert len(set(names.values())) == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", name) for name in names.values())


def test_long_names_are_cut_and_stay_different() -> None:
    one, other = safe_id("x" * 300), safe_id("x" * 301)
    assert len(one) == len(other) == 200
    assert one != other


def test_text_manifest(folder: Path) -> None:
    (folder / "list.txt").write_text(f"# scenes of today\n\na.tif\n{folder / 'b.png'}\n")
    assert ids(folder / "list.txt") == ["a", "b"]


def test_csv_manifest_states_ids(folder: Path) -> None:
    (folder / "list.csv").write_text("scene_id,uri,note\nnorth,a.tif,x\n,deep/a.tif,y\n")
    assert ids(folder / "list.csv") == ["a", "north"]
    assert ids(folder, folder / "list.csv") == ["b", "deep__a", "deep__er__c", "north"]
    assert "north" in ids(folder, manifest=str(folder / "list.csv"))


def test_parquet_manifest(folder: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.tif", "b.png"], "scene_id": ["one", None]}), folder / "list.parquet")
    assert ids(folder / "list.parquet") == ["b", "one"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "path,scene_id\na.tif,x\n", "has a column `uri`, got path, scene_id"),
        ("m.csv", "uri,scene_id\na.tif,../x\n", r"got '\.\./x' in .*rename it"),
        ("m.csv", "uri,scene_id\na.tif,x\nb.png,x\n", "scene_ids are unique, got 'x'"),
        ("m.csv", "uri,scene_id\na.tif,x\na.tif,y\n", "a scene has one scene_id, got 'x' and 'y'"),
        ("m.txt", "# nothing\n", "lists at least one scene"),
        ("m.parquet", "not parquet", "is a Parquet file"),
    ],
)
def test_bad_manifests(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_scenes([str(folder / name)])


def test_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be readable"):
        find_scenes([str(tmp_path / "no.csv")])


@pytest.mark.parametrize("pattern", ["nothing/*.tif", "missing.tif", "."])
def test_nothing_found_names_the_pattern(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"got none from {re.escape(pattern)} .*correct the path"):
        find_scenes([pattern])
    with pytest.raises(ConfigError, match="got no inputs"):
        find_scenes([])


@pytest.mark.parametrize("uri", ["gs://bucket/a.tif", "/vsizip/a.zip/a.tif"])
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="copy the scenes"):
        find_scenes([uri])


def test_the_unreadable_do_not_harm_the_others(folder: Path) -> None:
    (folder / "broken.tif").write_bytes(b"II*\0 no more")
    plan = find_scenes([str(folder), str(folder / "gone.tif")])
    assert len(plan.scenes) == 4
    assert [failure.scene_id for failure in plan.failures] == ["broken", "gone"]
    assert all(isinstance(failure.error, SceneError) for failure in plan.failures)
    assert pickle.loads(pickle.dumps(plan)).scenes == plan.scenes


def test_bands_are_checked_while_planning(folder: Path) -> None:
    write(folder / "two.tif", 2)
    plan = find_scenes([str(folder)], spec=InputSpec(num_bands=3))
    assert [failure.scene_id for failure in plan.failures] == ["two"]
    assert "name 3 bands with --bands" in str(plan.failures[0].error)


def test_identity_follows_the_file_and_what_is_beside_it(folder: Path) -> None:
    def identity() -> str:
        return scene_identity(find_scenes([str(folder / "a.tif")]).scenes[0])

    first = identity()
    assert identity() == first
    os.utime(folder / "a.tif.aux.xml", (1, 1))
    second = identity()
    write(folder / "a.tif.msk")
    third = identity()
    write(folder / "a.tif", 2)
    assert len({first, second, third, identity()}) == 4
    (folder / "unrelated.tif").touch()
    assert len({first, second, third, identity()}) == 4


def test_a_virtual_raster_changes_with_its_sources(folder: Path) -> None:
    (folder / "a.vrt").write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="6"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">a.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    before = find_scenes([str(folder / "a.vrt")]).scenes[0]
    os.utime(folder / "a.tif", (1, 1))
    assert scene_identity(find_scenes([str(folder / "a.vrt")]).scenes[0]) != scene_identity(before)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("in/*.tif", ["in/a.tif"], ["in/b/a.tif", "in/atif"]),
        ("in/**/*.tif", ["in/a.tif", "in/b/c/a.tif"], ["out/a.tif"]),
        ("in/[!a]?.tif", ["in/bx.tif"], ["in/ax.tif", "in/b/.tif"]),
        ("in/(1)+.tif", ["in/(1)+.tif"], ["in/1.tif"]),
    ],
)
def test_globs_of_object_names(pattern: str, yes: list[str], no: list[str]) -> None:
    assert all(_glob_regex(pattern).fullmatch(name) for name in yes)
    assert not any(_glob_regex(pattern).fullmatch(name) for name in no)


class _Handler(SimpleHTTPRequestHandler):
    """Answers only with the right signature, like a presigned URL, and knows no HEAD."""

    def do_GET(self) -> None:
        if "X-Amz-Signature=sesame" in self.path:
            super().do_GET()
        else:
            self.send_error(403)

    def do_HEAD(self) -> None:
        self.send_error(405)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_presigned_urls_are_read_and_their_secrets_kept(web: str, folder: Path) -> None:
    (scene,) = find_scenes([f"{web}/a.tif?X-Amz-Signature=sesame"]).scenes
    assert (scene.scene_id, scene.width, scene.height) == ("a", 8, 6)
    assert scene.mtime_s == pytest.approx((folder / "a.tif").stat().st_mtime, abs=1)
    plan = find_scenes([str(folder / "b.png"), f"{web}/a.tif?X-Amz-Signature=wrong", f"{web}/gone.tif?token=secret"])
    text = " ".join(f"{failure.uri} {failure.error}" for failure in plan.failures)
    assert len(plan.failures) == 2
    assert "403" in text
    assert "wrong" not in text
    assert "secret" not in text
    first = scene_identity(scene)
    again = find_scenes([f"{web}/a.tif?X-Amz-Signature=sesame&X-Amz-Date=later"]).scenes[0]
    assert scene_identity(again) == first
