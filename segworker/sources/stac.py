"""STAC: the scenes of an ItemCollection, a file or what an API's search answers.

An item is GeoJSON with `assets`; a page of a search links to the next one by GET (https://stacspec.org, STAC API 1.0).
No more than that is needed here, and no library for it. The files themselves say where they lie.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit

from segworker.errors import ConfigError
from segworker.io.failures import redact
from segworker.sources.identity import check_scene_id

EXTENSIONS = (".json", ".geojson")
MAX_PAGES = 10_000
_ENDPOINTS = ("/search", "/items")


def is_stac(uri: str) -> bool:
    """Say whether an input is a STAC document: by its extension, or as a search or the items of an API."""
    path = urlsplit(uri).path if "://" in uri else uri
    is_endpoint = uri.startswith(("http://", "https://")) and path.rstrip("/").endswith(_ENDPOINTS)
    return is_endpoint or PurePosixPath(path).suffix.lower() in EXTENSIONS


def read_items(uri: str, read: Callable[[str], bytes], *, asset: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield (href of the asset, id of the item) of every item; pages are followed.

    Args:
        uri: of an ItemCollection, of one item, or a GET search of an API.
        read: returns the bytes at a URI.
        asset: key of the asset that is the scene; default: the only one that is an image of role 'data' or, where no
            asset has that role, the only image.

    Raises:
        ConfigError: for what is not STAC, items without that asset, and assets among which one must be chosen.
    """
    page: str | None = uri
    seen: set[str] = set()
    while page is not None:
        if page in seen or len(seen) == MAX_PAGES:
            raise ConfigError(f"a search has an end, got page {len(seen) + 1} of {redact(uri)}; narrow the search")
        seen.add(page)
        document = _document(page, read(page))
        items = document["features"] if document.get("type") == "FeatureCollection" else [document]
        for item in items:
            href = _href(_asset(item, asset, redact(page)), page)
            yield href, check_scene_id(str(item["id"]), redact(page))
        page = _next(document, page)


def _document(uri: str, data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
        features = found["features"] if found["type"] == "FeatureCollection" else [found]
        if all(item["type"] == "Feature" and isinstance(item["assets"], dict) and "id" in item for item in features):
            return dict(found)
    except (ValueError, TypeError, KeyError):
        pass
    raise ConfigError(
        f"a STAC document is an item or a FeatureCollection of items with assets, got another thing in {redact(uri)}; "
        "give a search's answer, or a manifest"
    )


def _asset(item: Mapping[str, Any], key: str | None, name: str) -> Mapping[str, Any]:
    assets: dict[str, Any] = item["assets"]
    if key is not None:
        chosen = [assets[key]] if key in assets else []
    else:
        images = [a for a in assets.values() if _is_image(a)]
        chosen = [a for a in images if "data" in (a.get("roles") or [])] or images
    if len(chosen) == 1 and isinstance(chosen[0].get("href"), str):
        return dict(chosen[0])
    wanted = f"--asset {key}" if key is not None else f"{len(chosen)} images to choose from"
    raise ConfigError(
        f"a STAC item gives one asset as the scene, got {wanted} in {item['id']!r} of {name}; name one by --asset: "
        f"{', '.join(list(assets)[:20]) or 'it has none'}"
    )


def _is_image(asset: Mapping[str, Any]) -> bool:
    roles = asset.get("roles") or []
    told = str(asset.get("type") or "")
    return told.startswith("image/") and not {"thumbnail", "overview"} & set(roles)


def _href(asset: Mapping[str, Any], page: str) -> str:
    """Return an absolute href. What comes from the web names nothing on this machine."""
    href = str(asset["href"])
    if not page.startswith(("http://", "https://")):
        return href  # a manifest's own rule for relative ones follows
    absolute = urljoin(page, href)
    if not absolute.startswith(("http://", "https://", "s3://")):
        raise ConfigError(
            f"assets of a remote STAC document are http(s):// or s3://, got {redact(absolute)!r}; copy the files to one"
        )
    return absolute


def _next(document: Mapping[str, Any], page: str) -> str | None:
    links = [link for link in document.get("links") or [] if link.get("rel") == "next"]
    if not links:
        return None
    if str(links[0].get("method", "GET")).upper() != "GET":
        raise ConfigError(
            f"pages of a search are followed by GET, got {links[0].get('method')} in {redact(page)}; search by GET, or "
            "save the answer to a file"
        )
    following = urljoin(page, str(links[0]["href"]))
    here, there = urlsplit(page), urlsplit(following)
    if (here.scheme, here.hostname) != (there.scheme, there.hostname):
        raise ConfigError(
            f"pages of a search are on one server, got {redact(following)!r} after {redact(page)}; save them to files"
        )
    return following
