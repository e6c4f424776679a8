"""What strangers may hand us, and what must not get out: nothing executes, escapes or leaks."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import struct
import zlib
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segworker import cli
from segworker.config_load import from_flat, load
from segworker.engine.predictor import fetch_weights
from segworker.errors import ConfigError, ReadError, SceneError, SegworkerError, WeightsError
from segworker.io.coco import CocoFeatures, CocoWriter, images_of_scene
from segworker.io.failures import explain, redact, redact_text
from segworker.io.gdal import cause_of
from segworker.io.header import open_scene
from segworker.io.raster import SceneReader
from segworker.io.storage import open_storage
from segworker.io.table import write_part
from segworker.io.table_crs import TableCrs
from segworker.models.weights import read_state_dict
from segworker.sources.files import expand, stat_one
from segworker.sources.identity import Candidate, assign_ids
from segworker.sources.manifest import read_manifest
from segworker.synthetic.paint import write_raster
from segworker.types import Category, Window
from tests.feature_rows import feature_rows

SECRET = "s3cr3t/Hx+8"
NASTY = (
    "../../etc/passwd", "/etc/passwd", "a/../b", "'; DROP TABLE features; --", '"; DROP TABLE features; --',
    "<script>alert(1)</script>", "a\0b", "a\nb", "\x1b[2J", "x" * 1000, "naïve-日本語", "", ".", "..", ".hidden",
    "CON ", "%2e%2e%2f", "${HOME}", "$(id)", "`id`", "a|b", "*", "\u202ereversed",
)  # fmt: skip
SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


# -- nothing executes ------------------------------------------------------------------------------------------------


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def hostile_file(path: Path, marker: Path) -> Path:
    """Write a pickle under a name, in the form that such files have; loading it as usual makes the marker."""
    evil = {"model": Hostile(marker), "weight": torch.zeros(1)}
    if path.stem == "script":
        torch.jit.script(torch.nn.Identity()).save(str(path))
    elif path.stem == "zip":
        torch.save(evil, path)
    elif path.stem == "legacy":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(evil))
    return path


@pytest.mark.parametrize("name", [f"{form}{ext}" for form in ("plain", "zip", "legacy", "script")
                                  for ext in (".pth", ".pt", ".pkl", ".safetensors")])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's, on making TorchScript
def test_weights_never_execute(name: str, tmp_path: Path):
    marker = tmp_path / "pwned"
    path = hostile_file(tmp_path / name, marker)
    with pytest.raises(WeightsError, match="nothing in it is executed"):
        read_state_dict(path)
    assert not marker.exists()
    if not name.startswith("script"):
        with path.open("rb") as file:
            if name.startswith("plain"):
                pickle.load(file)
            else:
                torch.load(file, weights_only=False)
        assert marker.exists(), "the file is as hostile as it should be"


def test_hostile_weights_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    marker = tmp_path / "pwned"
    write_raster(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint8))
    for name in ("plain.pkl", "zip.pth", "legacy.pt"):
        path = hostile_file(tmp_path / name, marker)
        assert cli.main(["run", f"{tmp_path}/a.tif", "--weights", str(path), "--output", f"{tmp_path}/store"]) == 2
        assert "nothing in it is executed" in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "store").exists()


def test_yaml_is_data(tmp_path: Path):
    marker, job = tmp_path / "pwned", tmp_path / "job.yaml"
    call = f"!!python/object/apply:os.mkdir ['{marker}']"
    for text in (f"inputs: {call}", f"model: {{model_options: {{a: {call}}}}}", f"output: {{name: {call}}}"):
        job.write_text(text)
        with pytest.raises(ConfigError, match=r"must be YAML, got .*job\.yaml"):
            load(file=job)
    for value in (f"a={call}", f"{{a: {call}}}"):
        with pytest.raises(ConfigError, match="a value is plain YAML"):
            from_flat(model_options=value)
    assert not marker.exists()


def test_a_job_file_that_unfolds_without_end(tmp_path: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 10)]
    for text in ("\n".join(lines), "inputs: &me\n  scenes: [*me]"):
        (tmp_path / "job.yaml").write_text(text)
        with pytest.raises(ConfigError, match="list many scenes in a manifest"):
            load(file=tmp_path / "job.yaml")


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NASTY if name])
def test_hostile_scene_ids_are_refused(name: str, tmp_path: Path):
    table = pa.table({"uri": ["a.tif"], "scene_id": [name]})
    pa.parquet.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(ConfigError, match="a scene_id has 1 to 200 letters") as caught:
        read_manifest(str(tmp_path / "list.parquet"))
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable(), "what a terminal would obey is quoted"


@given(st.lists(st.one_of(st.text(min_size=1), st.sampled_from([n for n in NASTY if n])), min_size=1, unique=True))
def test_ids_made_of_file_names_are_safe(names: list[str]):
    ids = assign_ids(Candidate(f"/in/{k}/{name}", f"/in/{k}", name) for k, name in enumerate(names))
    assert len(set(ids.values())) == len(names)
    assert all(SAFE_ID.fullmatch(scene_id) for scene_id in ids.values())


@pytest.mark.parametrize("name", NASTY)
def test_class_names_are_data(name: str, tmp_path: Path):
    """Unprintable ones are refused; the others come back as they are, from Parquet, SQL and COCO."""
    if not name.isprintable() or not 0 < len(name) <= 200:
        with pytest.raises(ValueError, match="printable text of 1 to 200") as caught:
            Category(1, name)
        assert str(caught.value).isprintable()
        return
    storage, category = open_storage(tmp_path), Category(1, name)
    rows = feature_rows(0, "a", 3)
    rows = rows.set_column(rows.column_names.index("class_name"), rows.field("class_name"), [[category.name] * 3])
    part = write_part(storage, "r1", 0, rows, TableCrs.of(None))
    assert json.loads(part.stats)["maxValues"]["class_name"] == name
    found = duckdb.execute("SELECT DISTINCT class_name FROM read_parquet(?)", [f"{tmp_path}/features/{part.path}"])
    assert found.fetchall() == [(name,)]
    with CocoWriter(storage, "coco.json", [category], info={}) as writer:
        none = CocoFeatures(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0), np.zeros(0, object))
        writer.add(images_of_scene(0, "a", "a.tif", 10, 10), none)
    assert json.loads(storage.read("coco.json"))["categories"][0]["name"] == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco.json", "features"]


# -- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET.replace('/', '%2F')}@host/a.tif",
        f"https://host/a.tif?X-Amz-Signature={SECRET}",
        f"https://host/a.tif?sig={SECRET}&se=2026",
        f"s3://key:{SECRET.replace('/', '')}@bucket/a.tif",
    ],
)
def test_uris_lose_their_secrets(text: str):
    secret = re.compile("s3cr3t")
    assert not secret.search(redact(text))
    assert not secret.search(redact_text(f"GET {text} failed, {text}: no"))
    assert not secret.search(str(explain("read", text, OSError(f"GET {text}: error sending request"))))
    assert not secret.search(cause_of(OSError(f"'/vsicurl/{text}' not recognized")))
    options = {"model_options": {"source": text, "list": [text]}, "weights": text, "scenes": [text], "manifest": text}
    assert not secret.search(json.dumps(from_flat(**options).record()))
    for call in (expand, stat_one, read_manifest, fetch_weights, open_storage):
        try:
            told = repr(getattr(call(text), "problem", ""))
        except SegworkerError as error:
            told = str(error)
        assert not secret.search(told), call


def test_options_that_are_called_secret_are_not_recorded():
    record = from_flat(model_options={"api_key": SECRET, "hf_token": SECRET, "depth": 50}).record()
    assert record["model"]["model_options"] == {"api_key": "***", "hf_token": "***", "depth": 50}


def test_errors_lose_secrets_before_they_are_printed(capsys: pytest.CaptureFixture[str]):
    def fail() -> int:
        raise SceneError(f"somebody else's words: https://user:{SECRET}@host/a?X-Amz-Signature={SECRET}; mend it")

    assert cli.guarded(fail) == 1
    assert "s3cr3t" not in capsys.readouterr().err


def test_gdals_remarks_lose_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_raster(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint8))
    open_scene(str(tmp_path / "a.tif"), "a")
    with caplog.at_level(logging.DEBUG, "rasterio._env"):
        logging.getLogger("rasterio._env").warning("CPLE_HTTP in %s", f"/vsicurl/https://h/a.tif?sig={SECRET}")
    assert "CPLE_HTTP in /vsicurl/https://h/a.tif" in caplog.text
    assert SECRET not in caplog.text


# -- rasters that name other places -----------------------------------------------------------------------------------


def vrt(path: Path, source: str, *, inner: str = "") -> Path:
    """Write a VRT of one band that reads a source."""
    element = f"<SimpleSource><SourceFilename relativeToVRT='0'>{source}</SourceFilename></SimpleSource>"
    path.write_text(
        f'<VRTDataset rasterXSize="8" rasterYSize="6"><VRTRasterBand dataType="Byte" band="1">{inner or element}'
        "</VRTRasterBand></VRTDataset>"
    )
    return path


ELSEWHERE = (
    "/vsicurl/http://169.254.169.254/latest/meta-data", "http://169.254.169.254/", "https://host/a.tif",
    "/vsizip/a.zip/b.tif", "/vsis3/bucket/a.tif", "/vsistdin/", "/vsisubfile/0_9,/etc/passwd", "WMS:http://host",
    "NETCDF:a.nc:x", "&lt;GDAL_WMS&gt;&lt;/GDAL_WMS&gt;", "<![CDATA[/vsicurl/http://host/a.tif]]>",
    "/VSICURL/http://host/a.tif",
)  # fmt: skip


@pytest.mark.parametrize("source", ELSEWHERE)
def test_a_vrt_names_its_own_disk_only(source: str, tmp_path: Path):
    for path in (
        vrt(tmp_path / "a.vrt", source),
        vrt(tmp_path / "b.vrt", "", inner=f"<SimpleSource sourcefilename='{source}'></SimpleSource>"),
        vrt(tmp_path / "outer.vrt", str(tmp_path / "a.vrt")),
    ):
        with pytest.raises(SceneError, match="a VRT names files beside it"):
            open_scene(str(path), "a")


def test_an_honest_vrt_is_read(tmp_path: Path):
    write_raster(tmp_path / "a.tif", np.full((1, 6, 8), 7, np.uint8))
    vrt(tmp_path / "inner.vrt", str(tmp_path / "a.tif"))
    text = vrt(tmp_path / "outer.vrt", "inner.vrt").read_text().replace("='0'", "='1'")
    note = "<Metadata><MDI key='source'>https://host/of/the/original.tif</MDI></Metadata><VRTRasterBand"
    (tmp_path / "outer.vrt").write_text(text.replace("<VRTRasterBand", note, 1))
    scene = open_scene(str(tmp_path / "outer.vrt"), "a")
    with SceneReader(scene) as reader:
        assert (reader.read_window(Window(0, 0, 8, 6))[0] == 7).all()


def test_a_vrt_does_not_run_python_or_read_raw_bytes(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(range(48)))
    write_raster(tmp_path / "data" / "a.tif", np.ones((1, 6, 8), np.uint8))
    code = f"import os\ndef f(*args, **kw):\n    os.mkdir('{tmp_path}/pwned')"
    python = vrt(tmp_path / "data" / "python.vrt", f"{tmp_path}/data/a.tif")
    python.write_text(
        python.read_text()
        .replace('band="1">', 'band="1" subClass="VRTDerivedRasterBand"><PixelFunctionLanguage>Python'
                 f"</PixelFunctionLanguage><PixelFunctionType>f</PixelFunctionType><PixelFunctionCode>{code}"
                 "</PixelFunctionCode>")
    )  # fmt: skip
    raw = tmp_path / "data" / "raw.vrt"
    raw.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="6">'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativeToVRT="0">{tmp_path}/secret.bin</SourceFilename></VRTRasterBand></VRTDataset>'
    )
    with pytest.raises(SceneError, match="a VRT names rasters"):
        open_scene(str(raw), "a")
    with SceneReader(open_scene(str(python), "a")) as reader, pytest.raises(ReadError):
        reader.read_window(Window(0, 0, 8, 6))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "content",
    [
        '<VRTDataset rasterXSize="8" rasterYSize="6"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>',
        (
            "<GDAL_WMS><Service name='TMS'><ServerUrl>http://169.254.169.254/${z}/${x}/${y}</ServerUrl></Service>"
            "<DataWindow><SizeX>8</SizeX><SizeY>6</SizeY></DataWindow><BandsCount>1</BandsCount></GDAL_WMS>"
        ),
        '{"type": "FeatureCollection", "stac_version": "1.0.0", "features": []}',
    ],
)
def test_a_format_that_names_services_does_not_hide_behind_a_name(content: str, tmp_path: Path):
    (tmp_path / "a.tif").write_text(content)
    with pytest.raises(SceneError, match="must be a raster that GDAL opens"):
        open_scene(str(tmp_path / "a.tif"), "a")


@pytest.mark.parametrize(
    "uri", ["/vsizip/a.zip/a.tif", "/vsicurl/http://host/a.tif", "ftp://host/a.tif", "gs://b/a.tif"]
)
def test_handlers_of_gdal_are_no_inputs(uri: str):
    with pytest.raises(ConfigError, match="inputs are paths, globs"):
        expand(uri)


# -- headers that lie ------------------------------------------------------------------------------------------------


def test_a_png_whose_header_lies_is_an_error_and_not_memory(tmp_path: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 80_000, 80_000, 8, 0, 0, 0, 0)
    bomb = zlib.compress(bytes(10_000_000))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    scene = open_scene(str(tmp_path / "a.png"), "a")
    before = peak_bytes()
    with SceneReader(scene) as reader, pytest.raises(ReadError, match="every pixel of a scene must be readable"):
        reader.read_window(Window(0, 1000, 500, 500))
    assert peak_bytes() - before < 300e6
    with pytest.raises(SceneError, match="--max-scene-px"):
        open_scene(str(tmp_path / "a.png"), "a", limits=from_limits(10**9))


def from_limits(scene_px: int):
    from segworker.io.header import Limits

    return Limits(scene_px=scene_px)


def peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
