"""Annotated images in memory, and augmented crops with targets from them.

H and W are pixels of an image, S the side of a crop, N the instances in it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segworker.errors import ConfigError
from segworker.train.augment import jitter_colours

FLUORESCENCE, STAINED, BRIGHTFIELD = "fluorescence", "stained", "brightfield"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One annotated image."""

    name: str
    pixels_HWC: NDArray[np.uint8]
    "RGB."
    labels_HW: NDArray[np.int32]
    "0 is background, instance k has label k."
    ground: tuple[int, int, int]
    "Median colour, shown outside the image."
    modality: str
    "'fluorescence', 'stained' or 'brightfield'; see `infer_modality`."

    def __post_init__(self) -> None:
        if self.pixels_HWC.shape[:2] != self.labels_HW.shape:
            raise ConfigError(
                f"image and labels must be of one size, got {self.pixels_HWC.shape[:2]} and {self.labels_HW.shape} for "
                f"{self.name}; render the labels again"
            )


@dataclass(frozen=True, slots=True)
class CropConfig:
    """How crops are drawn."""

    size_px: int = 256
    scale_mean: float = 0.1
    "Mean of the natural logarithm of the zoom."
    scale_sigma: float = 0.3
    "Its deviation."
    scale_range: tuple[float, float] = (0.5, 2.0)
    min_area_px: int = 12
    "Pieces of instances below this are cut away with the rest of the crop's surroundings."
    modality_share: tuple[tuple[str, float], ...] = ((FLUORESCENCE, 0.68), (STAINED, 0.27), (BRIGHTFIELD, 0.05))
    "How often each modality is drawn, however rare it is in the data."


def infer_modality(pixels_HWC: NDArray[np.uint8]) -> str:
    """Tell the kind of microscopy from an image's statistics: colourful, dark, or bright and grey."""
    spread = (pixels_HWC.max(axis=2) - pixels_HWC.min(axis=2)).mean()
    if spread > 0.03 * 255:
        return STAINED
    return BRIGHTFIELD if np.median(pixels_HWC.mean(axis=2)) > 127 else FLUORESCENCE


def load_samples(folder: Path, *, names: Sequence[str] | None = None) -> list[Sample]:
    """Read `images/<name>.png` and `masks/<name>.png` (one label per instance) into memory, sorted by name.

    Args:
        folder: holds images/ and masks/.
        names: only these; all images of the folder where None.
    """
    found = sorted(path.stem for path in (folder / "images").glob("*.png"))
    if not found:
        raise ConfigError(f"training data has images/*.png and masks/*.png, found no images in {folder}; check --data")
    missing = sorted(set(names or ()) - set(found))
    if missing:
        raise ConfigError(
            f"{len(missing)} listed images are not in {folder}, the first is {missing[0]!r}; check the list"
        )
    return [_load_sample(folder, name) for name in found if names is None or name in set(names)]


