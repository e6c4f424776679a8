"""From a configuration to a job: the model's facts, scenes, grids, keys and blocks. Reads headers, predicts nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import shapely

from segworker.blocks import Block, SceneGrid, plan_blocks
from segworker.config import JobConfig
from segworker.config_values import Area, ValueRange
from segworker.engine.mosaics import MosaicPlan, Ranges, plan_mosaics
from segworker.errors import ConfigError, SceneError, SegworkerError
from segworker.geo import aoi_to_scene, grid_scale, inside_area_of_use, to_map
from segworker.grid import Grid
from segworker.io.aoi import Aoi, load_aoi
from segworker.io.header import Limits
from segworker.io.storage import Storage, open_storage
from segworker.io.table import read_store_info
from segworker.io.table_crs import TableCrs, decide_table_crs
from segworker.seams import SeamRule
from segworker.sources.find import SceneFailure, find_scenes
from segworker.sources.identity import scene_identity
from segworker.sources.mosaic import MosaicOptions
from segworker.stitch import StitchOptions
from segworker.types import Category, InputSpec, Scene

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
SHARD_FORMAT = 2
"Raised when shards of older code must not be used any more."
BATCH_PX = 2 * 1024 * 1024
"Pixels of one call of the model, about."


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What planning needs of a model; the weights stay with the predictors."""

    ref: str
    options: tuple[tuple[str, object], ...]
    weights: str | None
    "A path or URI; None: the model's own."
    spec: InputSpec
    categories: tuple[Category, ...]
    digest: str

    @property
    def class_ids(self) -> frozenset[int]:
        """All ids a prediction may hold."""
        return frozenset(c.id for c in self.categories)

    @property
    def has_stuff(self) -> bool:
        """Whether pixels have classes beside objects."""
        return not all(c.isthing for c in self.categories)


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """What every task of a run needs, sent to each node once."""

    store_uri: str
    run_id: str
    tile_key: str
    stitch_key: str
    model: ModelFacts
    bands: tuple[int, ...] | None
    value_range: ValueRange
    batch_px: int
    "Pixels of one batch, about; a batch has at least one tile."
    batch_size: int | None
    options: StitchOptions
    min_area: Area | None
    max_area: Area | None
    min_stuff: float
    "Scene pixels: smaller regions of stuff go to their neighbours."
    simplify_px: float
    aoi: Aoi | None
    table_crs: TableCrs
    coco: bool
    tile_timeout_s: float
    "For reading, predicting or decoding one tile; a call of the model counts as one."
    batch_limit_px: int | None = None
    "Pixels of one batch at most, where `--memory` asks for it; a batch has at least one tile."

    @property
    def storage(self) -> Storage:
        """The store."""
        return open_storage(self.store_uri)

    @property
    def categories(self) -> Mapping[int, Category]:
        """Categories by id."""
        return {c.id: c for c in self.model.categories}

    def tiles_per_batch(self, shape_yx: tuple[int, int]) -> int:
        """Return the batch size for windows of a shape: fixed by the plan, whatever the machine."""
        area = max(1, shape_yx[0] * shape_yx[1])
        wanted = self.batch_size or max(1, self.batch_px // area)
        return wanted if self.batch_limit_px is None else max(1, min(wanted, self.batch_limit_px // area))


@dataclass(frozen=True, slots=True, eq=False)
class BlockTask:
    """One block with the scenes and grids of its tiles."""

    block: Block
    scenes: Mapping[str, Scene]
    grids: Mapping[str, Grid]
    partial: bool = False
    "A partial shard of an earlier run is there to go on from."
    ranges: Mapping[str, Ranges | None] = field(default_factory=dict)
    "Of mosaics, by scene_id: the (low, high) of each band, which need all sheets; None: raw values."
    narrowed: bool = False
    "The block's shard is of more scenes than these."


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A run that can begin."""

    config: JobConfig
    common: Common
    scenes: Mapping[str, Scene]
    "By scene_id, sorted."
    grids: Mapping[str, Grid]
    blocks: tuple[Block, ...]
    failures: tuple[SceneFailure, ...]
    partial: frozenset[int] = frozenset()
    "Blocks of which a partial shard is there."
    lost: frozenset[int] = frozenset()
    "Blocks without any shard: all their tiles failed."
    mosaics: Mapping[str, MosaicPlan] = field(default_factory=dict)
    "By scene_id, for those scenes that are mosaics."
    narrowed: frozenset[int] = frozenset()
    "Blocks whose shards are of more scenes than the job's."
    settings: Mapping[str, object] = field(default_factory=dict)
    "What the tile key is made of."

    @property
    def num_tiles(self) -> int:
        """Tiles of the plan."""
        return sum(b.num_tiles for b in self.blocks)

    def task(self, block: Block) -> BlockTask:
        """Return what a worker needs for a block: of mosaics, the sheets that its tiles see."""
        grids = {r.scene_id: self.grids[r.scene_id] for r in block.ranges}
        scenes = {r.scene_id: self.scenes[r.scene_id] for r in block.ranges}
        ranges = {i: self.mosaics[i].ranges for i in grids if i in self.mosaics}
        for part in block.ranges:
            if part.scene_id in ranges:
                seen, index = part.seen(grids[part.scene_id]), self.mosaics[part.scene_id].index
                scenes[part.scene_id] = index.part_of(scenes[part.scene_id], seen)
        return BlockTask(
            block,
            scenes,
            grids,
            partial=block.number in self.partial,
            narrowed=block.number in self.narrowed,
            ranges=ranges,
        )


def make_job(config: JobConfig, model: ModelFacts, run_id: str) -> Job:
    """Plan a run.

    Raises:
        ConfigError: for settings that do not go together; where no scene can be read at all, its own error.
        StoreError, StorageError: where the store cannot be used.
    """
    tile, overlap = tile_and_overlap(config, model.spec)
    storage = open_storage(config.output.output)
    info = read_store_info(storage)
    found = find_scenes(
        config.inputs.scenes,
        manifest=config.inputs.manifest,
        asset=config.inputs.asset,
        limits=Limits(scene_px=config.inputs.max_scene_px),
        bands=config.inputs.bands,
        spec=model.spec,
        mosaic=_mosaic_options(config),
    )
    failures = list(found.failures)
    table_crs = (
        decide_table_crs(config.output.table_crs, info.table_crs if info else None, [s.crs for s in found.scenes])
        if found.scenes
        else TableCrs("pixel", None)
    )
    scenes: dict[str, Scene] = {}
    grids: dict[str, Grid] = {}
    mosaics: dict[str, MosaicPlan] = {}
    for scene in found.scenes:
        try:
            mosaics |= plan_mosaics(scene, config.inputs.value_range, bands=config.inputs.bands, spec=model.spec)
            grids[scene.scene_id] = _grid_of(scene, config, model.spec, table_crs, tile, overlap)
            scenes[scene.scene_id] = scene
        except SegworkerError as error:
            failures.append(SceneFailure(scene.uri, scene.scene_id, error))
    aoi = load_aoi(config.inputs.aoi) if config.inputs.aoi else None
    _check_aoi(aoi, scenes, failures, grids)
    settings = tile_settings(config, model, aoi, tile=tile, overlap=overlap)
    common = make_common(config, model, run_id=run_id, table_crs=table_crs, aoi=aoi, tile_key=digest(settings))
    pixel_bytes = model.spec.num_bands
    blocks = plan_blocks(
        [
            SceneGrid(
                grids[i],
                scene_identity(s),
                pixel_bytes * np.dtype(s.dtype).itemsize,
                mosaics[i].index if i in mosaics else None,
            )
            for i, s in scenes.items()
        ]
    )
    failures.sort(key=lambda f: f.scene_id)
    return Job(config, common, scenes, grids, tuple(blocks), tuple(failures), mosaics=mosaics, settings=settings)


def _mosaic_options(config: JobConfig) -> MosaicOptions:
    inputs = config.inputs
    return MosaicOptions(inputs.mosaic or inputs.mosaic_id is not None, inputs.mosaic_id, inputs.mosaic_crs)


def keys_of(config: JobConfig, model: ModelFacts, table_crs: TableCrs) -> tuple[str, str]:
    """Return (tile key, stitch key) that a run of this configuration would give its scenes; no scene is needed."""
    tile, overlap = tile_and_overlap(config, model.spec)
    aoi = load_aoi(config.inputs.aoi) if config.inputs.aoi else None
    tile_key = digest(tile_settings(config, model, aoi, tile=tile, overlap=overlap))
    common = make_common(config, model, run_id="", table_crs=table_crs, aoi=aoi, tile_key=tile_key)
    return tile_key, common.stitch_key


def tile_and_overlap(config: JobConfig, spec: InputSpec) -> tuple[int, int]:
    """Return the tile's side and the overlap, in pixels: the configuration's, else the model's."""
    tile = config.grid.tile or spec.tile_px
    overlap = config.grid.overlap if config.grid.overlap is not None else min(spec.overlap_px, tile // 4)
    if overlap >= tile:
        raise ConfigError(f"overlap must be smaller than the tile, got overlap={overlap}, tile={tile}; lower --overlap")
    return tile, overlap


def _grid_of(scene: Scene, config: JobConfig, spec: InputSpec, table_crs: TableCrs, tile: int, overlap: int) -> Grid:
    refusal = table_crs.refusal(scene.crs)
    if refusal:
        raise SceneError(f"{scene.scene_id}: {refusal}")
    if scene.crs is not None and table_crs.wkt is not None:
        outline = to_map(np.array([shapely.box(0, 0, scene.width, scene.height)], dtype=object), scene.transform)
        if not inside_area_of_use(table_crs.wkt, tuple(shapely.bounds(outline[0]).tolist()), scene.crs):
            raise SceneError(
                f"a scene must lie in the area of use of the table's CRS, got {scene.scene_id} outside "
                f"{table_crs.label}; write it to a store of its own, or use a store in OGC:CRS84"
            )
    scale = grid_scale(scene, spec, resolution_m=config.grid.resolution, resolution_um=config.grid.resolution_um)
    return Grid.of_scene(scene, tile_px=tile, overlap_px=overlap, scale=scale)


def _check_aoi(
    aoi: Aoi | None,
    scenes: dict[str, Scene],
    failures: list[SceneFailure],
    grids: dict[str, Grid],
) -> None:
    """Turn scenes that an area of interest cannot be brought to into failures."""
    if aoi is None:
        return
    for scene_id, scene in list(scenes.items()):
        try:
            aoi_to_scene(aoi.polygons, aoi.crs, scene)
        except SegworkerError as error:
            failures.append(SceneFailure(scene.uri, scene_id, error))
            del scenes[scene_id], grids[scene_id]


def tile_settings(
    config: JobConfig, model: ModelFacts, aoi: Aoi | None, *, tile: int, overlap: int
) -> dict[str, object]:
    """Return all that a tile's result depends on, besides the scene itself."""
    aoi_text = None if aoi is None else [aoi.crs, [g.hex() for g in shapely.to_wkb(aoi.polygons).tolist()]]
    return {
        "format": SHARD_FORMAT,
        "model": model.digest,
        "precision": config.model.precision,
        "tile": tile,
        "overlap": overlap,
        "resolution": [config.grid.resolution, config.grid.resolution_um],
        "bands": config.inputs.bands,
        "value_range": str(config.inputs.value_range),
        "batch": [BATCH_PX, config.model.batch_size],
        "aoi": aoi_text,
    }


def make_common(
    config: JobConfig, model: ModelFacts, *, run_id: str, table_crs: TableCrs, aoi: Aoi | None, tile_key: str
) -> Common:
    """Return what all tasks of a run share."""
    options = _stitch_options(config, model)
    min_stuff = config.stitch.min_stuff if model.has_stuff else 0.0
    told = [tile_key, repr(options), str(config.stitch.min_area), str(config.stitch.max_area), min_stuff]
    stitch_key = digest([*told, config.stitch.simplify, table_crs.wkt])
    return Common(
        store_uri=open_storage(config.output.output).uri,  # absolute: workers may have another working directory
        run_id=run_id,
        tile_key=tile_key,
        stitch_key=stitch_key,
        model=model,
        bands=config.inputs.bands,
        value_range=config.inputs.value_range,
        batch_px=BATCH_PX,
        batch_size=config.model.batch_size,
        options=options,
        min_area=config.stitch.min_area,
        max_area=config.stitch.max_area,
        min_stuff=min_stuff,
        simplify_px=config.stitch.simplify,
        aoi=aoi,
        table_crs=table_crs,
        coco=config.output.coco,
        tile_timeout_s=config.engine.tile_timeout.total_seconds(),
    )


def digest(told: object) -> str:
    """Return a key for what is told, which JSON can hold."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def _stitch_options(config: JobConfig, model: ModelFacts) -> StitchOptions:
    for name, area in (("min-area", config.stitch.min_area), ("max-area", config.stitch.max_area)):
        if model.has_stuff and area is not None and area.unit != "px":
            raise ConfigError(
                f"{name} is in pixels for a model with stuff, which takes the pixels of objects that are dropped, got "
                f"{area}; give it in px"
            )
    by_name = {c.name: c.id for c in model.categories}
    named = [*(config.stitch.classes or ()), *config.stitch.class_min_score]
    unknown = sorted(set(named) - set(by_name))
    if unknown:
        raise ConfigError(
            f"classes are those of the model ({', '.join(sorted(by_name)[:20])}), got {', '.join(unknown)}; "
            "correct --classes or --class-min-score"
        )
    least = config.stitch.min_score
    return StitchOptions(
        rule=SeamRule(cut_trust_px=model.spec.cut_trust_px, min_iou=config.stitch.min_iou),
        exclusive=model.spec.exclusive or model.has_stuff,
        min_score=model.spec.min_score if least is None else least,
        class_min_score=tuple(sorted((by_name[n], s) for n, s in config.stitch.class_min_score.items())),
        class_ids=tuple(sorted(by_name[n] for n in config.stitch.classes)) if config.stitch.classes else None,
    )


def with_grid_limits(options: StitchOptions, common: Common, grid: Grid) -> StitchOptions:
    """Return the options with the area limits that are stated in pixels, in grid pixels of this scene."""
    low, high = common.min_area, common.max_area
    if low is not None and low.unit == "px":
        options = replace(options, min_area_px=low.value * grid.scale**2)
    if high is not None and high.unit == "px":
        options = replace(options, max_area_px=high.value * grid.scale**2)
    return options
