"""How many bytes a store writes anew when 1% of its scenes change, by the size of the parts that scenes share.

    python tests/benchmarks/rewrite.py [--scenes 10000] [--side 220] [--changed 0.01]
        [--parts 32MB,8MB,4MB,1MB,4scenes]

A store of small scenes (nuclei with traced outlines, moved about) is committed with parts of each size; then some of
the scenes are committed again: neighbours in one run of ids, ten groups of neighbours, or picked at random; and those
picked at random a second time, when they share parts already. The share is what the second commit added to features/,
with the new rows of the changed scenes, of the live bytes. `scan` reads two columns of all features through DuckDB.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import shapely

from segworker.config_values import parse_bytes
from segworker.decode import decode_instances
from segworker.grid import Grid
from segworker.io.commit import commit_run
from segworker.io.ids import INDEX_BITS, reserve_scene_numbers
from segworker.io.rows import outline, rows_of
from segworker.io.shards import TileResult, write_shard
from segworker.io.storage import Storage, open_storage
from segworker.io.table import live_files, write_part
from segworker.io.table_crs import TableCrs
from segworker.schema import COMMIT_COLUMNS, FEATURES, SCENES
from segworker.stitch import StitchOptions, stitch_linked
from segworker.synthetic.scenes import make_scene
from segworker.types import LabelMasks, Prediction, Scene

PIXELS = TableCrs.of(None)
NUM_PATTERNS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """The rows of one scene, to be copied under other numbers."""

    rows: pa.Table
    shapes: np.ndarray
    bounds: np.ndarray


def patterns(folder: Path, side_px: int) -> tuple[list[Pattern], float]:
    """Return rows of some scenes as the pipeline makes them, and bytes of their tile shards for each scene."""
    found, shard_bytes, storage = [], 0, open_storage(folder)
    for seed in range(NUM_PATTERNS):
        truth = make_scene("nuclei", side_px, seed)
        scene = Scene(f"s{seed}", "/x.png", side_px, side_px, 3, "uint8", None, (1, 0, 0, 0, 1, 0), None, None)
        grid = Grid.of_scene(scene, tile_px=side_px, overlap_px=0)
        n = truth.num_objects
        told = Prediction(np.zeros((n, 4)), truth.class_ids[1:], np.full(n, 0.9), LabelMasks(truth.labels_HW))
        tile = decode_instances(told, grid.tile(0, 0), grid=grid, class_ids=range(100))
        shard_bytes += write_shard(storage, f"{seed}.parquet", [TileResult((scene.scene_id, 0, 0), "done", tile)])
        features, _ = stitch_linked([tile], grid=grid, options=StitchOptions())
        traced = outline(features, scene=scene, scene_no=0, grid=grid)
        rows = rows_of(traced, run_id="r0", table_crs=PIXELS, categories={c.id: c for c in truth.categories})
        found.append(Pattern(rows, traced.polygons, shapely.bounds(traced.polygons)))
    return found, shard_bytes / NUM_PATTERNS


def scene_table(pattern: Pattern, scene_no: int, scene_id: str, run_id: str) -> pa.Table:
    """Return a pattern's rows as those of another scene, at another place."""
    rng = np.random.default_rng([scene_no, len(run_id), ord(run_id[-1])])
    shift = rng.integers(0, 9000, 2).astype(np.float64)
    n = len(pattern.rows)
    index = pattern.rows["feature_id"].to_numpy() & (2**INDEX_BITS - 1)
    bounds = pattern.bounds + np.tile(shift, 2)
    columns = {name: pattern.rows[name].combine_chunks() for name in FEATURES.names}
    columns |= {
        "feature_id": pa.array((scene_no << INDEX_BITS) + index),
        "segment_id": pa.array((scene_no << INDEX_BITS) + index),
        "run_id": pa.array([run_id] * n),
        "scene_id": pa.array([scene_id] * n),
        "score": pa.array(rng.uniform(0.5, 1, n).astype(np.float32)),
        "centroid_x": pa.array(pattern.rows["centroid_x"].to_numpy() + shift[0]),
        "centroid_y": pa.array(pattern.rows["centroid_y"].to_numpy() + shift[1]),
        "bbox": pa.StructArray.from_arrays(
            [pa.array(bounds[:, k]) for k in range(4)], fields=list(FEATURES.field("bbox").type)
        ),
        "geometry": pa.array(shapely.to_wkb(shapely.transform(pattern.shapes, lambda xy: xy + shift)), pa.binary()),
    }
    return pa.table(columns, schema=FEATURES)


def scenes_table(numbers: dict[str, int], run_id: str) -> pa.Table:
    """Return the rows of the scenes table for a run."""
    row = {
        "etag": None, "size_bytes": 90_000, "mtime_s": 1.5e9, "crs": None, "transform": [1.0, 0, 0, 0, 1, 0],
        "pixel_size_um": None, "width": 220, "height": 220, "num_bands": 3, "tile_key": "t", "stitch_key": "s",
        "run_id": run_id, "num_tiles": 1, "num_failed_tiles": 0, "num_features": 1,
    }  # fmt: skip
    rows = [row | {"scene_no": n, "scene_id": i, "uri": f"/data/{i}.png"} for i, n in numbers.items()]
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in SCENES if f.name not in COMMIT_COLUMNS]))


