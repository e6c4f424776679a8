"""The core types, valid at birth.

Frames: *scene pixels* are pixels of the source image, (0, 0) the outer corner of its first pixel. *Grid pixels* are
scene pixels times `Grid.scale`: what the model sees. They differ only where a model asks for another ground resolution.
Boxes and windows are half-open and in pixel-edge coordinates. Arrays are numpy; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segworker.errors import PredictionError
from segworker.jit import kernel

MAX_NAME = 200
Affine6: TypeAlias = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Category:
    """One class a model can return."""

    id: int
    "Positive and unique within a model; the class_id of features and the category_id of COCO."
    name: str
    "Printable text of 1 to 200 characters."
    isthing: bool = True
    "True for countable objects, False for stuff."
    keypoints: tuple[str, ...] = ()
    "Names of its keypoints in the order of `Prediction.keypoints_NK3`, where the model gives some."

    def __post_init__(self) -> None:
        if self.id < 0:
            raise ValueError(f"category ids must not be negative, got {self.id} for {self.name!r}")
        if not (0 < len(self.name) <= MAX_NAME and self.name.isprintable()):
            raise ValueError(
                f"a category's name is printable text of 1 to {MAX_NAME} characters, got {self.name[:80]!r}; rename it"
            )


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open rectangle of pixels."""

    col_off: int
    row_off: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise ValueError(f"window sides must not be negative, got {self.width} x {self.height}")

    @property
    def col_end(self) -> int:
        """First column behind the window."""
        return self.col_off + self.width

    @property
    def row_end(self) -> int:
        """First row below the window."""
        return self.row_off + self.height

    @property
    def area_px(self) -> int:
        """Pixels in the window."""
        return self.width * self.height

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width, as numpy wants them."""
        return self.height, self.width

    def intersect(self, other: Window) -> Window:
        """Return the common pixels; an empty window where there are none."""
        left, top = max(self.col_off, other.col_off), max(self.row_off, other.row_off)
        right, bottom = min(self.col_end, other.col_end), min(self.row_end, other.row_end)
        return Window(left, top, max(0, right - left), max(0, bottom - top))

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Return (rows, columns) of this window as slices into an array that covers `outer`."""
        top, left = self.row_off - outer.row_off, self.col_off - outer.col_off
        return slice(top, top + self.height), slice(left, left + self.width)


@dataclass(frozen=True, slots=True)
class Scene:
    """One source image, as its header tells it. Constructing one reads nothing."""

    scene_id: str
    "Unique in a run, stable between runs, safe in paths: [A-Za-z0-9._-], at most 200 characters."
    uri: str
    "Where it is read from; secrets of presigned URLs are part of it, and never of what is recorded."
    width: int
    "Scene pixels."
    height: int
    "Scene pixels."
    num_bands: int
    "Bands with values; alpha is not one of them."
    dtype: str
    "numpy name of the source's dtype."
    crs: str | None = None
    "WKT of the coordinate reference system, or None."
    transform: Affine6 = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    "Scene pixels to CRS units (a, b, c, d, e, f as in rasterio); the identity where there is no georeference."
    pixel_size_um: float | None = None
    "Side of a pixel in micrometres, where the file states a physical size."
    nodata: float | None = None
    etag: str | None = None
    "What tells one version of the file from the next: an object store's etag, or None for local files."
    size_bytes: int | None = None
    mtime_s: float | None = None
    "Seconds since the epoch."
    block_shape_yx: tuple[int, int] = (1, 1)
    "Blocks of the file in scene pixels; reading whole blocks is cheapest."
    source: str = "raster"
    "Name of the reader in `sources` that opens the uri."
    options: tuple[tuple[str, str], ...] = ()
    "What the reader must know besides the uri (a subdataset, a page), as sorted pairs."
    overviews: tuple[int, ...] = ()
    "Of sheets and mosaics: factors of the overviews."
    values: tuple[str, ...] = ()
    "Of sheets and mosaics: 'scale offset bits' of each band; empty where stored values are the real ones."
    sheets: tuple[Sheet, ...] = ()
    "What a mosaic is put together from, the lowest first; empty for scenes of one file."

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a scene has at least one pixel, got {self.width} x {self.height} for {self.uri}")
        if self.num_bands < 1:
            raise ValueError(f"a scene has at least one band, got {self.num_bands} for {self.uri}")

    @property
    def window(self) -> Window:
        """The whole scene."""
        return Window(0, 0, self.width, self.height)


