"""What the report of a run says, part by part, from run.json and what a look at its features gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from segworker.report import charts
from segworker.report.finds import (
    DECADES,
    FIRST_DECADE,
    PER_DECADE,
    SCORE_BINS,
    UNITS,
    ClassFigures,
    Finds,
    area_of_bin,
)
from segworker.report.page import Block, Chart, Gallery, Listing, Page, Picture, Section, Table, Text, number, share

MAX_LISTED, MAX_CLASSES, MAX_TEXT = 100, 60, 300


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What goes into a report besides run.json."""

    finds: Finds
    tile_px: int
    overlap_px: int
    overviews: Sequence[Picture] = field(default_factory=tuple)
    seams: Sequence[Picture] = field(default_factory=tuple)
    suspects: Sequence[Picture] = field(default_factory=tuple)


def run_page(record: Mapping[str, Any], findings: Findings) -> Page:
    """Return the report of a run.

    Args:
        record: what run.json holds.
        findings: what `gather` returned.
    """
    counts, seams = record["counts"], record["seams"]
    name = f" ({record['name']})" if record["name"] else ""
    figures = [
        (number(counts["features"]), "objects"),
        (number(counts["scenes"]), "scenes"),
        (number(counts["tiles"]), "tiles"),
        (share(seams["agreement"]), "agreement at seams"),
        (number(seams["features"].get("cut", 0)), "cut objects"),
        (_seconds(record["seconds"].get("total")), "all in all"),
        (f"{record['throughput']['mpx_per_s']:.3g} Mpx/s", "throughput"),
    ]
    sections = [
        Section("Scenes", list(_scene_blocks(counts, findings))),
        Section("Objects", list(_object_blocks(counts, findings.finds))),
        Section("Seams", list(_seam_blocks(record, findings))),
        Section("Objects to look at", list(_suspect_blocks(findings))),
        Section("What failed", list(_failure_blocks(record))),
        Section("Time", list(_time_blocks(record))),
        Section("Settings", list(_setting_blocks(record))),
    ]
    return Page(
        f"Run {record['run_id']}{name}", _lead(record, findings), figures, sections, list(_notes(record, findings))
    )


def _lead(record: Mapping[str, Any], findings: Findings) -> str:
    model = record["configuration"]["model"]["model"]
    origin = f" from the tiles of {record['stitched_from']}" if record["stitched_from"] else ""
    origin += f", what had failed in {record['retry_of']}" if record["retry_of"] else ""
    tiles = f" on tiles of {findings.tile_px:,} px that overlap by {findings.overlap_px:,} px"
    notes = f" {short(record['notes'])}." if record["notes"] else ""
    return (
        f"The model {short(model)}{tiles}{origin}, {record['started_at'][:19].replace('T', ' ')} UTC, into "
        f"{record['store']} (version {record['table_version']} of the table, {record['table_crs']}).{notes}"
    )


def _notes(record: Mapping[str, Any], findings: Findings) -> Iterator[str]:
    counts, looked_at = record["counts"], findings.finds.num_rows
    kinds = (("failed_scenes", "scenes"), ("failed_sheets", "sheets"), ("tiles_failed", "tiles"))
    failed = [f"{counts[key]:,} {what}" for key, what in kinds if counts[key]]
    if failed:
        told = ", ".join(failed)
        again = f"segworker retry {record['run_id']} {record['store']}"
        yield f"Failed: {told}. All else is committed; {again} tries them again."
    if looked_at < counts["features"]:
        yield f"Sizes, scores and objects to look at are of {looked_at:,} of {counts['features']:,} objects."


def _scene_blocks(counts: Mapping[str, Any], findings: Findings) -> Iterator[Block]:
    if not findings.overviews:
        yield Text("No scene was drawn (--overview says how many are).")
        return
    more = counts["scenes"] - len(findings.overviews)
    rest = f" {more:,} more scenes are not shown here." if more else ""
    yield Text(
        "Outlines have the colour of their class, lines are the borders between tiles, red is what failed. Each "
        f"picture leads to a larger one in the store.{rest}"
    )
    yield Gallery(findings.overviews)


