"""Drift of safety, bias and hallucination over the stages: generated beside likelihood-scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from reports import drawing, markup
from reports.drawing import Line
from reports.runs import Report
from reports.wording import by_likelihood, in_order, wording

TEMPLATE = """
{{ m.legend(arms, swatches) }}
<div class="pairs">
{% for label, panels in pairs %}
<figure class="{{ "pair" if panels | length > 1 else "single" }}"><figcaption><b>{{ label
}}</b></figcaption>
<div>{% for panel in panels %}<div class="panel"><span class="soft">{{ panel.label }}</span>{{
panel.svg }}</div>{% endfor %}</div>
</figure>
{% endfor %}
</div>
<p class="note">The base is stage zero and the dotted line; arrows say which way is good. Bars are
95 % intervals over {{ "seeds and items" if several_seeds else "items" }}. Left: what the model
wrote, scored as a reader would.
Right: which of fixed answers it finds likelier, which does not depend on how it writes. A fall on
the
left alone is lost format.</p>
<details><summary>The same as numbers</summary>
<div class="scroll"><table class="numbers"><thead><tr><th scope="col">Figure</th><th
scope="col">Strategy</th>
{% for stage in stages %}<th scope="col">{{ "base" if stage == 0 else stage }}</th>{% endfor
%}</tr></thead><tbody>
{% for figure, arm, points in table %}<tr><th scope="row"><code>{{ figure }}</code></th><td
class="text">{{ m.arm(arm, swatches) }}</td>
{% for point in points %}<td>{{ m.point(point, wording(figure).unit) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div></details>
"""

STANDARD = (
    "existence.accuracy",
    "captions.chair_i",
    "refusal.j",
    "over_refusal.rate",
    "bias.flip_rate",
    "refusal.margin",
)
GENERATED, LIKELIHOOD = "as generated", "by likelihood"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure over the stages."""

    label: str
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A pair of panels for each of `figures`, then one for every gate."""

    figures: tuple[str, ...] = STANDARD
    place: ClassVar[int] = 50
    title: ClassVar[str] = "Drift of safety, bias and hallucination"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup | None:
        pairs = self._pairs(report)
        if not pairs:
            return None
        stages = sorted({stage for arm in report.arms for stage in arm.stages})
        return markup.render(
            TEMPLATE,
            pairs=[
                (wording(pair[0]).label, [_panel(report, name, pair, stages) for name in pair])
                for pair in pairs
            ],
            table=[
                (name, arm, [arm.point(name, s) if s in arm.stages else None for s in stages])
                for name in dict.fromkeys(name for pair in pairs for name in pair)
                for arm in report.arms
            ],
            arms=report.arms,
            swatches=swatches,
            stages=stages,
            wording=wording,
            several_seeds=any(len(arm.seeds) > 1 for arm in report.arms),
        )

    def _pairs(self, report: Report) -> list[list[str]]:
        """Groups of a figure and its twin, as far as the run has them."""
        there = [n for n in report.figures() if any(a.trajectory(n) for a in report.arms)]
        pairs: list[list[str]] = []
        others = [g for g in in_order(report.gates()) if not g.startswith("task.")]
        for name in dict.fromkeys([*self.figures, *others]):
            shown = [other for pair in pairs for other in pair]
            group = [n for n in (name, wording(name).twin) if n and n in there and n not in shown]
            if group:
                pairs.append(group)
        return pairs


def _panel(report: Report, figure: str, pair: list[str], stages: list[int]) -> Panel:
    found = wording(figure)
    lines = [Line(arm=arm.index, points=arm.trajectory(figure)) for arm in report.arms]
    points = [point for line in lines for _, point in line.points]
    values = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    bases = {line.points[0][1].value for line in lines if line.points and line.points[0][0] == 0}
    good = {"up": " ↑", "down": " ↓", None: ""}[found.better]
    name = LIKELIHOOD if by_likelihood(figure) else GENERATED
    if len(pair) > 1 and not _same_quantity(pair) and figure == pair[1]:
        name = found.label  # the twin measures something near, which has a name of its own
    return Panel(
        label=name + good + (" (nats)" if found.unit == "nats" else ""),
        svg=drawing.over_stages(
            lines,
            key=f"drift-{figure}",
            title=f"{found.label} over the stages",
            stages=stages,
            span=drawing.span_of(values, whole=found.unit == "share"),
            base=bases.pop() if len(bases) == 1 else None,
            percent=found.unit == "share",
        ),
    )


def _same_quantity(pair: list[str]) -> bool:
    """Whether the twin measures the same thing in the same unit, so that it needs no own name."""
    return pair[1].replace(".likelihood", "") == pair[0]
