"""The configuration of a job: one typed tree.

Flags, environment variables, job files, help text and `docs/reference/config.md` all come from these classes. A field's
name is its flag (`--min-score`), its path is its key in YAML (`stitch.min_score`) and its environment variable
(`SEGWORKER_STITCH__MIN_SCORE`); names are therefore unique over all sections. The description is its help text, and
says what the default means where the default is None. `config_load` fills the tree.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import ValidationInfo

from segworker.config_values import (
    AreaValue,
    Bytes,
    Duration,
    FailureLimitValue,
    PriceValue,
    ValueRange,
    ValueRangeValue,
    is_secret,
    parse_duration,
    parse_list,
    parse_mapping,
    public_uri,
)
from segworker.errors import ConfigError

Score = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(parse_list)]
Uris = Annotated[tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
Bands = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(parse_list)]
Scores = Annotated[dict[str, Score], BeforeValidator(parse_mapping)]
Options = Annotated[dict[str, JsonValue], BeforeValidator(parse_mapping)]
Progress = Annotated[
    Literal["auto", "on", "off"], BeforeValidator(lambda v: {True: "on", False: "off"}.get(v, v))
]  # YAML 1.1 reads a bare on or off as a boolean


AFTER_TILES = (
    *("min_score", "class_min_score", "classes", "min_area", "max_area", "min_stuff", "min_iou", "simplify"),
    *("coco", "overview", "partial_ok", "name", "notes"),
    *("address", "cpus", "max_failed_tiles", "progress", "log_level"),
)
"Fields that act after the tiles were predicted: `segworker stitch` may change them."
RETRIED = (
    *("device", "coco", "overview", "keep_work", "partial_ok", "name", "notes"),
    *("address", "cpus", "workers", "gpus_per_worker", "memory", "max_failed_tiles", "tile_timeout"),
    *("price", "progress", "log_level"),
)
"Fields that change where and how a run works, not what it finds: `segworker retry` may change them."


class Section(BaseModel):
    """A section of the tree: frozen, without unknown keys, without infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=False)
    title: ClassVar[str] = ""

    @field_validator("*", mode="before")
    @classmethod
    def _unset(cls, value: object, info: ValidationInfo) -> object:
        """Let 'auto' and 'none' stand for a default of None, so that a flag can undo what a job file says."""
        field = cls.model_fields[info.field_name or ""]
        return None if field.default is None and value in ("auto", "none", "") else value


class Inputs(Section):
    """Which scenes are read, and which of their values."""

    title: ClassVar[str] = "scenes"
    scenes: Uris = Field(
        default=(),
        description="Files, folders, globs, s3:// objects, prefixes or globs, manifests (.txt, .csv, .parquet), and "
        "STAC items or searches (.json, .geojson, http(s)://.../search?...).",
    )
    manifest: str | None = Field(
        default=None,
        description="A list of scenes: text (one uri a line), CSV or Parquet with uri and optional scene_id or "
        "mosaic (rows that share one are sheets of one scene).",
    )
    asset: str | None = Field(
        default=None,
        description="Asset of STAC items that is the scene (visual, B04); default: their only image of role data.",
    )
    mosaic: bool = Field(
        default=False, description="All files are sheets, adjoining or overlapping, of one scene: a mosaic."
    )
    mosaic_id: str | None = Field(
        default=None,
        description="scene_id of that mosaic, implies --mosaic; default: the name of the folder that holds the sheets.",
    )
    mosaic_crs: str | None = Field(
        default=None,
        description="CRS of mosaics whose sheets differ in it (EPSG:32636), others are warped; default: they must not.",
    )
    bands: Bands | None = Field(
        default=None,
        description="Bands to read, from 1, in the order the model wants them (3,2,1); default: the first ones.",
    )
    value_range: ValueRangeValue = Field(
        default=ValueRange(),
        description="Source values that become 0 and 1, one range for a whole scene: dtype, LOW,HIGH or "
        "percentile:LOW,HIGH (from the overviews).",
    )
    aoi: str | None = Field(
        default=None,
        description="Polygons in any vector format and CRS; only tiles and objects that touch them are kept.",
    )
    max_scene_px: int = Field(
        default=10**11,
        ge=1,
        description="Scenes with more pixels than this are refused: a guard against decompression bombs.",
    )


