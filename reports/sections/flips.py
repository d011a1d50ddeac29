"""Items whose answer flipped: the picture, the question, and the answer after every stage."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from reports import markup
from reports.records import AnswerRecord
from reports.runs import Arm, Report, Run

TEMPLATE = """
{% macro answer(given) -%}
<span class="answer {{ given.kind or "other" }}">
{%- if given.mark %}<span aria-hidden="true">{{ given.mark }}</span>
<span class="hidden">{{ given.kind }}:</span> {% endif -%}
{{ given.text or "(empty)" }}{% if given.label %} <small>{{ given.label }}</small>{% endif %}</span>
{%- endmacro %}
<p>An item has flipped under a strategy if its outcome after some stage differs from the base.
{{ shown }} of {{ total }} flipped items are shown: at most {{ limit }} of each task and probe,
drawn by a
hash of the item's name and not by how they look.{% if several_seeds %} The first seed of each
strategy is shown.{% endif %}</p>
<div class="scroll"><table class="numbers small"><thead><tr><th scope="col">Flipped items</th>
{% for arm in arms %}<th scope="col">{{ m.arm(arm, swatches) }}</th>{% endfor %}</tr></thead><tbody>
{% for name, counts in sets %}<tr><th scope="row">{{ name }}</th>
{% for flipped, items in counts %}<td>{{ flipped | count }} <small>of {{ items | count
}}</small></td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% if cards %}<form data-filters=".card" hidden>
<label>Strategy <select name="arms"><option value="">all</option>{% for arm in arms %}<option
value="{{ arm.index }}">{{ arm.label }}</option>{% endfor %}</select></label>
<label>Task or probe <select name="set"><option value="">all</option>{% for name, counts in sets
%}<option value="{{ loop.index0 }}">{{ name }}</option>{% endfor %}</select></label>
<output></output>
</form>{% endif %}
<div class="cards">
{% for card in cards %}
<article class="card" data-set="{{ card.set_index }}" data-arms="{{ card.flipped | join(" ") }}">
<div class="pictures">{% for source in card.pictures %}<img src="{{ source }}" alt="picture of the
item" loading="lazy">{% endfor %}</div>
<div class="ask"><p class="soft">{{ card.record.set }}{% if card.record.slice %} · {{
card.record.slice }}{% endif %} · <code>{{ card.record.item }}</code></p>
{% for words in card.holds %}<p class="soft">{{ words }}</p>
{% endfor %}<p class="question">{{ card.record.question }}</p>
<p><span class="soft">reference</span> {{ card.record.reference }}</p></div>
<div class="scroll"><table class="answers"><thead><tr><th scope="col">base</th><td>{{
answer(card.base) }}</td></tr></thead>
<tbody>{% for arm, stages in card.lanes %}<tr><th scope="row">{{ m.arm(arm, swatches) }}</th><td>
{%- for group in stages %}<span class="step"><span class="soft">{{ group.stages }}</span> {{
answer(group.given) }}</span> {% endfor -%}
</td></tr>{% endfor %}</tbody></table></div>
</article>
{% endfor %}
</div>
"""

LONGEST = 240
"""Characters of a text that are shown."""


MARKS = {"right": "✓", "wrong": "✗"}


@dataclass(frozen=True, kw_only=True)
class Given:
    """An answer as shown."""

    text: str
    kind: str | None
    """right, wrong, or None for any other outcome."""
    mark: str | None
    label: str | None
    """The other outcome."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Stages in a row with the same answer."""

    stages: str
    given: Given


@dataclass(kw_only=True)
class _Item:
    """An item's answers: strategy's index → stage → record."""

    first: AnswerRecord
    run: Run
    answers: dict[int, dict[int, AnswerRecord]] = field(default_factory=dict)

    def flipped(self, arm: Arm) -> bool:
        found = self.answers.get(arm.index, {})
        kinds = {_kind(record) for record in found.values()}
        return len(kinds - {None}) > 1


