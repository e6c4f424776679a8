import os
import pickle
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from segworker.config import Grid, JobConfig, leaves, sections
from segworker.config_load import from_dict, from_flat, load, nest, to_yaml, variable
from segworker.config_values import (
    Area,
    FailureLimit,
    ValueRange,
    format_duration,
    parse_bytes,
    parse_duration,
    public_uri,
)
from segworker.errors import ConfigError

FULL = {
    "scenes": ["a.tif", "s3://bucket/b/*.tif"],
    "manifest": "scenes.csv",
    "mosaic": True,
    "mosaic_id": "north",
    "mosaic_crs": "EPSG:32636",
    "asset": "visual",
    "bands": [3, 2, 1],
    "value_range": "percentile:1,99.5",
    "aoi": "farm.gpkg",
    "max_scene_px": 10,
    "tile": 512,
    "overlap": 64,
    "resolution": 0.3,
    "model": "package.module:factory",
    "weights": "s3://bucket/w.safetensors",
    "model_options": {"depth": 50, "name": "x", "flag": True, "sizes": [1, 2]},
    "batch_size": 4,
    "precision": "bf16",
    "device": "cuda",
    "min_score": 0.5,
    "class_min_score": {"nucleus": 0.6},
    "classes": ["nucleus", "cell"],
    "min_area": "12px",
    "max_area": "3.5m2",
    "min_stuff": 30.0,
    "min_iou": 0.4,
    "simplify": 0.7,
    "output": "s3://bucket/store",
    "table_crs": "EPSG:32636",
    "coco": False,
    "overview": 3,
    "keep_work": "12h",
    "partial_ok": True,
    "name": "night 1",
    "notes": "größer: als\nvorher",
    "address": "local",
    "cpus": 2,
    "workers": 1,
    "gpus_per_worker": 0.5,
    "memory": 16_000_000_000,
    "max_failed_tiles": "1%",
    "tile_timeout": "5m",
    "check_shift": 0.05,
    "price": "1.2EUR",
    "progress": "off",
    "seed": 7,
    "log_level": "debug",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SEGWORKER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def job(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, "utf-8")
        return path

    return write


def error(**kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**kwargs)
    assert caught.value.exit_code == 2
    return str(caught.value)


# Round trips


def test_every_field_is_in_the_full_example() -> None:
    assert set(leaves()) - set(FULL) == {"resolution_um"}  # one resolution only


@pytest.mark.parametrize("config", [JobConfig(), from_flat(**FULL)], ids=["defaults", "full"])
def test_a_printed_configuration_gives_the_same_again(config: JobConfig, job) -> None:
    assert load(file=job(to_yaml(config))) == config
    assert from_dict(config.as_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert to_yaml(from_dict(config.as_dict())) == to_yaml(config)


def test_a_loaded_configuration_is_a_plain_one(job) -> None:
    assert type(load(file=job("grid: {tile: 3}"))) is JobConfig  # a class made in a function would not pickle


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        JobConfig().grid.tile = 3  # type: ignore[misc]


def test_names_are_unique_over_the_sections() -> None:
    assert len(leaves()) == sum(len(section.model_fields) for section in sections().values())


def test_every_field_is_explained() -> None:
    for name, (_, field) in leaves().items():
        assert field.description, name
        assert field.description.endswith("."), name
        if field.default is None and name not in (
            "manifest",
            "aoi",
            "classes",
            "min_area",
            "max_area",
            "name",
            "notes",
            "price",
        ):
            assert "default" in field.description or "auto" in field.description or name in ("resolution_um", "memory")


# Precedence


def test_flags_over_environment_over_file_over_defaults(job, monkeypatch: pytest.MonkeyPatch) -> None:
    path = job("grid: {tile: 100, overlap: 10, resolution: 2}\nmodel: {device: cpu}")
    monkeypatch.setenv("SEGWORKER_GRID__TILE", "200")
    monkeypatch.setenv("SEGWORKER_GRID__OVERLAP", "20")
    config = load(flags={"tile": "300"}, file=path)
    assert config.grid == Grid(tile=300, overlap=20, resolution=2)
    assert config.model.device == "cpu"
    assert config.model.model == "nuclei"


@pytest.mark.parametrize("name", sorted(set(FULL) - {"model_options", "notes"}))
def test_every_field_reads_its_own_text_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = FULL[name]
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
    if isinstance(value, list):
        text = value[0] if name == "scenes" else ",".join(map(str, value))
    monkeypatch.setenv(variable(leaves()[name][0], name), text)
    expected = from_flat(**{name: value[:1] if name == "scenes" else value})
    assert load() == expected


def test_job_file_from_the_environment(job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGWORKER_CONFIG", str(job("grid: {tile: 100}")))
    assert load().grid.tile == 100


def test_a_flag_takes_a_value_back_to_its_default(job) -> None:
    path = job("grid: {tile: 100}\nengine: {workers: 3}\nstitch: {class_min_score: {a: 0.5}}")
    config = load(flags={"tile": "auto", "workers": "none", "class_min_score": ["b=0.7"]}, file=path)
    assert config.grid.tile is None
    assert config.engine.workers is None
    assert config.stitch.class_min_score == {"b": 0.7}  # replaced, not merged


def test_yaml_reads_bare_on_and_off_as_booleans(job) -> None:
    assert load(file=job("engine: {progress: off}")).engine.progress == "off"
    assert load(file=job("engine: {progress: on}")).engine.progress == "on"


def test_sections_with_all_keys_commented_out_and_empty_files(job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(file=job("")) == JobConfig()
    monkeypatch.setenv("SEGWORKER_GRID__TILE", "9")
    assert load(file=job("grid:\n  # tile: 3\n")).grid.tile == 9


# Unknown names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grdi: {tile: 3}", "there is no section grdi in {file}; did you mean grid?"),
        ("grid: {tiel: 3}", "there is no key grid.tiel in {file}; did you mean grid.tile?"),
        ("tile: 3", "there is no key tile in {file}; tile belongs under grid"),
        ("grid: {min_score: 3}", "there is no key grid.min_score in {file}; min_score belongs under stitch"),
        ("zzzz: 1", "there is no section zzzz in {file}; known are inputs, grid, model, stitch, output, engine"),
    ],
)
def test_unknown_keys_name_the_nearest(text: str, message: str, job) -> None:
    path = job(text)
    assert error(file=path) == message.format(file=path)


def test_unknown_variables_name_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGWORKER_GRID_TILE", "3")
    assert error() == "there is no environment variable SEGWORKER_GRID_TILE; did you mean SEGWORKER_GRID__TILE?"


def test_unknown_flat_names() -> None:
    with pytest.raises(ConfigError, match="did you mean tile"):
        nest({"tiel": 3})


# Unusable values: rule, value, remedy, and where the value came from


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({"tile": "0"}, ["--tile must be greater than or equal to 1", "got '0'", "Side in pixels"]),
        ({"tile": "x"}, ["--tile must be a valid integer", "'x'"]),
        (
            {"tile": "256", "overlap": "300"},
            ["overlap must be smaller than the tile, got overlap=300, tile=256; lower"],
        ),
        ({"tile": "256", "overlap": "256"}, ["smaller than the tile"]),
        ({"overlap": "-1"}, ["--overlap", "greater than or equal to 0"]),
        ({"precision": "fp23"}, ["--precision", "'bf16'", "'fp23'"]),
        ({"min_area": "3 acres"}, ["--min-area: an area is a number with px, m2 or um2, got '3 acres'; write"]),
        ({"min_area": "-3"}, ["--min-area"]),
        ({"min_area": "9px", "max_area": "3px"}, ["min-area must not exceed max-area, got 9px and 3px"]),
        ({"value_range": "9,3"}, ["--value-range: the lower end", "9,3"]),
        ({"value_range": "percentile:1,101"}, ["--value-range: percentiles are 0 to 100"]),
        ({"value_range": "minmax:1,2"}, ["--value-range", "'minmax:1,2'"]),
        ({"bands": "0,1"}, ["--bands", "greater than or equal to 1"]),
        ({"class_min_score": ["nucleus"]}, ["--class-min-score: a mapping is written KEY=VALUE, got 'nucleus'"]),
        ({"class_min_score": ["nucleus=3"]}, ["--class-min-score", "less than or equal to 1"]),
        ({"classes": "a,b", "class_min_score": ["c=0.5"]}, ["may only name classes that are kept, got c", "a,b"]),
        ({"min_score": "nan"}, ["--min-score"]),
        ({"keep_work": "7 weeks"}, ["--keep-work: a duration", "'7 weeks'"]),
        ({"memory": "lots"}, ["--memory: a size", "'lots'", "16GB"]),
        ({"max_failed_tiles": "0.5"}, ["--max-failed-tiles: a limit is a count or a share, got '0.5'; write 10 or 1%"]),
        ({"max_failed_tiles": "101%"}, ["--max-failed-tiles"]),
        ({"resolution": "1", "resolution_um": "1"}, ["only one resolution", "drop --resolution"]),
        ({"device": "cpu", "precision": "fp16"}, ["fp16 needs a GPU"]),
        ({"device": "cpu", "gpus_per_worker": "1"}, ["a model on the CPU uses no GPU"]),
        ({"output": ""}, ["--output must have at least 1 character"]),
    ],
)
def test_unusable_flags(flags: dict[str, object], parts: list[str]) -> None:
    message = error(flags=flags)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_an_error_names_its_source(job, monkeypatch: pytest.MonkeyPatch) -> None:
    path = job("grid: {tile: -3}\nengine: {seed: x}")
    first, second = error(file=path).split("\n")
    assert first.startswith(f"grid.tile in {path} must be")
    assert second.startswith(f"engine.seed in {path} must be")
    monkeypatch.setenv("SEGWORKER_GRID__TILE", "-4")
    assert error().startswith("SEGWORKER_GRID__TILE must be")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[1, 2]", "must be a mapping of sections (inputs, grid"),
        ("just words", "must be a mapping of sections"),
        ("grid: {", "a job file must be YAML"),
        ("grid: 3", "grid must be a mapping with some of the keys tile, overlap"),
        ("!!python/object/apply:os.system ['echo unsafe']", "a job file must be YAML"),
    ],
)
def test_unusable_job_files(text: str, part: str, job) -> None:
    assert part in error(file=job(text))


