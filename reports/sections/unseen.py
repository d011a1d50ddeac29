"""Tasks not learnt yet: what each stage did to those still to come (negative transfer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from reports import markup
from reports.runs import Arm, Point, Report, point_from
from reports.table import GAIN

TEMPLATE = """
<div class="scroll"><table class="numbers"><thead><tr><th scope="col">Strategy</th>
{% for stage in stages %}<th scope="col">After stage {{ stage }}</th>{% endfor %}
<th scope="col">Mean</th></tr></thead><tbody>
{% for arm, gains, mean in rows %}
<tr><th scope="row">{{ m.arm(arm, swatches) }}</th>
{% for gain in gains %}<td>{{ m.point(gain, signed=true) }}{% if gain and gain.high is not none
and gain.high < 0 %} <small class="warn">negative</small>{% endif %}</td>{% endfor %}
<td>{{ m.point(mean, signed=true) }}{% if mean and mean.high is not none and mean.high < 0
%} <small class="warn">negative</small>{% endif %}</td></tr>
{% endfor %}</tbody></table></div>
<p class="note">The mean change, in points, of the tasks that are not trained on yet, against the
base. Below zero, learning one task made the model worse at others before it saw them: negative
transfer. It is called so where the whole 95 % interval lies below zero. A strategy that trains on
all tasks at once leaves none unseen.</p>
"""


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """A line a strategy, a column a stage; left out if no stage leaves a task unseen."""

    place: ClassVar[int] = 45
    title: ClassVar[str] = "Tasks not learnt yet"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup | None:
        rows = [(arm, _gains(arm), arm.cell(GAIN)) for arm in report.trained]
        rows = [(arm, gains, mean) for arm, gains, mean in rows if any(gains)]
        if not rows:
            return None
        last = max(i for _, gains, _ in rows for i, gain in enumerate(gains, 1) if gain)
        return markup.render(
            TEMPLATE,
            rows=[(arm, (gains + [None] * last)[:last], mean) for arm, gains, mean in rows],
            stages=range(1, last + 1),
            swatches=swatches,
        )


def _gains(arm: Arm) -> list[Point | None]:
    """After each stage."""
    return [point_from(arm.row.gain(i), seeds=len(arm.seeds)) for i in range(1, arm.row.done + 1)]