@dataclass(frozen=True, kw_only=True)
class Card:
    """One item as shown."""

    record: AnswerRecord
    base: Given
    set_index: int
    pictures: list[str]
    holds: list[str]
    """Its media that are no pictures, in words."""
    flipped: list[int]
    lanes: list[tuple[Arm, list[Group]]]


@dataclass(frozen=True, kw_only=True)
class Flips:
    """The browser of flipped items."""

    items: int = 8
    """Most items shown of each task and probe."""
    place: ClassVar[int] = 70
    title: ClassVar[str] = "Items whose answer flipped"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup | None:
        if not report.trained:
            return None
        found = _collect(report)
        sets = list(dict.fromkeys(name for _, name, _ in found))
        counts = {name: [[0, 0] for _ in report.arms] for name in sets}
        chosen: dict[str, list[_Item]] = {name: [] for name in sets}
        for (_, name, _), item in found.items():
            flipped = [item.flipped(arm) for arm in report.arms]
            for arm in report.arms:
                counts[name][arm.index][1] += arm.index in item.answers
                counts[name][arm.index][0] += flipped[arm.index]
            if any(flipped):
                chosen[name].append(item)
        cards = [
            _card(report, item, index)
            for index, name in enumerate(sets)
            for item in sorted(chosen[name], key=_draw)[: self.items]
        ]
        return markup.render(
            TEMPLATE,
            cards=cards,
            sets=[(name, counts[name]) for name in sets],
            shown=len(cards),
            total=sum(map(len, chosen.values())),
            limit=self.items,
            arms=report.arms,
            swatches=swatches,
            several_seeds=any(len(arm.seeds) > 1 for arm in report.arms),
        )


def _collect(report: Report) -> dict[tuple[str, str, str], _Item]:
    """(run, set, item) → what each strategy of the run answered, in the order of the base."""
    found: dict[tuple[str, str, str], _Item] = {}
    for arm in report.arms:
        for stage, answers in arm.answers():
            for record in answers:
                key = (arm.run.name, record["set"], record["item"])
                item = found.setdefault(key, _Item(first=record, run=arm.run))
                item.answers.setdefault(arm.index, {})[stage] = record
    return found


def _draw(item: _Item) -> str:
    return hashlib.sha256(f"{item.first['set']}\0{item.first['item']}".encode()).hexdigest()


def _kind(record: AnswerRecord) -> str | None:
    """right, wrong, a label as it is, or None if the item has no outcome."""
    outcome = record.get("outcome")
    if outcome is None or isinstance(outcome, str):
        return outcome
    return "right" if outcome >= 0.5 else "wrong"


def _given(record: AnswerRecord) -> Given:
    text, outcome = record["answer"], _kind(record)
    kind = outcome if outcome in MARKS else None
    return Given(
        text=text[:LONGEST] + "…" * (len(text) > LONGEST),
        kind=kind,
        mark=MARKS[kind] if kind else None,
        label=None if kind else outcome,
    )


def _card(report: Report, item: _Item, set_index: int) -> Card:
    lanes = [
        (arm, _groups(item.answers[arm.index])) for arm in report.arms if arm.index in item.answers
    ]
    pictures = []
    for name in item.first.get("media") or []:
        png = item.run.folder.thumbnail(name)
        if png is not None:
            pictures.append("data:image/png;base64," + base64.b64encode(png).decode())
    return Card(
        record={**item.first, "question": item.first["question"][: LONGEST * 2]},
        base=_given(item.first),
        set_index=set_index,
        pictures=pictures,
        holds=item.first.get("holds") or [],
        flipped=[arm.index for arm in report.arms if item.flipped(arm)],
        lanes=lanes,
    )


def _groups(answers: dict[int, AnswerRecord]) -> list[Group]:
    """Runs of stages with the same answer and outcome, without the base."""
    groups: list[tuple[list[int], Given]] = []
    for stage in sorted(answers.keys() - {0}):
        given = _given(answers[stage])
        if groups and groups[-1][1] == given:
            groups[-1][0].append(stage)
        else:
            groups.append(([stage], given))
    return [
        Group(stages=str(s[0]) if len(s) == 1 else f"{s[0]}–{s[-1]}", given=given)
        for s, given in groups
    ]
