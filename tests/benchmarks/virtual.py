"""Run a town of any size through the whole pipeline, and tell time, memory of every process, and whether all is found.

    python tests/benchmarks/virtual.py [--sizes 8192,32768,100000] [--tile 1024] [--cell 64] [--no-coco]

A VRT over a few small rasters (segworker.synthetic.town) is read, a perfect model reads the labels back, and shards,
stitch, parts and commit are the real ones, on a local Ray. Districts are about 28,000 px wide at any size: their street
networks, grids and interleaved combs, are each one object of hundreds of tiles. Counts are compared with
the lattice's own, and the area of all features with that of all painted pixels.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from memory_watch import MemoryWatch

from segworker import engine
from segworker.config_load import from_flat
from segworker.engine.record import versions
from segworker.io.storage import open_storage
from segworker.io.table import iter_features
from segworker.synthetic.town import Town

MODEL = "segworker.synthetic.models:perfect_single"


@dataclass(frozen=True)
class Outcome:
    size_px: int
    record: dict
    seconds: float
    watch: MemoryWatch
    num_truth: int
    num_features: int
    area_truth: int
    area_features: int
    largest_tiles: int


def measure(town: Town, folder: Path, *, tile: int, overlap: int, coco: bool) -> Outcome:
    scene = town.paint(folder / "scene")
    truth = town.count_blobs() + town.num_networks
    area = sum(int((labels > 0).sum()) * count for labels, count in town.pictures())
    store = folder / "store"
    options = {"model": MODEL, "model_options": {"parts": "several"}, "tile": tile, "overlap": overlap, "coco": coco}
    quiet = {"progress": "off", "overview": 0, "log_level": "warning", "address": "local"}
    config = from_flat(scenes=[str(scene)], output=str(store), **options, **quiet)
    with MemoryWatch() as watch:
        begin = time.perf_counter()
        record = engine.run(config).record
        seconds = time.perf_counter() - begin
    num, found, tiles = 0, 0, 0
    for batch in iter_features(open_storage(str(store)), columns=["area_px", "num_tiles"]):
        num += len(batch)
        found += int(np.rint(pc.sum(batch["area_px"]).as_py()))
        tiles = max(tiles, pc.max(batch["num_tiles"]).as_py())
    return Outcome(town.size_px, record, seconds, watch, truth, num, area, found, tiles)


def report(outcome: Outcome) -> None:
    counts, seconds = outcome.record["counts"], outcome.record["seconds"]
    area = outcome.size_px**2
    print(f"\n### {outcome.size_px:,} x {outcome.size_px:,} px\n")
    print(
        f"{counts['tiles']:,} tiles; {outcome.num_features:,} features, truth {outcome.num_truth:,}; their area "
        f"{outcome.area_features:,} px, painted {outcome.area_truth:,}; largest object in {outcome.largest_tiles} tiles"
    )
    print(
        f"{outcome.seconds:.0f} s ({', '.join(f'{k} {v:.1f}' for k, v in seconds.items())}), "
        f"{1e9 * outcome.seconds / area:.1f} ns/px\n"
    )
    print(outcome.watch.table())
    same = outcome.num_features == outcome.num_truth and outcome.area_features == outcome.area_truth
    print(f"\n{'all found' if same else 'NOT THE TRUTH'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="8192,32768,100000")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--cell", type=int, default=64, help="side of a cell, which holds one object or none")
    parser.add_argument("--no-coco", action="store_true")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    found = versions()
    print(f"python {platform.python_version()}, ray {found['ray']}, {platform.machine()}")
    outcomes = []
    for size in map(int, args.sizes.split(",")):
        town = Town(size, cell_px=args.cell, period_cells=4032 // args.cell // 12 * 12)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            outcomes.append(measure(town, Path(folder), tile=args.tile, overlap=args.overlap, coco=not args.no_coco))
            report(outcomes[-1])
            shutil.rmtree(folder, ignore_errors=True)
    if len(outcomes) > 1:
        print("\n| px | s | ns/px | largest process, own MB | of the one before |\n|---|---|---|---|---|")
        for k, o in enumerate(outcomes):
            before = f"{o.watch.worst / outcomes[k - 1].watch.worst:.2f}" if k else ""
            pace, worst = 1e9 * o.seconds / o.size_px**2, o.watch.worst / 1e6
            print(f"| {o.size_px:,} | {o.seconds:.0f} | {pace:.1f} | {worst:.0f} | {before} |")


if __name__ == "__main__":
    main()
