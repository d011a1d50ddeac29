"""What regressed: each gate of each strategy against the base, and stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from reports import markup
from reports.runs import Arm, Report, Verdict, severity
from reports.wording import by_likelihood, in_order, series, wording

SIGNS = {
    "REGRESSED": ("▼", "R", "worse by at least the margin, and not by chance"),
    "FORMAT": ("◇", "F", "the generated answers got worse, their likelihood-scored twin did not"),
    "IMPROVED": ("▲", "I", "better by at least the margin, and not by chance"),
    "EQUIVALENT": ("=", "E", "shown to lie within the margin"),
    "INCONCLUSIVE": ("?", "?", "too few items to say"),
    "NOT MEASURABLE": ("–", "N", "a skill that the figure needs was missing at the base"),
}

TEMPLATE = """
{% macro kind(v) %}{{ v.state | lower | replace(" ", "-") }}{% endmacro %}
{% macro letter(v) -%}
<i class="{{ kind(v) }}" title="stage {{ v.stage }}: {{ v.state | lower }}">
{{- signs.get(v.state, signs["NOT MEASURABLE"])[1] }}</i>
{%- endmacro %}
{% macro dots(title, verdicts, note="") %}
<span class="dots"><span class="soft">{{ title }}</span>
{%- for v in verdicts %}{{ letter(v) }}{% endfor %} <small>{{ note }}</small></span>
{% endmacro %}
{% macro change(record, unit) -%}
{% if record.delta is not none %}{{ record.delta | number(unit, signed=true) }}
<small>{{ record.low | interval(record.high, unit, signed=true) }}</small>{% endif %}
{%- endmacro %}
<ul class="lead">{% for arm, sentence in counts %}<li>{{ m.arm(arm, swatches) }} {{ sentence }}</li>
{% endfor %}</ul>
<p class="finding">{{ finding }}</p>
{% if rows %}
<div class="scroll"><table class="verdicts">
<thead><tr><th scope="col">Gate</th>
{% for arm in arms %}<th scope="col">{{ m.arm(arm, swatches) }}</th>{% endfor %}</tr></thead>
<tbody>
{% for gate, label, cells in rows %}
<tr><th scope="row">{{ label }}<small><code>{{ gate | breakable }}</code></small></th>
{% for cell in cells %}
{% if cell is none %}<td class="none">not compared</td>
{% else %}
{% set last = cell.base[-1] %}
<td class="verdict {{ kind(last) }}">
<b class="state"><span aria-hidden="true">{{ signs.get(last.state, signs["NOT MEASURABLE"])[0] }}
</span> {{ last.state }}</b>
<span class="delta">{{ change(last.record, cell.unit) }}</span>
{{ dots("base", cell.base) }}{{ dots("previous", cell.previous) if cell.previous }}
{% if cell.twin %}
{{ dots("likelihood", cell.twin, cell.twin[-1].record.delta | number(cell.unit, signed=true)) }}
{% endif %}
{% if cell.worst %}<small class="worst">worst: {{ cell.worst.state | lower }} at stage
{{ cell.worst.stage }}</small>{% endif %}
{% if last.state == "INCONCLUSIVE" and last.record.get("required_n") %}
<small class="worst">{{ last.record.n | count }} items; about
{{ last.record.required_n | count }} would decide</small>{% endif %}
{% if last.record.get("reason") %}<small class="worst">{{ last.record.reason }}</small>{% endif %}
</td>
{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="note">The large word compares the last stage with the base: the change in points with its
interval. The small letters are all stages in order: against the base, against the previous stage,
and the likelihood-scored twin against the base
{%- if several_seeds %}; with several seeds, the worst of them{% endif %}.</p>
<ul class="key">{% for state, (sign, letter, meaning) in signs.items() %}
<li><i class="{{ state | lower | replace(" ", "-") }}">{{ letter }}</i>
<b>{{ state | lower }}</b> {{ meaning }}</li>{% endfor %}</ul>
{% if others %}
<details><summary>{{ others | length }} further figures, exploratory: last stage against the base
</summary>
<div class="scroll"><table class="numbers small explore"><thead><tr><th scope="col">Figure</th>
{% for arm in arms %}<th scope="col">{{ m.arm(arm, swatches) }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, unit, cells in others %}<tr><th scope="row"><code>{{ name | breakable
}}</code></th>
{% for v in cells %}<td>{% if v %}{{ change(v.record, unit) }} {{ letter(v) }}
{%- else %}–{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div></details>
{% endif %}
{% else %}<p>This run has no verdicts.</p>{% endif %}
"""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One gate of one strategy."""

    base: list[Verdict]
    previous: list[Verdict]
    twin: list[Verdict]
    """Of the likelihood-scored twin, against the base; empty if there is none."""
    unit: str

    @property
    def worst(self) -> Verdict | None:
        """The worst stage against the base, if it is worse than the last."""
        worst = min(self.base, key=lambda v: severity(v.record))
        return worst if severity(worst.record) < severity(self.base[-1].record) else None


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The verdict strip and what it amounts to in words."""

    place: ClassVar[int] = 10
    title: ClassVar[str] = "Verdicts"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup:
        gates = in_order(report.gates())
        # A twin is shown in its gate's cell; a gate that is its own kind has its own row.
        gates = [g for g in gates if g not in {wording(other).twin for other in gates}]
        others = [name for name in in_order(report.compared()) if name not in gates]
        return markup.render(
            TEMPLATE,
            rows=[(g, wording(g).label, [_cell(arm, g) for arm in report.trained]) for g in gates],
            others=[
                (name, wording(name).unit, [_last(arm, name) for arm in report.trained])
                for name in others
            ],
            arms=report.trained,
            swatches=swatches,
            signs=SIGNS,
            counts=_counts(report, gates),
            finding=drift_sentence(report),
            several_seeds=any(len(arm.seeds) > 1 for arm in report.arms),
        )


def _last(arm: Arm, figure: str) -> Verdict | None:
    found = arm.verdicts(figure, "base")
    return found[-1] if found else None


def _cell(arm: Arm, gate: str) -> Cell | None:
    found = wording(gate)
    base, previous = arm.verdicts(gate, "base"), arm.verdicts(gate, "previous")
    twin = arm.verdicts(found.twin, "base") if found.twin else []
    return Cell(base=base, previous=previous, twin=twin, unit=found.unit) if base else None


def _counts(report: Report, gates: list[str]) -> list[tuple[Arm, str]]:
    """A sentence a strategy: which gates regressed at the last stage."""
    sentences = []
    for arm in report.arms:
        last = {gate: v for gate in gates if (v := _last(arm, gate))}
        if not last:
            continue
        parts = []
        for state in SIGNS:
            names = [wording(gate).label for gate, v in last.items() if v.state == state]
            if names:
                listed = f" ({series(names)})" if state in ("REGRESSED", "FORMAT") else ""
                parts.append(f"{len(names)} {state.lower()}{listed}")
        what = "gates" if report.declared_gates else "exploratory figures, none a declared gate"
        sentences.append((arm, f"{len(last)} {what}: {series(parts)}"))
    return sentences


def drift_sentence(report: Report) -> str:
    """Whether sequential tuning moved a figure that lost format cannot explain."""
    arms = [arm for arm in report.trained if arm.strategy.startswith("sequential")]
    if not report.trained:
        return "Nothing was trained here: this report describes the base."
    if not arms:
        return (
            "No strategy here is plain sequential tuning, so this report does not say whether "
            "drift occurs without protection."
        )
    compared = [name for name in in_order(report.compared()) if by_likelihood(name)]
    if not compared:
        return (
            "No likelihood-scored figure was compared with the base, so a fall under sequential "
            "tuning may be lost format and not lost behaviour."
        )
    found = {
        arm.label: [
            wording(name).label
            for name in compared
            if any(v.state == "REGRESSED" for v in arm.verdicts(name, "base"))
        ]
        for arm in arms
    }
    if not any(found.values()):
        last = [v.state for arm in arms for name in compared if (v := _last(arm, name))]
        states = series([f"{last.count(s)} {s.lower()}" for s in SIGNS if s in last])
        if set(last) <= {"NOT MEASURABLE"}:
            return (
                "Whether likelihood-scored figures drifted under sequential tuning is not known: "
                "none was measurable at the base."
            )
        return (
            "No drift was found in likelihood-scored figures under sequential tuning "
            f"(at the last stage {states}): what fell in generated answers may be lost format and "
            "not lost behaviour."
        )
    parts = [
        f"{label}: {len(names)} of {len(compared)}" + (f", {_some(names)}" if names else "")
        for label, names in found.items()
    ]
    return (
        "Under sequential tuning, drift was found in likelihood-scored figures, which lost format "
        f"cannot explain ({'; '.join(parts)})."
    )


def _some(names: list[str], most: int = 4) -> str:
    """The first few names; what is left is counted."""
    if len(names) <= most + 1:
        return series(names)
    return series([*names[:most], f"{len(names) - most} others"])
