"""Judge a committed run: read it and the truth, compare, write JSON and a page beside the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from segworker.errors import ConfigError
from segworker.evaluate.average_precision import average_precision
from segworker.evaluate.figures import (
    calibration_figures,
    count_figures,
    precision_figures,
    precision_recall,
    quality_figures,
    seam_figures,
)
from segworker.evaluate.found import FoundObjects, RunResult, found_on, load_run
from segworker.evaluate.judge import JudgedScene, judge_scene
from segworker.evaluate.page import mistake_caption, page
from segworker.evaluate.worst import SIDE_PX, picture_of, worst_mistakes
from segworker.geo import aoi_to_scene
from segworker.grid import Grid
from segworker.io.annotations import TruthOptions, read_truth
from segworker.io.aoi import load_aoi
from segworker.io.failures import redact
from segworker.io.storage import open_storage
from segworker.report.page import Picture, number, picture
from segworker.truth import TruthSet
from segworker.types import Category, Scene

FORMAT = 1
MAX_LISTED = 1000
"Faults of annotations that are listed; the counts are of all."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """What is judged by what."""

    store: str
    run: str = "latest"
    truth: tuple[str, ...] = ()
    options: TruthOptions = field(default_factory=TruthOptions)
    class_map: tuple[tuple[str, str], ...] = ()
    "(the run's name, the truth's name) of classes that are called differently."
    any_class: bool = False
    "Compare shapes alone: all objects are of one class."
    aoi: str | None = None
    "Only this area is judged."
    min_score: float = 0.0
    tile: int | None = None
    "With `overlap`: the grid, where the run's own is not known any more. Grid pixels."
    overlap: int | None = None
    name: str | None = None
    "Of the files; default: that of the first truth."
    output: str | None = None
    "Folder or s3:// prefix; default: runs/<run_id>/evaluation in the store."
    worst: int = 20


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out."""

    result: Mapping[str, Any]
    json_uri: str
    page_uri: str

    @property
    def text(self) -> str:
        """The summary that a person reads."""
        return summary(self.result, self.json_uri, self.page_uri)


