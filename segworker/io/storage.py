"""One root of objects: a folder or s3://bucket/prefix, read and written alike.

Everything that this project writes goes through `Storage`, so that atomic overwrites, conditional creation, bounded
retries and the wording of failures are decided here. Credentials are found as every AWS tool finds them (boto3's
chain); the standard AWS_* variables also name endpoint and region. A `Storage` pickles as its URI and nothing else: no
secret travels to a worker or an object store, each process finds its own credentials.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, S3Store

from segworker.errors import StorageError
from segworker.io.aws import AwsAccess, gdal_env, rasterio_session, resolve_access
from segworker.io.failures import explain, is_missing_bucket, redact
from segworker.io.retry import TRIES, is_lost, pause, retried

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

__all__ = ["ObjectInfo", "Storage", "gdal_env", "open_storage", "rasterio_session", "redact", "split_s3"]

CHUNK_BYTES = 16 * 2**20
READ_BUFFER_BYTES = 2**20

_RETRY: RetryConfig = {
    "max_retries": 8,
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=8), "base": 2},
    "retry_timeout": timedelta(seconds=600),  # several of the timeouts below: a request that stalls is tried again
}
_CLIENT: ClientConfig = {"timeout": "300s", "read_timeout": "60s", "connect_timeout": "5s"}


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells about one object."""

    path: str
    "Relative to the storage's root, with forward slashes."
    size_bytes: int
    etag: str | None
    mtime_s: float
    "Seconds since the epoch."


class Storage:
    """A folder or an s3:// prefix. Opening one touches nothing; the first request does.

    Paths are relative to the root, with forward slashes and without `..`. Every failure is a StorageError.
    """

    __slots__ = ("_access", "_bucket_seen", "_lock", "_store", "uri")

    def __init__(self, uri: str) -> None:
        self.uri = uri
        "Absolute folder, or s3://bucket/prefix, without a slash at the end."
        self._store: LocalStore | S3Store | None = None
        self._access: AwsAccess | None = None
        self._lock = threading.Lock()
        self._bucket_seen = False

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.uri,)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    @property
    def is_s3(self) -> bool:
        """Whether the root is in an object store."""
        return self.uri.startswith("s3://")

    def location(self, path: str = "") -> str:
        """Return the full URI (or absolute file name) of a path."""
        return f"{self.uri.rstrip('/')}/{_checked(path)}" if path else self.uri

    def child(self, path: str) -> Storage:
        """Return the storage whose root is a folder of this one."""
        return Storage(self.location(path))

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """Return a whole object. A missing one is a StorageError."""
        try:
            return retried(lambda: bytes(obstore.get(self._open(), _checked(path)).bytes()))
        except (BaseError, OSError) as error:
            raise self._failure("read", path, error) from None

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) of an object; fewer where it ends before."""
        try:
            return retried(lambda: bytes(obstore.get_range(self._open(), _checked(path), start=start, end=stop)))
        except (BaseError, OSError) as error:
            raise self._failure("read", path, error) from None

    def open_input(self, path: str, *, size_bytes: int | None = None) -> BinaryIO:
        """Return a seekable file object that reads by ranges, for pyarrow and friends.

        Args:
            path: the object.
            size_bytes: its size where a listing told it; saves a request.
        """
        if not self.is_s3:
            try:
                return Path(self.location(path)).open("rb")
            except OSError as error:
                raise self._failure("read", path, error) from None
        if size_bytes is None:
            info = self.head(path)
            if info is None:
                raise self._failure("read", path, FileNotFoundError(path))
            size_bytes = info.size_bytes
        return cast("BinaryIO", io.BufferedReader(_RangeReader(self, path, size_bytes), READ_BUFFER_BYTES))

    def head(self, path: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""
        if not self.is_s3 and not Path(self.uri).is_dir():
            return None
        try:
            return _info(retried(lambda: obstore.head(self._open(), _checked(path))))
        except FileNotFoundError:
            self._require_bucket()
            return None
        except (BaseError, OSError) as error:
            raise self._failure("read", path, error) from None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below a folder (whole path segments: 'run' does not match 'runs/a'), in no order.

        A folder that does not exist holds nothing; a bucket that does not exist is a StorageError.
        """
        if not self.is_s3 and not Path(self.uri).is_dir():
            return
        last: str | None = None  # an object store lists in order: a listing that breaks off goes on behind it
        tries = 0
        while True:
            try:
                for chunk in obstore.list(self._open(), _checked(prefix) or None, chunk_size=1000, offset=last):
                    yield from map(_info, chunk)
                    last, tries = chunk[-1]["path"], 0
            except (BaseError, OSError) as error:
                tries += 1
                if tries == TRIES or not is_lost(error):
                    raise self._failure("list", prefix, error) from None
                pause(tries)
            else:
                return

    def folders(self, prefix: str = "") -> builtins.list[str]:
        """Return the names of the folders right below a folder, sorted, without looking into them."""
        if not self.is_s3 and not Path(self.location(prefix)).is_dir():
            return []
        try:
            found = retried(lambda: obstore.list_with_delimiter(self._open(), _checked(prefix) or None))
        except (BaseError, OSError) as error:
            raise self._failure("list", prefix, error) from None
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, path: str, data: bytes | Path, *, content_type: str | None = None) -> None:
        """Write an object in one step: readers see the old one or the new one.

        Args:
            path: where to; folders are made.
            data: the bytes, or a local file, which is streamed (in parts where it is large).
            content_type: what an object store tells browsers of it; a folder has no place for it.
        """
        told = {"Content-Type": content_type} if content_type and self.is_s3 else None
        options: dict[str, Any] = {"chunk_size": CHUNK_BYTES, "max_concurrency": 4, "attributes": told}
        try:
            store = self._open(for_writing=True)
            retried(lambda: obstore.put(store, _checked(path), data, **options))
        except (BaseError, OSError) as error:
            raise self._failure("write", path, error) from None

    def write_new(self, path: str, data: bytes | Path) -> bool:
        """Write an object unless there is one already; of many writers at once, one at most gets True.

        False also where a first try wrote it and its answer was lost: who must know reads it.

        Data of a size that fits one request (5 GiB on S3); a file is read into memory.
        """
        body = data.read_bytes() if isinstance(data, Path) else data
        store = self._open(for_writing=True)
        try:
            retried(lambda: obstore.put(store, _checked(path), body, mode="create", use_multipart=False))
        except (AlreadyExistsError, PreconditionError):
            return False
        except (BaseError, OSError) as error:
            if "409" in str(error) and "Conflict" in str(error):
                return self._lost_race(path, body)
            raise self._failure("write", path, error) from None
        return True

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; those that are not there are no error."""
        names = [_checked(path) for path in paths]
        if not self.is_s3:
            names = [name for name in names if Path(self.uri, name).exists()]
        if not names:
            return
        try:
            retried(lambda: obstore.delete(self._open(), names))
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise self._failure("delete", names[0], error) from None
        except (BaseError, OSError) as error:
            raise self._failure("delete", names[0], error) from None

    # -- for other readers --------------------------------------------------------------------------------------

    def delta_uri(self, path: str) -> str:
        """Return the table URI that deltalake opens."""
        return self.location(path)

    def delta_options(self) -> dict[str, str]:
        """Return storage options for deltalake. They hold secrets: pass them on, never record them."""
        return self._resolve().delta_options() if self.is_s3 else {}

    # -- inside -------------------------------------------------------------------------------------------------

    def _resolve(self) -> AwsAccess:
        if self._access is None:
            self._access = resolve_access()
        return self._access

    def _open(self, *, for_writing: bool = False) -> LocalStore | S3Store:
        with self._lock:
            if self._store is None:
                self._store = self._open_s3() if self.is_s3 else LocalStore(self.uri, mkdir=for_writing)
            return self._store

    def _open_s3(self) -> S3Store:
        access = self._resolve()
        bucket, prefix = split_s3(self.uri)
        client = cast("ClientConfig", {**_CLIENT, "allow_http": access.allow_http})
        options: dict[str, Any] = {"config": access.s3_config(), "credential_provider": access.credential_provider()}
        return S3Store(bucket, prefix=prefix or None, client_options=client, retry_config=_RETRY, **options)

    def _require_bucket(self) -> None:
        """Tell a missing object from a missing bucket, once: the answer to a HEAD does not say which it is."""
        if self.is_s3 and not self._bucket_seen:
            next(self.list(), None)
            self._bucket_seen = True

    def _lost_race(self, path: str, body: bytes) -> bool:
        """Decide after S3's 409 (two conditional puts of one key at once; AWS asks for another try)."""
        if self.head(path) is not None:
            return False
        return self.write_new(path, body)

    def _failure(self, verb: str, path: str, error: Exception) -> StorageError:
        return explain(verb, self.location(path), error)