def test_missing_and_binary_job_files(tmp_path: Path) -> None:
    assert "nothing.yaml" in error(file=tmp_path / "nothing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "readable text" in error(file=tmp_path / "binary.yaml")


# Values


@pytest.mark.parametrize(
    ("text", "area"), [("12px", Area(12)), ("3.5m2", Area(3.5, "m2")), (80, Area(80)), (" 1e3 um2 ", Area(1000, "um2"))]
)
def test_areas(text: object, area: Area) -> None:
    assert Area.parse(text) == area


positive = st.floats(0, 1e12, allow_nan=False)


@given(positive, st.sampled_from(["px", "m2", "um2"]))
def test_areas_round_trip(value: float, unit) -> None:
    assert Area.parse(str(Area(value, unit))) == Area(value, unit)


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_ranges_round_trip(a: float, b: float) -> None:
    if a < b:
        assert ValueRange.parse(str(ValueRange("range", a, b))) == ValueRange("range", a, b)


@given(st.integers(0, 10**9))
def test_durations_round_trip(seconds: int) -> None:
    assert parse_duration(format_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


def test_durations_and_sizes() -> None:
    assert parse_duration("7d") == timedelta(days=7)
    assert parse_duration(90) == timedelta(seconds=90)
    assert format_duration(timedelta(0)) == "0s"
    assert parse_bytes("16GB") == 16 * 10**9
    assert parse_bytes("500 kb") == 500_000
    assert parse_bytes(12) == 12


def test_failure_limits() -> None:
    assert FailureLimit.parse("1%").exceeded(2, 100)
    assert not FailureLimit.parse("1%").exceeded(1, 100)
    assert FailureLimit.parse(0).exceeded(1, 100)
    assert not FailureLimit.parse("10").exceeded(10, 10)
    assert str(FailureLimit.parse("0.1%")) == "0.1%"


def test_options_keep_their_commas_and_types() -> None:
    config = from_flat(model_options=["a=1", "b=1,2", "c=true", "d=", "e=0.5", "f=x=y"])
    assert config.model.model_options == {"a": 1, "b": "1,2", "c": True, "d": "", "e": 0.5, "f": "x=y"}
    assert from_flat(model_options="{a: [1, 2], b: null}").model.model_options == {"a": [1, 2], "b": None}


# What is recorded


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("https://user:pw@host/a.tif?X-Amz-Signature=1#x", "https://host/a.tif"),
        ("s3://key:secret@bucket/a.tif", "s3://bucket/a.tif"),
        ("s3://bucket/a?.tif", "s3://bucket/a?.tif"),
        ("data/a?b.tif", "data/a?b.tif"),
    ],
)
def test_records_hold_no_secrets(uri: str, public: str) -> None:
    assert public_uri(uri) == public
    record = from_flat(scenes=[uri], weights=uri).record()
    assert record["inputs"]["scenes"] == [public]
    assert record["model"]["weights"] == public
