"""Measure the engine beside what it is compared with, in one run with equal thread settings.

    python tests/benchmarks/engine.py [--parts a,b,c,d,e] [--quick]

a  the whole pipeline beside the same model in a plain loop over the same tiles: read, predict, decode, no Ray
b  what reading alone can deliver, with a model that costs nothing: how many CPUs a GPU needs
c  8 and 16 predictors whose model only waits 0.5 s for each tile, beside 8 / 0.5 and 16 / 0.5 tiles/s
d  what the engine itself costs for each tile: a model that costs nothing, on many tiny tiles
e  thousands of small PNGs in one run

Starting processes is told apart: predictors are up before the first tile is read. A rate is over the last three
quarters of the blocks, from receipt to receipt, or, where it says 'with ends', from the moment that the predictors were
up. CPU seconds are those of all processes of the engine, Ray's own included. Ray sets OMP_NUM_THREADS=1 in its workers,
and the engine gives torch the predictor's share of the cores; the plain loop runs in a process of its own with the same
settings. `--quick` has too few blocks for figures: it shows that the script works.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from engine_models import STAGES, run_loop, write_micrograph, write_pictures
from ray.data import DataContext

from segworker import engine
from segworker.config import JobConfig
from segworker.config_load import from_flat
from segworker.engine.cluster import choose_workers, cluster
from segworker.engine.job import Job, make_job
from segworker.engine.phase1 import predict_blocks
from segworker.engine.predictor import describe_model
from segworker.engine.record import versions
from segworker.engine.tiles import BlockReceipt
from segworker.models.registry import model_entry

AIM = 0.95
WAIT_S = 0.5


@dataclass(slots=True)
class Pass:
    """One phase 1: when each block became durable."""

    threads: int
    start_up_s: float = 0.0
    "Until the last predictor had its model."
    at_s: list[float] = field(default_factory=list)
    "Since the beginning, start-up included."
    cpu_s: list[float] = field(default_factory=list)
    "What all processes had used by then."
    receipts: list[BlockReceipt] = field(default_factory=list)

    @property
    def num_tiles(self) -> int:
        return sum(r.num_done for r in self.receipts)

    @property
    def settled(self) -> int:
        """Blocks that are left out at the beginning: the first ones wait for decoders to start, and come together."""
        return max(1, len(self.receipts) // 4)

    @property
    def rate(self) -> float:
        """Tiles/s from the first settled receipt to the last."""
        return self._num_settled / (self.at_s[-1] - self.at_s[self.settled - 1])

    @property
    def rate_with_ends(self) -> float:
        return self.num_tiles / (self.at_s[-1] - self.start_up_s)

    @property
    def cpu_per_tile(self) -> float:
        return (self.cpu_s[-1] - self.cpu_s[self.settled - 1]) / self._num_settled

    @property
    def _num_settled(self) -> int:
        return sum(r.num_done for r in self.receipts[self.settled :])

    @property
    def stage_s(self) -> dict[str, float]:
        """Seconds for each tile by stage, as the stages themselves measured them."""
        total: Counter[str] = Counter()
        for receipt in self.receipts:
            total.update(receipt.seconds)
        return {stage: total[stage] / self.num_tiles for stage in STAGES}

    def middle_rate(self, skip: int) -> float:
        """Tiles/s without the first and the last `skip` blocks."""
        inner = self.receipts[skip : len(self.receipts) - skip]
        return sum(r.num_done for r in inner) / (self.at_s[-skip - 1] - self.at_s[skip - 1])


def job_of(scenes: Path, store: Path, **options: Any) -> tuple[JobConfig, Job]:
    """Return a configuration and its job, planned."""
    fixed = {"progress": "off", "overview": 0, "log_level": "warning", "address": "local"}
    fixed["model_options"] = {"ready": str(store) + ".ready"} | options.pop("model_options", {})
    config = from_flat(scenes=[str(scenes)], output=str(store), **(fixed | options))
    facts = describe_model(config.model.model, dict(config.model.model_options), config.model.weights)
    return config, make_job(config, facts, "benchmark")


def run_phase1(config: JobConfig, job: Job) -> Pass:
    """Predict all blocks of a job as a run does, and note when each receipt comes."""
    with cluster(config):
        workers = choose_workers(config)
        DataContext.get_current().wait_for_min_actors_s = 500  # otherwise reading gets ahead while they start
        done = Pass(workers.threads)
        began_at, begin = time.time(), time.perf_counter()
        for receipt in predict_blocks([job.task(b) for b in job.blocks], job.common, workers):
            done.at_s.append(time.perf_counter() - begin)
            done.cpu_s.append(cpu_seconds())
            done.receipts.append(receipt)
    done.start_up_s = Path(config.model.model_options["ready"]).stat().st_mtime - began_at
    failures = [f for r in done.receipts for f in r.failures]
    if failures or done.num_tiles != job.num_tiles:
        raise RuntimeError(f"{done.num_tiles} of {job.num_tiles} tiles: {failures[:1]}")
    return done


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and all processes below it."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            values = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(values[1]), int(values[11]) + int(values[12])
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(ticks[pid] for pid in own) / os.sysconf("SC_CLK_TCK")


def stages_line(per_tile: dict[str, float]) -> str:
    return " | ".join(f"{1000 * per_tile[stage]:.1f}" for stage in STAGES)


# ------------------------------------------------------------------------------------------------ parts


def part_a(folder: Path, *, quick: bool) -> None:
    """Pipeline over plain loop, for a model of realistic cost."""
    bundled = model_entry("nuclei").bundled
    model = "engine_models:" + ("bundled" if bundled is not None and bundled.is_file() else "untrained")
    columns = 16 * (4 if quick else 12)  # a block of one row has 16 tiles
    path = write_micrograph(folder / "a.tif", width=256 + 224 * (columns - 1), height=256)
    config, job = job_of(path, folder / "store-a", model=model, tile=256, overlap=32)
    threads = os.cpu_count() or 1
    tiles = list(next(iter(job.grids.values())).tiles())
    half = len(tiles) // 32 * 16
    first = run_loop(path, job, tiles[:half], threads)
    done = run_phase1(config, job)
    second = run_loop(path, job, tiles[half:], threads)
    assert done.threads == threads
    seconds = {s: (first.seconds[s] + second.seconds[s]) / len(tiles) for s in STAGES}
    loop_rate = len(tiles) / (first.total_s + second.total_s)
    print(
        f"model {model}, {len(tiles)} tiles of 256 px with an overlap of 32, {len(job.blocks)} blocks, "
        f"{len(tiles) // len(job.blocks)} tiles in a call, {threads} torch threads; half of the loop ran "
        f"before the pipeline ({half / first.total_s:.2f} tiles/s) and half after it "
        f"({(len(tiles) - half) / second.total_s:.2f})\n"
    )
    print("| | tiles/s | of the loop | CPU ms/tile | read ms/tile | predict ms/tile | decode ms/tile |")
    print("|---" * 7 + "|")
    cpu = 1000 * (first.cpu_s + second.cpu_s) / len(tiles)
    print(f"| plain loop | {loop_rate:.3f} | 1 | {cpu:.0f} | {stages_line(seconds)} |")
    for name, rate in (("pipeline", done.rate), ("pipeline, with ends", done.rate_with_ends)):
        share = f"{rate:.3f} | {rate / loop_rate:.3f}"
        print(f"| {name} | {share} | {1000 * done.cpu_per_tile:.0f} | {stages_line(done.stage_s)} |")
    idle = threads / done.rate - done.cpu_per_tile
    limit = 1 / done.stage_s["predict"]
    print(
        f"\nstart-up before the first tile: {done.start_up_s:.1f} s; "
        f"the predictor alone would allow {limit:.3f} tiles/s"
    )
    if done.rate > limit:
        print("the pipeline's rate is above that: too few blocks, or a machine that others use; it is no figure")
    print(f"of {1000 * threads / done.rate:.0f} core ms for each tile of the pipeline, {1000 * idle:.0f} were idle")
    print(f"aim {AIM}: {'reached' if done.rate / loop_rate >= AIM else 'missed'}, {done.rate / loop_rate:.3f}")


def part_b(folder: Path, *, quick: bool) -> None:
    """Return what reading delivers when the model costs nothing."""
    side, cores = 8 if quick else 20, os.cpu_count() or 1
    size = 1024 + 896 * (side - 1)
    print(f"{side * side} tiles of 1024 px with an overlap of 128, 3 bands of uint8, blocks of 512 px in the file\n")
    names = ["file", "MB", "tiles/s", "MB/s", "tiles/s per core", "MB/s per core"]
    names += ["one reader tiles/s", "MB/s", "CPU ms/tile", "read ms/tile", "predict ms/tile", "decode ms/tile"]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    tile_mb = 1024 * 1024 * 3 / 1e6
    for name, compress in (("deflate", "deflate"), ("uncompressed", "none")):
        path = folder / f"b-{compress}.tif"
        write_micrograph(path, width=size, height=size, block_px=512, compress=compress, num_threads="ALL_CPUS")
        config, job = job_of(path, folder / f"store-{name}", model="engine_models:free", tile=1024, overlap=128)
        done = run_phase1(config, job)
        rate, alone = done.rate_with_ends, 1 / done.stage_s["read"]
        rates = [rate, rate * tile_mb, rate / cores, rate * tile_mb / cores, alone, alone * tile_mb]
        numbers = " | ".join(f"{r:.1f}" for r in rates)
        file_mb = path.stat().st_size / 1e6
        print(f"| {name} | {file_mb:.0f} | {numbers} | {1000 * done.cpu_per_tile:.1f} | {stages_line(done.stage_s)} |")
        path.unlink()
    print("\nall rates with ends; 'one reader' is the read stage alone, which is what each CPU beside a GPU adds")


def part_c(folder: Path, *, quick: bool) -> None:
    """Return the efficiency of many predictors."""
    rounds, per_block, feeders = (3, 4, 4) if quick else (16, 16, 4)
    size = f"{per_block} tiles of {4096 // per_block} px"
    print(f"{rounds} blocks of {size} for each predictor, and {feeders} CPUs for reading and decoding\n")
    print("| predictors | possible tiles/s | reached | efficiency | without the first and last rounds | start-up s |")
    print("|---" * 6 + "|")
    for count in (8, 16):
        path = folder / f"c-{count}.tif"
        # One row of tiles: a block is as long as it may be and one tile high.
        num_blocks = rounds * count
        tile = 4096 // per_block
        write_micrograph(path, width=4096 * num_blocks, height=tile, block_px=256)
        options = {"model": "engine_models:waiting", "model_options": {"seconds_per_tile": WAIT_S}}
        options |= {"tile": tile, "overlap": 0, "workers": count, "cpus": count + feeders}
        config, job = job_of(path, folder / f"store-c{count}", **options)
        assert len(job.blocks) == num_blocks
        done = run_phase1(config, job)
        possible = count / WAIT_S
        inner = done.middle_rate(max(1, rounds // 4) * count)
        print(
            f"| {count} | {possible:.0f} | {done.rate_with_ends:.2f} | {done.rate_with_ends / possible:.3f} | "
            f"{inner / possible:.3f} | {done.start_up_s:.0f} |"
        )
        path.unlink()


def part_d(folder: Path, *, quick: bool) -> None:
    """Return the engine's own cost for each tile."""
    side = 64 if quick else 192
    path = write_micrograph(folder / "d.tif", width=64 * side, height=64 * side, block_px=512)
    config, job = job_of(path, folder / "store-d", model="engine_models:free", tile=64, overlap=0)
    tiles = list(next(iter(job.grids.values())).tiles())
    loop = run_loop(path, job, tiles, os.cpu_count() or 1)
    done = run_phase1(config, job)
    record = engine.run(config).record  # its tiles are durable by now
    print(f"{len(tiles)} tiles of 64 px, {len(job.blocks)} blocks, nothing found\n")
    print("| | ms/tile | CPU ms/tile | read ms/tile | predict ms/tile | decode ms/tile |\n" + "|---" * 6 + "|")
    per_tile = {s: loop.seconds[s] / len(tiles) for s in STAGES}
    total, cpu = 1000 * loop.total_s / len(tiles), 1000 * loop.cpu_s / len(tiles)
    print(f"| plain loop, one process | {total:.2f} | {cpu:.2f} | {stages_line(per_tile)} |")
    wall, engine_cpu = 1000 / done.rate_with_ends, 1000 * done.cpu_per_tile
    print(f"| pipeline, with ends | {wall:.2f} | {engine_cpu:.2f} | {stages_line(done.stage_s)} |")
    after = {k: v for k, v in record["seconds"].items() if k in ("stitch", "commit")}
    text = ", ".join(f"{k} {v:.2f} s ({1000 * v / len(tiles):.3f} ms/tile)" for k, v in after.items())
    print(f"\nthe engine's own: {engine_cpu - cpu:.2f} CPU ms/tile in phase 1; afterwards {text}")


