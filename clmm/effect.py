"""What a decoding option changes: figures without and with it, and what the pairs say.

Knows scores and verdicts; knows no model and no option.
"""

from __future__ import annotations

from typing import Any

from safety.scores import ProbeScores
from safety.verdicts import compare


def effect(plain: ProbeScores, treated: ProbeScores) -> dict[str, dict[str, Any]]:
    """Figure → `without`, `with`, and on the same items `change`, `low`, `high`, `verdict`.

    The change is paired, its interval unadjusted. The verdict is as at a first stage, whose base is
    the model without the option: IMPROVED is the option's doing.
    """
    verdicts = compare(treated, plain, stage=1)
    rows = {}
    for name, figure in treated.figures.items():
        row: dict[str, Any] = {"without": plain.figures[name].value, "with": figure.value}
        change = treated.changes_from(plain, name)
        if change is not None:
            low, high = change.interval()
            row |= {"change": change.delta, "low": low, "high": high}
        if name in verdicts:
            row["verdict"] = str(verdicts[name].state)
        rows[name] = row
    return rows
