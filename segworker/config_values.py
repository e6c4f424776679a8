"""Values with a unit or a form of their own: an area, a range, a duration, a size, a limit.

Each is a frozen type, or an annotated plain one, that reads what a person writes on a command line, in an environment
variable or in YAML, and writes it back in the same form. `str(parse(text))` parses to an equal value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import yaml
from pydantic import BeforeValidator, JsonValue, PlainSerializer

AreaUnit: TypeAlias = Literal["px", "m2", "um2"]
_AREA = re.compile(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(px|m2|um2)?\s*")
_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(s|m|h|d)?\s*")
_BYTES = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(B|kB|MB|GB|TB)?\s*", re.IGNORECASE)
_SECRET = re.compile(r"signature|credential|token|secret|X-Amz-", re.IGNORECASE)
_UNESCAPED = re.compile(r"^([A-Za-z0-9+.-]+://)[^/:@\[\s]*:(?!\d*(?:[/?#]|$))\S*@")
"user:password@ where the password holds a '/', '?' or '#' as it is."
_PASSWORD = re.compile(r"passw|api_?key|access_?key|auth", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FACTORS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def number(value: float) -> str:
    """Write a number in the shortest form that reads back as the same float."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


@dataclass(frozen=True, slots=True)
class Area:
    """An area and its unit."""

    value: float
    "Not negative."
    unit: AreaUnit = "px"
    "Scene pixels, square metres on the ground, or square micrometres on the slide."

    def __post_init__(self) -> None:
        if not self.value >= 0:
            raise ValueError(f"an area must not be negative, got {self.value}")

    def __str__(self) -> str:
        return f"{number(self.value)}{self.unit}"

    @classmethod
    def parse(cls, value: object) -> Area:
        """Read '12px', '3.5m2', '80um2' or a plain number of pixels; ValueError otherwise."""
        if isinstance(value, cls):
            return value
        match = _AREA.fullmatch(str(value))
        if match is None or isinstance(value, bool):
            raise ValueError(f"an area is a number with px, m2 or um2, got {value!r}; write 12px or 3.5m2")
        unit: AreaUnit = "m2" if match[2] == "m2" else "um2" if match[2] == "um2" else "px"
        return cls(float(match[1]), unit)


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Which source values become 0 and 1 in a model's input; one range for a whole scene."""

    kind: Literal["dtype", "range", "percentile"] = "dtype"
    "The dtype's own range, stated values, or percentiles of the scene's overview."
    low: float = 0.0
    "Source value, or percentile 0 to 100; unused for 'dtype'."
    high: float = 0.0

    def __post_init__(self) -> None:
        if self.kind != "dtype" and not self.low < self.high:
            raise ValueError(f"the lower end of a range must be below the upper, got {self.low:g},{self.high:g}")
        if self.kind == "percentile" and not (self.low >= 0 and self.high <= 100):
            raise ValueError(f"percentiles are 0 to 100, got {self.low:g},{self.high:g}")

    def __str__(self) -> str:
        ends = f"{number(self.low)},{number(self.high)}"
        return {"dtype": "dtype", "range": ends, "percentile": f"percentile:{ends}"}[self.kind]

    @classmethod
    def parse(cls, value: object) -> ValueRange:
        """Read 'dtype', 'LOW,HIGH', 'percentile:LOW,HIGH' or a list of two numbers; ValueError otherwise."""
        if isinstance(value, cls):
            return value
        text = ",".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value).strip()
        if text == "dtype":
            return cls()
        name, _, ends = text.rpartition(":")
        try:
            low, high = (float(end) for end in ends.split(","))
        except ValueError:
            name = "unreadable"
        if name not in ("", "percentile"):
            raise ValueError(f"a value range is dtype, LOW,HIGH or percentile:LOW,HIGH, got {value!r}; write 0,4095")
        return cls("percentile" if name else "range", low, high)


