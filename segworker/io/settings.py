"""What the tile results under a key depend on, beside them: a run that cannot use an earlier one's says why."""

from __future__ import annotations

import json
from collections.abc import Mapping

from segworker.errors import StorageError
from segworker.io.storage import Storage

MAX_LOOKED_AT = 100
"Other keys that are compared, at most."
WORDS = {"model": "model or weights", "aoi": "area of interest", "format": "version of segworker"}
"Settings whose values say nothing to a person."


def keep_settings(storage: Storage, tile_key: str, settings: Mapping[str, object]) -> None:
    """Write the settings beside the shards of their key, unless they are there."""
    storage.write_new(_path(tile_key), json.dumps(settings, sort_keys=True).encode())


def why_not_used(storage: Storage, tile_key: str, settings: Mapping[str, object]) -> str | None:
    """Return in which settings the nearest work under another key differs; None where there is no other work."""
    mine = json.loads(json.dumps(settings))
    found = []
    for key in storage.folders("work")[:MAX_LOOKED_AT]:
        try:
            if key != tile_key:
                found.append(_differences(json.loads(storage.read(_path(key))), mine))
        except (StorageError, ValueError):  # of older code, or gone in the meantime
            continue
    nearest = min(filter(None, found), key=len, default=None)
    return None if nearest is None else ", ".join(nearest)


def _path(tile_key: str) -> str:
    return f"work/{tile_key}/settings.json"


def _differences(other: Mapping[str, object], mine: Mapping[str, object]) -> list[str]:
    names = [name for name in sorted({*other, *mine}) if other.get(name) != mine.get(name)]
    return [WORDS.get(name) or f"{name} ({other.get(name)}, now {mine.get(name)})" for name in names]
