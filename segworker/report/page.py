"""Pages that need nothing else: no script, no request, pictures inside; they open from a disk and from a bucket.

A page is data. The template escapes every text that it is given, so that no name of a class or a scene can be markup;
the policy in its head lets it load nothing and run nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

JPEG_QUALITY = 86


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    is_note: bool = False
    "Something to act upon."
    kind: ClassVar[str] = "text"


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names its rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    folded: bool = False
    "Shown when it is asked for."
    kind: ClassVar[str] = "table"


@dataclass(frozen=True, slots=True)
class Listing:
    """Lines that are shown when they are asked for."""

    caption: str
    lines: Sequence[str]
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture inside the page."""

    uri: str
    "data:"
    caption: str
    size_wh: tuple[int, int]
    "As shown."
    link: str | None = None
    "Relative address of a larger one."


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing from `report.charts`, which has escaped its texts."""

    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures and charts side by side."""

    items: Sequence[Picture | Chart]
    kind: ClassVar[str] = "gallery"


Block: TypeAlias = Text | Table | Listing | Gallery


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: what it is about, its main figures, and its parts."""

    title: str
    lead: str
    figures: Sequence[tuple[str, str]]
    "(figure, what it is)."
    sections: Sequence[Section]
    notes: Sequence[str] = field(default_factory=tuple)


def render(page: Page) -> str:
    """Return the page as HTML."""
    return _template().render(page=page)


def picture(image: Image.Image, caption: str, *, shown_px: int, link: str | None = None) -> Picture:
    """Return a picture for a page; `shown_px` is its longest side there."""
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    uri = "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
    factor = shown_px / max(image.size)
    return Picture(uri, caption, (round(image.width * factor), round(image.height * factor)), link)


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure as text; a dash where there is none."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash on a page
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def share(value: float | None, *, signed: bool = False, digits: int = 1) -> str:
    """Return a share in percent; a dash where there is none."""
    if value is None:
        return number(None)
    return f"{value:+.{digits}%}" if signed else f"{value:.{digits}%}"


@cache
def _template() -> Template:
    # the name of the template does not end in .html: escaping is not left to it
    loader = PackageLoader("segworker", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")
