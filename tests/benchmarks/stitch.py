"""Compare ways to stitch on the same tile predictions, side by side in one run.

    python tests/benchmarks/stitch.py [--kinds nuclei,aerial,fields,roads] [--seeds 5] [--tile 512 --overlap 64]
        [--tools ours,oracle,none,union,nms,nmm,ownership,core-join,sahi-nmm,supervision,cellpose-mended]
        [--instances 149000] [--no-real] [--growth 10000,100000,1000000]

The first table has the panoptic quality with perfect and with noisy tile results (means over the seeds), the counts of
faults with the noisy ones (sums over the seeds), speed and memory. The second has a real network on real images, see
`seam_real`. The third has the speed and the peak memory on dense nuclei, in CPU seconds of one process, so that other
work on the machine counts less. `--growth` adds our own speed at several numbers of instances. Each tool runs in a
process of its own with a time limit. `evaluate_rule` does the first part for any function. Public packages come with
the extra `bench`: uv run --extra bench python tests/benchmarks/stitch.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from seam_blocks import stitch_dense
from seam_cases import KINDS, Case, Score, Stitched, Tool, make_case, score
from seam_dense import count, dense_instances
from seam_public import PUBLIC_TOOLS, PublicTool
from seam_real import RealCase, RealScore, data_folder, real_cases, real_score
from seam_tools import TOOLS, oracle, ours

from segworker.grid import Grid
from segworker.types import Instances, Runs

DEFAULT_TOOLS = ("ours", "oracle", *TOOLS, *PUBLIC_TOOLS)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of a tool and kind: means and sums over seeds."""

    tool: str
    kind: str
    pq_perfect: float
    pq_noisy: float
    cut: int
    merged: int
    duplicates: int
    missed: int
    false: int
    welds: int
    num_objects: int
    perfect_faults: int
    "Cut, merged and duplicates with perfect tile results."
    rate: float
    "Noisy instances in a CPU second."
    peak_mb: float
    "Growth of the process's memory; 0 where it was not measured."


def evaluate_rule(
    stitch_fn: Callable[[Sequence[Instances], Grid], Any],
    *,
    kinds: Iterable[str] = KINDS,
    seeds: Iterable[int] = (0,),
    tile: int = 512,
    overlap: int = 64,
    size: int = 2048,
    quiet: bool = False,
) -> list[Row]:
    """Score any stitch function beside the oracle, print the table and return its rows.

    Args:
        stitch_fn: (instances of each tile, grid) -> Features, Runs or Stitched. Wrong welds are counted from the groups
            of instances where it returns Stitched with groups, otherwise from pixels.
        kinds: of `KINDS`.
        seeds: of the scenes.
        tile: px.
        overlap: px.
        size: side of the scenes in px.
        quiet: print nothing.
    """
    rows = []
    for kind in kinds:
        cases = [make_case(kind, seed, tile=tile, overlap=overlap, size=size) for seed in seeds]
        rows.append(_row("rule", kind, [_both(stitch_fn, c) for c in cases]))
        rows.append(_row("oracle", kind, [_both(None, c) for c in cases]))
    if not quiet:
        print_quality(rows)
    return rows


def as_stitched(result: Any) -> Stitched:
    """Return the result of any stitch function in the benchmark's form."""
    if isinstance(result, Stitched):
        return result
    return Stitched(result if isinstance(result, Runs) else result.pieces.runs)


@dataclass(frozen=True, slots=True)
class Both:
    """How a tool did on one scene."""

    perfect: Score
    noisy: Score
    seconds: float
    "CPU seconds for the noisy results."
    instances: int


def _both(tool: Callable[[Sequence[Instances], Grid], Any] | None, case: Case) -> Both:
    """Return the scores with perfect and noisy tile results; None is the oracle."""
    scores = []
    for seen in (case.perfect, case.noisy):
        run = tool or oracle(seen)
        begin = time.process_time()
        result = as_stitched(run([s.instances for s in seen], case.grid))
        seconds = time.process_time() - begin
        scores.append(score(case, seen, result))
    return Both(scores[0], scores[1], seconds, count([s.instances for s in case.noisy]))


