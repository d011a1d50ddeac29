"""Small SVG panels: lines with intervals, and paths in a plane, in colours the page decides.

matplotlib draws with sentinel colours; they are replaced by CSS variables, so that light, dark
and print need no second drawing. Text stays text, in the page's font. The same data give the same
bytes. Knows no run.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.runs import Point

ARMS = 8
"""Distinct colours; more strategies repeat them with other dashes and markers."""

INK, RULE, SOFT = "#010101", "#010102", "#010103"
_VARIABLES = {INK: "currentColor", RULE: "var(--rule)", SOFT: "var(--soft)"} | {
    f"#0102{i:02x}": f"var(--arm-{i})" for i in range(ARMS)
}
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = "osD^vPX*"

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A strategy's points in order: (stage, point)."""

    arm: int
    points: Sequence[tuple[float, Point]]


@dataclass(frozen=True, kw_only=True)
class Path:
    """A strategy's way through a plane, stage by stage: (x, y) points; the last is marked."""

    arm: int
    points: Sequence[tuple[Point, Point]]


def colour(arm: int) -> str:
    return f"#0102{arm % ARMS:02x}"


def style(arm: int) -> dict[str, Any]:
    """How the strategy's line looks everywhere: colour, dash and marker."""
    again = arm // ARMS  # a colour that comes again has another dash and marker
    return {
        "color": colour(arm),
        "linestyle": DASHES[(arm + again) % len(DASHES)],
        "marker": MARKERS[(arm + again) % len(MARKERS)],
    }


def over_stages(
    lines: Sequence[Line],
    *,
    key: str,
    title: str,
    stages: Sequence[int],
    span: Span,
    base: float | None = None,
    trained: int | None = None,
    percent: bool = True,
    size: tuple[int, int] = (260, 165),
) -> Markup:
    """Lines over stages with interval bars; the base is stage zero and a dotted level.

    `key` must differ between panels of a page; `trained` marks the stage at which a task is taught.
    """
    with _settings(key):
        figure, axes = _panel(size, span, percent)
        if base is not None:
            axes.axhline(base, color=SOFT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        if trained is not None:
            axes.axvline(trained, color=RULE, linewidth=7, zorder=0)
        for place, line in enumerate(lines):
            shift = (place - (len(lines) - 1) / 2) * min(0.08, 0.4 / max(len(lines), 1))
            xs = [x + shift if x else 0.0 for x, _ in line.points]
            _bars(axes, xs, [p for _, p in line.points], colour(line.arm), vertical=True)
            axes.plot(xs, [p.value for _, p in line.points], markersize=3.4, linewidth=1.5,
                      clip_on=False, zorder=3, **style(line.arm))  # fmt: skip
        axes.set_xticks(list(stages), ["base" if s == 0 else str(s) for s in stages])
        axes.set_xlim(min(stages) - 0.25, max(stages) + 0.25)
        return _svg(figure, title)


def in_plane(
    paths: Sequence[Path],
    *,
    key: str,
    title: str,
    x_label: str,
    x_span: Span,
    y_span: Span,
    size: tuple[int, int] = (320, 250),
) -> Markup:
    """Each strategy's way from the base (a ring) to its last stage (its marker, with intervals)."""
    with _settings(key):
        figure, axes = _panel(size, y_span, True, below=34)
        for path in paths:
            xs = [x.value for x, _ in path.points]
            ys = [y.value for _, y in path.points]
            look = style(path.arm)
            axes.plot(xs, ys, color=look["color"], linestyle=look["linestyle"], linewidth=1.1,
                      alpha=0.75, zorder=2)  # fmt: skip
            last_x, last_y = path.points[-1]
            _bars(axes, [last_x.value], [last_y], colour(path.arm), vertical=True)
            _bars(axes, [last_y.value], [last_x], colour(path.arm), vertical=False)
            axes.plot(xs[1:-1], ys[1:-1], ".", color=look["color"], markersize=3, zorder=3)
            axes.plot(xs[-1:], ys[-1:], markersize=7, zorder=4, **look)
            axes.plot(xs[:1], ys[:1], "o", markersize=6, markerfacecolor="none",
                      markeredgecolor=INK, zorder=5)  # fmt: skip
        axes.set_xlim(*x_span)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value * 100:.0f}")
        axes.set_xlabel(x_label, color=SOFT)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        return _svg(figure, title)


