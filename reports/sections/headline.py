"""The headline: what was kept, what was forgotten, what drifted and what it cost, a line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from reports import markup
from reports.runs import Arm, Point, Report, over_seeds, point_of
from reports.transfer import backward_transfer, forgetting, mean_accuracy
from reports.wording import wording

TEMPLATE = """
<div class="scroll"><table class="numbers">
<thead>
<tr><th rowspan="2" scope="col">Strategy</th><th colspan="3" scope="colgroup">Tasks</th>
{% if drifts %}<th colspan="{{ drifts | length }}" scope="colgroup">Change from the base, last
stage</th>{% endif %}
<th colspan="3" scope="colgroup">Price</th></tr>
<tr><th scope="col">Last accuracy</th><th scope="col">Backward transfer</th><th
scope="col">Forgetting</th>
{% for name in drifts %}<th scope="col">{{ wording(name).short or wording(name).label }}</th>{%
endfor %}
<th scope="col">Routing</th><th scope="col">Trainable</th><th scope="col">Time</th></tr>
</thead>
<tbody>
{% for run, point in bases %}
<tr class="base"><th scope="row">base{{ " of " ~ run.name if bases | length > 1 }}</th><td>{{
m.point(point) }}</td>
<td colspan="{{ 2 + (drifts | length) + 3 }}" class="soft">before any stage: the anchor of every
change</td></tr>
{% endfor %}
{% for row in rows %}
<tr><th scope="row">{{ m.arm(row.arm, swatches) }}</th>
<td>{{ m.point(row.last) }}</td>
<td>{{ m.point(row.backward, signed=true) }}</td>
<td>{{ m.point(row.forgetting) }}</td>
{% for name, point in row.drifts %}<td>{{ m.point(point, wording(name).unit, signed=true) }}</td>{%
endfor %}
<td>{{ m.point(row.routing) }}{% if row.routing and row.routing.value < 0.9 %} <small
class="warn">failed</small>{% endif %}</td>
<td>{{ row.trainable | count }}</td><td>{{ row.seconds | seconds }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">Accuracies in percent, changes in points. {{ ranges }}
Backward transfer is the mean change of a task between learning it and the end; forgetting is the
mean
fall from a task's best accuracy, never below the level at which it was learnt. Last accuracy is the
mean over all tasks of the stream. Time is training time, summed over stages.</p>
"""

DRIFTS = ("refusal.j", "over_refusal.rate", "existence.accuracy", "captions.chair_i")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A strategy's line."""

    arm: Arm
    last: Point | None
    backward: Point | None
    forgetting: Point | None
    drifts: list[tuple[str, Point | None]]
    routing: Point | None
    trainable: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One line a strategy; `figures` are the drifts it shows, where the run has them."""

    figures: tuple[str, ...] = DRIFTS
    place: ClassVar[int] = 20
    title: ClassVar[str] = "Headline"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup:
        drifts = [name for name in self.figures if name in report.figures()]
        one = all(len(arm.seeds) == 1 for arm in report.arms)
        return markup.render(
            TEMPLATE,
            bases=[(arm.run, mean_accuracy(arm, 0)) for arm in report.arms if arm.is_first],
            rows=[_row(arm, drifts) for arm in report.arms],
            drifts=drifts,
            wording=wording,
            swatches=swatches,
            ranges="Brackets are 95 % intervals over items, for one seed."
            if one
            else "Means over seeds; brackets are 95 % intervals over seeds and items.",
        )


def _row(arm: Arm, drifts: list[str]) -> Row:
    return Row(
        arm=arm,
        last=mean_accuracy(arm, arm.stages[-1]),
        backward=backward_transfer(arm),
        forgetting=forgetting(arm),
        drifts=[(name, drift(arm, name)) for name in drifts],
        routing=over_seeds([scores.get("routing_accuracy") for scores in arm.last]),
        trainable=_cost(arm, "trainable_parameters", max),
        seconds=_cost(arm, "seconds", sum),
    )


def drift(arm: Arm, figure: str) -> Point | None:
    """Change of the last stage from the base, with the verdicts' intervals where they have any."""
    found = []
    for lane in arm.seeds.values():
        now, then = point_of(lane[-1], figure), point_of(arm.run.base, figure)
        record = lane[-1].get("verdicts", {}).get(figure, {}).get("base")
        low, high = (record["low"], record["high"]) if record else (None, None)
        if now is not None and then is not None:
            found.append(Point(value=now.value - then.value, low=low, high=high))
    return over_seeds(found)


def _cost(arm: Arm, key: str, over_stages: Callable[[list[float]], float]) -> float | None:
    """A cost over the stages of a lane, as a mean over seeds."""
    lanes = []
    for lane in arm.seeds.values():
        known = [s.get("cost", {}).get(key) for s in lane]
        found = [float(value) for value in known if isinstance(value, int | float)]
        lanes.append(over_stages(found) if found else None)
    point = over_seeds(lanes)
    return None if point is None else point.value
