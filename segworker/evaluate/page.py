"""An evaluation as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segworker.report import charts
from segworker.report.page import (
    Block,
    Chart,
    Gallery,
    Listing,
    Page,
    Picture,
    Section,
    Table,
    Text,
    number,
    render,
    share,
)

MAX_SCENES, MAX_LISTED = 500, 50


def page(result: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Return the page of an evaluation.

    Args:
        result: what `evaluate_run` returns.
        pictures: of its worst mistakes, in their order.
    """
    quality, ap = result["quality"], result["ap"]
    figures = [
        (number(ap["mask"]["ap"]), "mask AP"),
        (number(ap["mask"]["ap50"]), "mask AP50"),
        (number(ap["box"]["ap"]), "box AP"),
        (number(quality["pq"]), "PQ"),
        (number(quality["all_objects"]["f1"]), "object F1"),
        (share(result["count"]["relative_error"], signed=True), "count error"),
    ]
    sections = [
        Section("Average precision", [_precision_table(result)]),
        Section("Objects, by class", [_quality_table(quality)]),
        Section("Near the borders of tiles", [_seam_table(result["seams"])]),
        Section("Curves", [_curves(result)]),
        Section("Annotations", _annotations(result["annotations"])),
        Section("Scenes", _scene_tables(result["scenes"])),
        Section(
            f"The {len(pictures)} worst mistakes",
            [Text("Truth is green, what was found is magenta; the box is yellow."), Gallery(pictures)],
        ),
    ]
    return render(Page(f"Evaluation of {result['run_id']}", _lead(result), figures, sections, result["notes"]))


def mistake_caption(mistake: Mapping[str, Any]) -> str:
    """Return what stands below the picture of a mistake."""
    score = "" if mistake["score"] is None else f", score {mistake['score']:.2f}"
    iou = f", IoU {mistake['iou']:.2f}" if mistake["kind"] == "poor" else ""
    left, top = mistake["box_xyxy"][:2]
    what = {"missed": "missed", "false": "nothing there", "poor": "badly drawn"}[mistake["kind"]]
    return f"{what}{iou}{score}: {mistake['scene_id']} at {left}, {top}; {mistake['area_px']:,} px"


def _lead(result: Mapping[str, Any]) -> str:
    count = result["count"]
    return (
        f"{count['true']:,} true objects and {count['found']:,} found ones on {len(result['scenes']):,} scenes of "
        f"{result['store']}; truth: {', '.join(result['truth'])}."
    )


def _precision_table(result: Mapping[str, Any]) -> Table:
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
    head = ["objects", "mask AP", "mask AP50", "mask AP75", "box AP", "box AP50"]
    return Table(head, rows, "COCO average precision: of all objects, by size, by class")


def _quality_table(quality: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            *(number(found[key]) for key in ("pq", "sq", "rq", "precision", "recall")),
            *(number(found[key]) for key in ("true_positives", "false_positives", "false_negatives")),
        ]
        for name, found in [*quality["by_class"].items(), ("all objects", quality["all_objects"])]
    ]
    head = ["class", "PQ", "SQ", "RQ = F1", "precision", "recall", "right", "false", "missed"]
    return Table(head, rows, "Found and true objects that match at an IoU of 0.5 or more")


def _seam_table(seams: Mapping[str, Any] | None) -> Block:
    if seams is None:
        return Text("The run's tile grid is not known any more (--keep-work); give --tile and --overlap.", is_note=True)
    rows = [
        [
            place.replace("_", " "),
            number(found["objects"]),
            *(f"{found[key]:,} ({share(found[rate])})" for key, rate in _SEAM_COLUMNS),
        ]
        for place, found in seams.items()
        if place in ("near_borders", "interior")
    ]
    head = ["place", "true objects", "cut", "missed", "merged", "shown twice"]
    return Table(head, rows, "Faults near borders between tiles, beside those elsewhere")


_SEAM_COLUMNS = (
    ("cut", "cut_rate"),
    ("missed", "missed_rate"),
    ("merged", "merged_rate"),
    ("duplicates", "duplicate_rate"),
)


def _curves(result: Mapping[str, Any]) -> Gallery:
    recalls = [k / 100 for k in range(101)]
    series = [(name, list(zip(recalls, curve, strict=True))) for name, curve in result["precision_recall"].items()]
    bins = [b for b in result["calibration"]["bins"] if b["count"]]
    points = [("right", [(b["mean_score"], b["right"]) for b in bins])]
    error = number(result["calibration"]["expected_calibration_error"])
    over_recall = "Precision over recall, masks, IoU 0.5"
    over_score = f"Share of right findings over score (calibration error {error})"
    return Gallery(
        [
            Chart(charts.lines(over_recall, "recall", "precision", series), over_recall),
            Chart(charts.lines(over_score, "score", "right", points, diagonal=True), over_score),
        ]
    )


def _annotations(annotations: Mapping[str, Any]) -> list[Block]:
    rows = [[fault, number(count)] for fault, count in annotations["faults"].items()]
    listed = annotations["listed"][:MAX_LISTED]
    told: Block = Table(["what was wrong", "number"], rows, "Faults") if rows else Text("Nothing was wrong with them.")
    return [told, *([Listing(f"The first {len(listed)} of them", listed)] if listed else [])]


def _scene_tables(scenes: Sequence[Mapping[str, Any]]) -> list[Block]:
    rows = [[s["scene_id"], *(number(s[key]) for key in ("true", "found", "f1", "pq"))] for s in scenes[:MAX_SCENES]]
    more = f"; {len(scenes) - MAX_SCENES:,} more are in the JSON file" if len(scenes) > MAX_SCENES else ""
    return [Table(["scene", "true", "found", "F1", "PQ"], rows, f"Each scene on its own{more}")]
