"""A grid as commands: what is printed runs what was meant, and what is done is left out."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clmm import cli
from clmm.study import Study, read
from clmm.sweep import finished, sweep
from reports.run_folder import RunFolder
from streams.settings import SettingError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study = {
        "strategies": ["sequential_lora", "replay", "zero_shot"],
        "stream": ["digits", "parity"],
        "seeds": [3],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study), "utf-8")
    return tmp_path


def grid(folder: Path, **values: Any) -> Path:
    path = folder / "grid.yaml"
    values = {"study": "mine.yaml", "out": str(folder / "out"), **values}
    path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    return path


def parsed(command: str) -> tuple[Study, Path]:
    """What the command line would run, and where."""
    words = shlex.split(command)
    assert words[:2] == ["clmm", "run"]
    assert words[-2] == "--out"
    return read(words[2], words[3:-2]).study(), Path(words[-1])


def test_every_combination_is_a_command_that_means_it(folder: Path) -> None:
    values = {"seeds": [[0], [1, 2]], "train.learning_rate": [1e-3, 1e-5]}
    commands = sweep(grid(folder, grid=values))
    assert commands[1] == (
        f"clmm run {folder}/mine.yaml 'seeds=[0]' train.learning_rate=1e-05 "
        f"--out {folder}/out/seeds=0,train.learning_rate=1e-05"
    )
    found = [
        (study.seeds, study.train.learning_rate, out.name) for study, out in map(parsed, commands)
    ]
    assert found == [
        ((0,), 0.001, "seeds=0,train.learning_rate=0.001"),
        ((0,), 1e-05, "seeds=0,train.learning_rate=1e-05"),
        ((1, 2), 0.001, "seeds=1-2,train.learning_rate=0.001"),
        ((1, 2), 1e-05, "seeds=1-2,train.learning_rate=1e-05"),
    ]


def test_values_of_every_kind_survive_the_shell(folder: Path) -> None:
    specs = [
        {"name": "replay", "budget": 0.1},
        "joint",
        {"name": "replay", "label": "a b'c"},
    ]
    values = {
        "strategies.1": specs,
        "device": [None, "cpu"],
        "model": ["null", "./my models/7", "1000"],
        "train.gradient_checkpointing": [True],
    }
    read_back = [parsed(command)[0] for command in sweep(grid(folder, grid=values))]
    assert len(read_back) == 18
    assert [study.device for study in read_back[::3]] == [None, "cpu"] * 3
    assert [study.model for study in read_back[:3]] == ["null", "./my models/7", "1000"]
    assert read_back[0].strategies[1].budget == 0.1
    assert read_back[-1].labels[1] == "a_b_c"
    assert all(study.train.gradient_checkpointing is True for study in read_back)


def test_folders_are_safe_and_readable(folder: Path) -> None:
    values = {"strategies.1": [{"name": "replay", "budget": 0.1}], "stream": ["digits"],
              "model": ["../" * 30]}  # fmt: skip
    (command,) = sweep(grid(folder, grid=values))
    out = parsed(command)[1]
    assert out.parent == folder / "out"
    assert out.name.startswith("strategies.1=name-replay-budget-0.1-")
    assert ",stream=digits,model=..-..-" in out.name
    assert len(out.name) < 150
    assert shlex.quote(out.name) == out.name


def test_the_default_study_and_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "rates.yaml").write_text("grid: {train.learning_rate: [1e-3]}", "utf-8")
    monkeypatch.chdir(folder)
    assert sweep("rates.yaml") == [
        "clmm run default train.learning_rate=0.001 --out runs/rates/train.learning_rate=0.001"
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gird": {}}, r"gird: no such setting; did you mean grid\?"),
        ({"grid": {}}, "names no setting"),
        ({"grid": [1]}, "grid: give a mapping"),
        ({}, "grid: this setting is required"),
        ({"grid": {"seeds": 0}}, r"grid\.seeds: give a list of values; got 0"),
        ({"grid": {"seeds": []}}, "give a list of values"),
        ({"grid": {"train": {"learning_rate": [1]}}}, r"and write train\.learning_rate"),
        ({"grid": {"sead": [1]}}, r"sead=1: sead: no such setting; did you mean seeds\?"),
        ({"grid": {"train.epoch": [1]}}, r"train\.epoch: no such .*did you mean epochs\?"),
        ({"grid": {"seeds": [[0], [-1]]}}, r"seeds=\[-1\]: seeds: a seed must not be negative"),
        ({"grid": {"strategies.9": ["replay"]}}, r"'9' is not a place in the list"),
        ({"grid": {"seeds": [[0], [0]]}}, "are the same"),
        ({"grid": {"device": [yaml.safe_load("2024-01-01")]}}, "cannot be written"),
        ({"grid": {"seeds": [[0]]}, "study": "mien.yaml"}, "no such study file"),
    ],
)
def test_bad_grids_print_nothing(
    folder: Path, values: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = grid(folder, **values)
    with pytest.raises(SettingError, match=message):
        sweep(path)
    assert cli.main(["sweep", str(path)]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("clmm: error: ")
    assert shown.err.count("\n") == 1


def test_files_that_are_no_grid(folder: Path) -> None:
    for text, message in (("- 1", "is a mapping"), ("a: [", "not YAML"), (b"\xff", "UTF-8")):
        (folder / "bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(SettingError, match=message):
            sweep(folder / "bad.yaml")
    with pytest.raises(SettingError, match="no such grid file"):
        sweep(folder / "nothing.yaml")


def finish(run: RunFolder, study: Study, *, last: int = 2) -> None:
    """A run folder as a run of two tasks leaves it, with no answers in it."""
    run.open(study.plain(), {})
    stages = [run.base()]
    for label in study.labels:
        count = 0 if label == "zero_shot" else last
        stages += [run.stage(label, s, n) for s in study.seeds for n in range(1, count + 1)]
    for stage in stages:
        if not stage.done:
            stage.begin()
            (stage.path / "scores.json").write_text("{}", "utf-8")


def test_finished_runs_are_left_out_with_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = grid(folder, grid={"seeds": [[0], [1], [2]]})
    commands = sweep(path)
    for (study, out), last in zip(map(parsed, commands[:2]), (2, 1), strict=True):
        finish(RunFolder(out), study, last=last)
    assert cli.main(["sweep", str(path)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == commands[1:]
    assert shown.err == f"clmm: {folder}/out/seeds=0 is done\n"


def test_a_run_of_another_study_is_not_finished(folder: Path) -> None:
    ((study, out),) = map(parsed, sweep(grid(folder, grid={"seeds": [[0]]})))
    run = RunFolder(out)
    assert not finished(run, study)
    finish(run, study)
    assert finished(run, study)
    other = read(folder / "mine.yaml", ["seeds=[0]", "train.epochs=2"]).study()
    assert not finished(run, other)
    assert finished(run, read(folder / "mine.yaml", ["seeds=[0]", "workers=2"]).study())
    (run.base().path / "scores.json").unlink()
    assert not finished(run, study)


def test_a_sweep_needs_no_torch(folder: Path) -> None:
    path = grid(folder, grid={"seeds": [[0]]})
    code = f"import sys; from clmm.sweep import sweep; sweep({str(path)!r}); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
