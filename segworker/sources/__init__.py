"""Finding scenes: from what a user names to headers, ids and identities."""

from segworker.sources.find import SceneFailure, ScenePlan, find_scenes
from segworker.sources.identity import scene_identity

__all__ = ["SceneFailure", "ScenePlan", "find_scenes", "scene_identity"]