def _object_blocks(counts: Mapping[str, Any], finds: Finds) -> Iterator[Block]:
    by_class = sorted(counts["features_by_class"].items(), key=lambda item: (-item[1], item[0]))
    if not by_class:
        yield Text("Nothing was found.")
        return
    total, column = finds.all_classes(), finds.area_column()
    unit = UNITS[column]
    listed = [(short(name), finds.classes.get(name, ClassFigures()), n) for name, n in by_class[:MAX_CLASSES]]
    yield Gallery(
        [
            Chart(
                charts.shares("Objects per class", [(n, c, f"{c:,}") for n, _, c in listed[:15]]), "Objects per class"
            ),
            Chart(_area_chart(total, column), f"Areas in {unit}, on a logarithmic axis"),
            Chart(_score_chart(total), "Scores"),
        ]
    )
    rows = [
        [
            name,
            number(count),
            *(_area(figures.quantile(column, q)) for q in (0.05, 0.5, 0.95)),
            number(figures.score_sum / figures.count if figures.count else None, 2),
            *(number(figures.seams[kind]) for kind in ("merged", "cut", "missing")),
        ]
        for name, figures, count in listed
    ]
    head = ["class", "objects", f"5% below, {unit}", f"median, {unit}", f"95% below, {unit}", "mean score"]
    more = len(by_class) - len(listed)
    caption = "By class" + (f"; {more:,} more classes are in run.json" if more else "")
    yield Table([*head, "joined over seams", "cut", "beside failed tiles"], rows, caption)


