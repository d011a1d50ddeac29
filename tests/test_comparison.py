"""The README's table is the one that docs/comparison.json was written with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "docs" / "comparison.json"
NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
SCALES = {"training, s": 1, "stored, MiB": 2**-20, "trainable parameters": 1}


@pytest.fixture(scope="module")
def record() -> Any:
    return json.loads(RECORD.read_text("utf-8"))


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    text = (ROOT / "README.md").read_text("utf-8")
    found = re.search(r"<!-- comparison -->(.*?)<!-- /comparison -->", text, re.DOTALL)
    assert found
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_it_has_twelve_strategies_of_five_seeds(rows: list[list[str]]) -> None:
    trained = [row for row in rows[2:] if row[1]]
    assert len(trained) == 12
    assert {row[1] for row in trained} == {"5"}


def test_every_cell_is_in_the_record(rows: list[list[str]], record: Any) -> None:
    columns = rows[0][2:]
    cells = {one["label"]: one["cells"] for one in record["strategies"]}
    assert [row[0].strip("`") for row in rows[2:]] == list(cells)
    for row in rows[2:]:
        for column, shown in zip(columns, row[2:], strict=True):
            found = cells[row[0].strip("`")][column]
            numbers = [float(n.replace(",", "")) for n in NUMBER.findall(shown)]
            wanted = [found[key] for key in ("value", "low", "high") if found[key] is not None]
            scale = SCALES.get(column, 100)
            assert numbers == pytest.approx([value * scale for value in wanted], abs=0.051)


def test_the_order_is_sensible(record: Any) -> None:
    """Joint above all that is trained in sequence, sequential tuning below what replays."""
    last = {s["label"]: s["cells"]["last accuracy"]["value"] for s in record["strategies"]}
    assert max(last, key=lambda label: last[label]) == "joint"
    for better in ("replay", "der_pp", "isolated_lora", "ewc"):
        assert last[better] > last["sequential_lora"]