def part_e(folder: Path, *, quick: bool) -> None:
    """Return what thousands of small scenes cost; a tenth of them first, in a store of its own, shows what is fixed."""
    runs = []
    for num in (50, 500) if quick else (500, 5000):
        pictures = write_pictures(folder / f"pictures-{num}", num=num, size_px=64)
        store = folder / f"store-e{num}"
        fixed = {"progress": "off", "log_level": "warning", "address": "local"}
        model = "segworker.synthetic.models:perfect_rgb"
        config = from_flat(scenes=[str(pictures)], output=str(store), model=model, **fixed)
        begin = time.perf_counter()
        record = engine.run(config).record
        runs.append((num, time.perf_counter() - begin - record["stage_cpu_seconds"]["predict"], record, store))
    (few, few_s, _, _), (num, beyond_s, record, store) = runs
    counts, seconds, stages = record["counts"], record["seconds"], record["stage_cpu_seconds"]
    work = sum(p.is_file() for p in (store / "work").rglob("*"))
    each = f"{1000 * beyond_s / num:.2f} | {1000 * (beyond_s - few_s) / (num - few):.2f}"
    print(f"{counts['scenes']} PNGs of 64 px, {counts['features']} objects, perfect model\n")
    print("| seconds | ms per scene beyond the model | and beyond what is fixed | parts | COCO files | work objects |")
    print("|---" * 6 + "|")
    total = beyond_s + stages["predict"]
    print(f"| {total:.1f} | {each} | {counts['parts']} | {counts['coco_files']} | {work} |\n")
    named = {k: seconds[k] for k in ("predict", "stitch", "commit", "overview")}
    shown = {"plan, start and record": total - sum(named.values())} | named
    print("seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in shown.items()))
    print("stages: " + ", ".join(f"{k} {v:.1f}" for k, v in stages.items()))
    print(f"{few} PNGs took {few_s:.1f} s beyond the model, most of it for starting processes")


PARTS: dict[str, tuple[str, Callable[..., None]]] = {
    "a": ("The pipeline beside a plain loop", part_a),
    "b": ("What reading alone delivers", part_b),
    "c": (f"Predictors that only wait {WAIT_S} s for each tile", part_c),
    "d": ("The engine's own cost for each tile", part_d),
    "e": ("Thousands of small scenes in one run", part_e),
}


def set_equal_settings() -> None:
    """Give the plain loop what Ray's workers have, and them its priority."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - by default any other program goes before its workers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.pop("RAY_ADDRESS", None)


def main() -> None:
    """Parse flags and print the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it works, not for figures")
    parser.add_argument("--folder", type=Path, help="where scenes and stores are written; default: a temporary folder")
    arguments = parser.parse_args()
    parts = [p for p in arguments.parts.split(",") if p]
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown parts {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    gpus = torch.cuda.device_count()
    print(
        f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{f'{gpus} GPUs' if gpus else 'no GPU'}, load {os.getloadavg()[0]:.1f} before"
    )
    print(", ".join(f"{name} {number}" for name, number in versions().items()))
    set_equal_settings()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for part in parts:
            title, function = PARTS[part]
            print(f"\n## {part}. {title}\n", flush=True)
            begin = time.perf_counter()
            function(Path(folder), quick=arguments.quick)
            print(f"\n({time.perf_counter() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
