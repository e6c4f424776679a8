"""segworker: every object of very large imagery, whole, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from segworker.query.store import Store

__all__ = ["open_store"]


def open_store(uri: str | PathLike[str]) -> Store:
    """Return the store at a folder or s3://bucket/prefix, to ask for its features: see `segworker.query.store`."""
    from segworker.query.store import open_store as opened  # noqa: PLC0415 - `import segworker` loads nothing else

    return opened(uri)
