"""The accuracy matrix of each strategy: tasks across, stages down, what is unseen marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from reports import markup
from reports.runs import Arm, Point, Report
from reports.transfer import since_learnt

TEMPLATE = """
<div class="matrices">
{% for arm, rows, change in matrices %}
<figure><figcaption>{{ m.arm(arm, swatches) }}</figcaption>
<div class="scroll"><table class="matrix">
<thead><tr><th scope="col">after stage</th>{% for task in arm.run.tasks %}<th scope="col">{{ task |
breakable }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row.label }}</th>
{% for cell in row.cells %}
{% if cell is none or cell.point is none %}<td class="none">–</td>
{% else %}<td class="heat-{{ (cell.point.value * 20) | round | int }}{{ "" if cell.seen else "
unseen" }}{{ " trained" if cell.trained }}"
{%- if cell.point.low is not none %} title="{{ cell.point.low | interval(cell.point.high) }}"{%
endif %}>{{ cell.point.value | number }}</td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody>
<tfoot><tr><th scope="row">since learnt</th>{% for p in change %}<td
{%- if p and p.low is not none %} title="{{ p.low | interval(p.high, signed=true) }}"{% endif %}>
{{- (p.value if p else none) | number(signed=true) }}</td>{% endfor %}</tr></tfoot>
</table></div></figure>
{% endfor %}
</div>
<p class="note">Accuracy in percent{% if several_seeds %}, mean over seeds{% endif %}. Framed: the
task trained in that stage.
Slanted and pale: tasks not trained yet, so zero-shot or transfer. The last line is the change from
the stage that taught the task to the last stage.</p>
"""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A task at a stage."""

    point: Point | None
    seen: bool
    trained: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """A stage."""

    label: str
    cells: list[Cell]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Heat maps with numbers, one a strategy."""

    place: ClassVar[int] = 30
    title: ClassVar[str] = "Accuracy after every stage"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup:
        return markup.render(
            TEMPLATE,
            matrices=[
                (arm, _rows(arm), [since_learnt(arm, task) for task in arm.run.tasks])
                for arm in report.arms
            ],
            swatches=swatches,
            several_seeds=any(len(arm.seeds) > 1 for arm in report.arms),
        )


def _rows(arm: Arm) -> list[Row]:
    rows = []
    for stage in arm.stages:
        scores = arm.at(stage)[0]
        records = scores.get("tasks", {})
        cells = [
            Cell(
                point=arm.task(task, stage),
                seen=stage > 0 and task in records and records[task]["seen"],
                trained=stage > 0 and scores["task"] == task,
            )
            for task in arm.run.tasks
        ]
        label = "base" if stage == 0 else f"{stage} · {scores['task'] or 'all tasks'}"
        rows.append(Row(label=label, cells=cells))
    return rows
