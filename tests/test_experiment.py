"""A whole study on a tiny LLaVA and a user's own folder, through the command line: complete,
resumed after kill -9 to the same scores, refused when changed, and honest about failures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from clmm import Experiment, cli
from clmm.experiment import _matched
from clmm.result import Result
from clmm.workers import can_fork
from reports.run_folder import RunFolder
from streams.settings import SettingError

ROOT = Path(__file__).parent.parent
STRATEGIES = ("sequential_lora", "replay", "isolated_lora")


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llava(tmp_path_factory.mktemp("model") / "llava")


@pytest.fixture(scope="module")
def study(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(
        f"model: {tiny_llava}\n"
        f"stream: {ROOT / 'examples' / 'my_data'}\n"
        f"strategies: [{', '.join(STRATEGIES)}]\n"
        "probes:\n"
        "  - {name: existence, items: 4}\n"
        "  - {name: refusal, items: 4}\n"
        "max_new_tokens: 8\n"
        "train: {learning_rate: 1e-2, steps: 4, batch_size: 4}\n",
        "utf-8",
    )
    return path


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(["run", str(study), "--out", str(folder), "workers=2"]) == 0
    return folder


def test_the_leak_guard_speaks_before_and_after(finished: Path, study: Path, capsys: Any) -> None:
    expected = "leaks: none of"
    assert cli.main(["validate", str(study)]) == 0
    assert expected in capsys.readouterr().out
    assert {s["leaks"] for s in RunFolder(finished).provenance()} == {
        line for line in [RunFolder(finished).provenance()[0]["leaks"]] if expected in line
    }
    assert "in a training set" in (finished / "report.html").read_text("utf-8")


def test_a_copy_in_the_training_set_is_named(tiny_llava: Path, tmp_path: Path) -> None:
    import tiny_streams

    from streams.stream import Stream, Task

    (task,) = tiny_streams.stream("colour", train=6, test=3).tasks
    copied = Task(name=task.name, train=[*task.train, task.test[1]], test=task.test[:2])
    plan = Experiment(
        model=tiny_llava,
        stream=Stream(name="leaky", tasks=(copied,)),
        strategies=["sequential_lora"],
        probes=[],
    ).plan()
    assert plan.leaks.startswith("leaks: 1 of 2 test items in a training set, the first is colour")


def _kept(folder: Path) -> dict[str, Any]:
    """All that a run found, without what it cost."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.json*")):
        name = str(path.relative_to(folder))
        if path.name in ("scores.json", "outcomes.json"):
            found[name] = json.loads(path.read_text("utf-8"))
            found[name].pop("cost", None)
        elif path.name == "answers.jsonl":
            found[name] = path.read_text("utf-8")
    return found


def test_every_stage_of_every_strategy_is_scored(finished: Path) -> None:
    run = RunFolder(finished)
    assert set(run.strategies()) == set(STRATEGIES)
    base = run.base().read_scores()
    assert base["stage"] == 0
    assert "verdicts" not in base or not base["verdicts"]
    for strategy in STRATEGIES:
        assert run.stages(strategy, 0) == [1, 2]
        for number, task in enumerate(("colours", "shapes"), 1):
            scores = run.stage(strategy, 0, number).read_scores()
            assert scores["task"] == task
            seen = {name: record["seen"] for name, record in scores["tasks"].items()}
            assert seen == {"colours": True, "shapes": number == 2}
            assert scores["figures"].keys() == base["figures"].keys()
            assert {"task.colours.accuracy", "existence.accuracy", "refusal.rate"} <= set(
                scores["figures"]
            )
            anchors = scores["verdicts"]["task.colours.accuracy"]
            assert set(anchors) == {"base", "previous"}
            assert scores["cost"]["steps"] == 4


def test_the_same_items_are_asked_every_time(finished: Path) -> None:
    run = RunFolder(finished)
    base = [(r["set"], r["item"], r["media"]) for r in run.base().read_answers()]
    assert len(set(base and [(s, i) for s, i, _ in base])) == len(base)
    for strategy in STRATEGIES:
        last = run.stage(strategy, 0, 2).read_answers()
        assert [(r["set"], r["item"], r["media"]) for r in last] == base
    assert all(run.thumbnail(name) for _, _, media in base for name in media)


