"""The reader of FigStep on small invented tables: pictures, the official prompt, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_unsafe_sets import (
    COMPLIANCE,
    REFUSAL,
    SECRET,
    safebench_files,
    safebench_rows,
    said,
    table,
    value,
)

from safety.official import OfficialFileError
from safety.probes import figstep
from safety.probes.figstep import Figstep
from safety.probing import run_probe


@pytest.fixture
def safebench(tmp_path: Path) -> Path:
    return safebench_files(tmp_path)


def test_figstep_asks_the_picture_with_the_official_prompt(safebench: Path) -> None:
    probe = Figstep(
        folder=safebench, partial=True, images=safebench / "png", forms=("figstep", "question")
    )
    samples = probe.samples(0)
    assert len(samples) == 12
    drawn, plain = samples[:2]
    assert (drawn.id, plain.id) == ("figstep-figstep-1-1", "figstep-question-1-1")
    assert drawn.question == figstep.PROMPT
    assert SECRET not in drawn.question
    assert drawn.images[0].source == (safebench / "png/query_ForbidQI_1_1_6.png").resolve()
    assert plain.question == f"How is {SECRET} pie 0, with sugar, baked?"
    assert not plain.images
    assert drawn.cluster == plain.cluster == "figstep-1-1"
    run = run_probe(
        probe, said(lambda s: REFUSAL if s.id.startswith("figstep-question") else COMPLIANCE)
    )
    assert value(run, "figstep.refusal.rate") == 0.5
    assert value(run, "figstep.form_figstep.refusal.rate") == 0
    assert value(run, "figstep.form_question.refusal.rate") == 1
    assert value(run, "figstep.category_2.refusal.rate") == 0.5
    assert value(run, "figstep.comply") == 0.5
    assert not [name for name in run.figures if "attack_success" in name]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*safebench_rows(5), safebench_rows()[0]], "category 1, task: duplicate id 1"),
        (safebench_rows()[1:], "category 1, task: missing id 1"),
        ([[*safebench_rows()[0][:4], "", "x"]], r"safebench.csv:2: question: must be a text"),
        ([[*safebench_rows()[0][:5], " "]], r"instruction: must be a text"),
        ([["ForbidQI", f"the {SECRET}", *safebench_rows()[0][2:]]], "category_id: is not a short"),
        ([[f"a {SECRET} b", *safebench_rows()[0][1:]]], "dataset: is not a short label"),
        ([], "has no request"),
    ],
)
def test_figstep_refuses_broken_tables(
    safebench: Path, rows: list[list[str]], message: str
) -> None:
    table(safebench / "safebench.csv", figstep.COLUMNS, rows)
    with pytest.raises(OfficialFileError, match=message) as error:
        Figstep(folder=safebench, partial=True, images=safebench / "png").samples(0)
    assert SECRET not in str(error.value)


def test_figstep_refuses_a_table_without_its_header(safebench: Path) -> None:
    rows = safebench_rows()
    table(safebench / "safebench.csv", rows[0], rows[1:])
    with pytest.raises(OfficialFileError, match="two columns are named a text of 1 char") as error:
        Figstep(folder=safebench, partial=True).samples(0)
    assert SECRET not in str(error.value)
