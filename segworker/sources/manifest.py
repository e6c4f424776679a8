"""Manifests: lists of scenes as text, CSV or Parquet."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq

from segworker.errors import ConfigError, StorageError
from segworker.io.failures import redact, redact_text
from segworker.io.storage import open_storage
from segworker.io.web import web_request
from segworker.sources.identity import check_scene_id

EXTENSIONS = (".txt", ".csv", ".parquet")
COLUMNS = ("uri", "scene_id", "mosaic")
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a manifest."""

    uri: str
    "Absolute; what a manifest writes relative to itself is resolved."
    scene_id: str | None = None
    mosaic: str | None = None
    "scene_id of the mosaic that it is a sheet of."

    def __post_init__(self) -> None:
        if self.scene_id and self.mosaic:
            raise ConfigError(
                f"a sheet goes by the name of its mosaic, got scene_id={self.scene_id!r} and mosaic={self.mosaic!r} "
                f"for {redact(self.uri)}; leave one of them empty"
            )


def is_manifest(uri: str) -> bool:
    """Say whether an input is a list of scenes, by its extension."""
    return PurePosixPath(urlsplit(uri).path if "://" in uri else uri).suffix.lower() in EXTENSIONS


def read_manifest(uri: str) -> list[Entry]:
    """Read a manifest from a local path, s3:// or http(s):// URI.

    Text holds one uri a line; empty lines and lines that begin with '#' are skipped. CSV and Parquet have a column
    `uri`, and optionally `scene_id` and `mosaic` (the rows that share one are sheets of one scene of that name); others
    are ignored. A manifest without uris is a ConfigError.
    """
    name, data = redact(uri), fetch(uri)
    extension = PurePosixPath(urlsplit(uri).path if "://" in uri else uri).suffix.lower()
    if extension == ".parquet":
        rows = _parquet_rows(data, name)
    elif extension == ".csv":
        rows = _csv_rows(_text(data, name), name)
    else:
        lines = (line.strip() for line in _text(data, name).splitlines())
        rows = [{"uri": line} for line in lines if line and not line.startswith("#")]
    entries = [
        Entry(
            resolved(row["uri"], uri),
            *(check_scene_id(row[key], name) if row.get(key) else None for key in ("scene_id", "mosaic")),
        )
        for row in rows
    ]
    if not entries:
        raise ConfigError(f"a manifest lists at least one scene, got none in {name}; add one uri a line")
    return entries


def fetch(uri: str) -> bytes:
    """Return what is at a local path, s3:// or http(s):// URI."""
    try:
        if uri.startswith(("http://", "https://")):
            with urlopen(web_request(uri), timeout=_TIMEOUT_S) as response:  # noqa: S310 - the scheme was just checked
                return bytes(response.read())
        if "://" in uri:
            folder, _, name = uri.rpartition("/")
            return open_storage(folder).read(name)
        return Path(uri).read_bytes()
    except (OSError, StorageError, ValueError, HTTPException) as error:
        raise ConfigError(
            f"a manifest must be readable, got {redact(uri)} ({redact_text(str(error))}); correct the path"
        ) from None


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"a manifest is UTF-8 text, got {name} ({error}); save it as UTF-8") from None


def _csv_rows(text: str, name: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    _require_uri(list(reader.fieldnames or []), name)
    rows = [{key: row[key].strip() for key in COLUMNS if row.get(key)} for row in reader]
    return [row for row in rows if row.get("uri")]


def _parquet_rows(data: bytes, name: str) -> list[dict[str, str]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        columns = list(file.schema_arrow.names)
        _require_uri(columns, name)
        table = file.read(columns=[c for c in COLUMNS if c in columns])
    except pa.ArrowException as error:
        raise ConfigError(f"a manifest named .parquet is a Parquet file, got {name} ({error}); rewrite it") from None
    rows = ({key: str(value) for key, value in row.items() if value is not None} for row in table.to_pylist())
    return [row for row in rows if row.get("uri")]


def _require_uri(columns: list[str], name: str) -> None:
    if "uri" not in columns:
        raise ConfigError(
            f"a manifest has a column `uri`, got {', '.join(columns[:8]) or 'no columns'} in {name}; rename the column "
            "that holds paths"
        )


def resolved(uri: str, base: str) -> str:
    """Return a URI or path as a list at `base` means it: relative ones from its folder."""
    if "://" in uri or uri.startswith("/"):
        return uri
    folder = base.rpartition("/")[0] if "://" in base else str(Path(base).absolute().parent)
    return f"{folder}/{uri}" if "://" in folder else str((Path(folder) / Path(uri).expanduser()).absolute())
