"""A model with the classes of the annotations, and annotations with the ids of the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from segworker.errors import ConfigError
from segworker.models.protocol import Model
from segworker.models.registry import build_model
from segworker.truth import SceneTruth, TruthSet


def build_for(ref: str, options: Mapping[str, Any], truth: TruthSet) -> tuple[Model, dict[str, Any], TruthSet]:
    """Return a trainable model for annotated classes, its options, and the annotations with the model's class ids.

    Args:
        ref: a registered name or `package.module:factory`.
        options: of the model; classes that are named there stay.
        truth: its things are the model's classes, in the order of their ids, where options name none.

    Raises:
        ConfigError: no such model, no loss, or a model whose classes are not those of the annotations.
    """
    names = [c.name for c in truth.categories if c.isthing]
    problems: list[str] = []
    for candidate in _candidates(dict(options), names):
        try:
            model = build_model(ref, candidate)
        except ConfigError as error:
            problems.append(str(error))
            continue
        _trainable(model, ref)
        missing = {c.name for c in truth.categories} - {c.name for c in model.categories}
        if not missing:
            return model, candidate, _relabelled(truth, model)
        problems.append(f"its classes are {', '.join(c.name for c in model.categories)}"[:200])
    raise ConfigError(
        f"a model is trained on its own classes, got annotations of {', '.join(c.name for c in truth.categories)} for "
        f"{ref} ({problems[-1]}); rename them, leave some out with --ignore-classes, or give --model-options"
    )


def _candidates(options: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield options to try: as given, with the class names, with their number, with their number and a background."""
    if "class_names" in options or "num_classes" in options:
        yield options
        return
    for more in ({}, {"num_classes": len(names)}, {"num_classes": len(names) + 1}):
        yield {**options, "class_names": ",".join(names), **more}
    yield options


def _trainable(model: Model, ref: str) -> None:
    loss = getattr(model, "loss", None)
    if not isinstance(model, nn.Module) or not callable(loss):
        raise ConfigError(
            f"a trainable model is a torch module with loss(images, targets), got {type(model).__name__} for {ref}; "
            "see segworker/models/common/two_stage.py"
        )
    if len(inspect.signature(loss).parameters) < 2:
        raise ConfigError(f"a model's loss takes images and targets, got loss{inspect.signature(loss)} for {ref}")


def _relabelled(truth: TruthSet, model: Model) -> TruthSet:
    by_name = {category.name: category.id for category in model.categories}
    new_id = {c.id: by_name[c.name] for c in truth.categories}
    scenes = tuple(_with_ids(scene, new_id) for scene in truth.scenes)
    categories = tuple(c for c in model.categories if c.name in {t.name for t in truth.categories})
    points = {new_id[c]: names for c, names in truth.keypoint_names.items() if c in new_id}
    return TruthSet(categories, scenes, truth.issues, points)


def _with_ids(scene: SceneTruth, new_id: Mapping[int, int]) -> SceneTruth:
    """Return a scene's truth with other class ids; what has none is a crowd."""
    return replace(
        scene,
        class_ids=np.array([new_id.get(c, 0) for c in scene.class_ids.tolist()], np.int32),
        crowd=scene.crowd | ~np.isin(scene.class_ids, list(new_id)),
        partial_class_ids=frozenset(new_id[c] for c in scene.partial_class_ids if c in new_id),
    )
