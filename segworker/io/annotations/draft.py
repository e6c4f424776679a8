"""Annotations of one scene on their way from a file to the truth: checked, mended, counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from numpy.typing import NDArray

from segworker.errors import ConfigError
from segworker.masks import areas_px, fingerprints
from segworker.rasterise import runs_of_polygons
from segworker.truth import Fault, Issue, SceneTruth
from segworker.types import Category, Runs, Scene

_POLYGONAL = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
EDGE_PX = 1.0
"An outline may pass the scene's edge by this much without being told."


class Classes:
    """Class names met so far, with their ids: those that files state, else the next free ones from 1."""

    def __init__(self) -> None:
        self._by_name: dict[str, Category] = {}

    def add(self, name: str, class_id: int | None = None, *, isthing: bool = True) -> int:
        """Return the id of a class; a name has one id and an id one name, whatever file comes first."""
        known = self._by_name.get(name)
        if known is None:
            taken = {category.id for category in self._by_name.values()}
            chosen = class_id if class_id is not None and class_id not in taken and class_id > 0 else None
            free = chosen if chosen is not None else next(k for k in range(1, len(taken) + 2) if k not in taken)
            known = self._by_name[name] = Category(free, name, isthing)
        return known.id

    def categories(self) -> tuple[Category, ...]:
        """Return all classes, by id."""
        return tuple(sorted(self._by_name.values(), key=lambda category: category.id))


@dataclass(slots=True, eq=False)
class Draft:
    """What files say of one scene; objects are appended, and nothing is checked before `finish`."""

    scene: Scene
    object_ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    class_ids: list[int | None] = field(default_factory=list)
    "None: of no known class."
    shapes: list[shapely.Geometry | Runs | None] = field(default_factory=list)
    "A polygon in scene pixels, one mask, or None where nothing can be made of the annotation."
    crowd: list[bool] = field(default_factory=list)
    keypoints: list[Sequence[float] | None] = field(default_factory=list)
    "x, y, visibility of each point, flat."
    details: list[str] = field(default_factory=list)
    partial: set[int] = field(default_factory=set)

    def add(
        self,
        object_id: str,
        shape: shapely.Geometry | Runs | None,
        class_id: int | None,
        *,
        source: str,
        crowd: bool = False,
        keypoints: Sequence[float] | None = None,
        detail: str = "",
    ) -> None:
        """Append one annotation; `detail` says more about what is broken or unknown."""
        self.object_ids.append(object_id)
        self.sources.append(source)
        self.class_ids.append(class_id)
        self.shapes.append(shape)
        self.crowd.append(crowd)
        self.keypoints.append(keypoints)
        self.details.append(detail)


def finish(draft: Draft) -> tuple[SceneTruth, list[Issue]]:
    """Return the clean annotations of a scene, and what was fixed and skipped.

    In this order: repeated ids and unknown classes are skipped, outlines that cross themselves are filled by the
    even-odd rule, what has no area or no pixel of the scene is skipped, and so are shapes that repeat another one of
    their class.
    """
    issues = _Issues(draft)
    alive = [i for i in _first_of_each_id(draft, issues) if _has_class(draft, issues, i)]
    polygonal = [i for i in alive if not isinstance(draft.shapes[i], Runs)]
    kept, polygons = _mended(draft, issues, polygonal)
    width, height = draft.scene.width, draft.scene.height
    masked = [i for i in alive if isinstance(draft.shapes[i], Runs)]
    runs = Runs.concatenate([runs_of_polygons(polygons, width=width, height=height), *_masks(draft, masked)])
    owners = np.array(kept + masked, np.int64)
    filled = areas_px(runs) > 0
    for i in owners[~filled].tolist():
        issues.skip(Fault.EMPTY, i)
    owners, runs = owners[filled], runs.take(filled)
    order = np.argsort(owners, kind="stable")
    truth = _truth(draft, owners[order], runs.take(order))
    again = _repeated(truth)
    for i in owners[order][again].tolist():
        issues.skip(Fault.DUPLICATE, i, "the same shape and class as another one")
    return truth.take(~again), issues.found


class _Issues:
    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.found: list[Issue] = []

    def skip(self, fault: Fault, i: int, detail: str = "") -> None:
        self._add(fault, "skipped", i, detail)

    def fix(self, fault: Fault, i: int, detail: str = "") -> None:
        self._add(fault, "fixed", i, detail)

    def _add(self, fault: Fault, action: str, i: int, detail: str) -> None:
        draft = self.draft
        detail = detail or draft.details[i]
        self.found.append(Issue(fault, action, draft.object_ids[i], draft.sources[i], draft.scene.scene_id, detail))


def _first_of_each_id(draft: Draft, issues: _Issues) -> Iterable[int]:
    seen: set[tuple[str, str]] = set()
    for i, key in enumerate(zip(draft.sources, draft.object_ids, strict=True)):
        if key in seen:
            issues.skip(Fault.DUPLICATE, i, "the same id as an earlier one")
        else:
            seen.add(key)
            yield i


def _has_class(draft: Draft, issues: _Issues, i: int) -> bool:
    if draft.class_ids[i] is None:
        issues.skip(Fault.UNKNOWN_CLASS, i)
    return draft.class_ids[i] is not None


def _mended(draft: Draft, issues: _Issues, indices: list[int]) -> tuple[list[int], NDArray[np.object_]]:
    """Return which annotations have an area in the scene, and their valid polygons."""
    polygons = np.empty(len(indices), object)
    polygons[:] = [draft.shapes[i] for i in indices]
    valid = shapely.is_valid(polygons)
    for k in np.flatnonzero(~valid & (shapely.get_type_id(polygons) >= 0)).tolist():
        polygons[k] = areal(shapely.make_valid(polygons[k]))
    finite = np.isfinite(shapely.bounds(polygons).reshape(-1, 4)).all(axis=1)
    broken = ~finite | ~np.isin(shapely.get_type_id(polygons), _POLYGONAL) | ~(shapely.area(polygons) > 0)
    bounds = np.nan_to_num(shapely.bounds(polygons).reshape(-1, 4))
    width, height = draft.scene.width, draft.scene.height
    outside = (bounds[:, 0] >= width) | (bounds[:, 1] >= height) | (bounds[:, 2] <= 0) | (bounds[:, 3] <= 0)
    beyond = (
        (bounds[:, :2].min(axis=1) < -EDGE_PX) | (bounds[:, 2] > width + EDGE_PX) | (bounds[:, 3] > height + EDGE_PX)
    )
    for k, i in enumerate(indices):
        if broken[k]:
            issues.skip(Fault.BROKEN, i)
        elif outside[k]:
            issues.skip(Fault.OUTSIDE, i)
        else:
            if not valid[k]:
                issues.fix(Fault.SELF_CROSSING, i)
            if beyond[k]:
                issues.fix(Fault.OUTSIDE, i, "cut at the scene's edge")
    kept = ~broken & ~outside
    return [i for i, keep in zip(indices, kept, strict=True) if keep], polygons[kept]


def areal(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return the polygons of a geometry, without the lines and points that mending leaves."""
    parts = shapely.get_parts(geometry)
    parts = shapely.get_parts(parts[shapely.get_dimensions(parts) == 2])
    if len(parts) == 1:
        return parts[0]
    return shapely.multipolygons(parts) if len(parts) else shapely.Polygon()


