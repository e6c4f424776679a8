"""Deleting scenes from a store.

Scenes leave the scenes table first, then the features table, then the scenes table once more, each in one step. A
reader in between finds features of a scene that is not listed any more, never a listed scene whose features are gone;
a command that was killed in between leaves the same, which the next run over that scene or the same command mends. The
last step takes out what a run has listed meanwhile whose features the second one removed. Scene numbers stay reserved:
a scene that comes back has its old number, and no other scene ever gets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segworker.errors import ConfigError
from segworker.io.commit import CommitResult, commit_run, features_version, last_commit_no, unlist_scenes
from segworker.io.ids import read_scene_numbers
from segworker.io.lease import held
from segworker.io.storage import Storage
from segworker.io.table import read_features, read_scenes, require_store
from segworker.schema import SCENES


@dataclass(frozen=True, slots=True)
class Deletion:
    """What deleting scenes takes out of a store."""

    scene_ids: tuple[str, ...]
    num_listed: int
    "Of them in the scenes table."
    num_features: int


def plan_deletion(storage: Storage, scene_ids: Sequence[str]) -> Deletion:
    """Return what `delete_scenes` would take out; nothing is written.

    Raises:
        ConfigError: for a scene_id that the store has never seen.
        StoreError: for a store of a newer format, and where there is none.
    """
    require_store(storage)
    wanted = tuple(dict.fromkeys(scene_ids))
    unknown = sorted(set(wanted) - set(read_scene_numbers(storage)))
    if unknown:
        raise ConfigError(
            f"only scenes of the store can be deleted, got {', '.join(map(repr, unknown[:5]))}"
            f"{' and more' if len(unknown) > 5 else ''} in {storage.uri}; the scenes table lists them"
        )
    listed = pc.is_in(read_scenes(storage)["scene_id"], value_set=pa.array(wanted, pa.string()))
    features = read_features(storage, columns=["feature_id"], scene_ids=wanted)
    return Deletion(wanted, pc.sum(listed).as_py() or 0, len(features))


def delete_scenes(storage: Storage, run_id: str, scene_ids: Sequence[str]) -> CommitResult:
    """Take scenes out of both tables; older versions keep them until `vacuum`. Repeating it is harmless.

    Raises:
        ConfigError, StoreError: as `plan_deletion`.
        CommitConflict: where a run committed one of the scenes meanwhile; its version of that scene stays.
        StorageError: when the store cannot be read or written.
    """
    deletion = plan_deletion(storage, scene_ids)
    info = require_store(storage)
    numbers = read_scene_numbers(storage)
    scene_nos = {numbers[scene_id] for scene_id in deletion.scene_ids}
    with held(storage, run_id, tile_key=""):
        commit_no = last_commit_no(storage)
        version = features_version(storage)  # after that: the row of what is committed in between is left to the end
        unlist_scenes(storage, run_id, scene_nos, commit_no=commit_no)
        return commit_run(
            storage,
            run_id=run_id,
            parts=[],
            scenes=SCENES.empty_table(),
            table_crs=info.table_crs,
            removed_scene_nos=scene_nos,
            base_version=version,
        )
