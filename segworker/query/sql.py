"""SQL over a store: DuckDB with its spatial extension, offline and read-only.

Three views: `features` (geometry as GEOMETRY), `scenes` and `runs`. The Delta log says which files are live; those that
cannot hold what is asked for by bbox, class or area are left out before DuckDB prunes row groups in the others.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import pyarrow as pa
import pyproj
import shapely

from segworker.errors import ConfigError, StorageError
from segworker.io.failures import redact_text
from segworker.io.scan import Where
from segworker.io.storage import Storage
from segworker.io.table import FEATURES_TABLE, live_files
from segworker.query.results import Answer
from segworker.query.store import Asked, Store
from segworker.schema import FEATURES

if TYPE_CHECKING:
    import duckdb

VIEWS = ("features", "scenes", "runs")
DEFAULT_SQL = "SELECT * FROM features"
BATCH_ROWS = 50_000
INSTALL = "SQL needs DuckDB and its extensions, which are not installed; pip install 'segworker[query]'"


@contextmanager
def ask(
    store: Store, sql: str | None = None, *, version: int | None = None, **asked: Unpack[Asked]
) -> Iterator[Answer]:
    """Give the answer to one SELECT, to be read inside the `with`.

    Args:
        store: the store.
        sql: over the views features, scenes and runs; None: all columns of features.
        version: of the features table; the newest by default.
        **asked: narrows the view features, as in `Store.features`.

    Raises:
        ConfigError: for SQL that is wrong, or anything but one SELECT.
        StoreError, StorageError: where the store cannot be read.
    """
    where = store.where(version=version, **asked)
    text = sql or DEFAULT_SQL
    with (
        tempfile.TemporaryDirectory(prefix="segworker-") as scratch,
        closing(_connect(store.storage, scratch)) as connection,
        _explained(),
    ):
        statement = _one_select(connection, text)
        for name in VIEWS:
            if re.search(rf"\b{name}\b", text, re.IGNORECASE):
                _add_view(connection, name, store, where, version)
        connection.execute("SET lock_configuration = true")
        reader = connection.execute(statement).to_arrow_reader(BATCH_ROWS)
        yield Answer(iter(reader), reader.schema, _geometry(reader.schema), in_pixels=store.crs is None)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn DuckDB's errors into ours: of SQL, of files, of memory."""
    import duckdb  # noqa: PLC0415 - an extra

    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException, pa.ArrowInvalid) as error:
        raise StorageError(
            f"the store's files must be readable and an answer fit on the disk, got {_line(error)}; narrow the query, "
            "or restore the files"
        ) from None
    except duckdb.Error as error:
        raise ConfigError(f"the SQL must be one that DuckDB understands, got {_line(error)}; correct it") from None


def _line(error: Exception) -> str:
    return " ".join(redact_text(str(error)).split())[:500]


def _geometry(schema: pa.Schema) -> dict[str, pyproj.CRS | None]:
    """Return the columns that DuckDB says are geometries, with the CRS that it knows of."""
    found: dict[str, pyproj.CRS | None] = {}
    for field in schema:
        told = field.metadata or {}
        if told.get(b"ARROW:extension:name") == b"geoarrow.wkb":
            crs = json.loads(told.get(b"ARROW:extension:metadata") or b"{}").get("crs")
            found[field.name] = None if crs is None else pyproj.CRS.from_user_input(crs)
    return found


def _connect(storage: Storage, scratch: str) -> duckdb.DuckDBPyConnection:
    try:
        import duckdb  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(INSTALL) from None
    connection = duckdb.connect(
        config={
            "temp_directory": scratch,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    for name in ("spatial", *(["httpfs"] if storage.is_s3 else [])):
        connection.execute(f"LOAD '{_extension(name, duckdb.__version__)}'")
    if storage.is_s3:
        connection.execute(_secret(storage))
    return connection


def _extension(name: str, version: str) -> str:
    """Return the file of an extension that comes as a package; nothing is fetched or installed."""
    found = importlib.util.find_spec(f"duckdb_extension_{name}")
    path = (
        Path(found.origin or "").parent / "extensions" / f"v{version}" / f"{name}.duckdb_extension" if found else None
    )
    if path is None or not path.is_file():
        raise ConfigError(INSTALL)
    return str(path)


def _secret(storage: Storage) -> str:
    """Return the statement that gives DuckDB the credentials, endpoint and region that every client here has."""
    options = storage.delta_options()
    told = {
        "KEY_ID": options.get("AWS_ACCESS_KEY_ID"),
        "SECRET": options.get("AWS_SECRET_ACCESS_KEY"),
        "SESSION_TOKEN": options.get("AWS_SESSION_TOKEN"),
        "REGION": options.get("AWS_REGION"),
    }
    endpoint = options.get("AWS_ENDPOINT_URL")
    if endpoint is not None:
        told |= {"ENDPOINT": endpoint.partition("://")[2], "URL_STYLE": "path"}
        told["USE_SSL"] = "false" if endpoint.startswith("http://") else "true"
    parts = [f"{name} {_quoted(value)}" for name, value in told.items() if value is not None]
    return f"CREATE SECRET (TYPE s3, {', '.join(parts)})"


def _one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """Return the one statement of a query that only reads; ConfigError for any other."""
    import duckdb  # noqa: PLC0415 - an extra

    statements = connection.extract_statements(sql)
    kinds = [statement.type.name for statement in statements]
    if kinds != [duckdb.StatementType.SELECT.name]:
        raise ConfigError(
            f"a query is one SELECT, as stores are only read here, got {', '.join(kinds) or 'nothing'}; to keep an "
            "answer use --out"
        )
    return statements[0]


def _add_view(
    connection: duckdb.DuckDBPyConnection, name: str, store: Store, where: Where, version: int | None
) -> None:
    if name == "features":
        _add_features(connection, store, where, version)
    else:
        connection.register(name, store.scenes() if name == "scenes" else store.runs())


def _add_features(connection: duckdb.DuckDBPyConnection, store: Store, where: Where, version: int | None) -> None:
    """Make the view of the live files that can hold what is asked for."""
    folder = store.storage.child(FEATURES_TABLE)
    files = [folder.location(f.path) for f in live_files(store.storage, version=version) if where.may_hold(f)]
    if not files:
        connection.register("features", FEATURES.empty_table())
        return
    source = f"read_parquet([{', '.join(map(_quoted, files))}])"
    conditions = _conditions(where)
    narrowed = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    connection.execute(f"CREATE VIEW features AS FROM {source}{narrowed}")


def _conditions(where: Where) -> list[str]:
    conditions = []
    for xmin, ymin, xmax, ymax in where.bounds:
        conditions.append(f"bbox.xmin <= {xmax!r} AND bbox.xmax >= {xmin!r}")
        conditions.append(f"bbox.ymin <= {ymax!r} AND bbox.ymax >= {ymin!r}")
    for name, values in (("scene_id", where.scene_ids), ("class_name", where.classes)):
        if values is not None:
            conditions.append(f"{name} IN ({', '.join(map(_quoted, values)) or 'NULL'})")
    if where.min_score is not None:
        conditions.append(f"score >= {where.min_score!r}::FLOAT")
    if where.area is not None:
        conditions.append(f"ST_Intersects(geometry, ST_GeomFromHEXWKB('{shapely.to_wkb(where.area, hex=True)}'))")
    return conditions


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