@dataclass(frozen=True, slots=True)
class Sheet:
    """One file of a mosaic."""

    scene: Scene
    "The file on the mosaic's pixel grid: in its own pixels, or warped to it."
    window: Window
    "Where it lies, in scene pixels of the mosaic."


@dataclass(frozen=True, slots=True)
class Tile:
    """The unit of inference: its core is the pixels it owns, its window what the model sees."""

    scene_id: str
    row: int
    "Row in the grid of tiles."
    col: int
    "Column in the grid of tiles."
    core: Window
    "Grid pixels. The cores of a scene partition it."
    window: Window
    "Grid pixels. Core and halo, clipped by the scene."
    scale: float = 1.0
    "Grid pixels per scene pixel."


@dataclass(frozen=True, slots=True, eq=False)
class TileImage:
    """The pixels of one tile's window."""

    tile: Tile
    pixels: NDArray[np.generic]
    "(bands, height, width) in the source's dtype."
    valid: NDArray[np.bool_]
    "(height, width): False where the source says nodata, masked or transparent."


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a model wants to see, and how far it may be trusted."""

    num_bands: int = 3
    "Bands of `images_BCHW`. A grey scene is repeated, a colour scene is turned grey, as `io.raster` states."
    scaling: Literal["unit", "none"] = "unit"
    "'unit': values mapped to 0..1 by one range for the whole scene; 'none': raw values as float32."
    resolution_m: float | None = None
    "Metres per pixel the model was trained at; None: the scene's own."
    resolution_um: float | None = None
    "Micrometres per pixel the model was trained at; None: the scene's own."
    stride: int = 32
    "Window sides are padded (invalid pixels, right and below) to multiples of this."
    cut_trust_px: int = 16
    "Width of the margin along a cut window side in which masks stop short or drift. Measured, see docs/design."
    tile_px: int = 1024
    "Default `--tile`."
    overlap_px: int = 128
    "Default `--overlap`."
    exclusive: bool = True
    "A pixel belongs to one feature at most."
    min_score: float = 0.5
    "Default `--min-score`."
    objects: Literal["masks", "boxes"] = "masks"
    "'boxes': the model gives no masks; a feature is then the box around what its tiles saw of it."

    def __post_init__(self) -> None:
        if self.objects == "boxes" and self.exclusive:
            raise ValueError("boxes overlap where their objects do not: a model without masks has exclusive=False")
        if self.num_bands < 1 or self.stride < 1 or self.cut_trust_px < 0:
            raise ValueError(f"num_bands and stride are at least 1 and cut_trust_px at least 0, got {self}")


@dataclass(frozen=True, slots=True, eq=False)
class BoxMasks:
    """Mask probabilities on a small lattice stretched over each box (the Mask R-CNN form)."""

    probs_NMM: NDArray[np.floating]
    "(N, M, M) in 0..1; a pixel is inside where the bilinear value at its centre is at least 0.5."


@dataclass(frozen=True, slots=True, eq=False)
class LabelMasks:
    """One label image for the whole window (the StarDist or Cellpose form): instance i is label i + 1."""

    labels_HW: NDArray[np.integer]
    "(H, W) of the window; 0 is background. Instances cannot overlap."


@dataclass(frozen=True, slots=True, eq=False)
class CroppedMasks:
    """One small boolean array for each instance, placed in the window by its corner."""

    masks: tuple[NDArray[np.bool_], ...]
    "N arrays (h_i, w_i)."
    corners_xy: NDArray[np.integer]
    "(N, 2) column and row of each array's first pixel in the window."


@dataclass(frozen=True, slots=True, eq=False)
class PrototypeMasks:
    """Linear combinations of shared maps (the YOLACT form): sigmoid(coefficients @ prototypes) cut by the box."""

    prototypes_KHW: NDArray[np.floating]
    "(K, ceil(H / stride), ceil(W / stride))."
    coefficients_NK: NDArray[np.floating]
    "(N, K)."
    stride: float = 4.0
    "Window pixels per prototype cell."


Masks: TypeAlias = BoxMasks | LabelMasks | CroppedMasks | PrototypeMasks


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model returns for one tile, in window pixels and in compact form (never N full windows)."""

    boxes_xyxy: NDArray[np.floating]
    "(N, 4) float32, window pixels."
    class_ids: NDArray[np.integer]
    "(N,) int32, ids of the model's categories."
    scores: NDArray[np.floating]
    "(N,) float32 in 0..1."
    masks: Masks | None = None
    "None: the boxes are the objects."
    keypoints_NK3: NDArray[np.floating] | None = None
    "(N, K, 3) float32: x, y in window pixels, visibility or score."
    semantic_scores_CHW: NDArray[np.floating] | None = None
    "(C, h, w) scores on a lattice that is stretched over the window bilinearly (h, w: the window's, or a part of it)."
    semantic_class_ids: NDArray[np.integer] | None = None
    "(C,) class id of each channel, 0 for things of any class; None: the model's categories in their order."
    dense: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    "name -> (H, W), e.g. height in metres."

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes_xyxy.shape != (n, 4) or self.class_ids.shape != (n,):
            raise PredictionError(
                f"boxes_xyxy must be (N, 4) and class_ids (N,) for N scores, got {self.boxes_xyxy.shape} and "
                f"{self.class_ids.shape} for N={n}; fix the model's predict()"
            )

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """N masks as horizontal runs, concatenated: mask i is runs offsets[i]:offsets[i + 1].

    The one form of a mask from decode to polygon. Within a mask, runs are sorted by row and column, do not overlap and
    do not touch. A run is the pixels [start, stop) of a row.
    """

    rows: NDArray[np.int32]
    "(R,) grid pixels."
    starts: NDArray[np.int32]
    "(R,) first column."
    stops: NDArray[np.int32]
    "(R,) first column behind the run."
    offsets: NDArray[np.int64]
    "(N + 1,)."

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def empty(cls, num_masks: int = 0) -> Runs:
        """Return `num_masks` empty masks."""
        none = np.zeros(0, np.int32)
        return cls(none, none, none, np.zeros(num_masks + 1, np.int64))

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> Runs:
        """Return the masks at `indices` (or where a boolean array is True), in that order."""
        picked = np.flatnonzero(indices) if indices.dtype == np.bool_ else np.asarray(indices, np.int64)
        counts = np.diff(self.offsets)[picked]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Runs(*_gather(self.rows, self.starts, self.stops, self.offsets, picked, offsets), offsets)

    @classmethod
    def concatenate(cls, parts: list[Runs]) -> Runs:
        """Return the masks of all parts, one after the other."""
        if not parts:
            return cls.empty()
        shifts = np.cumsum([0, *(len(p.rows) for p in parts)])
        offsets = [p.offsets[1:] + s for p, s in zip(parts, shifts[:-1], strict=True)]
        return cls(
            np.concatenate([p.rows for p in parts]),
            np.concatenate([p.starts for p in parts]),
            np.concatenate([p.stops for p in parts]),
            np.concatenate([np.zeros(1, np.int64), *offsets]),
        )


