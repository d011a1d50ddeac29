"""What each strategy cost, and whether the compared ones train equally many parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from reports import markup
from reports.records import Scores
from reports.runs import Arm, Report
from reports.table import COLUMNS, Column, Estimate

TEMPLATE = """
<div class="scroll"><table class="numbers"><thead><tr><th scope="col">Strategy</th>
<th scope="col">Seeds</th>{% for column in columns %}<th scope="col">{{ column.title }}</th>{%
endfor %}</tr></thead><tbody>
{% for arm in arms %}
<tr><th scope="row">{{ m.arm(arm, swatches) }}</th><td>{{ arm.row.marked }}</td>
{% for column in columns %}<td>{{ cost(arm, column) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p>{{ matched }}</p>
<p class="note">Means over seeds, with 95 % intervals over seeds where they differ. Trainable is the
largest number of parameters that were trained at once; stored is what must be kept after the last
stage to go on or to answer.</p>
<details><summary>Each seed</summary>
<div class="scroll"><table class="numbers"><thead><tr><th scope="col">Strategy</th><th
scope="col">Seed</th>
<th scope="col">Stages</th><th scope="col">Steps</th><th scope="col">Training</th><th
scope="col">Scoring</th><th scope="col">Longest stage</th>
<th scope="col">Trainable</th><th scope="col">Stored</th><th scope="col">Peak
memory</th></tr></thead><tbody>
{% for arm, seed, row in rows %}
<tr><th scope="row">{{ m.arm(arm, swatches) }}</th><td>{{ seed }}</td><td>{{ row.stages }}</td>
<td>{{ row.steps | count }}</td><td>{{ row.seconds | seconds }}</td><td>{{ row.scoring | seconds
}}</td><td>{{ row.longest | seconds }}</td>
<td>{{ row.trainable | count }}</td><td>{{ row.stored | size }}</td><td>{{ row.memory | size
}}</td></tr>
{% endfor %}</tbody></table></div></details>
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The cost of one seed of a strategy."""

    stages: int
    steps: float | None
    seconds: float | None
    scoring: float | None
    longest: float | None
    trainable: float | None
    stored: float | None
    memory: float | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, steps, parameters and bytes."""

    place: ClassVar[int] = 80
    title: ClassVar[str] = "Cost"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup | None:
        rows = [
            (arm, seed, _row(lane)) for arm in report.trained for seed, lane in arm.seeds.items()
        ]
        sizes = {arm.label: row.trainable for arm, _, row in rows if row.trainable}
        if len(set(sizes.values())) > 1:
            most, least = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
            matched = (
                f"The strategies are not matched in size: {most} trains "
                f"{sizes[most] / sizes[least]:.1f} times the parameters of {least}."
            )
        else:
            matched = "All strategies that train anything train equally many parameters."
        if not rows:
            return None
        return markup.render(
            TEMPLATE,
            rows=rows,
            arms=report.trained,
            columns=[column for column in COLUMNS if column.group == "cost"],
            cost=_shown,
            swatches=swatches,
            matched=matched,
        )


def _shown(arm: Arm, column: Column) -> Markup:
    """The value and, below it, its interval."""
    found = arm.row.cells.get(column.name, Estimate())
    value = column.number(found.value).replace(",", "\u202f")
    if math.isnan(found.low):
        return Markup("<b>{}</b>").format(value)
    ends = ", ".join(column.number(end).replace(",", "\u202f") for end in (found.low, found.high))
    return Markup("<b>{}</b> <small>[{}]</small>").format(value, ends)


def _row(lane: Sequence[Scores]) -> Row:
    def known(key: str) -> list[float]:
        values = [scores.get("cost", {}).get(key) for scores in lane]
        return [float(value) for value in values if isinstance(value, int | float)]

    seconds, steps, stored = known("seconds"), known("steps"), known("stored_bytes")
    scoring = known("scoring_seconds")
    return Row(
        stages=len(lane),
        steps=sum(steps) if steps else None,
        seconds=sum(seconds) if seconds else None,
        scoring=sum(scoring) if scoring else None,
        longest=max(seconds, default=None),
        trainable=max(known("trainable_parameters"), default=None),
        stored=stored[-1] if stored else None,
        memory=max(known("peak_memory_bytes"), default=None),
    )