def test_a_router_reports_its_routes_and_the_oracle(finished: Path) -> None:
    run = RunFolder(finished)
    scores = run.stage("isolated_lora", 0, 2).read_scores()
    assert set(scores["oracle"]) == {"colours", "shapes"}
    assert 0 <= (scores["routing_accuracy"] or 0.0) <= 1
    for shares in scores["routing"].values():
        assert sum(shares.values()) == pytest.approx(1)
    assert not run.stage("sequential_lora", 0, 2).read_scores()["routing"]


def test_the_table_and_the_report(finished: Path, tmp_path: Path) -> None:
    result = Result(finished)
    table = result.table()
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["(base)", *STRATEGIES]
    assert "backward transfer" in lines[0]
    assert list(result.scores) == list(STRATEGIES)
    assert len(result.scores["replay"][0]) == 3
    assert (finished / "report.html").is_file()
    assert cli.main(["report", str(finished), "-o", str(tmp_path / "r.html")]) == 0
    assert "sequential_lora" in (tmp_path / "r.html").read_text("utf-8")


def test_a_finished_run_run_again_changes_nothing(study: Path, finished: Path) -> None:
    before = _kept(finished)
    assert cli.main(["run", str(study), "--out", str(finished)]) == 0
    assert _kept(finished) == before
    assert len(RunFolder(finished).provenance()) >= 2


def test_killed_and_resumed_is_as_if_never_killed(
    study: Path, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "clmm.cli", "run", str(study), "--out", str(folder)]
    process = subprocess.Popen([*command, "workers=2"], stdout=subprocess.DEVNULL)
    first = folder / "sequential_lora" / "seed-0" / "stages" / "01" / "scores.json"
    deadline = time.monotonic() + 300
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert first.exists()
    kept = _kept(folder)
    assert len(kept) < len(_kept(finished)), "killed too late to mean anything"
    assert cli.main(["run", str(study), "--out", str(folder), "workers=1"]) == 0
    assert _kept(folder) == _kept(finished)


def test_a_changed_study_is_refused_with_the_difference(
    study: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(study), "--out", str(finished), "train.steps=5"]
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert "train.steps: 4 before, 5 now" in shown


def test_changed_data_are_refused(study: Path, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(ROOT / "examples" / "my_data", copy)
    folder = tmp_path / "run"
    settings = {
        "model": _model(study),
        "stream": str(copy),
        "strategies": ["zero_shot"],
        "probes": [{"name": "refusal", "items": 2}],
        "max_new_tokens": 4,
    }
    Experiment(**settings).run(folder)
    records = (copy / "shapes" / "test.json").read_text("utf-8")
    (copy / "shapes" / "test.json").write_text(records.replace("Which shape", "What shape"))
    with pytest.raises(SettingError, match="the data changed"):
        Experiment(**settings).run(folder)


@pytest.mark.parametrize(
    "workers", [pytest.param(2, marks=pytest.mark.skipif(not can_fork(), reason="no fork"))]
)
def test_a_strategy_that_fails_fails_alone(
    study: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    overrides = [
        "strategies=[{name: sequential_lora, learning_rate: 1e30}, zero_shot, replay]",
        f"workers={workers}",
    ]
    assert cli.main(["run", str(study), "--out", str(folder), *overrides]) == 1
    shown = capsys.readouterr().err
    assert "clmm: error: sequential_lora: " in shown
    assert "diverged at step" in shown
    assert RunFolder(folder).stages("replay", 0) == [1, 2]


def _model(study: Path) -> str:
    return study.read_text("utf-8").split("\n")[0].removeprefix("model: ")


def test_what_is_trained_is_said_and_compared() -> None:
    assert _matched(["a", "b", "zero"], [1024, 1024, 0]) == "trainable parameters: 1,024 in each"
    assert _matched(["zero"], [0]) == ""
    unequal = _matched(["a", "b"], [1024, 2048])
    assert unequal == "trainable parameters are not matched: a 1,024, b 2,048"
