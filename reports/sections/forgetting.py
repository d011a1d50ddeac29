"""Forgetting curves: each task's accuracy over the stages, all strategies together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from reports import drawing, markup
from reports.drawing import Line
from reports.runs import Report, Run

TEMPLATE = """
{{ m.legend(arms, swatches) }}
{% for run, panels in groups %}
{% if groups | length > 1 %}<h3>{{ run.name }}</h3>{% endif %}
<div class="panels">
{% for task, svg in panels %}<figure><figcaption><b>{{ task }}</b></figcaption>{{ svg }}</figure>{%
endfor %}
</div>
{% endfor %}
<p class="note">Accuracy in percent over stages. The grey column is the stage that trains the task;
the
dotted line is the base. Bars are 95 % intervals over {{ "seeds and items" if several_seeds else
"items" }}.</p>
"""


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """A small panel for each task."""

    place: ClassVar[int] = 40
    title: ClassVar[str] = "Forgetting curves"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup | None:
        if not report.trained:
            return None
        groups = [(run, _panels(report, run)) for run in report.runs]
        return markup.render(
            TEMPLATE,
            groups=groups,
            arms=report.arms,
            swatches=swatches,
            several_seeds=any(len(arm.seeds) > 1 for arm in report.arms),
        )


def _panels(report: Report, run: Run) -> list[tuple[str, Markup]]:
    arms = [arm for arm in report.arms if arm.run is run]
    stages = sorted({stage for arm in arms for stage in arm.stages})
    panels = []
    for task in run.tasks:
        lines = []
        for arm in arms:
            points = [(stage, arm.task(task, stage)) for stage in arm.stages]
            lines.append(Line(arm=arm.index, points=[(x, p) for x, p in points if p is not None]))
        if not any(line.points for line in lines):
            continue
        taught = [s["stage"] for arm in arms for s in arm.lanes[0][1:] if s["task"] == task]
        base = arms[0].task(task, 0)
        panels.append(
            (
                task,
                drawing.over_stages(
                    lines,
                    key=f"forgetting-{run.name}-{task}",
                    title=f"Accuracy on {task} over the stages",
                    stages=stages,
                    span=(-0.03, 1.03),
                    base=None if base is None else base.value,
                    trained=taught[0] if taught else None,
                ),
            )
        )
    return panels