def _row(tool: str, kind: str, results: Sequence[Both], peak_mb: float = 0.0) -> Row:
    noisy = [r.noisy for r in results]
    return Row(
        tool,
        kind,
        float(np.mean([r.perfect.pq for r in results])),
        float(np.mean([n.pq for n in noisy])),
        *(sum(getattr(n, name) for n in noisy) for name in ("cut", "merged", "duplicates", "missed", "false", "welds")),
        num_objects=sum(n.num_objects for n in noisy),
        perfect_faults=sum(r.perfect.cut + r.perfect.merged + r.perfect.duplicates for r in results),
        rate=sum(r.instances for r in results) / max(1e-9, sum(r.seconds for r in results)),
        peak_mb=peak_mb,
    )


def print_quality(rows: Sequence[Row], *, header: bool = True) -> None:
    """Print the table of panoptic quality and faults."""
    if header:
        print_header()
    for r in rows:
        welds = f"{r.welds} ({r.welds / max(1, r.num_objects):.2%})"
        counts = f"{r.cut} | {r.merged} | {r.duplicates} | {r.missed} | {r.false} | {welds} | {r.perfect_faults}"
        cost = f"{r.rate:,.0f} | {r.peak_mb:,.0f}"
        print(f"| {r.kind} | {r.tool} | {r.pq_perfect:.4f} | {r.pq_noisy:.4f} | {counts} | {cost} |", flush=True)


def print_header() -> None:
    """Print the head of the first table."""
    counts = ["cut", "merged", "dupl.", "missed", "false", "wrong welds", "faults perfect"]
    names = ["kind", "tool", "PQ perfect", "PQ noisy", *counts, "instances/s", "peak MB"]
    print("| " + " | ".join(names) + " |")
    print("|---" * len(names) + "|")


def in_own_process(function: Callable[[], Any], *, limit_s: float) -> tuple[Any, float]:
    """Run a function in a forked process.

    Returns:
        Its result, or a line of text that says why there is none, and the growth of its peak memory in MB.
    """
    context = multiprocessing.get_context("fork")
    ours_end, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours_end.recv() if ours_end.poll(limit_s) else ("time-out", 0.0)
    except EOFError:
        answer = ("killed", 0.0)
    process.kill()
    process.join()
    return answer


def _report(function: Callable[[], Any], end: Connection) -> None:
    before = _rss_mb()
    try:
        result = function()
    except Exception as error:  # noqa: BLE001  # a tool that fails is a line of the table
        result = f"error: {type(error).__name__}: {error}"[:120]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    end.send((result, max(0.0, peak - before)))


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _tool(name: str) -> Tool | None:
    """Return a tool by name; None for the oracle, which needs to know more."""
    return ours() if name == "ours" else None if name == "oracle" else {**TOOLS, **PUBLIC_TOOLS}[name]


def quality_part(
    tools: Sequence[str], kinds: Sequence[str], seeds: Sequence[int], arguments: argparse.Namespace
) -> None:
    """Print the first table, kind by kind."""
    print_header()
    for kind in kinds:
        for name in tools:
            results, trouble, peaks = [], None, [0.0]
            for seed in seeds:
                case = make_case(kind, seed, tile=arguments.tile, overlap=arguments.overlap, size=arguments.size)
                result, peak = in_own_process(lambda n=name, c=case: _both(_tool(n), c), limit_s=arguments.limit)
                if isinstance(result, str):
                    trouble = result
                    break
                results.append(result)
                peaks.append(peak)
            if trouble:
                print(f"| {kind} | {name} | {trouble} |" + " |" * 10, flush=True)
            else:
                print_quality([_row(name, kind, results, max(peaks))], header=False)


def real_part(tools: Sequence[str], limit_s: float) -> None:
    """Print how tiles through the bundled network agree with the same network on whole images, and with the truth."""
    folder = data_folder()
    if folder is None:
        print("\nThe part with a real network is left out: ../shared/data/microscopy/dsb2018 is not on this machine")
        return
    for tile, overlap in ((192, 48), (256, 64)):
        cases = real_cases(tile, overlap, folder=folder)
        whole = real_score(cases, [c.whole for c in cases])
        num = sum(len(c.whole) for c in cases)
        print(f"\n{len(cases)} images, {num} nuclei in them as wholes, tiles {tile}/{overlap}\n")
        print("| tool | PQ with whole images | PQ with the truth |\n|---|---|---|")
        print(f"| whole images | 1 | {whole.truth:.4f} |")
        for name in tools:

            def run(name: str = name, cases: Sequence[RealCase] = cases) -> RealScore:
                stitched = [as_stitched((_tool(name) or oracle(c.seen))(c.tiles, c.grid)) for c in cases]
                return real_score(cases, [s.runs for s in stitched])

            result, _ = in_own_process(run, limit_s=limit_s)
            told = result if isinstance(result, str) else f"{result.agreement:.4f} | {result.truth:.4f}"
            print(f"| {name} | {told} |", flush=True)


