"""The class names of COCO (https://cocodataset.org), and of models with other classes."""

from __future__ import annotations

from collections.abc import Sequence

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from segworker.errors import ConfigError
from segworker.types import Category

NUM_COCO = 80
_RAW: list[str] = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_THINGS = tuple(Category(k, name) for k, name in enumerate(_RAW) if name not in ("__background__", "N/A"))
"The 80 classes in their order, under the ids of COCO's own files (1 to 90, ten of them unused)."
_STUFF = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood, 119 flower,
122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform, 145 playingfield,
147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel,
171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other, 180 window-blind, 181 window-other,
184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged, 188 cabinet-merged, 189 table-merged,
190 floor-other-merged, 191 pavement-merged, 192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195 paper-merged,
196 food-other-merged, 197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""
COCO_STUFF = tuple(
    Category(int(number), name, isthing=False) for number, name in (pair.split() for pair in _STUFF.split(","))
)
"The 53 stuff classes of COCO panoptic, in its order, under its ids."


def name_classes(num_classes: int, class_names: Sequence[str], *, default: Sequence[Category]) -> tuple[Category, ...]:
    """Return the classes of a model.

    Args:
        num_classes: without the background.
        class_names: names in the order of the labels, with ids from 1 on; may be empty.
        default: what is returned without names where the number fits; else 'class 1', 'class 2' and so on.

    Raises:
        ConfigError: another number of names than of classes.
    """
    if class_names and len(class_names) != num_classes:
        raise ConfigError(
            f"class_names has a name for each class but the background, got {len(class_names)} names for {num_classes} "
            "classes; give as many as there are"
        )
    if not class_names and num_classes == len(default):
        return tuple(default)
    names = class_names or [f"class {label}" for label in range(1, num_classes + 1)]
    return tuple(Category(label, name) for label, name in enumerate(names, start=1))