@kernel
def _gather(
    rows: NDArray[np.int32],
    starts: NDArray[np.int32],
    stops: NDArray[np.int32],
    offsets: NDArray[np.int64],
    picked: NDArray[np.int64],
    new_offsets: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    total = new_offsets[-1]
    out = np.empty(total, np.int32), np.empty(total, np.int32), np.empty(total, np.int32)
    for i in range(len(picked)):
        shift = offsets[picked[i]] - new_offsets[i]
        for k in range(new_offsets[i], new_offsets[i + 1]):
            out[0][k], out[1][k], out[2][k] = rows[k + shift], starts[k + shift], stops[k + shift]
    return out


class Edge:
    """Bits of `Instances.edges`: the cut sides of its window that an instance comes near to."""

    LEFT = 1
    TOP = 2
    RIGHT = 4
    BOTTOM = 8


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The N instances of one tile as arrays, in grid pixels."""

    tile: Tile
    class_ids: NDArray[np.int32]
    "(N,)."
    scores: NDArray[np.float32]
    "(N,)."
    boxes_xyxy: NDArray[np.int32]
    "(N, 4) tight boxes of the masks, half-open, grid pixels."
    edges: NDArray[np.uint8]
    "(N,) bits of `Edge`."
    runs: Runs
    "N masks, never empty."
    keypoints_NK3: NDArray[np.float32] | None = None
    "(N, K, 3) x, y in grid pixels and visibility."

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> Instances:
        """Return the instances at `indices` (or where a boolean array is True)."""
        points = self.keypoints_NK3
        return replace(
            self,
            class_ids=self.class_ids[indices],
            scores=self.scores[indices],
            boxes_xyxy=self.boxes_xyxy[indices],
            edges=self.edges[indices],
            runs=self.runs.take(indices),
            keypoints_NK3=None if points is None else points[indices],
        )