def speed_part(tools: Sequence[str], num: int, limit_s: float) -> None:
    """Print the second table: the better of two runs in one process; compilation and a package's own form apart."""
    grid, tiles = dense_instances(num)
    small_grid, small = dense_instances(3000)
    n = count(tiles)
    print(f"\n{n} dense nuclei in {len(tiles)} tiles, one core\n")
    print("| tool | CPU s | instances/s | peak MB |\n|---|---|---|---|")
    for name in tools:
        if name == "oracle":
            continue
        tool = _tool(name)

        def best(tool: Tool = tool) -> float:
            if isinstance(tool, PublicTool):
                tool.run(tool.prepare(small, small_grid))
                start = tool.prepare(tiles, grid)
                return _best_of_two(lambda: tool.run(start))
            tool(small, small_grid)
            return _best_of_two(lambda: tool(tiles, grid))

        result, peak = in_own_process(best, limit_s=limit_s)
        if isinstance(result, str):
            print(f"| {name} | {result} | | |", flush=True)
        else:
            print(f"| {name} | {result:.2f} | {n / result:,.0f} | {peak:,.0f} |", flush=True)


def growth_part(sizes: Sequence[int], limit_s: float) -> None:
    """Print our cost at several numbers of instances, in blocks, and the exponent of growth over them."""
    print("\n| dense nuclei, in blocks | features | CPU s | link | join | cut | assemble | instances/s | peak MB |")
    print("|---" * 9 + "|")
    points = []
    stitch_dense(1000)
    for size in sizes:
        result, peak = in_own_process(lambda n=size: stitch_dense(n), limit_s=limit_s)
        if isinstance(result, str):
            print(f"| {size} | {result} |" + " |" * 7, flush=True)
            continue
        passes = " | ".join(f"{s:.2f}" for s in (result.link_s, result.join_s, result.cut_s, result.assemble_s))
        rate = result.instances / result.total_s
        told = f"{result.instances} | {result.features} | {result.total_s:.2f} | {passes} | {rate:,.0f} | {peak:,.0f}"
        print(f"| {told} |", flush=True)
        points.append((result.instances, result.total_s))
    if len(points) > 1:
        (n0, s0), (n1, s1) = points[0], points[-1]
        print(f"\ngrowth exponent {np.log(s1 / s0) / np.log(n1 / n0):.3f}")


def _best_of_two(function: Callable[[], object]) -> float:
    seconds = []
    for _ in range(2):
        begin = time.process_time()
        function()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def main() -> None:
    """Parse flags and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seeds", type=int, default=5, help="number of scenes of each kind")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--size", type=int, default=2048, help="side of the scenes in px")
    parser.add_argument("--tools", default=",".join(DEFAULT_TOOLS))
    parser.add_argument("--instances", type=int, default=149_000, help="for the speed part; 0 leaves it out")
    parser.add_argument("--real", action=argparse.BooleanOptionalAction, default=True, help="the real network's part")
    parser.add_argument("--growth", default="", help="numbers of instances, e.g. 10000,100000,1000000")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one tool on one scene")
    arguments = parser.parse_args()
    tools = [t for t in arguments.tools.split(",") if t]
    unknown = sorted(set(tools) - set(DEFAULT_TOOLS))
    if unknown:
        parser.error(f"unknown tools {', '.join(unknown)}; choose from {', '.join(DEFAULT_TOOLS)}")
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(f"tile {arguments.tile}, overlap {arguments.overlap}, {arguments.size} px scenes, {arguments.seeds} seeds\n")
    for name in [t for t in tools if t in PUBLIC_TOOLS and not PUBLIC_TOOLS[t].is_installed]:
        print(f"{name} is left out: the package {PUBLIC_TOOLS[name].package} is not installed here")
        tools.remove(name)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    kinds = [k for k in arguments.kinds.split(",") if k]
    if kinds and arguments.seeds:
        quality_part(tools, kinds, seeds, arguments)
    if arguments.real:
        real_part(tools, arguments.limit)
    if arguments.instances:
        speed_part(tools, arguments.instances, arguments.limit)
    if arguments.growth:
        growth_part([int(n) for n in arguments.growth.split(",")], max(arguments.limit, 3600))


if __name__ == "__main__":
    main()
