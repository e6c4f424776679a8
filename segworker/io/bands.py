"""Which bands of a scene a model sees, and how they become the number it wants. Pure.

Explicit bands (`--bands`, from 1) are taken as they are. Otherwise red, green and blue by colour interpretation where
the model wants three, and the first ones for other numbers. One band is repeated for a model that wants more. Three
colours for a model of one band become luminance (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B, rounded to the source's
dtype). A palette is expanded to its colours first, and `--bands` counts those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segworker.errors import SceneError

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_RGB = ("red", "green", "blue")
Pixels: TypeAlias = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class BandPlan:
    """What is read and what is made of it."""

    indexes: tuple[int, ...]
    "Bands of the file, from 1; of a palette's colours (1 to 3) where `palette`."
    form: Literal["take", "repeat", "luminance"] = "take"
    count: int = 0
    "Bands of the result where `form` is 'repeat'."
    palette: bool = False

    @property
    def num_bands(self) -> int:
        """Bands of the result."""
        return {"take": len(self.indexes), "repeat": self.count, "luminance": 1}[self.form]

    def apply(self, pixels: Pixels) -> Pixels:
        """Return (num_bands, h, w) from the bands at `indexes`, in their dtype."""
        if self.form == "repeat":
            return np.repeat(pixels, self.count, axis=0)
        if self.form == "luminance":
            weights = LUMINANCE.astype(np.result_type(pixels.dtype, np.float32))
            grey = weights[0] * pixels[0] + weights[1] * pixels[1] + weights[2] * pixels[2]
            whole = np.issubdtype(pixels.dtype, np.integer)
            return np.asarray((np.rint(grey) if whole else grey).astype(pixels.dtype)[None])
        return pixels


def plan_bands(colours: tuple[str, ...], wanted: int | None, explicit: tuple[int, ...] | None, name: str) -> BandPlan:
    """Choose bands.

    Args:
        colours: colour interpretation of each band of the file, as rasterio names it ('red', 'gray', 'alpha').
        wanted: bands the model wants; None: all.
        explicit: the user's choice, from 1.
        name: the scene, for messages.
    """
    palette = colours[0] == "palette"
    seen = _RGB if palette else colours
    values = tuple(i for i, colour in enumerate(seen, start=1) if colour != "alpha")
    if explicit:
        _check_explicit(explicit, len(seen), name)
        return _shaped(explicit, wanted, palette=palette, colour=len(explicit) == 3, name=name)
    if "cyan" in seen:
        raise SceneError(f"colours are red, green and blue, got CMYK in {name}; convert it or choose --bands")
    rgb = tuple(seen.index(colour) + 1 for colour in _RGB) if set(_RGB) <= set(seen) else None
    if wanted == 3 and rgb:
        return BandPlan(rgb, palette=palette)
    if wanted == 1 and rgb:
        return BandPlan(rgb, "luminance", palette=palette)
    few = values if wanted is None or len(values) == 1 else values[: max(wanted, 1)]
    return _shaped(few, wanted, palette=palette, colour=False, name=name)


def _check_explicit(explicit: tuple[int, ...], count: int, name: str) -> None:
    for band in explicit:
        if not 1 <= band <= count:
            raise SceneError(f"bands are numbered from 1 to the scene's {count}, got {band} for {name}; change --bands")


def _shaped(indexes: tuple[int, ...], wanted: int | None, *, palette: bool, colour: bool, name: str) -> BandPlan:
    if wanted is None or len(indexes) == wanted:
        return BandPlan(indexes, palette=palette)
    if len(indexes) == 1:
        return BandPlan(indexes, "repeat", wanted, palette=palette)
    if wanted == 1 and colour:
        return BandPlan(indexes, "luminance", palette=palette)
    raise SceneError(
        f"the model wants {wanted} bands, got {len(indexes)} from {name}; name {wanted} bands with --bands (1,2,3), "
        "one band to repeat it, or choose another model"
    )
