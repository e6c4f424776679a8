"""The truth of a scene, and the truth that a tiled job can be held to: what some tile could see as one is one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from segworker.types import Category, Window

Ints = NDArray[np.int64]
Parts = Literal["one", "several"]


@dataclass(frozen=True, slots=True, eq=False)
class TruthScene:
    """One painted scene."""

    kind: str
    seed: int
    labels_HW: NDArray[np.int32]
    "0 is background, i is object i."
    class_ids: NDArray[np.int32]
    "(N + 1,) class of each label; 0 for the background."
    categories: tuple[Category, ...]
    stuff_HW: NDArray[np.int32] | None = None
    "Class of the ground below the things (panoptic scenes), else None."

    def __post_init__(self) -> None:
        if len(self.class_ids) != int(self.labels_HW.max(initial=0)) + 1:
            raise ValueError(f"class_ids needs one entry per label and one for 0, got {len(self.class_ids)}")

    @property
    def num_objects(self) -> int:
        """Objects of the scene."""
        return len(self.class_ids) - 1


def visible_truth(
    labels_HW: NDArray[np.integer], windows: Iterable[Window], *, parts: Parts = "one"
) -> tuple[NDArray[np.int32], Ints]:
    """Relabel a truth raster so that what some tile could see as one object is one, and nothing else is.

    With parts='several' (a model that returns each 8-connected component on its own) those are the 8-connected
    components of the objects. With parts='one' (a tile's disconnected parts of an object are one instance) components
    of an object are also joined where one window sees pixels of both. Windows are in the raster's pixels.

    Returns:
        (H, W) labels 1..M, 0 where the input is 0, and (M + 1,) the old label of each new one (0 of 0).
    """
    components = label_components(labels_HW)
    old = np.zeros(int(components.max(initial=0)) + 1, np.int64)
    old[components.ravel()] = labels_HW.ravel()
    if parts == "several" or len(old) == len(np.unique(old)):
        return components, old
    pairs = [_seen_together(components[w.row_off : w.row_end, w.col_off : w.col_end], old) for w in windows]
    edges = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    roots = connected_components(len(old), edges[:, 0], edges[:, 1])
    kept, new = np.unique(roots, return_inverse=True)
    return new.astype(np.int32)[components], old[kept]


def label_components(labels_HW: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the 8-connected components of equal, non-zero labels, numbered from 1."""
    components = label(labels_HW.astype(np.int64, copy=False), background=0, connectivity=2)  # type: ignore[no-untyped-call]
    return np.asarray(components, np.int32)


def connected_components(num_nodes: int, a: NDArray[np.integer], b: NDArray[np.integer]) -> Ints:
    """Return for each node of an undirected graph the smallest node it is connected with, given edges a[i]-b[i]."""
    root = np.arange(num_nodes, dtype=np.int64)
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    while len(a):
        ra, rb = root[a], root[b]
        apart = ra != rb
        a, b, ra, rb = a[apart], b[apart], ra[apart], rb[apart]
        np.minimum.at(root, np.maximum(ra, rb), np.minimum(ra, rb))
        while (root[root] != root).any():
            root = root[root]
    return root


def _seen_together(components: NDArray[np.int32], old: Ints) -> Ints:
    """Return (K, 2) chains of the components of one object that are in this piece of the raster."""
    seen = np.unique(components)
    seen = seen[seen > 0].astype(np.int64)
    seen = seen[np.argsort(old[seen], kind="stable")]
    same = old[seen[1:]] == old[seen[:-1]]
    return np.stack([seen[:-1][same], seen[1:][same]], axis=1)
