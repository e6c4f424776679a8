"""What the committed features of a run tell: sizes, scores, and which objects to look at first.

The run's own files are read column by column, a row group at a time; what is kept is counts and a few candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segworker.io.delta import LiveFile
from segworker.io.scan import read_row_groups
from segworker.io.storage import Storage

MAX_ROWS = 5_000_000
"Features that are looked at."
PER_DECADE, FIRST_DECADE, DECADES = 20, -3, 16
"Bins of areas."
SCORE_BINS = 20
UNITS = {"area_px": "px", "area_um2": "µm²", "area_m2": "m²"}
MIN_SIGMAS = 4.0
"An area this far from its class's median, in robust standard deviations of its logarithm, is unusual."
MIN_OF_CLASS = 10
"Objects that make a class's median one to compare with."
_FACTS = ("feature_id", "scene_id", "class_id", "class_name", "score", "area_px", "num_tiles", "seam", "bbox")


@dataclass(slots=True)
class ClassFigures:
    """What is known of the objects of a class, or of several."""

    count: int = 0
    areas: dict[str, NDArray[np.int64]] = field(
        default_factory=lambda: {unit: np.zeros(PER_DECADE * DECADES, np.int64) for unit in UNITS}
    )
    "Column of areas -> objects in each bin."
    scores: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))
    score_sum: float = 0.0
    seams: Counter[str] = field(default_factory=Counter)

    def quantile(self, column: str, share: float) -> float | None:
        """Return an area that so many objects are below, to half a bin (6%); None without areas in this unit."""
        counts = self.areas[column]
        total = int(counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(counts), share * total))
        return area_of_bin(min(place, len(counts) - 1) + 0.5)

    def add(self, other: ClassFigures) -> None:
        """Add another class."""
        self.count += other.count
        for unit, counts in other.areas.items():
            self.areas[unit] += counts
        self.scores += other.scores
        self.score_sum += other.score_sum
        self.seams.update(other.seams)


@dataclass(frozen=True, slots=True)
class Suspect:
    """An object to look at, and why."""

    feature_id: int
    scene_id: str
    class_id: int
    class_name: str
    score: float
    area_px: float
    num_tiles: int
    seam: str
    bounds: tuple[float, float, float, float]
    "Table coordinates."
    reason: str


@dataclass(slots=True)
class Finds:
    """What a look at a run's features gave."""

    num_rows: int = 0
    "Looked at."
    classes: dict[str, ClassFigures] = field(default_factory=dict)
    seams: list[Suspect] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)

    def all_classes(self) -> ClassFigures:
        """Return the figures of all classes together."""
        total = ClassFigures()
        for figures in self.classes.values():
            total.add(figures)
        return total

    def area_column(self) -> str:
        """Return the column of areas in the best unit that all objects have."""
        total = self.all_classes()
        full = (c for c in ("area_m2", "area_um2") if total.count and int(total.areas[c].sum()) == total.count)
        return next(full, "area_px")