def _load_sample(folder: Path, name: str) -> Sample:
    with Image.open(folder / "images" / f"{name}.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    with Image.open(folder / "masks" / f"{name}.png") as image:
        labels = np.asarray(image).astype(np.int32)
    red, green, blue = np.median(pixels.reshape(-1, 3), axis=0).astype(int).tolist()
    return Sample(name, pixels, labels, (red, green, blue), infer_modality(pixels))


def read_heldout(path: Path) -> list[str]:
    """Return the names in a held-out list: tab-separated `name`, `modality`, with # comments."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [row[0] for row in csv.reader(lines, delimiter="\t")]


def write_heldout(path: Path, samples: Sequence[Sample]) -> None:
    """Write the list that `read_heldout` reads."""
    head = "# Held out from training and used for the figures of the model card: image name, modality.\n"
    path.write_text(head + "".join(f"{sample.name}\t{sample.modality}\n" for sample in samples))


def choose_heldout(samples: Sequence[Sample], *, share: float, seed: int) -> list[Sample]:
    """Return `share` of every modality (rounded half up, never all of one), drawn with `seed`, sorted by name."""
    rng = np.random.default_rng(seed)
    chosen: list[Sample] = []
    for modality in sorted({sample.modality for sample in samples}):
        group = sorted((s for s in samples if s.modality == modality), key=lambda s: s.name)
        count = min(int(len(group) * share + 0.5), len(group) - 1)
        chosen += [group[i] for i in rng.permutation(len(group))[:count]]
    return sorted(chosen, key=lambda s: s.name)


class CropSampler:
    """Draws augmented crops; the same seed and step give the same batch, so that a resumed run goes on as planned."""

    def __init__(self, samples: Sequence[Sample], config: CropConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        self.groups = [
            ([s for s in samples if s.modality == modality], share) for modality, share in config.modality_share
        ]
        self.groups = [(group, share) for group, share in self.groups if group]
        if not self.groups:
            raise ConfigError("no training image is left after the held-out ones; shorten the held-out list")

    def batch(self, step: int, size: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Return `size` crops as float32 (B, 3, S, S) in 0..1 and their targets."""
        crops = [self.crop(np.random.default_rng((self.seed, step, slot))) for slot in range(size)]
        return torch.stack([image for image, _ in crops]), [target for _, target in crops]

    def crop(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw one crop (3, S, S) and its target."""
        config = self.config
        shares = np.array([share for _, share in self.groups])
        group = self.groups[rng.choice(len(shares), p=shares / shares.sum())][0]
        sample = group[rng.integers(len(group))]
        dark = sample.modality == FLUORESCENCE
        pixels, labels = cut_crop(sample, config, rng)
        pixels, labels = turn(pixels, labels, int(rng.integers(8)))
        image = jitter_colours(pixels, rng, dark=dark)
        return image, to_target(labels, config.min_area_px)


def cut_crop(sample: Sample, config: CropConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Cut a random square at a random zoom: pixels (3, S, S) in 0..1 and labels (S, S)."""
    zoom = float(np.clip(np.exp(rng.normal(config.scale_mean, config.scale_sigma)), *config.scale_range))
    side = round(config.size_px / zoom)
    (rows, place_rows), (cols, place_cols) = (_random_range(size, side, rng) for size in sample.labels_HW.shape)
    pixels = np.full((side, side, 3), sample.ground, np.uint8)
    labels = np.zeros((side, side), np.int32)
    pixels[place_rows, place_cols] = sample.pixels_HWC[rows, cols]
    labels[place_rows, place_cols] = sample.labels_HW[rows, cols]
    return _resize(pixels, labels, config.size_px)


def _random_range(size: int, side: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Place `side` pixels over `size` at random: which pixels are covered, and where they lie in the crop."""
    first = int(rng.integers(min(0, size - side), max(0, size - side) + 1))
    begin, end = max(0, first), min(size, first + side)
    return slice(begin, end), slice(begin - first, end - first)


def _resize(pixels: NDArray[np.uint8], labels: NDArray[np.int32], size_px: int) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    image = F.interpolate(image, (size_px, size_px), mode="bilinear", antialias=True, align_corners=False)[0]
    wide = torch.from_numpy(labels)[None, None].float()
    return image, F.interpolate(wide, (size_px, size_px), mode="nearest-exact")[0, 0].int()


def turn(image_CHW: Tensor, labels_HW: Tensor, which: int) -> tuple[Tensor, Tensor]:
    """Apply one of the eight symmetries of the square."""
    image, labels = torch.rot90(image_CHW, which % 4, (1, 2)), torch.rot90(labels_HW, which % 4, (0, 1))
    return (image.flip(2), labels.flip(1)) if which >= 4 else (image, labels)


def to_target(labels_HW: Tensor, min_area_px: int) -> dict[str, Tensor]:
    """Return boxes (N, 4) half-open xyxy, labels (N,) all 1 and masks (N, H, W) uint8 of a label raster."""
    flat = labels_HW.numpy()
    ids, counts = np.unique(flat, return_counts=True)
    ids = ids[(ids > 0) & (counts >= min_area_px)]
    masks = flat[None] == ids[:, None, None]
    pairs = zip(masks.any(1), masks.any(2), strict=True)
    boxes = [[c.argmax(), r.argmax(), len(c) - c[::-1].argmax(), len(r) - r[::-1].argmax()] for c, r in pairs]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(ids), dtype=torch.int64),
        "masks": torch.from_numpy(masks.view(np.uint8)),
    }