def evaluate_run(job: EvaluateJob) -> Evaluation:
    """Judge a run and write `<name>.json` and `<name>.html`.

    Raises:
        ConfigError: truth that cannot be used, or classes that the run and the truth do not share.
        StoreError: no such run.
    """
    if not job.truth:
        raise ConfigError("judging a run needs its truth, got none; give --truth FILE")
    storage = open_storage(job.store)
    run = load_run(storage, job.run)
    truth = read_truth(job.truth, run.scenes, job.options)
    scenes = {scene.scene_id: scene for scene in run.scenes}
    found = {t.scene_id: found_on(storage, run, scenes[t.scene_id]) for t in truth.scenes}
    classes = pair_classes(job, truth, run, found)
    judged = _judge(job, truth, scenes, found, classes)
    result, pictures = _figures(job, run, truth, judged, classes)
    target = open_storage(job.output) if job.output else storage.child(f"runs/{run.run_id}/evaluation")
    name = job.name or PurePosixPath(job.truth[0].partition("?")[0].rstrip("/")).stem
    target.write(f"{name}.json", json.dumps(result, indent=1).encode())
    target.write(f"{name}.html", page(result, pictures).encode(), content_type="text/html; charset=utf-8")
    return Evaluation(result, target.location(f"{name}.json"), target.location(f"{name}.html"))


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes that are judged, and what each side calls them."""

    categories: tuple[Category, ...]
    truth_class: Mapping[int, int]
    found_class: Mapping[str, int]
    notes: tuple[str, ...]


def pair_classes(job: EvaluateJob, truth: TruthSet, run: RunResult, found: Mapping[str, FoundObjects]) -> Classes:
    """Pair the classes of both sides by name (case and outer spaces aside), after `class_map`.

    Raises:
        ConfigError: they share none, or the map names a class that is not there.
    """
    names = sorted({c.name for c in run.categories} | {n for f in found.values() for n in f.class_names.tolist()})
    if job.any_class:
        one = Category(1, "object")
        return Classes((one,), dict.fromkeys((c.id for c in truth.categories), 1), dict.fromkeys(names, 1), ())
    mapped = dict(job.class_map)
    for theirs, ours in mapped.items():
        if theirs not in names and run.categories:
            raise ConfigError(f"--class-map names a class of the run, got {theirs!r}; it has {', '.join(names)}")
        if ours not in {c.name for c in truth.categories}:
            known = ", ".join(c.name for c in truth.categories)
            raise ConfigError(f"--class-map names a class of the truth, got {ours!r}; it has {known}")
    by_key = {_key(c.name): c for c in truth.categories}
    found_class = {n: by_key[k].id for n in names if (k := _key(mapped.get(n, n))) in by_key}
    shared = set(found_class.values())
    if names and not shared:
        raise ConfigError(
            f"a run and its truth share classes, got {', '.join(names)} and "
            f"{', '.join(c.name for c in truth.categories)}; pair them with --class-map RUN=TRUTH, or compare shapes "
            "alone with --any-class"
        )
    notes = []
    counts = truth.objects_by_class()
    unknown = [n for n in names if n not in found_class]
    if unknown:
        notes.append(f"Not judged, because the truth has no such class: {', '.join(unknown)}.")
    never = [c.name for c in truth.categories if names and c.id not in shared and counts[c.name]]
    if never:
        notes.append(f"The run has no such class, all of its objects count as missed: {', '.join(never)}.")
    judged = tuple(c for c in truth.categories if c.id in shared or counts[c.name])
    return Classes(judged, {c.id: c.id for c in truth.categories}, found_class, tuple(notes))


def _key(name: str) -> str:
    return name.strip().casefold()


def _judge(
    job: EvaluateJob,
    truth: TruthSet,
    scenes: Mapping[str, Scene],
    found: Mapping[str, FoundObjects],
    classes: Classes,
) -> list[JudgedScene]:
    aoi = load_aoi(job.aoi) if job.aoi else None
    judged = []
    for one in truth.scenes:
        scene = scenes[one.scene_id]
        area = aoi_to_scene(aoi.polygons, aoi.crs, scene) if aoi else None
        if area is not None and area.is_empty:
            continue
        judged.append(
            judge_scene(
                scene,
                one,
                found[one.scene_id],
                truth_class=dict(classes.truth_class),
                found_class=dict(classes.found_class),
                area=area,
                min_score=job.min_score,
            )
        )
    if not judged:
        raise ConfigError(f"an area of interest meets annotated scenes, got none in {redact(job.aoi or '')}; move it")
    return judged


def _figures(
    job: EvaluateJob, run: RunResult, truth: TruthSet, judged: Sequence[JudgedScene], classes: Classes
) -> tuple[dict[str, Any], list[Picture]]:
    masks, boxes = (average_precision(judged, classes.categories, kind) for kind in ("segm", "bbox"))
    worst = worst_mistakes(judged, job.worst)
    by_id = {scene.scene.scene_id: scene for scene in judged}
    pictures = [
        picture(picture_of(mistake, by_id[mistake.scene_id]), mistake_caption(asdict(mistake)), shown_px=SIDE_PX)
        for mistake in worst
    ]
    result: dict[str, Any] = {
        "format": FORMAT,
        "run_id": run.run_id,
        "store": redact(job.store),
        "truth": [redact(uri) for uri in job.truth],
        "judged_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "classes": [{"name": c.name, "isthing": c.isthing} for c in classes.categories],
        "aoi": redact(job.aoi) if job.aoi else None,
        "min_score": job.min_score,
        "notes": [*classes.notes, *_notes(run, truth, judged)],
        "annotations": {
            "objects": truth.objects_by_class(),
            "faults": truth.counts(),
            "listed": [str(issue) for issue in truth.issues[:MAX_LISTED]],
        },
        "ap": {
            "mask": precision_figures(masks, classes.categories),
            "box": precision_figures(boxes, classes.categories),
        },
        "quality": quality_figures(judged, classes.categories),
        "count": count_figures(judged),
        "seams": seam_figures(judged, _grids(job, run)),
        "calibration": calibration_figures(judged),
        "precision_recall": precision_recall(masks, classes.categories),
        "scenes": [_scene_row(scene) for scene in judged],
        "worst": [asdict(mistake) for mistake in worst],
    }
    return result, pictures


def _notes(run: RunResult, truth: TruthSet, judged: Sequence[JudgedScene]) -> list[str]:
    notes = []
    if run.num_replaced:
        notes.append(f"{run.num_replaced:,} scenes of the run were replaced by later runs and are not judged.")
    unseen = len(run.scenes) - len(truth.scenes)
    if unseen:
        notes.append(f"{unseen:,} scenes of the run have no annotations and are not judged.")
    outside = len(truth.scenes) - len(judged)
    if outside:
        notes.append(f"{outside:,} annotated scenes lie outside of the area of interest.")
    failed = run.record.get("counts", {}).get("tiles_failed", 0)
    if failed:
        notes.append(f"{failed:,} tiles of the run failed; what is on them counts as missed.")
    excused = sum(int(scene.excused.sum()) for scene in judged)
    if excused:
        notes.append(f"{excused:,} findings lie in places that are not judged.")
    return notes


def _grids(job: EvaluateJob, run: RunResult) -> Mapping[str, Grid]:
    """Return the run's grids, or those of a stated tile and overlap at the scenes' own resolution."""
    if job.tile is None:
        return run.grids
    overlap = job.overlap or 0
    return {s.scene_id: Grid.of_scene(s, tile_px=job.tile, overlap_px=overlap) for s in run.scenes}


def _scene_row(scene: JudgedScene) -> dict[str, Any]:
    quality = quality_figures([scene], [])["all_objects"]
    counts = count_figures([scene])
    return {
        "scene_id": scene.scene.scene_id,
        "true": counts["true"],
        "found": counts["found"],
        "f1": quality["f1"],
        "pq": quality["pq"],
    }


def summary(result: Mapping[str, Any], json_uri: str, page_uri: str) -> str:
    """Return the lines that end an evaluation."""
    mask, box, quality = result["ap"]["mask"], result["ap"]["box"], result["quality"]
    pooled, count, seams = quality["all_objects"], result["count"], result["seams"]
    off = "" if count["relative_error"] is None else f" ({count['relative_error']:+.1%})"
    hits = f"{pooled['true_positives']:,} right, {pooled['false_positives']:,} false"
    lines = [
        f"run       {result['run_id']}",
        f"scenes    {len(result['scenes']):,}",
        f"objects   {count['true']:,} true, {count['found']:,} found{off}",
        f"masks     AP {number(mask['ap'])}, AP50 {number(mask['ap50'])}, AP75 {number(mask['ap75'])}",
        f"boxes     AP {number(box['ap'])}, AP50 {number(box['ap50'])}",
        f"quality   PQ {number(quality['pq'])}, SQ {number(quality['sq'])}, RQ {number(quality['rq'])} (class means)",
        f"at 0.5    F1 {number(pooled['f1'])}: {hits}, {pooled['false_negatives']:,} missed",
    ]
    if seams is not None:
        for place, told in (("near_borders", "near tile borders"), ("interior", "in the interior")):
            found = seams[place]
            lines.append(
                f"seams     {told}: {found['objects']:,} objects, {found['cut']:,} cut, {found['merged']:,} merged, "
                f"{found['duplicates']:,} shown twice"
            )
    faults = result["annotations"]["faults"]
    lines += [f"note      {note}" for note in result["notes"]]
    lines += [f"truth     {count:,} annotations {fault}" for fault, count in faults.items()]
    return "\n".join([*lines, f"figures   {json_uri}", f"page      {page_uri}"])