def look(storage: Storage, files: Sequence[LiveFile], run_id: str, *, count: int, max_rows: int = MAX_ROWS) -> Finds:
    """Look at a run's features.

    Args:
        storage: the store.
        files: of the features table, those that may hold rows of the run.
        run_id: the run.
        count: worst seams, and as many suspicious objects, to name.
        max_rows: features to look at.
    """
    finds = Finds()
    cut, joined, low = _Top(count), _Top(count), _Top(2 * count)
    for rows in _rows(storage, files, run_id, [*_FACTS, "area_m2", "area_um2"], max_rows):
        finds.num_rows += len(rows)
        _add(finds.classes, rows)
        seam, score, area = rows["seam"], _floats(rows["score"]), _floats(rows["area_px"])
        open_ = np.isin(seam.to_numpy(zero_copy_only=False), ["cut", "missing"])
        merged = seam.to_numpy(zero_copy_only=False) == "merged"
        cut.add(rows, np.where(open_, area, -np.inf))
        joined.add(rows, np.where(merged, 1 - score, -np.inf))
        low.add(rows, (1 - score) * np.sqrt(np.maximum(area, 1)))
    finds.seams = [_suspect(row, _why_cut(row)) for row in cut.rows()]
    finds.seams += [_suspect(row, "joined over a seam, low score") for row in joined.rows()]
    finds.seams = finds.seams[:count]
    shown = {s.feature_id for s in finds.seams}
    unusual = _unusual(storage, files, run_id, finds, count, max_rows)
    finds.suspects = [s for s in unusual if s.feature_id not in shown][: count // 2]
    known = {s.feature_id for s in [*finds.seams, *finds.suspects]}
    low_ones = [_suspect(row, "large for so low a score") for row in low.rows() if row["feature_id"] not in known]
    finds.suspects += low_ones[: count - len(finds.suspects)]
    return finds


def area_of_bin(place: float) -> float:
    """Return the area at a place on the axis of bins."""
    return float(10.0 ** (FIRST_DECADE + place / PER_DECADE))


def _rows(
    storage: Storage, files: Sequence[LiveFile], run_id: str, columns: list[str], limit: int
) -> Iterator[pa.Table]:
    for file in files:
        for rows in read_row_groups(storage, file, columns=columns, expression=pc.field("run_id") == run_id):
            yield rows.slice(0, limit)
            limit -= len(rows)
            if limit <= 0:
                return


def _add(classes: dict[str, ClassFigures], rows: pa.Table) -> None:
    names = rows["class_name"].to_numpy(zero_copy_only=False)
    scores = np.clip(_floats(rows["score"]), 0, 1)
    score_bins = np.minimum((scores * SCORE_BINS).astype(int), SCORE_BINS - 1)
    area_bins = {column: _area_bins(_floats(rows[column])) for column in UNITS}
    seams = rows["seam"].to_numpy(zero_copy_only=False)
    for name in np.unique(names).tolist():
        mine = names == name
        figures = classes.setdefault(name, ClassFigures())
        figures.count += int(mine.sum())
        figures.scores += np.bincount(score_bins[mine], minlength=SCORE_BINS)
        figures.score_sum += float(scores[mine].sum())
        figures.seams.update(seams[mine].tolist())
        for column, bins in area_bins.items():
            known = bins[mine & (bins >= 0)]
            figures.areas[column] += np.bincount(known, minlength=PER_DECADE * DECADES)


def _area_bins(areas: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each area, -1 where there is none."""
    known = np.isfinite(areas) & (areas > 0)
    places = (np.log10(np.where(known, areas, 1)) - FIRST_DECADE) * PER_DECADE
    return np.where(known, np.clip(places, 0, PER_DECADE * DECADES - 1), -1).astype(np.int64)


def _unusual(
    storage: Storage, files: Sequence[LiveFile], run_id: str, finds: Finds, count: int, max_rows: int
) -> list[Suspect]:
    """Return the objects whose areas lie furthest from those of their class."""
    usual = {n: _log_median_and_sigma(f) for n, f in finds.classes.items() if f.count >= MIN_OF_CLASS}
    if not usual:
        return []
    top = _Top(2 * count)  # some of them are shown at the seams
    for rows in _rows(storage, files, run_id, list(_FACTS), max_rows):
        names = rows["class_name"].to_numpy(zero_copy_only=False)
        logs, far = np.log10(np.maximum(_floats(rows["area_px"]), 1e-3)), np.full(len(rows), -np.inf)
        for name, (median, sigma) in usual.items():
            mine = names == name
            far[mine] = np.abs(logs[mine] - median) / sigma
        top.add(rows, np.where(far >= MIN_SIGMAS, far, -np.inf))
    return [_suspect(row, _why_unusual(row["area_px"], 10 ** usual[row["class_name"]][0])) for row in top.rows()]


def _log_median_and_sigma(figures: ClassFigures) -> tuple[float, float]:
    """Return the median of log10 of the areas in pixels, and 1.48 times their median absolute deviation from it."""
    counts = figures.areas["area_px"]
    logs = FIRST_DECADE + (np.arange(len(counts)) + 0.5) / PER_DECADE
    median = float(np.log10(figures.quantile("area_px", 0.5) or 1.0))
    order = np.argsort(np.abs(logs - median), kind="stable")
    half = int(np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2))
    return median, max(1.4826 * float(np.abs(logs - median)[order[half]]), 1 / PER_DECADE)


class _Top:
    """The rows of the highest values so far; of equal ones the lowest ids."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, rows: pa.Table, values: NDArray[np.float64]) -> None:
        """Offer rows; those of minus infinity are none."""
        chosen = np.argsort(-values, kind="stable")[: self.count]
        chosen = chosen[np.isfinite(values[chosen])]
        found = rows.select(list(_FACTS)).take(pa.array(chosen)).to_pylist()
        ranked = [(-value, row["feature_id"], row) for value, row in zip(values[chosen].tolist(), found, strict=True)]
        self._kept = sorted([*self._kept, *ranked], key=lambda item: item[:2])[: self.count]

    def rows(self) -> list[dict[str, Any]]:
        return [row for *_, row in self._kept]


def _suspect(row: dict[str, Any], reason: str) -> Suspect:
    box = row["bbox"]
    bounds = (box["xmin"], box["ymin"], box["xmax"], box["ymax"])
    return Suspect(**{key: row[key] for key in _FACTS if key != "bbox"}, bounds=bounds, reason=reason)


def _why_cut(row: dict[str, Any]) -> str:
    return "cut at a seam" if row["seam"] == "cut" else "beside a tile that failed"


def _why_unusual(area: float, median: float) -> str:
    if area >= median:
        return f"{area / median:,.1f} times the median area of its class"
    return f"1/{median / max(area, 1e-9):,.1f} of the median area of its class"


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
