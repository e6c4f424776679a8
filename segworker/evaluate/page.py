"""An evaluation as one HTML page that needs nothing else: tables, curves as SVG, pictures inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, MARGIN = 340, 260, 36
COLOURS = ("#1565c0", "#c62828", "#2e7d32", "#ef6c00", "#6a1b9a", "#00838f", "#5d4037", "#455a64")
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:.6em 0 1.4em}
td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}
.big{font-size:1.7em;margin-right:.25em}.tile{display:inline-block;margin:0 2em 1em 0}
figure{display:inline-block;margin:0 1.2em 1.2em 0;vertical-align:top}figcaption{font-size:.85em;max-width:240px}
.note{background:#fff8e1;padding:.4em .8em;margin:.3em 0}svg text{font:11px system-ui,sans-serif}
"""


def page(result: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the page of an evaluation.

    Args:
        result: what `evaluate_run` returns.
        pictures: data: URIs of its worst mistakes, in their order.
    """
    title = f"Evaluation of {result['run_id']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_lead(result))}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in result["notes"]),
        _tiles(result),
        "<h2>Average precision</h2>",
        _precision_table(result),
        "<h2>Objects, by class</h2>",
        _quality_table(result["quality"]),
        "<h2>Near the borders of tiles</h2>",
        _seam_table(result["seams"]),
        "<h2>Curves</h2>",
        _curves(result),
        "<h2>Annotations</h2>",
        _annotations(result["annotations"]),
        "<h2>Scenes</h2>",
        _scene_table(result["scenes"]),
        f"<h2>The {len(pictures)} worst mistakes</h2>",
        "<p>Truth is green, what was found is magenta; the box is yellow.</p>",
        *(_figure(mistake, uri) for mistake, uri in zip(result["worst"], pictures, strict=True)),
    ]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure as text; a dash where there is none."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash on a page
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _lead(result: Mapping[str, Any]) -> str:
    count = result["count"]
    return (
        f"{count['true']:,} true objects and {count['found']:,} found ones on {len(result['scenes']):,} scenes of "
        f"{result['store']}; truth: {', '.join(result['truth'])}."
    )


def _tiles(result: Mapping[str, Any]) -> str:
    quality = result["quality"]
    figures = [
        ("mask AP", result["ap"]["mask"]["ap"]),
        ("mask AP50", result["ap"]["mask"]["ap50"]),
        ("box AP", result["ap"]["box"]["ap"]),
        ("PQ", quality["pq"]),
        ("object F1", quality["all_objects"]["f1"]),
        ("count error", result["count"]["relative_error"]),
    ]
    return "".join(
        f'<span class="tile"><span class="big">{number(value) if name != "count error" else _percent(value)}</span>'
        f"{escape(name)}</span>"
        for name, value in figures
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1%}"  # noqa: RUF001 - a dash on a page


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _precision_table(result: Mapping[str, Any]) -> str:
    mask, box = result["ap"]["mask"], result["ap"]["box"]
    rows = [
        ["all", number(mask["ap"]), number(mask["ap50"]), number(mask["ap75"]), number(box["ap"]), number(box["ap50"])]
    ]
    for size, found in mask["by_size"].items():
        other = box["by_size"][size]
        rows.append([size, number(found["ap"]), number(found["ap50"]), "", number(other["ap"]), number(other["ap50"])])
    for name, found in mask["by_class"].items():
        other = box["by_class"][name]
        rows.append([name, number(found["ap"]), number(found["ap50"]), "", number(other["ap"]), number(other["ap50"])])
    return _table(["", "mask AP", "mask AP50", "mask AP75", "box AP", "box AP50"], rows)


def _quality_table(quality: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            *(number(found[key]) for key in ("pq", "sq", "rq", "precision", "recall")),
            *(number(found[key]) for key in ("true_positives", "false_positives", "false_negatives")),
        ]
        for name, found in [*quality["by_class"].items(), ("all objects", quality["all_objects"])]
    ]
    return _table(["", "PQ", "SQ", "RQ = F1", "precision", "recall", "right", "false", "missed"], rows)


def _seam_table(seams: Mapping[str, Any] | None) -> str:
    if seams is None:
        return "<p>The run's tile grid is not known any more (--keep-work); give --tile and --overlap.</p>"
    rows = [
        [
            place.replace("_", " "),
            number(found["objects"]),
            *(f"{found[key]:,} ({_share(found[rate])})" for key, rate in _SEAM_COLUMNS),
        ]
        for place, found in seams.items()
        if place in ("near_borders", "interior")
    ]
    return _table(["", "true objects", "cut", "missed", "merged", "shown twice"], rows)


_SEAM_COLUMNS = (
    ("cut", "cut_rate"),
    ("missed", "missed_rate"),
    ("merged", "merged_rate"),
    ("duplicates", "duplicate_rate"),
)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"  # noqa: RUF001 - a dash on a page


def _curves(result: Mapping[str, Any]) -> str:
    recalls = [k / 100 for k in range(101)]
    lines = [(name, list(zip(recalls, curve, strict=True))) for name, curve in result["precision_recall"].items()]
    bins = [b for b in result["calibration"]["bins"] if b["count"]]
    points = [("right", [(b["mean_score"], b["right"]) for b in bins])]
    error = number(result["calibration"]["expected_calibration_error"])
    return chart("Precision over recall, masks, IoU 0.5", "recall", "precision", lines) + chart(
        f"Share of right findings over score (calibration error {error})", "score", "right", points, diagonal=True
    )


def chart(
    title: str,
    x_name: str,
    y_name: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    diagonal: bool = False,
) -> str:
    """Return a figure with lines over the unit square."""

    def place(x: float, y: float) -> str:
        return f"{MARGIN + x * (WIDTH - 2 * MARGIN):.1f},{HEIGHT - MARGIN - y * (HEIGHT - 2 * MARGIN):.1f}"

    marks = []
    for k in range(6):
        x, y = place(k / 5, 0).split(","), place(0, k / 5).split(",")
        marks.append(f'<text x="{x[0]}" y="{HEIGHT - MARGIN + 14}" text-anchor="middle">{k / 5:.1f}</text>')
        marks.append(f'<text x="{MARGIN - 5}" y="{float(y[1]) + 4:.1f}" text-anchor="end">{k / 5:.1f}</text>')
        marks.append(f'<polyline points="{place(0, k / 5)} {place(1, k / 5)}" stroke="#e0e0e0" fill="none"/>')
    if diagonal:
        marks.append(f'<polyline points="{place(0, 0)} {place(1, 1)}" stroke="#999" stroke-dasharray="4" fill="none"/>')
    for k, (name, points) in enumerate(lines):
        colour = COLOURS[k % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        marks.append(f'<polyline points="{path}" stroke="{colour}" stroke-width="2" fill="none"/>')
        dots = [p.split(",") for p in path.split()] if diagonal else []
        marks += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in dots]
        if not diagonal and k < len(COLOURS):
            marks.append(
                f'<text x="{MARGIN + 8}" y="{HEIGHT - MARGIN - 10 - 14 * k}" fill="{colour}">{escape(name)}</text>'
            )
    left, middle = f'x="10" y="{HEIGHT / 2}"', 'text-anchor="middle"'
    turn = f'transform="rotate(-90 10 {HEIGHT / 2})"'
    axes = (
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" {middle}>{escape(x_name)}</text>'
        f"<text {left} {middle} {turn}>{escape(y_name)}</text>"
    )
    svg = f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(marks)}{axes}</svg>'
    return f"<figure>{svg}<figcaption>{escape(title)}</figcaption></figure>"


def _annotations(annotations: Mapping[str, Any]) -> str:
    rows = [[fault, number(count)] for fault, count in annotations["faults"].items()]
    listed = "".join(f"<li>{escape(line)}</li>" for line in annotations["listed"][:50])
    told = _table(["what was wrong", "number"], rows) if rows else "<p>Nothing was wrong with them.</p>"
    return told + (f"<details><summary>the first of them</summary><ul>{listed}</ul></details>" if listed else "")


def _scene_table(scenes: Sequence[Mapping[str, Any]]) -> str:
    rows = [[s["scene_id"], *(number(s[key]) for key in ("true", "found", "f1", "pq"))] for s in scenes[:500]]
    return _table(["scene", "true", "found", "F1", "PQ"], rows)


def _figure(mistake: Mapping[str, Any], uri: str) -> str:
    score = "" if mistake["score"] is None else f", score {mistake['score']:.2f}"
    iou = f", IoU {mistake['iou']:.2f}" if mistake["kind"] == "poor" else ""
    left, top = mistake["box_xyxy"][:2]
    what = {"missed": "missed", "false": "nothing there", "poor": "badly drawn"}[mistake["kind"]]
    text = f"{what}{iou}{score}: {mistake['scene_id']} at {left}, {top}; {mistake['area_px']:,} px"
    return f'<figure><img src="{uri}" alt=""><figcaption>{escape(text)}</figcaption></figure>'
