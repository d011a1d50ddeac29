"""How a report calls a figure and writes a number.

Knows the names of the standard figures; a figure it does not know appears under its own name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

MINUS = "\u2212"
NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What a figure is called, which way is good, and its unit."""

    label: str
    better: Literal["up", "down"] | None = None
    unit: Literal["share", "nats"] = "share"
    short: str = ""
    """The label where room is scarce."""
    twin: str | None = None
    """The likelihood-scored figure that tells lost format from lost behaviour."""


def _pair(
    name: str, label: str, better: Literal["up", "down"], short: str = ""
) -> dict[str, Wording]:
    """A generated figure and its likelihood-scored twin, which measures the same."""
    head, _, tail = name.partition(".")
    twin = f"{head}.likelihood.{tail}"
    return {
        name: Wording(label=label, better=better, short=short, twin=twin),
        twin: Wording(label=f"{label} by likelihood", better=better),
    }


FIGURES: dict[str, Wording] = {
    **_pair("refusal.rate", "Refusal of restricted requests", "up"),
    **_pair("over_refusal.rate", "Over-refusal of benign twins", "down", "Over-refusal"),
    **_pair("refusal.j", "Refusal J", "up"),
    "refusal.margin": Wording(label="Refusal margin", better="up", unit="nats"),
    "refusal.incoherent": Wording(label="Incoherent answers to requests", better="down"),
    **_pair("existence.f1", "Existence F1", "up"),
    **_pair("existence.accuracy", "Existence accuracy", "up", "Existence"),
    "existence.invalid": Wording(
        label="Invalid answers on existence", better="down", twin="existence.likelihood.accuracy"
    ),
    "captions.chair_i": Wording(
        label="CHAIRi: objects made up", better="down", short="CHAIRi", twin="captions.likelihood"
    ),
    "captions.cover": Wording(label="Caption cover", better="up", twin="captions.likelihood"),
    "captions.likelihood": Wording(label="True caption likelier than a false one", better="up"),
    **_pair("bias.flip_rate", "Bias flips between twins", "down"),
    **_pair("bias.accuracy", "Bias probe accuracy", "up"),
    **_pair("reading.accuracy", "Reading drawn words", "up"),
}


_NATS = re.compile(r"(^|\.)margin$|^bias\.(.*\.)?likelihood\.gap$")
_DIFFERENCES = re.compile(r"(^|\.)(j|s_amb|s_dis|difference|effect|shift|sway)$")


def wording(figure: str) -> Wording:
    """Of an unknown figure: its name, and the unit that its name tells."""
    unit: Literal["share", "nats"] = "nats" if _NATS.search(figure) else "share"
    return FIGURES.get(figure, Wording(label=figure, unit=unit))


def bounds(figure: str) -> tuple[float, float]:
    """What the figure can be: a share, a difference of two, or any log-odds."""
    if wording(figure).unit == "nats":
        return -math.inf, math.inf
    return (-1.0 if _DIFFERENCES.search(figure) else 0.0), 1.0


def by_likelihood(figure: str) -> bool:
    """Whether the figure is scored by likelihood, so that it says nothing about format."""
    return "likelihood" in figure.split(".") or figure.endswith(".margin")


def in_order(figures: list[str]) -> list[str]:
    """The known ones in the order above, then the others as they came."""
    known = [name for name in FIGURES if name in figures]
    return [*known, *(name for name in figures if name not in FIGURES)]


def number(value: float | None, unit: str = "share", *, signed: bool = False) -> str:
    """A share in percent (a difference: in points), nats as they are; a real minus sign."""
    if value is None:
        return NONE
    shown = value * 100 if unit == "share" else value
    digits = f"{shown:+.1f}" if signed else f"{shown:.1f}"
    if float(digits) == 0:
        digits = "0.0"
    return digits.replace("-", MINUS)


def interval(low: float | None, high: float | None, unit: str = "share", *, signed: bool = False,
             ) -> str:  # fmt: skip
    if low is None or high is None:
        return ""
    return f"[{number(low, unit, signed=signed)}, {number(high, unit, signed=signed)}]"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}".replace(",", "\u202f")


def seconds(value: float | None) -> str:
    if value is None:
        return NONE
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(value: float | None) -> str:
    if value is None:
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def breakable(name: str) -> Markup:
    """`name` with places to break a line, after each of _ . = -."""
    return Markup("<wbr>").join(re.split(r"(?<=[_.=-])", name))


def series(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
