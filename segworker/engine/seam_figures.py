"""What a run says of its seams, without labels: agreement, straight edges, and the check on a shifted grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from segworker.engine.job import Job
from segworker.engine.phase2 import SeamCounts, Stitched
from segworker.engine.shift_check import ShiftCheck
from segworker.straight import line_lengths_px
from segworker.types import Category


def seam_figures(job: Job, stitched: Stitched, shift: ShiftCheck | None = None) -> dict[str, Any]:
    """Return the seam figures of a run as run.json has them; docs/how-to/seams.md says what they mean."""
    categories = job.common.categories
    flags: Counter[str] = sum((g.seams for g in stitched.groups), Counter())
    return {
        **_agreement(stitched.seams, categories),
        "features": dict(sorted(flags.items())),
        "straight_edges": _straight_edges(job, stitched),
        "shifted_grid": None if shift is None else shift.record(categories),
    }


def seam_lines(seams: Mapping[str, Any]) -> list[str]:
    """Return what the summary of a run says of its seams."""
    lines = [_agreement_line(seams)]
    straight = seams["straight_edges"]
    if straight["excess"] is not None:
        lines.append(
            f"straight edges on {straight['on_borders']:.2%} of the tile borders and on {straight['elsewhere']:.2%} of "
            f"lines between them: excess {straight['excess']:+.2%}"
        )
    shifted = seams["shifted_grid"]
    if shifted is not None:
        f1 = "no objects to judge" if shifted["f1"] is None else f"object F1 {shifted['f1']:.3f}"
        failed = f", {shifted['blocks_failed']} blocks failed" if shifted["blocks_failed"] else ""
        lines.append(
            f"shifted by half a tile: {f1} ({shifted['matched']:,} of {shifted['objects']:,} and "
            f"{shifted['objects_shifted']:,} objects, {shifted['tiles']:,} tiles{failed})"
        )
    return lines


def agreement_of(seams: SeamCounts) -> float | None:
    """Return the share of what two tiles saw on which they agree; None where nothing was seen by two."""
    total = sum(seen for seen, _ in seams.seen.values())
    return sum(linked for _, linked in seams.seen.values()) / total if total else None


def _agreement(seams: SeamCounts, categories: Mapping[int, Category]) -> dict[str, Any]:
    by_class = {
        categories[c].name: {
            "seen_by_both_sides": seen,
            "agreement": round(linked / seen, 4) if seen else None,
            "mean_iou": round(seams.iou[c][1] / seams.iou[c][0], 4) if seams.iou.get(c, [0])[0] else None,
        }
        for c, (seen, linked) in sorted(seams.seen.items())
    }
    total = sum(s for s, _ in seams.seen.values())
    links = sum(n for n, _ in seams.iou.values())
    return {
        "seen_by_both_sides": total,
        "agreement": round(sum(n for _, n in seams.seen.values()) / total, 4) if total else None,
        "mean_iou": round(sum(s for _, s in seams.iou.values()) / links, 4) if links else None,
        "by_class": by_class,
    }


def _straight_edges(job: Job, stitched: Stitched) -> dict[str, Any]:
    lines = np.zeros(2, np.int64)
    for scene_id in job.scenes:
        lines += line_lengths_px(job.grids[scene_id])
    by_class: dict[int, np.ndarray[Any, Any]] = {}
    for group in stitched.groups:
        for class_id, lengths in group.straight_px.items():
            by_class[class_id] = by_class.get(class_id, 0) + lengths
    names = job.common.categories
    return {
        "borders_px": int(lines[0]),
        **_excess(sum(by_class.values(), np.zeros(2, np.int64)), lines),
        "by_class": {names[c].name: _excess(lengths, lines) for c, lengths in sorted(by_class.items())},
    }


def _excess(lengths: np.ndarray[Any, Any], lines: np.ndarray[Any, Any]) -> dict[str, float | None]:
    """Return which shares of the lines outlines lie on, and their difference; None where there are no lines."""
    if not lines.all():
        return {"on_borders": None, "elsewhere": None, "excess": None}
    on_borders, elsewhere = (lengths / lines).tolist()
    return {
        "on_borders": round(on_borders, 5),
        "elsewhere": round(elsewhere, 5),
        "excess": round(on_borders - elsewhere, 5),
    }


def _agreement_line(seams: Mapping[str, Any]) -> str:
    merged, cut, open_ = (seams["features"].get(kind, 0) for kind in ("merged", "cut", "missing"))
    told = f"{merged:,} objects joined, {cut:,} cut" + (f", {open_:,} beside missing tiles" if open_ else "")
    if not seams["seen_by_both_sides"]:
        return told
    iou = f", mean IoU {seams['mean_iou']:.2f}" if seams["mean_iou"] is not None else ""
    return f"{seams['agreement']:.1%} of what two tiles saw agreed{iou}; {told}"
