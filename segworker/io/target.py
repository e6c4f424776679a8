"""Files that users ask for: written to a temporary folder by whatever library writes them, then put in place whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segworker.errors import ConfigError
from segworker.io.failures import explain, redact
from segworker.io.storage import Storage, open_storage


@contextmanager
def target_file(uri: str) -> Iterator[Path]:
    """Give a local path to write to; what is there at the end becomes the file `uri`, in one step.

    Args:
        uri: a local path, or an object on s3://. An older file of that name is replaced. After an exception it stays.

    Raises:
        ConfigError: where the uri names no file.
        StorageError: where it cannot be written.
    """
    folder, name = split_target(uri)
    with tempfile.TemporaryDirectory(prefix="segworker-") as scratch:
        path = Path(scratch, name)
        try:
            yield path
        except OSError as error:
            raise explain("write", uri, error) from None
        folder.write(name, path)


def split_target(uri: str) -> tuple[Storage, str]:
    """Return (the folder, the name) of a file to be written; ConfigError where it names none."""
    head, _, name = uri.rpartition("/")
    if not name or name in (".", "..") or (head.startswith("s3:") and head.count("/") < 2):
        raise ConfigError(f"an output names a file, got {redact(uri)!r}; end it with a file's name")
    return open_storage(head or ("/" if uri.startswith("/") else ".")), name


def refuse_inside(uri: str, store: Storage) -> None:
    """Refuse to write into a store, whose files are those of its tables alone."""
    place = open_storage(uri).uri
    if place == store.uri or place.startswith(f"{store.uri}/"):
        raise ConfigError(
            f"an output lies outside of the store, got {redact(uri)} in {store.uri}; choose another place"
        )
