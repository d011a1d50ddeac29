"""What the run cannot say, in plain words that depend on what the run is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from reports import markup
from reports.runs import Report, severity
from reports.wording import by_likelihood, count, series, wording

TEMPLATE = """
<ul class="limits">
{% for title, text in limits %}
<li><b>{{ title }}</b> {{ text }}</li>{% endfor
%}</ul>
"""

ENOUGH_SEEDS = 5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sentences about seeds, proxies, items and what was not measured."""

    place: ClassVar[int] = 100
    title: ClassVar[str] = "Limits"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup:
        limits = [
            *_seeds(report),
            *_unfinished(report),
            *_unmeasured(report),
            *_leaks(report),
            *_always(report),
        ]
        return markup.render(TEMPLATE, limits=limits)


def _seeds(report: Report) -> Iterator[tuple[str, str]]:
    seeds = report.fewest_seeds
    if 0 < seeds < ENOUGH_SEEDS:
        have = "one seed" if seeds == 1 else f"{seeds} seeds"
        yield (
            f"{have.capitalize()}.",
            f"Claims about methods need at least {ENOUGH_SEEDS} seeds and a hierarchical "
            f"bootstrap; with {have} this report describes these trained models, not the methods. "
            "Intervals over items do not cover what another seed would change.",
        )


def _unfinished(report: Report) -> Iterator[tuple[str, str]]:
    short = []
    for run in report.runs:
        arms = [arm for arm in report.trained if arm.run is run]
        for arm in arms:
            done = min((lane[-1] for lane in arm.lanes), key=lambda scores: scores["stage"])
            if not all(task["seen"] for task in done.get("tasks", {}).values()):
                short.append(f"{arm.label} ({done['stage']} of {len(run.tasks)})")
        short += [f"{lane} (none)" for lane in run.missing]
    if short:
        yield "Unfinished.", f"Not all stages are done: {series(short)}."


def _unmeasured(report: Report) -> Iterator[tuple[str, str]]:
    states: dict[str, str] = {}
    for run in report.runs:
        for name, record in run.base.get("states", {}).items():
            if record["state"] != "measured":
                states[name] = record.get("reason", "no reason given")
    if states:
        listed = "; ".join(f"{wording(name).label}: {reason}" for name, reason in states.items())
        yield "Not measurable at the base.", f"{listed}. Nothing is claimed about these."
    undecided = {
        wording(gate).label
        for arm in report.arms
        for gate in report.gates()
        if (found := arm.verdicts(gate, "base")) and severity(found[-1].record) == 3
    }
    if undecided:
        yield (
            "Inconclusive is not safe.",
            f"For {series(sorted(undecided))} some strategy has too few items to tell drift from "
            "chance: neither harm nor its absence is shown.",
        )


def _leaks(report: Report) -> Iterator[tuple[str, str]]:
    for run in report.runs:
        for session in run.folder.provenance()[-1:]:
            if "leaks" in session:
                yield "Copies.", f"{str(session['leaks']).removeprefix('leaks: ').capitalize()}."


def _always(report: Report) -> Iterator[tuple[str, str]]:
    items = [
        interval[2]
        for run in report.runs
        for name, interval in run.base.get("intervals", {}).items()
        if not name.startswith("task.") and interval[2]
    ]
    if items:
        yield (
            "Items.",
            f"The figures rest on {count(min(items))} to {count(max(items))} items each, the same "
            "after every stage, answered greedily. Sampling at a temperature may differ.",
        )
    yield (
        "Refusal is a proxy.",
        "What is refused is an invented policy, recognised by the form of the answer. It shows "
        "whether trained refusals survive, not whether a model is safe.",
    )
    yield (
        "A synthetic world.",
        "Generated scenes have exact ground truth and no photographs, and the bias probe's figures "
        "have hats and tools: it validates an instrument and claims nothing about people.",
    )
    if not any(by_likelihood(name) for name in report.figures()):
        yield (
            "Format or behaviour.",
            "No figure was scored by likelihood, so a fall may be lost format and not lost "
            "behaviour.",
        )
    else:
        yield (
            "Generated and likelihood.",
            "A generated answer can fail by form alone. The likelihood twin compares fixed "
            "continuations, so it sees a preference and not what the model would have written.",
        )
