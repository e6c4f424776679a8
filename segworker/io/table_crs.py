"""Which CRS a store's features are in: one for the whole table, decided by its first commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyproj
from pyproj.exceptions import CRSError

from segworker.errors import ConfigError
from segworker.schema import TableKind

LON_LAT = "OGC:CRS84"


@dataclass(frozen=True, slots=True)
class TableCrs:
    """The coordinates of a features table."""

    kind: TableKind
    wkt: str | None
    "WKT of the CRS of a map table; None for a pixel table."

    def __post_init__(self) -> None:
        if (self.kind == "map") != (self.wkt is not None):
            raise ValueError(f"a map table has a CRS and a pixel table none, got kind={self.kind}, wkt={self.wkt}")

    @classmethod
    def of(cls, crs: str | pyproj.CRS | None) -> TableCrs:
        """Return the map table in a CRS (WKT, 'EPSG:32636', PROJJSON), or the pixel table for None."""
        return cls("pixel", None) if crs is None else cls("map", _parse(crs).to_wkt())

    @property
    def crs(self) -> pyproj.CRS | None:
        """The CRS, or None for a pixel table."""
        return None if self.wkt is None else pyproj.CRS.from_wkt(self.wkt)

    @property
    def label(self) -> str:
        """A short name for messages: 'EPSG:32636', 'OGC:CRS84', the CRS's name, or 'pixels'."""
        crs = self.crs
        return "pixels" if crs is None else _label(crs)

    def same_as(self, other: TableCrs) -> bool:
        """Whether two tables have the same coordinates, however their CRS was written down."""
        mine, theirs = self.crs, other.crs
        if mine is None or theirs is None:
            return mine is theirs
        return _equal(mine, theirs)

    def refusal(self, scene_crs: str | None) -> str | None:
        """Return why a scene cannot go into this table, with the remedy, or None where it can.

        The CRS's area of use is not checked here.
        """
        if self.kind == "map" and scene_crs is None:
            return (
                f"scenes of a map table ({self.label}) have a CRS, got none; "
                "georeference the scene, or write scenes without a CRS to another --output"
            )
        if self.kind == "pixel" and scene_crs is not None:
            return (
                f"scenes of a pixel table have no CRS, got {_label(_parse(scene_crs))}; "
                "write georeferenced scenes to another --output"
            )
        return None


def decide_table_crs(requested: str | None, existing: TableCrs | None, scene_crss: Sequence[str | None]) -> TableCrs:
    """Return the coordinates of the table that a run writes to.

    An existing table keeps its own. Else it is the requested CRS; else the scenes' own where all agree, else OGC:CRS84;
    pixels where no scene has a CRS. Scenes that do not fit an existing table are for `TableCrs.refusal`.

    Args:
        requested: --table-crs, in any form that PROJ reads.
        existing: the store's, or None before its first commit.
        scene_crss: one for each scene of the run, WKT or None.

    Raises:
        ConfigError: for a CRS that PROJ does not know, one other than the existing table's, one for scenes that have
            none, or a first run that mixes scenes with and without a CRS.
    """
    wish = None if requested is None else TableCrs.of(requested)
    if existing is not None:
        if wish is not None and not wish.same_as(existing):
            raise ConfigError(
                f"a table keeps the CRS of its first commit, {existing.label}, got --table-crs {requested}; "
                "leave the flag out, or choose another --output"
            )
        return existing
    distinct = list(dict.fromkeys(scene_crss))
    if None in distinct and len(distinct) > 1:
        with_crs = sum(crs is not None for crs in scene_crss)
        raise ConfigError(
            f"scenes with and without a CRS cannot share a table, got {with_crs} with and {len(scene_crss) - with_crs} "
            "without; run them with different --output"
        )
    if None in distinct and wish is not None:
        raise ConfigError(
            f"scenes without a CRS give pixels, got --table-crs {requested}; leave the flag out or georeference them"
        )
    if wish is not None:
        return wish
    if None in distinct:
        return TableCrs("pixel", None)
    known = [_parse(crs) for crs in distinct if crs is not None]
    agree = bool(known) and all(_equal(known[0], crs) for crs in known[1:])
    return TableCrs.of(known[0] if agree else LON_LAT)


def _parse(crs: str | pyproj.CRS) -> pyproj.CRS:
    try:
        return pyproj.CRS.from_user_input(crs)
    except CRSError as error:
        raise ConfigError(
            f"a CRS is one that PROJ knows (EPSG:32636, OGC:CRS84, WKT), got {str(crs)[:100]!r} ({error}); correct it"
        ) from None


def _equal(one: pyproj.CRS, other: pyproj.CRS) -> bool:
    return one == other or bool(one.equals(other, ignore_axis_order=True))


def _label(crs: pyproj.CRS) -> str:
    authority = crs.to_authority(min_confidence=70)
    return ":".join(authority) if authority else str(crs.name)