class _RangeReader(io.RawIOBase):
    """Random access to one object of fixed size, a ranged request per read."""

    def __init__(self, storage: Storage, path: str, size_bytes: int) -> None:
        self._storage, self._path, self._size, self._position = storage, path, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a writable buffer has no public type in Python 3.11
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._storage.read_range(self._path, self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_storage(uri: str | Path) -> Storage:
    """Return the storage at a folder (made on the first write) or at s3://bucket/prefix.

    Raises StorageError for other schemes and for bucket names that S3 does not allow.
    """
    text = os.fspath(uri)
    scheme = text.split("://", 1)[0].lower() if "://" in text else ""
    if scheme in ("s3", "s3a"):
        bucket, prefix = split_s3(text)
        return Storage(f"s3://{bucket}/{prefix}".rstrip("/"))
    if scheme == "file":
        text = unquote(urlsplit(text).path)
    elif scheme:
        raise StorageError(
            f"a store or folder is a local path or s3://bucket/prefix, got {redact(text)!r}; use one of these"
        )
    return Storage(Path(text).expanduser().absolute().as_posix())


def split_s3(uri: str) -> tuple[str, str]:
    """Return (bucket, key or prefix without outer slashes) of an s3:// URI."""
    bucket, _, prefix = uri.split("://", 1)[1].partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", bucket):
        raise StorageError(
            f"an S3 bucket name has 3 or more letters, digits, dots or hyphens, got {bucket.rpartition('@')[2]!r}; "
            "write s3://bucket/prefix"
        )
    return bucket, prefix.strip("/")


def _checked(path: str) -> str:
    clean = path.strip("/")
    if ".." in clean.split("/"):
        raise StorageError(f"a path stays inside its storage, got {path!r}; remove the '..'")
    return clean


def _info(meta: Any) -> ObjectInfo:  # noqa: ANN401 - obstore's ObjectMeta is not importable at run time
    return ObjectInfo(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"].timestamp())
