"""Where the run came from: command, versions, hashes, and the whole configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from reports import markup
from reports.runs import Report

TEMPLATE = """
{% for run, facts, resumed, config in runs %}
{% if runs | length > 1 %}<h3>{{ run.name }}</h3>{% endif %}
{% if facts %}<dl class="provenance">{% for key, value in facts %}<div><dt>{{ key }}</dt><dd>{{
value }}</dd></div>{% endfor %}</dl>
{% else %}<p>This run has no record of where it came from.</p>{% endif %}
{% if resumed %}<p>The run was opened {{ resumed | length + 1 }} times. What differed from the first
time:</p>
<ul>{% for changes in resumed %}<li>{{ changes | join("; ") if changes else "nothing" }}</li>{%
endfor %}</ul>{% endif %}
<details><summary>config.yaml</summary><pre>{{ config }}</pre></details>
{% endfor %}
"""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """provenance.json and config.yaml, as they are."""

    place: ClassVar[int] = 90
    title: ClassVar[str] = "Provenance"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup:
        runs = []
        for run in report.runs:
            sessions = [dict(_flat(session)) for session in run.folder.provenance()]
            first, later = (sessions or [{}])[0], sessions[1:]
            changes = [
                [f"{k}: {s.get(k, 'none')}" for k in {**first, **s} if s.get(k) != first.get(k)]
                for s in later
            ]
            runs.append((run, list(first.items()), changes, run.folder.config_text()))
        return markup.render(TEMPLATE, runs=runs)


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """`versions.torch: 2.15.0`, and lists on one line."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        yield where, " ".join(map(str, value))
    else:
        yield where, "none" if value is None else str(value)