def _area_chart(total: ClassFigures, column: str) -> Any:  # noqa: ANN401 - Markup, which mypy takes for str
    counts = total.areas[column]
    filled = counts.nonzero()[0]
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 1)
    step = max(1, -(-(last - first) // 40))
    bins = [int(counts[k : min(k + step, last)].sum()) for k in range(first, last, step)]
    edges = [first + k * step for k in range(len(bins) + 1)]
    names = [f"{_area(area_of_bin(a))} to {_area(area_of_bin(b))}" for a, b in pairwise(edges)]
    decades = [FIRST_DECADE + d for d in range(DECADES + 1) if first <= d * PER_DECADE <= edges[-1]]
    ticks = [(((d - FIRST_DECADE) * PER_DECADE - first) / step, _area(10.0**d)) for d in decades]
    if len(ticks) < 2:
        ticks = [(0.0, _area(area_of_bin(first))), (float(len(bins)), _area(area_of_bin(edges[-1])))]
    return charts.bars("Areas of objects", bins, ticks, x_name=f"area, {UNITS[column]}", names=names)


def _score_chart(total: ClassFigures) -> Any:  # noqa: ANN401 - Markup, which mypy takes for str
    names = [f"{k / SCORE_BINS:.2f} to {(k + 1) / SCORE_BINS:.2f}" for k in range(SCORE_BINS)]
    ticks = [(k * SCORE_BINS / 5, f"{k / 5:.1f}") for k in range(6)]
    return charts.bars("Scores of objects", total.scores.tolist(), ticks, x_name="score", names=names)


def _seam_blocks(record: Mapping[str, Any], findings: Findings) -> Iterator[Block]:
    seams = record["seams"]
    flags, straight, shifted = seams["features"], seams["straight_edges"], seams["shifted_grid"]
    rows = [
        ["objects that two tiles saw", number(seams["seen_by_both_sides"])],
        ["of these the tiles agreed on", share(seams["agreement"])],
        ["mean IoU of what was joined", number(seams["mean_iou"], 2)],
        ["objects joined over seams", number(flags.get("merged", 0))],
        ["objects cut", number(flags.get("cut", 0))],
        ["objects beside failed tiles", number(flags.get("missing", 0))],
        ["straight edges on tile borders", share(straight["on_borders"], digits=2)],
        ["straight edges elsewhere", share(straight["elsewhere"], digits=2)],
        ["excess of straight edges", share(straight["excess"], digits=2, signed=True)],
    ]
    if shifted is not None:
        rows.append(["object F1 of a grid shifted by half a tile", number(shifted["f1"])])
    yield Text("An agreement near 100% and an excess near zero are good.")
    yield Table(["figure", "value"], rows, "The run's seams")
    by_class = list(seams["by_class"].items())[:MAX_CLASSES]
    if len(by_class) > 1:
        told = [
            [short(name), number(f["seen_by_both_sides"]), share(f["agreement"]), number(f["mean_iou"], 2)]
            for name, f in by_class
        ]
        yield Table(["class", "seen by two tiles", "agreement", "mean IoU"], told, "Seams by class")
    if findings.seams:
        yield Text(
            "The worst: the largest objects that are cut or beside a failed tile, then what was joined with the lowest "
            "scores. The object is magenta, others have their class's colour, white lines are borders between tiles."
        )
        yield Gallery(findings.seams)


def _suspect_blocks(findings: Findings) -> Iterator[Block]:
    if not findings.suspects:
        yield Text("There is none.")
        return
    yield Text(
        "Objects whose area is far from what is usual in their class, and large ones of low score. Most may be right; "
        "where many are wrong a threshold helps (--min-score, --min-area, --max-area; segworker stitch applies them "
        "without predicting again)."
    )
    yield Gallery(findings.suspects)


def _failure_blocks(record: Mapping[str, Any]) -> Iterator[Block]:
    counts = record["counts"]
    if not record["outputs"]["quarantine"]:
        yield Text("Nothing.")
        return
    tiles = [
        [
            short(f["scene_id"]),
            f"row {f['row']}, column {f['col']}",
            f["stage"],
            number(f["tries"]),
            short(f["error"]),
        ]
        for f in record["failed_tiles"][:MAX_LISTED]
    ]
    scenes = [
        [short(f["scene_id"]), kind, short(f["uri"]), short(f["error"])]
        for kind, key in (("scene", "failed_scenes"), ("sheet", "failed_sheets"))
        for f in record[key][:MAX_LISTED]
    ]
    yield Text("quarantine.parquet beside this page lists all of it, with tracebacks.")
    if tiles:
        caption = f"Tiles in quarantine: {len(tiles):,} of {counts['tiles_failed']:,}"
        yield Table(["scene", "tile", "stage", "tries", "error"], tiles, caption)
    if scenes:
        caption = f"Scenes and sheets: {len(scenes):,} of {counts['failed_scenes'] + counts['failed_sheets']:,}"
        yield Table(["scene", "what", "address", "error"], scenes, caption)


def _time_blocks(record: Mapping[str, Any]) -> Iterator[Block]:
    seconds = [(k.replace("_", " "), v) for k, v in record["seconds"].items() if k != "total"]
    work = [(k.replace("_", " "), v) for k, v in record["stage_cpu_seconds"].items()]
    items = [
        Chart(charts.shares(title, [(n, v, _seconds(v)) for n, v in values]), title)
        for title, values in (("Steps of the run", seconds), ("Work on tiles, all workers together", work))
        if values
    ]
    yield Gallery(items)
    rates = record["throughput"]
    rows = [
        [name, number(rates[key], digits) + unit] for key, name, digits, unit in _RATES if rates.get(key) is not None
    ]
    if rates.get("cost") is not None:
        rows.append(["cost", f"{rates['cost']:,.2f} {short(rates['currency'])}"])
    yield Table(["figure", "value"], rows, "Throughput")


_RATES = (
    ("tiles_per_s", "tiles predicted per second", 2, ""),
    ("mpx_per_s", "pixels of scenes, the whole run", 3, " Mpx/s"),
    ("km2_per_h", "area, the whole run", 2, " km²/h"),
    ("mm2_per_h", "area, the whole run", 2, " mm²/h"),
    ("km2", "area", 3, " km²"),
    ("mm2", "area", 3, " mm²"),
    ("predictor_hours", "hours of predictors", 4, ""),
    ("gpu_hours", "GPU hours", 4, ""),
)


def _setting_blocks(record: Mapping[str, Any]) -> Iterator[Block]:
    rows = [
        [f"{section}.{key}", short(value)]
        for section, values in record["configuration"].items()
        for key, value in (values.items() if isinstance(values, Mapping) else [("", values)])
        if value not in (None, [], {}, "")
    ]
    yield Table(["key", "value"], rows, "Configuration", folded=True)
    told = {**record["versions"], **record["keys"]}
    workers = record["workers"]
    if workers:
        told |= {"predictors": f"{workers['count']} on {workers['device']}, {workers['precision']}"}
    yield Table(["what", "version"], [[k, short(v)] for k, v in told.items()], "Versions and keys", folded=True)
    outputs = record["outputs"]
    files = [path for value in outputs.values() for path in (value if isinstance(value, list) else [value]) if path]
    more = f" of {len(files):,}" if len(files) > MAX_LISTED else ""
    yield Listing(f"Files of the run ({min(len(files), MAX_LISTED):,}{more})", files[:MAX_LISTED])


def _seconds(value: float | None) -> str:
    if value is None:
        return number(None)
    if value < 60:
        return f"{value:.1f} s"
    minutes = round(value) // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {round(value) % 60} s"


def _area(value: float | None) -> str:
    if value is None:
        return number(None)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def short(value: object) -> str:
    """Return a text of bounded length."""
    text = str(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
