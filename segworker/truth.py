"""What annotators say is in scenes, as one type whatever file it came from, and what was wrong with it.

Masks are runs in scene pixels: exact, sparse, and what `metrics` and the training windows both start from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from segworker.types import Category, Runs


class Fault(StrEnum):
    """What can be wrong with an annotation."""

    SELF_CROSSING = "self-crossing"
    "An outline that crosses or touches itself; fixed by even-odd filling."
    BROKEN = "broken"
    "No area can be made of it: a line, two points, run lengths that do not add up, unreadable."
    EMPTY = "empty"
    "It holds no pixel centre of the scene."
    OUTSIDE = "outside"
    "It lies outside of the scene (skipped), or beyond its edge by more than a pixel (cut, which is 'fixed')."
    UNKNOWN_CLASS = "unknown class"
    "No class, or one that the file does not declare."
    DUPLICATE = "duplicate"
    "An id, or a shape of the same class, that was there before."
    UNKNOWN_SCENE = "unknown scene"
    "Of an image that is not among the scenes."


@dataclass(frozen=True, slots=True)
class Issue:
    """One annotation that is not used as it is."""

    fault: Fault
    action: str
    "'fixed' or 'skipped'."
    object_id: str
    source: str
    "The file, without secrets."
    scene_id: str | None = None
    detail: str = ""

    def __str__(self) -> str:
        where = f" in scene {self.scene_id}" if self.scene_id else ""
        told = f" ({self.detail})" if self.detail else ""
        return f"{self.action}: {self.fault} annotation {self.object_id}{where} of {self.source}{told}"


@dataclass(frozen=True, slots=True, eq=False)
class SceneTruth:
    """The N annotated objects of one scene."""

    scene_id: str
    width: int
    "Scene pixels."
    height: int
    "Scene pixels."
    object_ids: tuple[str, ...]
    "(N,) as the file calls them."
    class_ids: NDArray[np.int32]
    "(N,) ids of the set's categories."
    runs: Runs
    "N masks in scene pixels, none empty; they may overlap."
    crowd: NDArray[np.bool_]
    "(N,) regions that are not judged and not learnt: crowds, unsure places."
    keypoints_NK3: NDArray[np.float32] | None = None
    "(N, K, 3) x, y in scene pixels and visibility (0 not labelled, 1 hidden, 2 seen)."
    partial_class_ids: frozenset[int] = frozenset()
    "Classes of which not every object of the scene is annotated."

    def __post_init__(self) -> None:
        lengths = {len(self.object_ids), len(self.class_ids), len(self.runs), len(self.crowd)}
        if len(lengths) > 1:
            raise ValueError(f"every array has one entry for each object, got lengths {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.class_ids)

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> SceneTruth:
        """Return the objects at `indices` (or where a boolean array is True)."""
        picked = np.flatnonzero(indices) if indices.dtype == np.bool_ else np.asarray(indices)
        points = self.keypoints_NK3
        return replace(
            self,
            object_ids=tuple(self.object_ids[i] for i in picked.tolist()),
            class_ids=self.class_ids[picked],
            runs=self.runs.take(picked),
            crowd=self.crowd[picked],
            keypoints_NK3=None if points is None else points[picked],
        )


@dataclass(frozen=True, slots=True)
class TruthSet:
    """The annotations of a set of scenes, cleaned."""

    categories: tuple[Category, ...]
    "All classes that the files declare or use, by id."
    scenes: tuple[SceneTruth, ...]
    "Sorted by scene_id; a scene without objects is listed where a file says that it was looked at."
    issues: tuple[Issue, ...] = ()
    keypoint_names: dict[int, tuple[str, ...]] = field(default_factory=dict)
    "Of each class that has keypoints."

    @property
    def num_objects(self) -> int:
        """Objects that are not crowds, of all scenes."""
        return sum(int((~scene.crowd).sum()) for scene in self.scenes)

    def counts(self) -> dict[str, int]:
        """Return how many annotations had which fault, e.g. {'skipped: empty': 3}, sorted by name."""
        return dict(sorted(Counter(f"{issue.action}: {issue.fault}" for issue in self.issues).items()))

    def name_of(self, class_id: int) -> str:
        """Return the name of a class."""
        return next(category.name for category in self.categories if category.id == class_id)

    def objects_by_class(self) -> dict[str, int]:
        """Return the number of objects of each class, zeros included."""
        found: Counter[int] = Counter()
        for scene in self.scenes:
            found.update(scene.class_ids[~scene.crowd].tolist())
        return {category.name: found[category.id] for category in self.categories}
