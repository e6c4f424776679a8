"""DuckDB, offline: another reader of stores than ours."""

from __future__ import annotations

import duckdb
from duckdb_extensions import import_extension

from segworker.io.storage import Storage


def duckdb_connection(storage: Storage, *, endpoint_url: str | None = None) -> duckdb.DuckDBPyConnection:
    """Return a connection that reads the store, over another endpoint than ours where one is named."""
    connection = duckdb.connect()
    for name in ("spatial", "httpfs", "delta"):
        import_extension(name, con=connection)
        connection.load_extension(name)
    if storage.is_s3:
        options = storage.delta_options()
        endpoint = (endpoint_url or options["AWS_ENDPOINT_URL"]).removeprefix("http://")
        connection.sql(
            f"CREATE SECRET (TYPE s3, KEY_ID '{options['AWS_ACCESS_KEY_ID']}', "
            f"SECRET '{options['AWS_SECRET_ACCESS_KEY']}', REGION 'us-east-1', ENDPOINT '{endpoint}', "
            "USE_SSL false, URL_STYLE 'path')"
        )
    return connection
