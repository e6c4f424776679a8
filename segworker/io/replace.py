"""Which files of features/ a commit takes out, and what it writes anew so that other scenes lose nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segworker.errors import StoreError
from segworker.io.delta import LiveFile
from segworker.io.geoparquet import Part
from segworker.io.ids import INDEX_BITS, format_ranges, scene_numbers_of
from segworker.io.storage import Storage
from segworker.io.table import FEATURES_TABLE, read_parquet, write_part
from segworker.io.table_crs import TableCrs
from segworker.schema import FEATURES


@dataclass(frozen=True, slots=True)
class Removal:
    """What leaves one version of features/, and what comes back."""

    files: list[LiveFile]
    rewritten: list[Part]


@dataclass(frozen=True, slots=True, eq=False)
class Replacement:
    """The scenes whose rows go. Files written anew are kept in mind, so that planning again costs only what changed."""

    storage: Storage
    run_id: str
    scene_nos: NDArray[np.int64]
    "Sorted."
    table_crs: TableCrs
    _rewritten: dict[str, Part | None] = field(default_factory=dict)

    def plan(self, files: Sequence[LiveFile]) -> Removal:
        """Return what has to leave a version of the table; files shared with other scenes are written anew.

        A rewritten file is named by the file it came from and the scenes it lost, so that a retry overwrites it with
        the same rows. It cannot be a committed one: its origin would not be live any more.

        Args:
            files: all live files of the version.
        """
        removal = Removal([], [])
        for file in files:
            if not meets(*scene_bounds(file), self.scene_nos):
                continue
            key = self._content_key(file)
            if key not in self._rewritten:
                rest = self._rest(file)
                if rest is None:
                    continue
                self._rewritten[key] = self._write(key, rest) if len(rest) else None
            removal.files.append(file)
            part = self._rewritten[key]
            removal.rewritten.extend([] if part is None else [part])
        return removal

    def written(self) -> set[str]:
        """Return the names of all files that were written anew, for whichever version."""
        return {part.path for part in self._rewritten.values() if part is not None}

    def _rest(self, file: LiveFile) -> pa.Table | None:
        """Return the rows of a file that stay (perhaps none), or None where nothing has to go."""
        low, high = scene_bounds(file)
        if low == high:
            return FEATURES.empty_table()
        path = f"{FEATURES_TABLE}/{file.path}"
        ids = read_parquet(self.storage, path, columns=["feature_id"])["feature_id"].to_numpy()
        stays = ~np.isin(scene_numbers_of(ids), self.scene_nos)
        if stays.all():
            return None
        return read_parquet(self.storage, path).filter(pa.array(stays))

    def _write(self, key: str, rows: pa.Table) -> Part:
        return write_part(self.storage, self.run_id, f"of-{key}", rows, self.table_crs)

    def _content_key(self, file: LiveFile) -> str:
        """Return a name for 'this file without these scenes'."""
        low, high = scene_bounds(file)
        inside = self.scene_nos[(self.scene_nos >= low) & (self.scene_nos <= high)]
        return hashlib.sha256(f"{file.path}|{format_ranges(inside)}".encode()).hexdigest()[:16]


def meets(low: int, high: int, scene_nos: NDArray[np.int64]) -> bool:
    """Whether one of the sorted scene numbers lies in low..high, both included."""
    return bool(np.searchsorted(scene_nos, low) < np.searchsorted(scene_nos, high, side="right"))


def scene_bounds(file: LiveFile) -> tuple[int, int]:
    """Return the lowest and the highest scene number in a file of features."""
    try:
        return file.minima["feature_id"] >> INDEX_BITS, file.maxima["feature_id"] >> INDEX_BITS
    except (KeyError, TypeError):
        raise StoreError(
            f"files of a features table carry the bounds of feature_id, got none for {file.path}; "
            "another program wrote it, remove it from the table"
        ) from None
