"""What a question for a place reads: row groups and bytes, beside the same table with its rows in no order.

The process's own count of what it read (/proc/self/io) is taken, so that DuckDB's reads are counted too. The default is
a million features; `--features 10000000` is what docs/benchmarks.md reports.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import segworker
from segworker.io import geoparquet
from segworker.io.commit import commit_run
from segworker.io.ids import reserve_scene_numbers
from segworker.io.scan import ScanCounts
from segworker.io.storage import open_storage
from segworker.io.table import write_part
from segworker.query.sql import ask
from segworker.query.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.feature_rows import feature_rows, scene_rows
from tests.stores import MAP, classed, placed

ROWS_PER_PART = 1_000_000
BOX_SIDE_M = 300.0
"Of a square in the scene, whose features lie in 9 x 9 km: a thousandth of the scene."


def build(folder: Path, num_features: int, *, in_order: bool) -> Store:
    """Write a store of one scene whose features lie at random places: in that order, or in the store's own."""
    storage = open_storage(folder)
    (number,) = reserve_scene_numbers(storage, ["s"]).values()
    rows = classed(feature_rows(number, "s", num_features))
    sort = geoparquet.sort_features
    rows = sort(rows) if in_order else rows
    geoparquet.sort_features = lambda slice_: slice_
    try:
        starts = range(0, num_features, ROWS_PER_PART)
        parts = [write_part(storage, "r1", k, rows.slice(k, ROWS_PER_PART), MAP) for k in starts]
    finally:
        geoparquet.sort_features = sort
    commit_run(storage, run_id="r1", parts=parts, scenes=placed(scene_rows({"s": number})), table_crs=MAP)
    return segworker.open_store(folder)


def bytes_read(work: Callable[[], int]) -> tuple[int, int, float]:
    """Return (what the work returns, bytes that this process read for it, seconds)."""
    before, started = _rchar(), time.perf_counter()
    result = work()
    return result, _rchar() - before, time.perf_counter() - started


def _asked(store: Store, sql: str | None, **asked: object) -> int:
    with ask(store, sql, **asked) as answer:
        return sum(len(batch) for batch in answer)


def _rchar() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=1_000_000)
    num_features = parser.parse_args().features
    box = (404_000.0, 34_000.0, 404_000.0 + BOX_SIDE_M, 34_000.0 + BOX_SIDE_M)
    print(f"{num_features:,} features, a square of {BOX_SIDE_M:.0f} m\n")
    print("| rows | reader | features | row groups read | of | MB read | seconds |\n|---|---|---|---|---|---|---|")
    totals: dict[tuple[bool, str], tuple[int, int]] = {}
    with tempfile.TemporaryDirectory(prefix="segworker-bench-") as scratch:
        for in_order in (False, True):
            store = build(Path(scratch, f"{in_order}"), num_features, in_order=in_order)
            name = "Hilbert order" if in_order else "no order"
            list(store.feature_stream(bbox=(0, 0, 1, 1), columns=["score"]))  # imports and caches
            _, loaded, _ = bytes_read(
                lambda store=store: _asked(store, "SELECT 1")
            )  # DuckDB's extensions are files too
            counts = ScanCounts()

            def stream(store: Store = store, counts: ScanCounts = counts) -> int:
                return sum(len(batch) for batch in store.feature_stream(bbox=box, counts=counts))

            def sql(store: Store = store) -> int:
                return _asked(store, None, bbox=box)

            for reader, work in (("feature_stream", stream), ("SQL", sql)):
                found, read, seconds = bytes_read(work)
                read -= loaded if reader == "SQL" else 0
                groups = (counts.row_groups_read, counts.row_groups) if reader == "feature_stream" else ("", "")
                print(
                    f"| {name} | {reader} | {found:,} | {groups[0]} | {groups[1]} | {read / 1e6:.2f} | {seconds:.2f} |"
                )
                totals[in_order, reader] = (counts.row_groups_read, read)
    for reader in ("feature_stream", "SQL"):
        (old_groups, old_bytes), (groups, read) = totals[False, reader], totals[True, reader]
        told = f"{groups / old_groups:.1%} of the row groups and " if reader == "feature_stream" else ""
        print(f"\n{reader}: {told}{read / old_bytes:.1%} of the bytes that the table in no order needs")


if __name__ == "__main__":
    main()
