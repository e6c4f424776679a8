"""How annotation files are to be understood, where they do not say it themselves."""

from __future__ import annotations

from dataclasses import dataclass

CLASS_FIELDS = ("class_name", "class", "category", "label")
"Columns of vector files that are looked for where none is named, in this order."


@dataclass(frozen=True, slots=True)
class TruthOptions:
    """Options of `read_truth`."""

    class_field: str | None = None
    "Column of vector files with the class's name; None: the first of CLASS_FIELDS that there is."
    default_class: str | None = None
    "Class of objects in files that state none; None: that of a model with one class, else 'object'."
    scene_field: str | None = None
    "Column of vector files that names each object's scene; None: every scene that it meets."
    ignore_classes: frozenset[str] = frozenset()
    "Their objects are regions that are neither judged nor learnt."
    ignore_label: int | None = None
    "Value of label rasters that marks such regions."
    panoptic_folder: str | None = None
    "Where the pictures of a COCO panoptic file are; None: the folder called as the file."
    empty_scenes: bool = False
    "A scene on which vector files and label rasters say nothing has no objects; else it was not annotated."
