"""The instrument checks as tables: on a terminal, and as a page in Markdown.

Knows the mapping that `clmm calibrate` writes: every number comes from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safety.calibration_demands import DEMANDS

NONE = "–"
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A check's numbers, what was done to get them, and how they read."""

    title: str
    says: str
    """What the check is."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    reads: str = ""
    words: int = 1
    """So many columns, from the left, are words; the others are numbers."""


def summary(record: Record) -> Table:
    """Every demand, its figure, and whether it holds."""
    figures, rows = record["figures"], []
    for demand in DEMANDS:
        held = demand.held_by(figures.get(demand.figure))
        state = {None: "not measured", True: "yes", False: "NO"}[held]
        rows.append(
            (demand.says, demand.figure, _number(figures.get(demand.figure)), demand.wanted, state)
        )
    return Table(
        title="What holds",
        says="",
        columns=("Check", "Figure", "Measured", "Wanted", "Holds"),
        rows=tuple(rows),
        words=2,
    )


def tables(record: Record) -> list[Table]:
    """All checks, each as a table."""
    checks = record["checks"]
    found = [
        summary(record),
        _false_alarms(checks["false_alarms"], record["figures"]),
        _power(checks["power"]),
        _false_equivalence(checks["false_equivalence"]),
        _parsers(checks["parsers"]),
    ]
    if checks["aa"] is not None:
        found.append(_aa(checks["aa"]))
    if checks["dose"] is not None:
        found.append(_dose(checks["dose"]))
    if checks["shuffled"] is not None:
        found.append(_shuffled(checks["shuffled"]))
    return found


def text(record: Record) -> str:
    """The tables, aligned."""
    parts = []
    for table in tables(record):
        widths = [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place < table.words else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (table.columns, *table.rows)
        ]
        parts.append("\n".join([f"{table.title}", *lines]))
    return "\n\n".join([*parts, *record["notes"]]) + "\n"


def page(record: Record) -> str:
    """A page in Markdown."""
    command = f"clmm calibrate --seed {record['seed']}" + (" --quick" if record["quick"] else "")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        "# Calibration: how far the instruments can be trusted",
        "",
        f"Every number on this page was written by `{command}`. Bounds are exact, one-sided and "
        "at 95 % (Clopper and Pearson). The same seed gives the same numbers.",
        "",
    ]
    for note in record["notes"]:
        lines += [f"> {note}", ""]
    for table in tables(record):
        lines += [f"## {table.title}", ""]
        if table.says:
            lines += [table.says, ""]
        lines += _markdown(table)
        if table.reads:
            lines += ["", table.reads]
        lines.append("")
    return "\n".join([*lines, f"Made with {versions}."]) + "\n"


def _markdown(table: Table) -> list[str]:
    rule = ["---" if place < table.words else "--:" for place in range(len(table.columns))]
    return [f"| {' | '.join(row)} |" for row in (table.columns, rule, *table.rows)]


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return NONE
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}".replace("-", "−")


def _row(*cells: str | float | None) -> tuple[str, ...]:
    return tuple(cell if isinstance(cell, str) else _number(cell) for cell in cells)


def _false_alarms(cells: Sequence[Record], figures: Mapping[str, Any]) -> Table:
    rows = [
        _row(
            f"{cell['discordance']:g}",
            cell["cluster_size"],
            cell["clusters"],
            cell["shipped"]["n"],
            *(
                number
                for key in ("shipped", "tests")
                for number in (cell[key]["hits"], cell[key]["rate"], cell[key]["upper"])
            ),
        )
        for cell in cells
    ]
    runs = sum(cell["shipped"]["n"] for cell in cells)
    total: list[str | float | None] = ["all", "", "", runs]
    for key, name in (("shipped", "false_alarm"), ("tests", "false_alarm.without_margins")):
        overall = [figures[f"{name}.stages_20.overall.{part}"] for part in ("rate", "bound")]
        total += [sum(cell[key]["hits"] for cell in cells), *overall]
    return Table(
        title="False alarms over 20 stages",
        says="A run has all default gates and the skills that they require. Nothing drifts: each "
        "item differs from the base, and from the stage before, with the discordance as its "
        "probability, as often for the better as for the worse. Clusters change whole, which is "
        "the hardest way to be clustered. A run has one alarm when any gate is REGRESSED at any "
        "of 20 stages against the base or the previous stage, lost capabilities included. "
        "Without margins, skills are gates too and any significant harm is an alarm: this is the "
        "test of Holm's procedure and of what each stage may spend. Skills change at most as "
        "often as their mean allows (.2).",
        columns=(
            "Discordance",
            "Cluster",
            "Clusters",
            "Runs",
            "Alarms",
            "Rate",
            "Bound",
            "Alarms without margins",
            "Rate",
            "Bound",
        ),
        rows=(*rows, _row(*total)),
        reads="Bound is the upper end. The verdicts promise 5 % of runs, by the tests alone; "
        "margins hide most of what is left. Where hardly a cluster changes, an exact test cannot "
        "reach α at all, so a rate of 0 says little there.",
    )


def _power(cells: Sequence[Record]) -> Table:
    rows = [
        _row(
            cell["gate"],
            cell["stage"],
            cell["drift"],
            cell["discordance"],
            cell["items"],
            cell["flagged"]["n"],
            cell["flagged"]["rate"],
            cell["flagged"]["lower"],
        )
        for cell in cells
    ]
    planned = cells[0]["planned"]
    return Table(
        title="Power at twice the margin",
        says="One gate drifts by twice its margin while all other gates and skills change without "
        "drift. The stage before has drifted already, so only the comparison with the base can "
        f"tell. The items are those that `required_n` plans for a power of {planned:g} in the "
        "first step of Holm's procedure, or more where the observed change would not reach the "
        "margin often enough. A discordance below the drift cannot be, so it is at least that: "
        "then all changes are for the worse.",
        columns=("Gate", "Stage", "Drift", "Discordance", "Items", "Runs", "Flagged", "Bound"),
        rows=tuple(rows),
        reads=f"Bound is the lower end. Power is to be at least .8; {planned:g} was planned, so a "
        "rate near that shows that the plan's approximation is right.",
    )


def _false_equivalence(cells: Sequence[Record]) -> Table:
    rows = [
        _row(
            cell["gate"],
            cell["cluster_size"],
            cell["items"],
            cell["drift"],
            "all worse" if cell["one_way"] else f"{cell['discordance']:g}",
            "exact" if cell["called"]["exact"] else str(cell["called"]["n"]),
            cell["called"]["rate"],
            cell["called"]["upper"],
        )
        for cell in cells
    ]
    return Table(
        title="EQUIVALENT at a drift of exactly the margin",
        says="Each gate alone, its skills intact. For a rate the probability is computed, not "
        "drawn: `judge` says how many clusters may change for the worse, and the chance of that "
        "is known. F1 is simulated. Clusters change whole, so outcomes inside a cluster are "
        "correlated by 1.",
        columns=("Gate", "Cluster", "Items", "Drift", "Discordance", "Runs", "Called", "Bound"),
        rows=tuple(rows),
        reads="Called EQUIVALENT is to be at most .05. " + _blame(cells),
    )


def _blame(cells: Sequence[Record]) -> str:
    """Why EQUIVALENT is said too often, where it is."""
    over = [cell for cell in cells if cell["called"]["rate"] > 0.05]
    if not over:
        return "It is, everywhere."
    said = f"In {len(over)} of {len(cells)} rows it is more. "
    if any(cell["cluster_size"] == 1 for cell in over):
        said += (
            "Without clusters this is the approximation: a sample that shows little change also "
            "shows little variance, so its error is too small, and a tail of counts is thicker "
            "than a normal one. "
        )
    if any(cell["cluster_size"] > 1 and cell["one_way"] for cell in over):
        said += (
            "With clusters and every change for the worse, the error that is assumed at least "
            "counts on a correlation of .5 inside a cluster, and here it is 1. "
        )
    return said.strip()


def _parsers(cells: Sequence[Record]) -> Table:
    rows = [
        _row(
            cell["parser"],
            cell["positive"],
            cell["positives"],
            cell["sensitivity"],
            cell["negatives"],
            cell["specificity"],
            cell["invalid"],
            cell["lost"],
        )
        for cell in cells
    ]
    return Table(
        title="What the parsers hear",
        says="Answers written and labelled by hand (`safety/labelled_yes_no.py`, "
        "`safety/labelled_answers.py`), many of them to mislead a rule that looks for words. "
        "Sensitivity is the share heard of the answers that say it, specificity the share of all "
        "others in which it is not heard.",
        columns=(
            "Parser",
            "Hears",
            "Say it",
            "Sensitivity",
            "Others",
            "Specificity",
            "Not understood",
            "… of the clear",
        ),
        rows=tuple(rows),
        words=2,
        reads="The official parser hears yes in whatever it does not understand, in refusals and "
        "in nothing at all, and never says that it does not understand. The strict one hears "
        "little that was not said, and calls the rest invalid, which is a figure of its own.",
    )


def _aa(check: Record) -> Table:
    rows = []
    for row in check["trainings"]:
        found = [
            f"{name} {_number(row['gates'][name]['base'])} → {_number(row['gates'][name]['now'])}"
            for name in row["flagged"]
        ]
        rows.append((str(row["seed"]), ", ".join(found) or NONE))
    return Table(
        title="A/A: nano trained on its own mixture",
        says="nano is trained on with the lessons of its own last stage in their proportions, "
        "with LoRA and the settings of the default study, and judged against the base at "
        "stage 1. The same lessons for all seeds.",
        columns=("Seed", "REGRESSED gates"),
        rows=tuple(rows),
        words=2,
        reads=f"{check['flagged']} of {len(rows)} trainings have a gate REGRESSED. Chance alone "
        "may flag 3 % at stage 1; what is above that is wear that any further training causes "
        "at this rate and number of steps.",
    )


def _dose(checks: Sequence[Record]) -> Table:
    return Table(
        title="Dose and response of bias",
        says="nano is trained on figures whose hats tell the job with strength ρ, half of them "
        "without a tool in sight. The figure is "
        f"`{checks[0]['figure']}`, a signed difference of probabilities in [−1, 1].",
        columns=("ρ", "Mean", "Low", "High", "Each seed", "Before training"),
        rows=tuple(
            _row(
                f"{check['correlation']:g}",
                check["mean"],
                check["low"],
                check["high"],
                ", ".join(map(_number, check["values"])),
                check["base"],
            )
            for check in checks
        ),
        reads="The interval is at 95 %, over seeds and items; the pictures are the same for all "
        "seeds. A valid instrument shows about 0 at ρ = 0 and more with every step.",
    )


def _shuffled(check: Record) -> Table:
    names: Iterable[tuple[str, str]] = (("shown", "its own"), ("shuffled", "another item's"))
    return Table(
        title="Shuffled pictures",
        says="Existence questions to nano as it is shipped, asked of the right picture and of "
        "another item's.",
        columns=("Picture", "Accuracy", "Low", "High", "Items"),
        rows=tuple(
            _row(says, *(check[name][part] for part in ("value", "low", "high", "n")))
            for name, says in names
        ),
        reads="Half of the answers are yes, so .5 is what a model gets that does not look.",
    )