def swatch(arm: int) -> Markup:
    """The strategy's line and marker, for legends; it uses the symbol of the same number."""
    return Markup('<svg viewBox="0 0 30 12" aria-hidden="true"><use href="#arm-{}"/></svg>').format(
        arm
    )


def symbols(arms: int) -> Markup:
    """What swatches use, once a page."""
    drawn = []
    for arm in range(arms):
        with _settings(f"swatch-{arm}"):
            figure = Figure(figsize=(30 / 72, 12 / 72))
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.set_xlim(-0.1, 2.1)
            axes.plot([0, 1, 2], [0] * 3, markersize=5, markevery=[1], linewidth=1.8, **style(arm))
            inner = _svg(figure, "").partition(">")[2].removesuffix("</svg>")
        drawn.append(f'<symbol id="arm-{arm}" viewBox="0 0 30 12">{inner}</symbol>')
    return Markup(f'<svg class="hidden" aria-hidden="true">{"".join(drawn)}</svg>')


def span_of(values: Sequence[float], *, at_least: float = 0.2, whole: bool = True) -> Span:
    """Limits that hold all values: the whole 0–1 when `whole` and they fit, else padded."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if whole and low >= 0 and high <= 1:
        return (-0.03, 1.03)
    pad = max((high - low) * 0.08, (at_least - (high - low)) / 2, 1e-6)
    return (low - pad, high + pad)


def _settings(key: str):  # type: ignore[no-untyped-def]
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": key,
            "font.size": 10,
            "axes.edgecolor": RULE,
            "axes.labelsize": 10,
            "xtick.labelsize": 9.5,
            "ytick.labelsize": 9.5,
            "xtick.color": SOFT,
            "ytick.color": SOFT,
            "text.color": INK,
            "axes.unicode_minus": True,
            "text.parse_math": False,
        }
    )


def _panel(
    size: tuple[int, int], span: Span, percent: bool, *, below: int = 20
) -> tuple[Figure, Axes]:
    width, height = size
    figure = Figure(figsize=(width / 72, height / 72))
    left, bottom, top = 32 / width, below / height, 6 / height
    axes = figure.add_axes((left, bottom, 1 - left - 9 / width, 1 - bottom - top))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=4)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylim(*span)
    axes.locator_params(axis="y", nbins=5)
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.0f}".replace("-", "−"))
    return figure, axes


def _bars(
    axes: Axes, along: Sequence[float], points: Sequence[Point], ink: str, *, vertical: bool
) -> None:
    known = [
        (place, point.low, point.high)
        for place, point in zip(along, points, strict=True)
        if point.low is not None and point.high is not None
    ]
    if known:
        places, lows, highs = zip(*known, strict=True)
        draw = axes.vlines if vertical else axes.hlines
        draw(places, lows, highs, color=ink, linewidth=1, alpha=0.55, clip_on=False)


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an inline `<svg>` that takes its colours and fonts from the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', text)
    role = f'role="img" aria-label="{escape(title)}"' if title else 'aria-hidden="true"'
    head = f'<svg viewBox="{box[1] if box else ""}" {role}>'
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r"<style.*?</style>|<metadata.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<defs>\s*</defs>", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every figure; nothing refers to them
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = re.sub(r" transform=\"rotate\(-0 [^)]*\)\"", "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"\s*\n\s*", " ", text)
    for sentinel, variable in _VARIABLES.items():
        text = text.replace(sentinel, variable)
    return Markup(text.strip())