@dataclass(frozen=True, slots=True)
class Price:
    """What an hour of a process that holds the model costs."""

    amount: float
    currency: str
    "ISO 4217: EUR."

    def __str__(self) -> str:
        return f"{number(self.amount)}{self.currency}"

    @classmethod
    def parse(cls, value: object) -> Price:
        """Read '1.20EUR' or '1.20 EUR'; ValueError otherwise."""
        if isinstance(value, cls):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]{3})?\s*", str(value))
        if match is None or isinstance(value, bool):
            raise ValueError(f"a price is an amount with its currency, got {value!r}; write 1.20EUR")
        if match[2] is None:
            raise ValueError(f"a price has a currency, got {value!r} without one; write {match[1]}EUR")
        return cls(float(match[1]), match[2].upper())


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many tiles may fail before the whole run counts as failed."""

    count: int | None = None
    "Tiles, or None where a share is stated."
    share: float | None = None
    "0 to 1 of all tiles, or None where a count is stated."

    def __post_init__(self) -> None:
        if (self.count is None) == (self.share is None):
            raise ValueError("a limit is either a count or a share")
        if (self.count or 0) < 0 or not 0 <= (self.share or 0) <= 1:
            raise ValueError(f"a limit is a count from 0 or a share of 0% to 100%, got {self}")

    def __str__(self) -> str:
        return str(self.count) if self.share is None else f"{number(round(self.share * 100, 12))}%"

    def exceeded(self, num_failed: int, num_tiles: int) -> bool:
        """Say whether `num_failed` of `num_tiles` is too many."""
        allowed = self.count if self.count is not None else (self.share or 0) * num_tiles
        return num_failed > allowed

    @classmethod
    def parse(cls, value: object) -> FailureLimit:
        """Read a count ('10') or a share ('1%'); ValueError otherwise."""
        if isinstance(value, cls):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", str(value))
        if match is None or isinstance(value, bool) or not (match[2] or match[1].isdigit()):
            raise ValueError(f"a limit is a count or a share, got {value!r}; write 10 or 1%")
        return cls(share=float(match[1]) / 100) if match[2] else cls(count=int(match[1]))


def parse_duration(value: object) -> timedelta:
    """Read '90s', '15m', '12h' or '7d', or a plain number of seconds; ValueError otherwise."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(str(value))
    if match is None or isinstance(value, bool):
        raise ValueError(f"a duration is a number with s, m, h or d, got {value!r}; write 12h or 7d")
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2] or "s"])


def format_duration(value: timedelta) -> str:
    """Write a duration in the largest unit that divides it."""
    seconds = value.total_seconds()
    unit = next((u for u in ("d", "h", "m") if seconds and seconds % _SECONDS[u] == 0), "s")
    return f"{number(seconds / _SECONDS[unit])}{unit}"


def parse_bytes(value: object) -> int:
    """Read '500MB', '16GB' (powers of 1000) or a plain number of bytes; ValueError otherwise."""
    match = _BYTES.fullmatch(str(value))
    if match is None or isinstance(value, bool):
        raise ValueError(f"a size is a number with kB, MB, GB or TB, got {value!r}; write 16GB")
    return int(float(match[1]) * _FACTORS[(match[2] or "B").lower()])


def parse_list(value: object) -> object:
    """Split 'a,b' (or each item of a list of such strings) at its commas; anything else is returned as it is."""
    items = [value] if isinstance(value, str | int) else value
    if not isinstance(items, list | tuple):
        return value
    return [part for item in items for part in (item.split(",") if isinstance(item, str) else [item]) if part != ""]


def parse_mapping(value: object) -> object:
    """Read 'KEY=VALUE,KEY=VALUE', a list of such strings, or YAML's '{KEY: VALUE}'; a mapping is returned as it is.

    Values are YAML scalars: 0.5 is a number, true a boolean. A list from a repeated flag is not split at commas where
    an item has only one '='.
    """
    if isinstance(value, str) and value.strip().startswith("{"):
        return _from_yaml(value)
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        return value
    return dict(_pair(part) for item in items for part in _split_pairs(str(item)))


def _split_pairs(text: str) -> list[str]:
    return [text] if text.count("=") < 2 else text.split(",")


def _pair(text: str) -> tuple[str, JsonValue]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"a mapping is written KEY=VALUE, got {text!r}; write nucleus=0.6")
    return key.strip(), _from_yaml(value) if value else ""


def _from_yaml(text: str) -> JsonValue:
    """Read plain YAML: no tag of it makes an object or calls anything."""
    try:
        value: JsonValue = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"a value is plain YAML, got {text[:80]!r} ({' '.join(str(error).split())[:120]})") from None
    return value


def is_secret(name: str) -> bool:
    """Whether a key names something that must not be recorded."""
    return bool(_SECRET.search(name) or _PASSWORD.search(name))


def public_uri(uri: str) -> str:
    """Return a uri without what may be secret: user and password, and a query in which signatures travel.

    Local paths, and s3:// uris that hold no secret, stay as they are ('?' is a wildcard there).
    """
    if "://" not in uri:
        return uri
    uri = _UNESCAPED.sub(r"\1", uri)
    parts = urlsplit(uri)
    secret = "@" in parts.netloc or _SECRET.search(parts.query)
    if parts.scheme in ("s3", "s3a", "file") and not secret:
        return uri
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


_as_text = PlainSerializer(str, return_type=str)
AreaValue: TypeAlias = Annotated[Area, BeforeValidator(Area.parse), _as_text]
ValueRangeValue: TypeAlias = Annotated[ValueRange, BeforeValidator(ValueRange.parse), _as_text]
PriceValue: TypeAlias = Annotated[Price, BeforeValidator(Price.parse), _as_text]
FailureLimitValue: TypeAlias = Annotated[FailureLimit, BeforeValidator(FailureLimit.parse), _as_text]
Duration: TypeAlias = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)
]
Bytes: TypeAlias = Annotated[int, BeforeValidator(parse_bytes)]
