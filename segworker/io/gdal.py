"""Opening rasters through GDAL: one environment, one set of refusals, errors in a user's words.

GDAL's options are set for each operation in the calling thread and for nothing else. Side files (masks, overviews,
world files, statistics beside the image) are looked for where a scene has some, and the folder is never listed: in a
folder of 100,000 images that would cost more than the reading.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import rasterio
from rasterio._env import GDALEnv, set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from segworker.errors import ReadError, SceneError
from segworker.io.aws import gdal_env, rasterio_session, resolve_access
from segworker.io.failures import redact, redact_text
from segworker.io.retry import pause

SELF_CONTAINED = frozenset(
    {".tif", ".tiff", ".btf", ".svs", ".png", ".jpg", ".jpeg", ".webp", ".jp2", ".j2k", ".bmp", ".gif"}
)
"Formats whose pixels are in one file; the others (ENVI, HFA, VRT) always look around."
SIDE_FILES = ("side_files", "yes")
"In `Scene.options` where files beside the image belong to it."
GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError, ValueError, MemoryError)
"What rasterio raises for files that are damaged, absurd or not rasters."
CACHE_BYTES = 512 * 2**20
"For each process; GDAL's own default, 5% of the machine, is too much for a worker per core. GDAL_CACHEMAX overrides."
READ_TRIES = 4
_T = TypeVar("_T")
_ACCESS_S = 300
_NAMES_OTHERS = frozenset(
    {
        *("DAAS", "DERIVED", "EEDA", "EEDAI", "ESRIC", "GTI", "HTTP", "MRF", "NGW", "OGCAPI", "PLMOSAIC", "PLScenes"),
        *("GeoRaster", "PostGISRaster", "Rasterlite", "STACIT", "STACTA", "VRT", "WCS", "WMS", "WMTS", "MEM", "Memory"),
    }
)
"Drivers whose files name services or other files, whatever the file is called; VRT is checked (`virtual`)."
_OPTIONS = {
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # the fast path fills a truncated PNG with zeros and reports nothing
    "GDAL_VRT_ENABLE_PYTHON": "NO",  # a scene never runs code
    "GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE": "SIBLING_OR_CHILD_OF_VRT_PATH",  # no bytes of any file as pixels
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/",  # a worker that lives for days must see a replaced object
    "CPL_VSIL_CURL_USE_HEAD": "NO",  # a presigned URL may be signed for GET alone
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "5",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
}

_SIGNED = {"AWS_NO_SIGN_REQUEST": "NO"}
"rasterio keeps what it finds in the environment when it first looks; say it each time."


def gdal_path(uri: str) -> str:
    """Return what GDAL opens for a local path, file://, s3:// or http(s):// URI; SceneError for other schemes."""
    scheme, _, rest = uri.partition("://")
    if not rest:
        if uri.startswith("/vsi"):
            raise SceneError(
                f"a scene is a path, s3:// or https:// URI, got GDAL's own {uri[:60]!r}; give the URI itself"
            )
        return os.path.abspath(uri)  # noqa: PTH100 - never resolves links, which are part of a scene's identity
    if scheme == "file":
        return unquote(urlsplit(uri).path)
    if scheme in ("s3", "s3a"):
        return f"/vsis3/{rest}"
    if scheme in ("http", "https"):
        return f"/vsicurl/{quote(uri, safe=_URL_CHARACTERS)}"
    raise SceneError(
        f"a scene is a local path or an s3://, http:// or https:// URI, got {redact(uri)!r}; copy it there"
    )


_URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"