class Grid(Section):
    """How scenes are cut into tiles."""

    title: ClassVar[str] = "tiles"
    tile: int | None = Field(
        default=None, ge=1, description="Side in pixels of what the model sees; default: the model's."
    )
    overlap: int | None = Field(
        default=None,
        ge=0,
        description="Width in pixels of the strip that two neighbouring tiles both see; default: the model's.",
    )
    resolution: float | None = Field(
        default=None,
        gt=0,
        description="Metres per pixel to read at; default: what the model asks for, else the scene's own.",
    )
    resolution_um: float | None = Field(
        default=None, gt=0, description="Micrometres per pixel to read at, for scenes that state a physical pixel size."
    )

    @model_validator(mode="after")
    def _check(self) -> Grid:
        if self.tile is not None and self.overlap is not None and self.overlap >= self.tile:
            raise ConfigError(
                f"overlap must be smaller than the tile, got overlap={self.overlap}, tile={self.tile}; lower --overlap"
            )
        if self.resolution is not None and self.resolution_um is not None:
            raise ConfigError(
                f"only one resolution can be read at, got resolution={self.resolution:g} m and "
                f"resolution_um={self.resolution_um:g}; drop --resolution or --resolution-um"
            )
        return self


class Model(Section):
    """What predicts, and in which form."""

    title: ClassVar[str] = "model"
    model: str = Field(
        default="nuclei",
        min_length=1,
        description="A registered name (`segworker models` lists them) or package.module:factory, a callable of yours.",
    )
    weights: str | None = Field(
        default=None,
        description="Weights to load, a path or URI (.safetensors, or .pth of plain tensors); default: the model's.",
    )
    model_options: Options = Field(
        default={}, description="KEY=VALUE arguments for the model's builder; repeat the flag for several."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Tiles in one call of the model; default: what fits."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Arithmetic of the model; auto is fp32 on a CPU and the model's choice on a GPU."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the model runs; auto prefers a GPU."
    )

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.device == "cpu" and self.precision == "fp16":
            raise ConfigError("fp16 needs a GPU, got precision=fp16, device=cpu; use --precision bf16 or fp32")
        return self


class Stitch(Section):
    """Which objects are kept, and when two tiles saw the same one."""

    title: ClassVar[str] = "objects"
    min_score: Score | None = Field(
        default=None, description="Objects below this score are dropped; default: the model's."
    )
    class_min_score: Scores = Field(default={}, description="The same for single classes: NAME=SCORE,NAME=SCORE.")
    classes: Names | None = Field(default=None, description="Keep only these classes, by name: NAME,NAME.")
    min_area: AreaValue | None = Field(
        default=None, description="Smallest whole object, in 12px, 3.5m2 or 80um2; a plain number is pixels."
    )
    max_area: AreaValue | None = Field(default=None, description="Largest whole object, in the same units.")
    min_stuff: float = Field(
        default=64.0,
        ge=0,
        description="Regions of stuff (land cover, tissue) with fewer pixels than this go to the neighbour with the "
        "longest common border; 0 keeps all.",
    )
    min_iou: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.25,
        description="IoU from which two tiles' masks in the strip both saw are one object: less where the smaller one "
        "lies in the other, more where only one of them says so.",
    )
    simplify: float = Field(
        default=0.0,
        ge=0,
        description="Bends of outlines smaller than a square of this side, in pixels, are taken out; neighbours go on "
        "sharing their borders; 0 keeps every pixel edge.",
    )

    @model_validator(mode="after")
    def _check(self) -> Stitch:
        low, high = self.min_area, self.max_area
        if low is not None and high is not None and low.unit == high.unit and low.value > high.value:
            raise ConfigError(f"min-area must not exceed max-area, got {low} and {high}; lower --min-area")
        unknown = sorted(set(self.class_min_score) - set(self.classes or self.class_min_score))
        if unknown:
            raise ConfigError(
                f"class-min-score may only name classes that are kept, got {', '.join(unknown)} beside "
                f"classes={','.join(self.classes or ())}; add them to --classes or drop them"
            )
        return self


