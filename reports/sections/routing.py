"""Routing: which adapter answered what, and what perfect routing would have scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from reports import markup
from reports.runs import SHARE, Arm, Point, Report, over_seeds

TEMPLATE = """
{% for block in blocks %}
<h3>{{ m.arm(block.arm, swatches) }}</h3>
{% if block.accuracy %}<p>{{ m.point(block.accuracy) }} % of the items of trained tasks reached
their own adapter
{% if block.accuracy.value < least %}<b class="warn">– less than {{ (least * 100) | round | int }}
%, so routing failed</b>{% else %}(at least {{ (least * 100) | round | int }} % counts as working){%
endif %}.</p>{% endif %}
<div class="scroll"><table class="matrix routing"><thead><tr><th scope="col">share of items, last
stage</th>
{% for route in block.routes %}<th scope="col">{{ route | breakable }}</th>{% endfor %}
{% if block.oracle %}<th scope="col">accuracy</th><th scope="col">by oracle</th>{% endif
%}</tr></thead><tbody>
{% for name, shares, learned, oracle in block.rows %}<tr><th scope="row">{{ name }}</th>
{% for share in shares %}<td class="heat-{{ (share * 20) | round | int }}">{{ share | number if
share else "·" }}</td>{% endfor %}
{% if block.oracle %}<td>{{ learned | number }}</td><td>{{ oracle | number }}</td>{% endif %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}
<p class="note">Probe items go through the learned router too, as any user's prompt would. The
oracle is told
the task, which no user tells: it is an upper bound and not a result.</p>
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One strategy's routing at its last stage."""

    arm: Arm
    accuracy: Point | None
    routes: list[str]
    rows: list[tuple[str, list[float], float | None, float | None]]
    oracle: bool


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Left out if no strategy routes."""

    least: float = 0.9
    """Share of own-task items that must reach their adapter for routing to count as working."""
    place: ClassVar[int] = 65
    title: ClassVar[str] = "Routing"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup | None:
        blocks = [_block(arm) for arm in report.arms if any(s.get("routing") for s in arm.last)]
        if not blocks:
            return None
        return markup.render(TEMPLATE, blocks=blocks, swatches=swatches, least=self.least)


def _block(arm: Arm) -> Block:
    last = arm.last
    sets = list(dict.fromkeys(name for s in last for name in s.get("routing", {})))
    routes = list(
        dict.fromkeys(r for s in last for shares in s.get("routing", {}).values() for r in shares)
    )
    rows = []
    for name in sets:
        shares = []
        for route in routes:
            point = over_seeds(
                [s.get("routing", {}).get(name, {}).get(route, 0.0) for s in last], SHARE
            )
            shares.append(min(max(point.value, 0.0), 1.0) if point else 0.0)
        oracle = over_seeds([s.get("oracle", {}).get(name) for s in last], SHARE)
        learned = arm.task(name, arm.stages[-1])
        rows.append(
            (name, shares, learned.value if learned else None, oracle.value if oracle else None)
        )
    return Block(
        arm=arm,
        accuracy=over_seeds([s.get("routing_accuracy") for s in last], SHARE),
        routes=routes,
        rows=rows,
        oracle=any(s.get("oracle") for s in last),
    )
