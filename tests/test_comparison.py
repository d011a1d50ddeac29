"""The tables of the README and of docs/comparison.md are those that their records hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from streams import catalog

ROOT = Path(__file__).parent.parent
NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
SCALES = {"training, s": 1, "stored, MiB": 2**-20, "trainable parameters": 1}
TABLES = {"comparison": "README.md", "others": "docs/comparison.md"}
"""A table's mark, which is its record's name too → the page that shows it."""


def record_of(name: str) -> Any:
    return json.loads((ROOT / "docs" / f"{name}.json").read_text("utf-8"))


def rows_of(name: str) -> list[list[str]]:
    text = (ROOT / TABLES[name]).read_text("utf-8")
    found = re.search(rf"<!-- {name} -->(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_it_has_twelve_strategies_of_five_seeds() -> None:
    trained = [row for row in rows_of("comparison")[2:] if row[1]]
    assert len(trained) == 12
    assert {row[1] for row in trained} == {"5"}


def test_every_other_strategy_has_one_seed_and_is_marked() -> None:
    trained = [row for row in rows_of("others")[2:] if row[1]]
    assert len(trained) == 31
    assert {row[1] for row in trained} == {"1†"}
    shown = {row[0].strip("`") for name in TABLES for row in rows_of(name)[2:]}
    shown |= {"combined"} if "isolated_lora-replay" in shown else set()
    assert set(catalog.names("clmm.strategies")) <= shown


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_in_the_record(name: str) -> None:
    rows, record = rows_of(name), record_of(name)
    columns = rows[0][2:]
    cells = {one["label"]: one["cells"] for one in record["strategies"]}
    if "(base)" in rows[2][0]:
        base = rows.pop(2)
        accuracies = [one["value"] for one in record["base"]["accuracy"].values()]
        assert base[2].startswith(f"{100 * sum(accuracies) / len(accuracies):.1f} ")
    assert [row[0].strip("`") for row in rows[2:]] == list(cells)
    for row in rows[2:]:
        for column, shown in zip(columns, row[2:], strict=True):
            found = cells[row[0].strip("`")][column]
            numbers = [float(n.replace(",", "")) for n in NUMBER.findall(shown)]
            wanted = [found[key] for key in ("value", "low", "high") if found[key] is not None]
            scale = SCALES.get(column, 100)
            assert numbers == pytest.approx([value * scale for value in wanted], abs=0.051)


def test_the_order_is_sensible() -> None:
    """Joint above all that is trained in sequence, sequential tuning below what replays."""
    rows = record_of("comparison")["strategies"]
    last = {row["label"]: row["cells"]["last accuracy"]["value"] for row in rows}
    assert max(last, key=lambda label: last[label]) == "joint"
    for better in ("replay", "der_pp", "isolated_lora", "ewc"):
        assert last[better] > last["sequential_lora"]