class Output(Section):
    """Where results go, and which."""

    title: ClassVar[str] = "results"
    output: str = Field(
        default="out/store",
        min_length=1,
        description="The store: a folder or s3://bucket/prefix. Every run adds to it.",
    )
    table_crs: str | None = Field(
        default=None,
        description="CRS of a new store's table (EPSG:32636); default: the scenes' own where all agree, else CRS84.",
    )
    coco: bool = Field(default=True, description="Write COCO JSON beside the table.")
    overview: int = Field(
        default=24, ge=0, description="Scenes that get an overview picture, the first ones of the run."
    )
    keep_work: Duration = Field(
        default=parse_duration("7d"),
        description="How long tile results are kept after a complete run, to resume or stitch again (0s, 12h, 7d).",
    )
    partial_ok: bool = Field(
        default=False, description="Exit with 0 although tiles or scenes are missing (otherwise 3)."
    )
    name: str | None = Field(default=None, max_length=200, description="A name for the run, kept in run.json.")
    notes: str | None = Field(default=None, description="Anything worth remembering, kept in run.json.")


class Engine(Section):
    """What it runs on."""

    title: ClassVar[str] = "engine"
    address: str | None = Field(
        default=None,
        description="Ray cluster to join, or 'local' for one of its own; default: RAY_ADDRESS or the job's cluster, "
        "else a local one.",
    )
    cpus: int | None = Field(default=None, ge=1, description="CPUs of a local Ray; default: all.")
    workers: int | None = Field(
        default=None, ge=1, description="Processes that hold the model; default: one for each GPU, or a few on CPUs."
    )
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs of each such process; default: 1 where there are any, else 0."
    )
    memory: Bytes | None = Field(
        default=None, description="Memory that one such process may use (16GB); a plan that cannot fit is refused."
    )
    max_failed_tiles: FailureLimitValue | None = Field(
        default=None,
        description="More failed tiles than this, a count or a share (1%), fail the run; default: no limit.",
    )
    tile_timeout: Duration = Field(
        default=parse_duration("10m"),
        description="Time for reading, predicting or decoding a tile; a process that takes longer is killed.",
    )
    check_shift: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Share of each run's tiles (0.05) that is tiled again on a grid shifted by half a tile, to measure "
        "how far objects depend on where tiles end; costs as much prediction again.",
    )
    price: PriceValue | None = Field(
        default=None,
        description="What an hour of one such process costs (1.20EUR), to record what runs cost; default: unknown.",
    )
    progress: Progress = Field(default="auto", description="Progress lines; auto shows them on a terminal only.")
    seed: int = Field(default=0, ge=0, description="Seed of everything that draws a sample.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="How much is logged; debug adds tracebacks to errors."
    )


class JobConfig(Section):
    """All that a run depends on besides its inputs. Picklable, comparable, and the same whatever filled it."""

    inputs: Inputs = Inputs()
    grid: Grid = Grid()
    model: Model = Model()
    stitch: Stitch = Stitch()
    output: Output = Output()
    engine: Engine = Engine()

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: object) -> object:
        """Take a section of a job file whose keys are all commented out for one that is not there."""
        if not isinstance(value, dict):
            return value
        return {key: part for key, part in value.items() if part is not None or key not in cls.model_fields}

    @model_validator(mode="after")
    def _check(self) -> JobConfig:
        if self.model.device == "cpu" and self.engine.gpus_per_worker:
            raise ConfigError(
                f"a model on the CPU uses no GPU, got device=cpu, gpus_per_worker={self.engine.gpus_per_worker:g}; "
                "drop --device or --gpus-per-worker"
            )
        return self

    def as_dict(self) -> dict[str, dict[str, JsonValue]]:
        """Return plain values in the order of declaration: `from_dict` of them is an equal configuration."""
        return self.model_dump(mode="json")

    def record(self) -> dict[str, dict[str, JsonValue]]:
        """Return `as_dict()` fit for run.json: secrets of presigned and other uris are taken out."""
        return {name: {key: _public(value) for key, value in keys.items()} for name, keys in self.as_dict().items()}


def _public(value: JsonValue) -> JsonValue:
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, dict):
        return {key: "***" if is_secret(key) else _public(item) for key, item in value.items()}
    return public_uri(value) if isinstance(value, str) else value


def sections() -> dict[str, type[Section]]:
    """Return the sections of the tree by name, in order."""
    return {name: _section(field) for name, field in JobConfig.model_fields.items()}


def leaves() -> dict[str, tuple[str, FieldInfo]]:
    """Return every field of the tree by its name: (section, field)."""
    return {key: (name, field) for name, part in sections().items() for key, field in part.model_fields.items()}


def _section(field: FieldInfo) -> type[Section]:
    assert isinstance(field.annotation, type)
    assert issubclass(field.annotation, Section)
    return field.annotation
