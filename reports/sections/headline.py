"""The headline: what was kept, what was forgotten and what drifted, a line each.

The same table as `clmm table` gives, without what it cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from markupsafe import Markup

from reports import markup
from reports.measures import Stage
from reports.runs import Arm, Point, Report, Run, point_from
from reports.table import COLUMNS, INDIVIDUAL, Column, Row, accuracy_of
from reports.transfer import forgetting

TEMPLATE = """
{% macro marked(row) -%}
{{ row.marked }}{% if row.behind %} <small>{{ row.behind }}</small>{% endif %}
{%- endmacro %}
<div class="scroll"><table class="numbers headline">
<thead>
<tr><th rowspan="2" scope="col">Strategy</th><th rowspan="2" scope="col">Seeds</th>
{% for title, span in groups %}<th colspan="{{ span }}" scope="colgroup">{{ title }}</th>{% endfor
%}</tr>
<tr>{% for column in columns %}<th scope="col">{{ column.title }}</th>{%
if loop.index == tasks %}<th scope="col">Forgetting</th>{% endif %}{% endfor %}</tr>
</thead>
<tbody>
{% for run, point in bases %}
<tr class="base"><th scope="row">base{{ " of " ~ run.name if bases | length > 1 }}</th><td></td><td>
{{- m.point(point) }}</td>
<td colspan="{{ columns | length }}" class="soft">before any stage: the anchor of every change</td>
</tr>
{% endfor %}
{% for arm, cells, forgetting in rows %}
<tr><th scope="row">{{ m.arm(arm, swatches) }}</th><td>{{ marked(arm.row) }}</td>
{% for column, point in cells %}<td>{{ m.point(point, signed=column.signed) }}</td>
{% if loop.index == tasks %}<td>{{ m.point(forgetting) }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="note">Accuracies in percent, changes in points. {{ ranges }}
Last accuracy is the mean over all tasks of the stream. Backward transfer is the mean change of a
task between learning it and the end. Unseen transfer is the mean change from the base of the tasks
that are still to come; below zero it is negative transfer. Learning accuracy is that of each task
just after its own stage. Forgetting is the mean fall from a task's best accuracy, never below the
level at which it was learnt.
{{ "† one seed: no claim about the method. " if one }}
{%- if apart %} {{ apart | series }}: each stage begins from the base, so only the learning accuracy
is a bound, and nothing is transferred back or forgotten.{% endif %}
{{- " ‡ unfinished: the numbers are those of the last finished stage." if behind }}</p>
"""

TITLES = {"tasks": "Tasks", "drift": "Change from the base, last stage"}


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One line a strategy."""

    place: ClassVar[int] = 20
    title: ClassVar[str] = "Headline"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup:
        columns = _columns(report)
        groups = [(TITLES[name], list(found)) for name, found in groupby(columns, _group)]
        rows: list[Row] = [arm.row for arm in report.arms]
        alone = all(len(arm.seeds) == 1 for arm in report.arms)
        return markup.render(
            TEMPLATE,
            bases=[(run, _base(run)) for run in report.runs if not run.has_base_as_strategy],
            rows=[(arm, _cells(arm, columns), _forgetting(arm)) for arm in report.arms],
            columns=columns,
            groups=[(title, len(found) + (title == TITLES["tasks"])) for title, found in groups],
            tasks=len(groups[0][1]),
            swatches=swatches,
            one=any(len(row.seeds) == 1 for row in rows),
            apart=[arm.label for arm in report.arms if arm.row.spec.get("name") == INDIVIDUAL],
            behind=any(row.behind for row in rows),
            ranges="Brackets are 95 % intervals over items, for one seed."
            if alone
            else "Means over seeds; brackets are 95 % intervals over seeds and items.",
        )


def _columns(report: Report) -> list[Column]:
    """All but the costs; a drift where some run measured its figure at the base."""
    measured = [run.base["figures"] for run in report.runs]
    return [
        column
        for column in COLUMNS
        if column.group == "tasks"
        or (column.figure and any(one.get(column.figure) is not None for one in measured))
    ]


def _group(column: Column) -> str:
    return column.group


def _cells(arm: Arm, columns: Sequence[Column]) -> list[tuple[Column, Point | None]]:
    return [(column, arm.cell(column)) for column in columns]


def _base(run: Run) -> Point | None:
    return point_from(accuracy_of(Stage(scores=run.base, outcomes=None)))


def _forgetting(arm: Arm) -> Point | None:
    """Of stages that begin from the base there is none."""
    return None if arm.row.spec.get("name") == INDIVIDUAL else forgetting(arm)
