"""Accuracy against safety: each strategy's way from the base to its last stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from markupsafe import Markup

from reports import drawing, markup
from reports.drawing import Path
from reports.runs import Point, Report
from reports.transfer import mean_accuracy
from reports.wording import wording

TEMPLATE = """
{{ m.legend(arms, swatches) }}
<div class="planes">
{% for label, svg in panels %}<figure><figcaption><b>{{ label }}</b></figcaption>{{ svg
}}</figure>{% endfor %}
</div>
<p class="note">Across: mean accuracy over all tasks. Up is always safer. The ring is the base, dots
are
stages, the large mark is the last stage with its 95 % intervals over
{{ "seeds and items" if several_seeds else "items" }}.
The upper right corner is where a strategy wants to be.</p>
"""


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """A plane for each of `figures` that the run has."""

    figures: tuple[str, ...] = ("refusal.j", "existence.accuracy", "captions.chair_i")
    place: ClassVar[int] = 60
    title: ClassVar[str] = "Accuracy against safety"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup | None:
        panels = []
        for figure in self.figures:
            paths = _paths(report, figure)
            if not paths:
                continue
            found = wording(figure)
            label = f"100 − {found.label}" if found.better == "down" else found.label
            values = [v for path in paths for _, y in path.points for v in (y.value, y.low, y.high)]
            panels.append(
                (
                    label,
                    drawing.in_plane(
                        paths,
                        key=f"plane-{figure}",
                        title=f"Mean task accuracy against {label}",
                        x_label="mean task accuracy, %",
                        x_span=(-0.03, 1.03),
                        y_span=drawing.span_of([v for v in values if v is not None]),
                    ),
                )
            )
        if not panels:
            return None
        several = any(len(arm.seeds) > 1 for arm in report.arms)
        return markup.render(
            TEMPLATE, panels=panels, arms=report.arms, swatches=swatches, several_seeds=several
        )


def _paths(report: Report, figure: str) -> list[Path]:
    flip = wording(figure).better == "down"
    paths = []
    for arm in report.arms:
        points = []
        for stage, point in arm.trajectory(figure):
            across = mean_accuracy(arm, stage)
            if across is not None:
                points.append((across, _safer_up(point) if flip else point))
        if points:
            paths.append(Path(arm=arm.index, points=points))
    return paths


def _safer_up(point: Point) -> Point:
    return replace(
        point,
        value=1 - point.value,
        low=None if point.high is None else 1 - point.high,
        high=None if point.low is None else 1 - point.low,
    )
