"""Small charts as SVG. Texts are escaped by markupsafe wherever they come in."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT, MARGIN = 330, 260, 42
BARS_HEIGHT = 170
COLOURS = ("#1565c0", "#c62828", "#2e7d32", "#ef6c00", "#6a1b9a", "#00838f", "#5d4037", "#455a64")
_LINE = Markup('<polyline points="{}" stroke="{}" stroke-width="{}" fill="none"/>')
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
_BAR = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{}</title></rect>')
_SVG = Markup('<svg width="{}" height="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')


def bars(
    title: str, counts: Sequence[int], ticks: Sequence[tuple[float, str]], *, x_name: str, names: Sequence[str]
) -> Markup:
    """Return a histogram.

    Args:
        title: for people who cannot see it.
        counts: a bar each.
        ticks: (position in bars, label) below.
        x_name: what the bars are over.
        names: what each bar is, shown beside its count when it is pointed at.
    """
    left, top, bottom = 8, 16, BARS_HEIGHT - 34
    step, most = (WIDTH - 2 * left) / max(1, len(counts)), max(1, *counts, 1)
    marks = []
    for k, (count, name) in enumerate(zip(counts, names, strict=True)):
        height = (bottom - top) * count / most
        place = left + k * step, bottom - height, max(0.5, step - 1), height
        marks.append(_BAR.format(*place, COLOURS[0], f"{name}: {count:,}"))
    marks.append(_LINE.format(f"{left},{bottom} {WIDTH - left},{bottom}", "#8a96a1", 1))
    marks += [_TEXT.format(left + place * step, bottom + 13, _anchor(place, len(counts)), t) for place, t in ticks]
    marks += [
        _TEXT.format(WIDTH / 2, BARS_HEIGHT - 5, "middle", x_name),
        _TEXT.format(left, 10, "start", f"most in one bar: {most:,}"),
    ]
    return _svg(title, marks, BARS_HEIGHT)


def shares(title: str, values: Sequence[tuple[str, float, str]]) -> Markup:
    """Return horizontal bars: (name, value, value as text) each, the longest over the whole width."""
    names = [_fitting(name, 24) for name, *_ in values]
    most, row, left = max((v for _, v, _ in values), default=0) or 1, 20, 12 + 7 * max(map(len, names), default=0)
    marks = []
    for k, (name, (_, value, text)) in enumerate(zip(names, values, strict=True)):
        width = (WIDTH - left - 70) * value / most
        marks += [
            _TEXT.format(left - 6, k * row + 14, "end", name),
            _BAR.format(left, k * row + 3, max(1.0, width), 14, COLOURS[0], f"{name}: {text}"),
            _TEXT.format(left + max(1.0, width) + 5, k * row + 14, "start", text),
        ]
    return _svg(title, marks, max(1, len(values)) * row + 4)


def lines(
    title: str,
    x_name: str,
    y_name: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    diagonal: bool = False,
) -> Markup:
    """Return lines over the unit square; with their points and a diagonal to compare with, or with their names."""

    def place(x: float, y: float) -> tuple[float, float]:
        return MARGIN + x * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - y * (HEIGHT - 2 * MARGIN)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))

    marks = []
    for k in range(6):
        marks.append(_TEXT.format(place(k / 5, 0)[0], HEIGHT - MARGIN + 14, "middle", f"{k / 5:.1f}"))
        marks.append(_TEXT.format(MARGIN - 5, place(0, k / 5)[1] + 4, "end", f"{k / 5:.1f}"))
        marks.append(_LINE.format(path([(0, k / 5), (1, k / 5)]), "#e0e0e0", 1))
    if diagonal:
        marks.append(_LINE.format(path([(0, 0), (1, 1)]), "#999", 1))
    for k, (_, points) in enumerate(series):
        colour = COLOURS[k % len(COLOURS)]
        marks.append(_LINE.format(path(points), colour, 2))
        dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>')
        marks += [dot.format(*place(*point), colour) for point in points if diagonal]
    named = series[: len(COLOURS)] if not diagonal else []
    for k, (name, _) in enumerate(named):
        y = HEIGHT - MARGIN - 10 - 15 * (len(named) - 1 - k)
        marks.append(_LINE.format(f"{MARGIN + 6},{y - 4} {MARGIN + 22},{y - 4}", COLOURS[k], 2))
        marks.append(_TEXT.format(MARGIN + 27, y, "start", _fitting(name, 36)))
    marks.append(_TEXT.format(WIDTH / 2, HEIGHT - 5, "middle", x_name))
    turned = Markup('<text x="10" y="{0}" text-anchor="middle" transform="rotate(-90 10 {0})">{1}</text>')
    marks.append(turned.format(HEIGHT / 2, y_name))
    return _svg(title, marks, HEIGHT)


def _anchor(place: float, count: int) -> str:
    if place <= 0:
        return "start"
    return "end" if place >= count else "middle"


def _fitting(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _svg(title: str, marks: Sequence[Markup], height: int) -> Markup:
    return _SVG.format(WIDTH, height, WIDTH, height, title, Markup().join(marks))