def _masks(draft: Draft, indices: list[int]) -> list[Runs]:
    return [shape for i in indices if isinstance(shape := draft.shapes[i], Runs)]


def _repeated(truth: SceneTruth) -> NDArray[np.bool_]:
    """Return which objects have the pixels and the class of an earlier one."""
    keys = np.stack([fingerprints(truth.runs), truth.class_ids.astype(np.int64), truth.crowd.astype(np.int64)], axis=1)
    again = np.ones(len(truth), bool)
    again[np.unique(keys, axis=0, return_index=True)[1]] = False
    return again


def _truth(draft: Draft, owners: NDArray[np.int64], runs: Runs) -> SceneTruth:
    indices = owners.tolist()
    classes = [class_id for i in indices if (class_id := draft.class_ids[i]) is not None]
    return SceneTruth(
        draft.scene.scene_id,
        draft.scene.width,
        draft.scene.height,
        tuple(draft.object_ids[i] for i in indices),
        np.array(classes, np.int32),
        runs,
        np.array([draft.crowd[i] for i in indices], bool),
        _keypoints([draft.keypoints[i] for i in indices]),
        frozenset(draft.partial),
    )


def _keypoints(flat: Sequence[Sequence[float] | None]) -> NDArray[np.float32] | None:
    """Return (N, K, 3), K the most that one object has; None where there are none."""
    count = max((len(points) // 3 for points in flat if points), default=0)
    if count == 0:
        return None
    result = np.zeros((len(flat), count, 3), np.float32)
    for i, points in enumerate(flat):
        if points:
            found = np.asarray(points[: len(points) // 3 * 3], np.float32).reshape(-1, 3)
            result[i, : len(found)] = found
    return result


class SceneNames:
    """Scenes by what files call them: the scene_id, the file's name, or that without its extension."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = tuple(scenes)
        self._index: dict[str, list[Scene]] = {}
        for scene in scenes:
            name = scene.uri.partition("?")[0].rpartition("/")[2]
            for key in {scene.scene_id, name, name.rpartition(".")[0]} - {""}:
                self._index.setdefault(key, []).append(scene)

    def find(self, *names: object) -> Scene | None:
        """Return the scene that the first fitting name means, or None.

        Raises:
            ConfigError: the name means several scenes.
        """
        for name in names:
            text = str(name).replace("\\", "/").rpartition("/")[2] if name else ""
            for key in (text, text.rpartition(".")[0]):
                found = self._index.get(key, []) if key else []
                if len(found) > 1:
                    raise ConfigError(
                        f"an image of the truth is one scene, {text!r} fits {found[0].scene_id} and "
                        f"{found[1].scene_id}; name scenes by their scene_id"
                    )
                if found:
                    return found[0]
        return None
