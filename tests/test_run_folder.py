"""The run folder: resume, atomic scores, torn events, racing media, hostile folders."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from reports import lock
from reports.records import RunFolderError
from reports.run_folder import ConfigChangedError, RunFolder

CONFIG = {
    "model": "nano",
    "train": {"learning_rate": 1e-5, "steps": 10},
    "strategies": ["zero_shot", {"name": "replay", "budget": 0.05}],
    "seeds": (0, 1),
    "workers": 2,
}


def png(shade: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, shade]))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").open(CONFIG, {"command": "first"})


def scores(**more: object) -> dict[str, object]:
    return {"task": "digits", "figures": {"refusal.j": 0.5}, **more}


def test_opening_again_resumes_and_keeps_every_session(run: RunFolder) -> None:
    before = (run.path / "config.yaml").read_bytes()
    RunFolder(run.path).open({**CONFIG, "workers": 8}, {"command": "second"})
    assert [session["command"] for session in run.provenance()] == ["first", "second"]
    assert (run.path / "config.yaml").read_bytes() == before


def test_a_changed_config_is_refused_field_by_field(run: RunFolder) -> None:
    changed = {
        **CONFIG,
        "train": {"learning_rate": 0.01},
        "strategies": ["zero_shot", {"name": "replay", "budget": 0.1}, "joint"],
        "precision": "bf16",
    }
    with pytest.raises(ConfigChangedError) as error:
        run.open(changed, {})
    lines = [line.strip() for line in str(error.value).splitlines()[1:-1]]
    assert lines == [
        "train.learning_rate: 1e-05 before, 0.01 now",
        "train.steps: 10 before, not there now",
        "strategies[1].budget: 0.05 before, 0.1 now",
        "strategies[2]: not there before, 'joint' now",
        "precision: not there before, 'bf16' now",
    ]
    assert len(run.provenance()) == 1


def test_strategies_and_probes_differ_by_name(tmp_path: Path) -> None:
    def config(*strategies: dict[str, object], items: int = 4) -> dict[str, object]:
        return {"strategies": list(strategies), "probes": [{"name": "bias", "items": items}]}

    small, large = ({"label": k, "name": "replay", "budget": b} for k, b in (("s", 1), ("l", 2)))
    run = RunFolder(tmp_path / "run").open(config(small, large), {})
    for changed, lines in (
        (config(small, large | {"budget": 3}), ["strategies[l].budget: 2 before, 3 now"]),
        (config(large, small), ["strategies: s, l before, l, s now"]),
        (config(large), ["strategies[s]: there before, not there now"]),
        (
            config({"label": "n", "name": "ewc"}, small, large, items=5),
            ["strategies[n]: not there before, there now", "probes[bias].items: 4 before, 5 now"],
        ),
    ):
        with pytest.raises(ConfigChangedError) as error:
            run.open(changed, {})
        assert [line.strip() for line in str(error.value).splitlines()[1:-1]] == lines


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder(tmp_path).open(CONFIG, {})


def test_scores_make_a_stage_done_and_come_back_as_written(run: RunFolder) -> None:
    stage = run.stage("replay", 1, 2).begin()
    stage.checkpoint.mkdir()
    stage.write_answers(
        [{"item": "a", "set": "digits", "question": "?", "reference": "3", "answer": "\u2028\r\n"}]
    )
    stage.write_outcomes({"values": {"f": {"a": np.float32(1)}}, "clusters": {"a": "c"}})
    assert not stage.done
    assert run.strategies() == ["replay"]
    assert run.seeds("replay") == [1]
    assert run.stages("replay", 1) == []
    stage.write_scores(
        scores(
            figures={"a": np.float64(0.5), "b": float("nan")},
            intervals={"a": (0.4, 0.6, np.int64(10))},
            states={"b": {"state": "not measurable", "reason": "no likelihood"}},
        )
    )
    assert run.stages("replay", 1) == [2]
    read = stage.read_scores()
    assert read["schema"] == 1
    assert read["stage"] == 2
    assert read["figures"] == {"a": 0.5, "b": None}
    assert read["intervals"]["a"] == (0.4, 0.6, 10)
    assert stage.read_answers()[0]["answer"] == "\u2028\r\n"
    assert stage.read_outcomes()["values"] == {"f": {"a": 1.0}}
    assert not list(run.path.rglob(".*"))
    with pytest.raises(RunFolderError, match="never overwritten"):
        stage.begin()


def test_an_interrupted_stage_begins_empty(run: RunFolder) -> None:
    stage = run.stage("replay", 0, 1).begin()
    (stage.path / "answers.jsonl").write_text("half a li")
    assert not list(run.stage("replay", 0, 1).begin().path.iterdir())


def test_strategies_come_in_the_order_of_the_config(run: RunFolder) -> None:
    for name in ["another", "replay-budget=0.1", "zero_shot", "replay-budget=0.05"]:
        run.stage(name, 0, 1).begin()
    expected = ["zero_shot", "replay-budget=0.05", "replay-budget=0.1", "another"]
    assert run.strategies() == expected


def test_labels_stand_where_the_study_lists_them(tmp_path: Path) -> None:
    strategies = [
        {"label": "herding", "name": "replay"},
        {"label": "nothing", "name": "zero_shot"},
        {"label": "a-b", "name": "combined"},
        {"label": "a", "name": "a"},
    ]
    run = RunFolder(tmp_path / "run").open({"strategies": strategies}, {})
    for name in ("a", "a-b", "herding"):
        run.stage(name, 0, 1).begin()
    assert run.strategies() == ["herding", "a-b", "a"]
    assert run.listed() == ["herding", "nothing", "a-b", "a"]
    assert run.untrained() == ["nothing"]


def test_what_follows_a_gap_is_not_finished(run: RunFolder) -> None:
    for number in (1, 2, 4):
        run.stage("replay", 0, number).write_scores(scores())
    assert run.stages("replay", 0) == [1, 2, 4]
    assert run.finished("replay", 0) == [1, 2]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (scores(figure={}), "figure: .*; did you mean figures"),
        ({"figures": {}}, "task: Field required"),
        (scores(stage=3), "stage 3 belong elsewhere"),
        (scores(states={"x": {"state": "measurable"}}), "states.x.state: .*got 'measurable'"),
        (scores(figures={"x": object()}), "cannot be stored as JSON"),
    ],
)
def test_malformed_scores_are_refused_with_the_field(
    run: RunFolder, record: dict[str, object], message: str
) -> None:
    stage = run.stage("replay", 0, 1).begin()
    with pytest.raises(RunFolderError, match=message):
        stage.write_scores(record)
    assert not stage.done


def test_reading_says_what_is_wrong(run: RunFolder) -> None:
    stage = run.stage("replay", 0, 1).begin()
    with pytest.raises(RunFolderError, match="did not finish"):
        stage.read_scores()
    (stage.path / "scores.json").write_text('{"schema": 9}')
    with pytest.raises(RunFolderError, match="another version"):
        stage.read_scores()
    (stage.path / "scores.json").write_text("{")
    with pytest.raises(RunFolderError, match="not JSON"):
        stage.read_scores()
    (stage.path / "answers.jsonl").write_text('{}\n{"it')
    with pytest.raises(RunFolderError, match="jsonl:2: not JSON"):
        stage.read_answers()


def test_a_torn_last_event_is_tolerated_and_then_dropped(run: RunFolder) -> None:
    stage = run.stage("replay", 0, 1)
    stage.append_events({"step": 1}, {"step": 2})
    path = run.path / "replay" / "seed-0" / "events.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert [event["step"] for event in stage.read_events()] == [1, 2]
    stage.append_event({"step": 3})
    assert [event["step"] for event in stage.read_events()] == [1, 2, 3]
    path.write_text('{"torn')
    stage.append_event({"step": 1})
    assert stage.read_events() == [{"step": 1}]


def test_thumbnails_are_stored_once_and_survive_a_race(run: RunFolder) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda i: run.put_thumbnail(png(i % 4)), range(64)))
    assert len(set(names)) == 4 == len(list((run.path / "media").iterdir()))
    assert run.thumbnail(names[1]) == png(1)
    (run.path / "media" / f"{names[1]}.png").write_bytes(png(1)[:-3])
    assert run.thumbnail(names[1]) is None
    assert run.thumbnail("0" * 32) is None
    with pytest.raises(RunFolderError, match="PNG"):
        run.put_thumbnail(b"GIF89a")


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", "base", "media", "a\0", ".hidden", "é"])
def test_a_strategy_name_cannot_leave_the_folder(run: RunFolder, name: str) -> None:
    with pytest.raises(RunFolderError, match="strategy"):
        run.stage(name, 0, 1)


def test_a_link_cannot_lead_out_of_the_folder(run: RunFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"schema": 1}))
    stage = run.stage("replay", 0, 1).begin()
    os.symlink(secret, stage.path / "scores.json")
    with pytest.raises(RunFolderError, match="leads out"):
        stage.read_scores()
    with pytest.raises(RunFolderError, match="not a content hash"):
        run.thumbnail("../../secret")


def test_no_pickle_and_no_torch() -> None:
    code = "import sys, reports.html; print(sorted({'torch', 'clmm'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
    folder = Path(__file__).parent.parent / "reports"
    sources = "".join(path.read_text() for path in folder.rglob("*.py"))
    assert "import pickle" not in sources
    assert "unsafe_load" not in sources
    assert "yaml.load" not in sources


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    folder = tmp_path / "run"
    with lock.locked(folder):
        run = RunFolder(folder).open({"strategies": ["joint"]}, {})
        with pytest.raises(RunFolderError, match="another process is running"), lock.locked(folder):
            pass
    with lock.locked(folder):
        assert run.exists
    with pytest.raises(ValueError, match="refused"), lock.locked(tmp_path / "new"):
        raise ValueError("refused")
    assert not (tmp_path / "new").exists()