def commit(storage: Storage, run_id: str, tables: Sequence[pa.Table], numbers: dict[str, int], per_part: int) -> float:
    """Commit scenes in parts of so many scenes; return the seconds of the commit alone."""
    parts = [
        write_part(storage, run_id, k, pa.concat_tables(tables[start : start + per_part]), PIXELS)
        for k, start in enumerate(range(0, len(tables), per_part))
    ]
    begin = time.perf_counter()
    commit_run(storage, run_id=run_id, parts=parts, scenes=scenes_table(numbers, run_id), table_crs=PIXELS)
    return time.perf_counter() - begin


def selections(ids: list[str], share: float) -> Iterator[tuple[str, list[str]]]:
    """Yield names and sets of scenes to change, of one size."""
    count = max(1, int(len(ids) * share))
    first, size = len(ids) // 3 + 7, max(1, count // 10)
    rng = np.random.default_rng(0)
    starts = np.sort(rng.choice(len(ids) // size - 1, min(10, count), replace=False)) * size
    at_random = [ids[k] for k in np.sort(rng.choice(len(ids), count, replace=False))]
    yield "neighbours", ids[first : first + count]
    yield "ten groups", [i for start in starts.tolist() for i in ids[start : start + size]][:count]
    yield "random", at_random
    yield "same again", at_random


def scan(storage: Storage) -> float:
    """Return the seconds in which DuckDB reads two columns of all live files."""
    names = [storage.location(f"features/{file.path}") for file in live_files(storage)]
    begin = time.perf_counter()
    with duckdb.connect() as connection:
        connection.sql(f"SELECT scene_id, avg(area_px) FROM read_parquet({names}) GROUP BY 1").fetchall()
    return time.perf_counter() - begin


def measure(
    folder: Path, label: str, per_part: int, share: float, made: list[Pattern], tables: Sequence[pa.Table]
) -> None:
    """Print one line for a part size."""
    storage = open_storage(folder)
    numbers = reserve_scene_numbers(storage, [f"scene{k:06d}" for k in range(len(tables))])
    commit(storage, "r0", tables, numbers, per_part)
    base = live_files(storage)
    cells = [
        f"{label:>9}", f"{per_part:>12,}", f"{len(base):>6,}", f"{sum(f.size_bytes for f in base) / 1e6:>7.1f}",
        f"{scan(storage):>7.2f}",
    ]  # fmt: skip
    for k, (_, chosen) in enumerate(selections(list(numbers), share)):
        before = {f.path for f in live_files(storage)}
        new = [scene_table(made[numbers[i] % len(made)], numbers[i], i, f"r{k + 1}") for i in chosen]
        seconds = commit(storage, f"r{k + 1}", new, {i: numbers[i] for i in chosen}, per_part)
        after = live_files(storage)
        written = sum(f.size_bytes for f in after if f.path not in before) / sum(f.size_bytes for f in after)
        cells.append(f"{written:>9.1%} {seconds:>6.1f} s")
    print("  ".join(cells), flush=True)


def main() -> None:
    """Measure each part size in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--changed", type=float, default=0.01)
    parser.add_argument("--side", type=int, default=220, help="pixels of a scene's side: how many objects it has")
    parser.add_argument("--parts", default="32MB,8MB,4MB,1MB,4scenes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rewrite-") as folder:
        made, shard_bytes = patterns(Path(folder, "shards"), arguments.side)
        tables = [scene_table(made[k % len(made)], k, f"scene{k:06d}", "r0") for k in range(arguments.scenes)]
        sample = tables[:400]
        part = write_part(open_storage(Path(folder, "sample")), "r0", 0, pa.concat_tables(sample), PIXELS)
        scene_bytes = part.size_bytes / len(sample)
        objects = sum(map(len, sample)) / len(sample)
        print(f"{arguments.scenes:,} scenes, {objects:.0f} objects and {scene_bytes / 1e3:.1f} kB of features each;")
        print(f"{shard_bytes / 1e3:.1f} kB of tile shards each; {arguments.changed:.1%} of them are committed again\n")
        heads = ("neighbours", "ten groups", "random", "same again")
        print("     part   scenes/part   files       MB   scan s  " + "  ".join(f"{h:>18}" for h in heads))
        for label in arguments.parts.split(","):
            text = label.removesuffix("scenes")
            per_part = int(text) if label.endswith("scenes") else max(1, int(parse_bytes(text) / scene_bytes))
            measure(Path(folder, label), label, per_part, arguments.changed, made, tables)
            shutil.rmtree(Path(folder, label))


if __name__ == "__main__":
    main()
