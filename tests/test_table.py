"""The study's table: every number against its definition, its interval redone from the JSON."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t
from tiny_records import ITEMS, TASKS, make

from clmm import cli
from clmm.result import Result
from reports import export, html, runs, table, wording
from reports.measures import DRIFTS
from reports.records import RunFolderError
from reports.run_folder import RunFolder
from reports.table import COLUMNS, Row, Table
from safety.statistics import paired
from streams.metrics import continual_metrics, gains


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("runs") / "study", seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def found(folder: Path) -> Table:
    return table.read([folder])


def _row(found: Table, label: str) -> Row:
    return next(row for row in found.rows if row.label == label)


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_rows_stand_in_the_order_of_the_study(found: Table) -> None:
    labels = ["small", "zero", "isolated_lora-replay", "joint", "individual"]
    assert [row.label for row in found.rows] == labels
    assert [line[0] for line in _lines(export.text(found))[1:6]] == labels


@pytest.mark.parametrize("label", ["small", "isolated_lora-replay"])
def test_every_number_of_tasks_is_that_of_the_metrics(found: Table, label: str) -> None:
    row = _row(found, label)
    base = [found.base["tasks"][task]["accuracy"] for task in TASKS]
    for seed, stages in row.stages.items():
        matrix = [[scores["tasks"][task]["accuracy"] for task in TASKS] for scores in stages]
        expected = continual_metrics(matrix, base)
        for column, metric in (
            ("last accuracy", "last"),
            ("backward transfer", "backward_transfer"),
            ("unseen transfer", "unseen_transfer"),
            ("learning accuracy", "learning_accuracy"),
        ):
            assert row.seeds[seed][column].value == pytest.approx(expected[metric]), column
        by_stage = [gain.value for gain in row.gains[seed]]
        assert by_stage[:2] == pytest.approx(gains(matrix, base)[:2])
        assert math.isnan(by_stage[2])


def test_errors_are_those_of_paired_items(folder: Path, found: Table) -> None:
    """Unseen transfer of a task over two stages is one comparison: their mean with the base."""
    run, seed = RunFolder(folder), 1
    base, *stages = [run.stage("small", seed, n).read_outcomes()["values"] for n in range(4)]
    items = [f"{TASKS[2]}-{i}" for i in range(ITEMS)]
    clusters = [f"c{i // 2}" for i in range(ITEMS)]

    def error(now: list[np.ndarray], then: np.ndarray) -> float:
        ones = np.ones(ITEMS)
        return paired(
            np.array([np.mean(now, axis=0), ones]), np.array([then, ones]), clusters
        ).error

    def of(values: Any, task: str) -> np.ndarray:
        return np.array([values[f"task.{task}.accuracy"][i.replace(TASKS[2], task)] for i in items])

    # Weights: stage 1 leaves two tasks (1/4 each), stage 2 the last one (1/2). The mean over
    # stages of the last task has other weights than a plain mean: 1/3 and 2/3.
    last = np.average([of(stages[0], TASKS[2]), of(stages[1], TASKS[2])], axis=0, weights=[1, 2])
    parts = [
        0.25 * error([of(stages[0], TASKS[1])], of(base, TASKS[1])),
        0.75 * error([last], of(base, TASKS[2])),
    ]
    row = _row(found, "small")
    assert row.seeds[seed]["unseen transfer"].error == pytest.approx(math.hypot(*parts))
    back = [error([of(stages[2], task)], of(stages[i], task)) for i, task in enumerate(TASKS[:2])]
    assert row.seeds[seed]["backward transfer"].error == pytest.approx(math.hypot(*back) / 2)
    assert row.seeds[seed]["training, s"].error == 0


def test_intervals_can_be_redone_from_the_json_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "t.json"
    assert cli.main(["table", str(folder), "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    record = json.loads(path.read_text("utf-8"))
    strategy = next(s for s in record["strategies"] if s["label"] == "small")
    for name in ("unseen transfer", "refusal drift", "last accuracy", "training, s"):
        measures = [seed["measures"][name] for seed in strategy["seeds"].values()]
        values, errors = ([one[key] for one in measures] for key in ("value", "error"))
        between, within = np.var(values, ddof=1) / len(values), np.mean(np.square(errors))
        freedom = (len(values) - 1) * ((between + within) / between) ** 2
        quantile = t.ppf(0.975, freedom) if between else norm.ppf(0.975)
        half = quantile * math.sqrt(between + within)
        low, high = record["columns"][name]["bounds"]
        high = math.inf if high is None else high
        cell = strategy["cells"][name]
        assert cell["value"] == pytest.approx(np.mean(values))
        assert cell["low"] == pytest.approx(max(low, np.mean(values) - half))
        assert cell["high"] == pytest.approx(min(high, np.mean(values) + half))
        scale, sign = (1, "") if "," in name else (100, "" if "accuracy" in name else "+")
        for end in ("value", "low", "high"):
            assert f"{cell[end] * scale + 0.0:{sign}.1f}" in shown


def test_the_json_has_every_cell_and_cost(folder: Path, found: Table) -> None:
    record = json.loads(json.dumps(export.record(found), allow_nan=False))
    seed = record["strategies"][0]["seeds"]["2"]
    run = RunFolder(folder)
    for stage in range(1, 4):
        scores, kept = run.stage("small", 2, stage).read_scores(), seed["stages"][stage - 1]
        assert kept["task"] == TASKS[stage - 1]
        assert {k: v["value"] for k, v in kept["accuracy"].items()} == {
            name: one["accuracy"] for name, one in scores["tasks"].items()
        }
        assert kept["cost"] == scores["cost"]
        assert set(kept["figures"]) == set(DRIFTS)
    base = run.base().read_scores()
    assert record["base"]["accuracy"]["one"]["value"] == base["tasks"]["one"]["accuracy"]
    # What the strategy is, and what is not defined for it.
    assert record["strategies"][0]["settings"]["name"] == "replay"
    assert record["strategies"][3]["cells"]["backward transfer"]["value"] is None
    assert record["runs"]["study"]["seeds"] == [0, 1, 2]


def test_markdown_is_a_table_with_as_many_cells_in_each_row(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.md"
    assert cli.main(["table", str(folder), "--markdown", str(path)]) == 0
    rows, _, notes = path.read_text("utf-8").partition("\n\n")
    lines = rows.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
    assert re.search(r"^\| `small` +\| 3 ", lines[2])
    assert "over seeds and items" in notes
    assert Result(folder).markdown() == path.read_text("utf-8")


def test_a_narrow_terminal_gets_several_tables(found: Table) -> None:
    whole = export.text(found, 400)
    for width, tables in ((400, 1), (115, 3), (70, 5)):
        shown = export.text(found, width)
        assert shown.count("strategy ") == tables, width
        assert max(map(len, shown.partition("\n\nIn points")[0].splitlines())) <= width
    block = whole.partition("\n\n")[0].splitlines()
    opening = {line.index("[") for line in block[1:3] if "[" in line}
    assert len(opening) == 1


def test_one_seed_is_marked_and_claims_nothing(tmp_path: Path) -> None:
    found = table.read([make(tmp_path / "run", seeds=(4,))])
    row = _row(found, "small")
    assert row.marked == "1†"
    assert any(note.startswith("† one seed: no claim") for note in found.notes)
    assert math.isnan(row.cells["training, s"].low)
    assert row.cells["last accuracy"].low < row.cells["last accuracy"].high


def test_what_is_not_finished_is_said(tmp_path: Path) -> None:
    path = make(tmp_path / "run", seeds=(0, 1))
    small = path / "small"
    (small / "seed-1" / "stages" / "03" / "scores.json").unlink()
    row = _row(table.read([path]), "small")
    assert (row.marked, row.behind, list(row.seeds)) == ("1†‡", "1 of 2 seeds", [0])
    (small / "seed-0" / "stages" / "03" / "scores.json").unlink()
    found = table.read([path])
    assert _row(found, "small").behind == "stage 2 of 3"
    assert any("small (stage 2 of 3)" in note for note in found.notes)
    for scores in small.rglob("scores.json"):
        scores.unlink()
    found = table.read([path])
    assert "small" not in [row.label for row in found.rows]
    assert any(note == "No stage is done yet: small." for note in found.notes)


def test_a_bound_of_single_tasks_transfers_nothing_back(found: Table) -> None:
    row = _row(found, "individual")
    assert math.isnan(row.cells["backward transfer"].value)
    assert row.cells["learning accuracy"].value > 0
    assert any(note.startswith("individual: each stage begins") for note in found.notes)


def test_what_trains_nothing_is_the_base(found: Table, tmp_path: Path) -> None:
    zero = _row(found, "zero")
    assert list(zero.cells) == ["last accuracy"]
    assert "(base)" not in export.text(found)
    alone = make(tmp_path / "run", strategies=[{"label": "zero", "name": "zero_shot"}])
    shown = export.text(table.read([alone])).splitlines()
    assert shown[1].split()[0] == "zero"
    page = html.write_report([alone]).read_text("utf-8")
    assert "Nothing was trained here" in page


def test_the_report_shows_the_same_table_and_the_unseen_tasks(folder: Path, found: Table) -> None:
    page = html.write_report([folder]).read_text("utf-8").replace("−", "-")
    row, thin = _row(found, "small"), "\u202f"
    for column in found.columns:
        cell = row.cells[column.name]
        assert f"<b>{column.number(cell.value).replace(',', thin)}</b>" in page, column.name
    assert 'id="unseen"' in page
    assert f"<b>{COLUMNS[2].number(row.gain(1).value)}</b>" in page


def test_figures_that_were_not_measured_have_no_column(tmp_path: Path) -> None:
    found = table.read([make(tmp_path / "run", figures=("refusal.rate",))])
    assert "existence drift" not in export.text(found)
    assert "refusal drift" in export.text(found)


def test_a_figure_that_vanished_is_a_dash(tmp_path: Path) -> None:
    path = make(tmp_path / "run")
    scores = path / "small" / "seed-0" / "stages" / "03" / "scores.json"
    record = json.loads(scores.read_text("utf-8"))
    record["figures"]["captions.chair_i"] = None
    scores.write_text(json.dumps(record), "utf-8")
    found = table.read([path])
    assert math.isnan(_row(found, "small").cells["CHAIRi drift"].value)
    assert any(note.startswith("– not defined") for note in found.notes)


def test_runs_of_the_same_base_are_joined(folder: Path, tmp_path: Path) -> None:
    more = [{"label": "small", "name": "replay"}, {"label": "ewc", "name": "ewc"}]
    other = make(tmp_path / "other", seeds=(0, 1), strategies=more)
    joined = table.read([folder, other])
    labels = [row.label for row in joined.rows]
    assert labels == [
        "study/small", "zero", "isolated_lora-replay", "joint", "individual", "other/small", "ewc",
    ]  # fmt: skip
    assert [row.run for row in joined.rows][-2:] == ["other", "other"]
    assert list(export.record(joined)["runs"]) == ["study", "other"]


def test_runs_of_another_base_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make(tmp_path / "other", base_shift=1)
    assert cli.main(["table", str(folder), str(other)]) == 2
    said = capsys.readouterr().err
    assert "its base is not that of study: task.one.accuracy is" in said
    assert said.count("\n") == 1
    with pytest.raises(RunFolderError, match="given twice"):
        table.read([folder, folder])
    with pytest.raises(RunFolderError, match="not a run folder"):
        table.read([tmp_path])
    assert cli.main(["table", str(folder), "--json", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_ends_are_cut_at_what_a_share_can_be() -> None:
    """Two seeds give an interval of 12.7 standard errors to either side."""
    wide = runs.over_seeds([0.25, 0.75], runs.SHARE)
    assert wide is not None
    assert (wide.low, wide.high) == (0, 1)
    change = runs.over_seeds([-0.5, 0.5], wording.bounds("refusal.j"))
    assert change is not None
    assert (change.low, change.high) == (-1, 1)
    odds = runs.over_seeds([-5.0, 5.0], wording.bounds("refusal.margin"))
    assert odds is not None
    assert odds.high is not None
    assert odds.high > 60
