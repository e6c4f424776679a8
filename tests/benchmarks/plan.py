"""Plan a million tiles over ten thousand scenes: seconds and memory, from listing and headers to blocks and their keys.

    python tests/benchmarks/plan.py [--scenes 10000] [--side 9000] [--tile 1024] [--overlap 128]

The scenes are local GeoTIFFs with a CRS and no pixels in them (a few kB each). What is timed is what a run does before
it starts Ray: finding files, reading headers, ids, grids, blocks, keys, what is durable already. A tenth of the scenes
goes first and shows what grows.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import tempfile
import time
from pathlib import Path

import rasterio
from memory_watch import MemoryWatch, memory_of
from rasterio.transform import Affine

from segworker.config_load import from_flat
from segworker.engine.job import make_job
from segworker.engine.memory import fit_memory
from segworker.engine.predictor import describe_model
from segworker.io.shards import durable_blocks

MODEL = "segworker.synthetic.models:perfect_rgb"
AIM_S, AIM_MB = 30, 1000


def write_scenes(folder: Path, num: int, side: int) -> Path:
    folder.mkdir()
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    profile |= {"blockxsize": 512, "blockysize": 512, "compress": "deflate", "SPARSE_OK": True, "photometric": "RGB"}
    first = folder / "scene-00000.tif"
    with rasterio.open(first, "w", crs="EPSG:32636", transform=Affine(0.3, 0, 4e5, 0, -0.3, 3e4), **profile):
        pass
    for k in range(1, num):
        shutil.copyfile(first, folder / f"scene-{k:05d}.tif")
    return folder


def measure(scenes: Path, store: Path, *, tile: int, overlap: int) -> tuple[int, int, float, float, float, float]:
    config = from_flat(scenes=[str(scenes)], output=str(store), model=MODEL, tile=tile, overlap=overlap)
    facts = describe_model(config.model.model, {}, None)
    before = own_mb()
    begin, cpu = time.perf_counter(), time.process_time()
    with MemoryWatch(interval_s=0.2) as watch:
        job = make_job(config, facts, "plan")
        job = fit_memory(job)
        durable_blocks(job.common.storage, job.common.tile_key, (b.key for b in job.blocks))
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    begin = time.perf_counter()
    task_mb = sum(len(pickle.dumps(job.task(b))) for b in job.blocks) / 1e6
    handed = time.perf_counter() - begin
    print(
        f"| {len(job.scenes):,} | {job.num_tiles:,} | {len(job.blocks):,} | {seconds:.1f} | {cpu:.1f} | "
        f"{watch.peaks['driver'].own_bytes / 1e6:.0f} | {own_mb() - before:.0f} | {handed:.1f} | {task_mb:.0f} |"
    )
    return len(job.scenes), job.num_tiles, seconds, cpu, watch.peaks["driver"].own_bytes / 1e6, own_mb() - before


def own_mb() -> float:
    found = memory_of(os.getpid())
    assert found is not None
    return found[1] / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=9_000)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    args = parser.parse_args()
    names = [
        "scenes",
        "tiles",
        "blocks",
        "s",
        "CPU s",
        "own memory MB",
        "of it for the plan",
        "s to pickle tasks",
        "MB",
    ]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for num in (args.scenes // 10, args.scenes):
            scenes = write_scenes(Path(folder, f"scenes-{num}"), num, args.side)
            found = measure(scenes, Path(folder, "store"), tile=args.tile, overlap=args.overlap)
    _, _, seconds, cpu, memory, _ = found
    print(f"\naim {AIM_S} s, {AIM_MB} MB: {'reached' if seconds < AIM_S and memory < AIM_MB else 'missed'}", end="")
    print(f" ({seconds:.1f} s, of them {cpu:.1f} s CPU of all threads; {memory:.0f} MB)")


if __name__ == "__main__":
    main()