@contextmanager
def gdal_environment(uri: str, *, side_files: bool) -> Iterator[None]:
    """Set GDAL's options for one URI in this thread."""
    _quiet()
    _bound_cache()
    alone = not side_files and PurePosixPath(urlsplit(uri).path).suffix.lower() in SELF_CONTAINED
    options = _OPTIONS | {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR" if alone else "TRUE"}
    if not uri.startswith(("s3://", "s3a://")):
        with rasterio.Env(session=rasterio.session.DummySession(), **options):
            yield
        return
    variables = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
    session, aws = _s3_access(variables, int(time.monotonic() / _ACCESS_S))
    with rasterio.Env(session=session, **(_SIGNED | aws | options)):
        yield


@contextmanager
def opened(uri: str, *, side_files: bool, overview_level: int | None = None) -> Iterator[Any]:
    """Open a raster for reading; what GDAL cannot open is a SceneError."""
    with gdal_environment(uri, side_files=side_files):
        dataset = open_dataset(uri, overview_level=overview_level)
        with dataset:
            yield dataset


def open_dataset(uri: str, *, overview_level: int | None = None) -> Any:  # noqa: ANN401 - rasterio ships no types
    """Open a raster inside `gdal_environment`; the caller closes it."""
    options = {} if overview_level is None else {"overview_level": overview_level}
    path = gdal_path(uri)
    try:
        return reread(uri, lambda: DatasetReader(path, driver=_drivers(is_virtual(uri)), sharing=False, **options))
    except GDAL_ERRORS as error:
        raise SceneError(f"a scene must be a raster that GDAL opens, got {_what(uri, error)}") from None


def is_virtual(uri: str) -> bool:
    """Whether a scene is a virtual raster, by its name; under another name GDAL does not open it as one here."""
    return urlsplit(uri).path.lower().endswith(".vrt")


@lru_cache(maxsize=2)
def _drivers(virtual: bool) -> list[str]:  # noqa: FBT001 - a cache knows no keywords
    """Return the formats that a file may be of. Inside an environment."""
    if virtual:
        return ["VRT"]
    return sorted(set(GDALEnv().drivers()) - _NAMES_OTHERS)


def reread(uri: str, read: Callable[[], _T]) -> _T:
    """Return what a read returns, trying again where a remote raster fails.

    GDAL repeats requests that were refused or reset, not those whose answer ended too early.
    """
    if is_remote(uri):
        for _ in range(READ_TRIES - 1):
            with suppress(*GDAL_ERRORS):
                return read()
            pause(0)  # not longer with each try: a damaged file fails in each of its tiles
    return read()


def is_remote(uri: str) -> bool:
    """Whether a scene is read over a network."""
    return "://" in uri and not uri.startswith("file://")


@contextmanager
def reading(uri: str, scene_id: str, where: str) -> Iterator[None]:
    """Turn GDAL's failures while reading into a ReadError that names window, scene and cause."""
    try:
        yield
    except GDAL_ERRORS as error:
        raise ReadError(
            f"every pixel of a scene must be readable, got a failure at {where} of {scene_id} ({redact(uri)}): "
            f"{cause_of(error)}; replace the file or leave it out"
        ) from None


def cause_of(error: BaseException) -> str:
    """Return GDAL's own words behind an exception, without secrets."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(getattr(error, "errmsg", "") or error) or type(error).__name__
    return redact_text(" ".join(text.split()))[:300]


def _what(uri: str, error: BaseException) -> str:
    if "://" not in uri and not os.path.exists(uri):  # noqa: PTH110 - a URI, not a Path
        return f"{uri}, which does not exist; correct the path"
    return f"{redact(uri)} ({cause_of(error)}); check that the file is complete and of a raster format"


class _Scrub(logging.Filter):
    """Takes secrets out of what rasterio logs of GDAL's remarks, which quote presigned addresses whole."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact_text(record.getMessage()), ()
        return True


_scrub = _Scrub()


def _quiet() -> None:
    """Keep secrets out of rasterio's logs, and its warnings on images without georeference: ordinary scenes here.

    For the whole process and on each call, because `warnings.catch_warnings` is not safe with threads.
    """
    for name in ("rasterio._env", "rasterio._err", "rasterio._io", "rasterio._base"):
        logging.getLogger(name).addFilter(_scrub)  # once: a logger keeps one of each
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[2] is not NotGeoreferencedWarning:
        warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


@lru_cache(maxsize=1)
def _bound_cache() -> None:
    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES)


@lru_cache(maxsize=4)
def _s3_access(_variables: tuple[tuple[str, str], ...], _period: int) -> tuple[Any, dict[str, str]]:
    access = resolve_access()
    return rasterio_session(access), gdal_env(access)
