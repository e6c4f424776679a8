"""The seam with a real network: the bundled nuclei model on images that it never saw, tiled and whole.

Two questions for each way to stitch: how well the stitched tiles agree with the same network on the whole image, and
how well they agree with the truth, beside the whole image's own agreement with it. Objects of all images are pooled.

The images are the held-out ones of more than 256 px, and mosaics of four held-out images of 256 px of one kind, so that
each has several tiles. What the network says is kept in the temporary folder.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from seam_cases import SeenTile

from segworker import masks, metrics
from segworker.decode import decode_instances
from segworker.grid import Grid
from segworker.models import nuclei
from segworker.models.registry import load_model, model_digest
from segworker.stitch import StitchOptions, stitch_scene
from segworker.train.data import Sample, load_samples, read_heldout
from segworker.types import Instances, Runs

NUM_IMAGES = 20
SIDE_PX = 256
MIN_SCORE = 0.5
"What scores less is left out before anything is stitched."


@dataclass(frozen=True, slots=True, eq=False)
class RealCase:
    """One image on one grid."""

    name: str
    grid: Grid
    labels_HW: np.ndarray
    "Truth; 0 is background."
    whole: Runs
    "What the network makes of the whole image, each pixel to one object."
    seen: list[SeenTile]
    "What it makes of the tiles; `truth_ids` are 1 + the object of `whole` that an instance shows, 0 for none."

    @property
    def tiles(self) -> list[Instances]:
        """The instances of each tile."""
        return [s.instances for s in self.seen]


@dataclass(frozen=True, slots=True)
class RealScore:
    """Panoptic quality over all images."""

    agreement: float
    "With the network on whole images."
    truth: float


def data_folder() -> Path | None:
    """Return the folder of annotated micrographs beside the checkout, or None."""
    folder = Path(__file__).resolve().parents[3] / "shared/data/microscopy/dsb2018"
    return folder if folder.is_dir() else None


@lru_cache(maxsize=1)
def images(folder: Path) -> list[Sample]:
    """Return the images of several tiles, NUM_IMAGES of them."""
    names = read_heldout(Path(nuclei.__file__).parent / "heldout.txt")
    samples = load_samples(folder, names=names)
    large = [s for s in samples if max(s.labels_HW.shape) > SIDE_PX]
    small: dict[str, list[Sample]] = {}
    for sample in samples:
        if max(sample.labels_HW.shape) == SIDE_PX:
            small.setdefault(sample.modality, []).append(sample)
    mosaics = [_mosaic(kind[k : k + 4]) for kind in sorted(small.values(), key=len) for k in range(0, len(kind) - 3, 4)]
    return (large + mosaics)[:NUM_IMAGES]


def _mosaic(parts: Sequence[Sample]) -> Sample:
    """Return four images as one, 2 x 2."""
    labels, base = [], 0
    for part in parts:
        labels.append(np.where(part.labels_HW > 0, part.labels_HW + base, 0))
        base += int(part.labels_HW.max())
    pixels = [p.pixels_HWC for p in parts]
    return replace(
        parts[0],
        name="+".join(p.name[:8] for p in parts),
        pixels_HWC=np.block([[[pixels[0]], [pixels[1]]], [[pixels[2]], [pixels[3]]]]),
        labels_HW=np.block([[labels[0], labels[1]], [labels[2], labels[3]]]).astype(np.int32),
    )


def real_cases(tile: int, overlap: int, *, folder: Path) -> list[RealCase]:
    """Return every image on a grid."""
    cases = []
    for sample in images(folder):
        height, width = sample.labels_HW.shape
        grid = Grid(sample.name, width, height, tile, overlap)
        one = _predicted(sample, Grid(sample.name, width, height, max(width, height), 0))
        options = StitchOptions(min_score=MIN_SCORE)
        whole = stitch_scene(one, grid=Grid(sample.name, width, height, max(width, height), 0), options=options)
        sure = [t.take(t.scores >= MIN_SCORE) for t in _predicted(sample, grid)]
        seen = [SeenTile(t, _shown(t, whole.pieces.runs)) for t in sure]
        cases.append(RealCase(sample.name, grid, sample.labels_HW, whole.pieces.runs, seen))
    return cases


def _shown(tile: Instances, whole: Runs) -> np.ndarray:
    """Return 1 + the object of the whole image that each instance shows: IoU above a half inside the tile's window."""
    inside = masks.clip_runs(whole, tile.tile.window)
    overlaps = metrics.overlap_runs(inside, tile.runs)
    best = np.zeros(len(tile), np.int64)
    good = overlaps.ious() > 0.5
    best[overlaps.pred_index[good]] = overlaps.truth_index[good] + 1
    return best


def _predicted(sample: Sample, grid: Grid) -> list[Instances]:
    """Return what the network sees in each tile, all scores, kept in the temporary folder."""
    told = (sample.name, sample.pixels_HWC.tobytes(), grid.tile_px, grid.overlap_px, model_digest("nuclei"))
    path = (
        Path(tempfile.gettempdir())
        / "segworker-seam-cases"
        / f"{hashlib.sha256(repr(told).encode()).hexdigest()}.pickle"
    )
    if path.exists():
        return pickle.loads(path.read_bytes())
    model = _model()
    found = []
    for tile in grid.tiles():
        window = tile.window
        pixels = sample.pixels_HWC[window.row_off : window.row_end, window.col_off : window.col_end]
        stride = model.spec.stride
        padded = np.pad(pixels, ((0, -window.height % stride), (0, -window.width % stride), (0, 0)))
        valid = np.zeros(padded.shape[:2], bool)
        valid[: window.height, : window.width] = True
        batch = torch.from_numpy(padded.copy()).permute(2, 0, 1)[None].float() / 255
        prediction = model.predict(batch, torch.from_numpy(valid)[None])[0]
        found.append(decode_instances(prediction, tile, grid=grid, class_ids={1}, cut_trust_px=model.spec.cut_trust_px))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(found))
    return found


@lru_cache(maxsize=1)
def _model():
    return load_model("nuclei")


def pooled_quality(pairs: Sequence[metrics.Overlaps]) -> float:
    """Return the panoptic quality over several images."""
    found = [metrics.panoptic_quality(o) for o in pairs]
    tp = sum(q.true_positives for q in found)
    fp = sum(q.false_positives for q in found)
    fn = sum(q.false_negatives for q in found)
    return sum(q.sq * q.true_positives for q in found) / max(1e-9, tp + fp / 2 + fn / 2)


def real_score(cases: Sequence[RealCase], results: Sequence[Runs]) -> RealScore:
    """Compare the masks of each image with the whole image's and with the truth."""
    return RealScore(
        pooled_quality([metrics.overlap_runs(c.whole, r) for c, r in zip(cases, results, strict=True)]),
        pooled_quality([metrics.overlap_runs_with_raster(c.labels_HW, r) for c, r in zip(cases, results, strict=True)]),
    )
