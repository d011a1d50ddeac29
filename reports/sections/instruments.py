"""How far the verdicts can be trusted: the error rates that `clmm calibrate` found before release.

Knows the packaged results of that command; they are of the instruments and of nano, and the same
in every report. Without them the section is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup

from reports import markup
from reports.runs import Report
from safety import calibration_page

RECORD = Path(__file__).resolve().parent.parent / "calibration.json"

TEMPLATE = """
<p>How often the instruments of this report err, found by simulation and by training nano, before
any run. These numbers are not of this run.</p>
<div class="scroll"><table class="numbers"><thead><tr><th scope="col">Check</th>
<th scope="col">Measured</th><th scope="col">Wanted</th>
<th scope="col">Holds</th></tr></thead><tbody>
{% for says, measured, wanted, holds in rows %}
<tr><th scope="row">{{ says }}</th><td>{{ measured }}</td><td>{{ wanted }}</td>
<td{% if holds == "NO" %} class="warn"{% endif %}>{{ holds }}</td></tr>
{% endfor %}</tbody></table></div>
{% if flagged %}<p>{{ flagged }}</p>
{% endif %}
<p class="note">{{ note }}</p>
"""


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """The shipped calibration: each check, what it found and what was wanted."""

    place: ClassVar[int] = 95
    title: ClassVar[str] = "Instruments"

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup | None:
        if not RECORD.is_file():
            return None
        record: dict[str, Any] = json.loads(RECORD.read_text("utf-8"))
        rows = [
            (says, measured, wanted, holds)
            for says, _, measured, wanted, holds in calibration_page.summary(record).rows
            if measured != calibration_page.NONE
        ]
        return markup.render(TEMPLATE, rows=rows, flagged=_flagged(record), note=_note(record))


def _flagged(record: dict[str, Any]) -> str:
    """What was found where nothing new was trained; empty where that was not tried."""
    figures = record["figures"]
    flagged, of = figures.get("aa.flagged"), figures.get("aa.trainings")
    if flagged is None:
        return ""
    return (
        f"Of {of:g} further trainings of nano on its own mixture, which teaches it nothing new, "
        f"{flagged:g} had a gate REGRESSED."
    )


def _note(record: dict[str, Any]) -> str:
    runs = record["runs"]
    return (
        f"Simulated: {runs['alarms']} runs of 20 stages for each of 6 rates and sizes of clusters, "
        f"{runs['power']} comparisons for the power of each gate at each of 3 stages. Bounds are "
        "exact, one-sided and at 95 %. Holm's procedure and the α that each stage may spend are "
        "tested without the margins too, as margins hide false alarms. clmm calibrate measures "
        "all of this anew."
    )
