"""The command line: quick where nothing neural is needed, one line for an error, never a trace."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models

from clmm import cli

EXAMPLES = Path(__file__).parent.parent / "examples"
NEURAL = ("torch", "transformers", "avalanche", "numpy", "scipy", "rich")


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llava(tmp_path_factory.mktemp("model") / "llava")


def _fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom clmm import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as e: print('status', e.code)\n"
        f"print([n for n in {NEURAL!r} if n in sys.modules])"
    )
    shown = _fresh(code)
    assert "status 0" in shown
    assert "COMMAND" in shown
    assert shown.strip().endswith("[]")


def test_help_comes_at_once() -> None:
    """Processor time, not the clock's: another process on this machine must not fail it."""
    code = (
        "import time; from clmm import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(time.process_time())"
    )
    assert float(_fresh(code).splitlines()[-1]) < 0.3


def test_a_settings_error_comes_before_torch(tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_text("strategies: [replay]\nsead: 1\n", "utf-8")
    code = (
        "import sys\nfrom clmm import cli\n"
        f"print(cli.main(['run', {str(study)!r}]), 'torch' in sys.modules)"
    )
    assert _fresh(code).strip() == "2 False"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("models", ["nano"]),
        ("streams", ["default", "digits", "easy_vqa", "llava_json"]),
        ("strategies", ["isolated_lora", "joint", "replay", "sequential_lora", "zero_shot"]),
        ("probes", ["bias", "captions", "existence", "pope", "reading", "refusal", "xstest"]),
        ("judges", ["http", "prefix", "clmm.judges.local_llm:LocalLlm"]),
        ("decoding", ["contrastive", "newline_ban", "self_feedback", "single_paragraph"]),
        ("encoders", ["clip", "imagebind", "whisper"]),
        ("projectors", ["ldp", "mlp", "q_former"]),
        ("llms", ["opt-6.7b", "vicuna-7b"]),
        ("output_projectors", ["mlp", "tiny_transformer"]),
        ("generators", ["latent_diffusion", "text_relay"]),
        ("recipes", ["gill", "llava-1.5-7b"]),
    ],
)
def test_ls_names_what_is_there(
    kind: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ls", kind]) == 0
    rows = capsys.readouterr().out.splitlines()
    listed = {row.split()[0]: row.split(maxsplit=1)[1] for row in rows}
    assert set(names) <= set(listed)


def test_ls_alone_names_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls"]) == 0
    rows = [row.split()[2] for row in capsys.readouterr().out.splitlines()]
    assert rows == [
        "models", "streams", "strategies", "probes", "judges", "decoding", "encoders", "projectors",
        "llms", "output_projectors", "generators", "recipes",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "no-such.yaml"], ["no-such.yaml", "no such study file"]),
        (["run", "default", "sead=1"], ["sead", "did you mean seeds?"]),
        (["run", "default", "strategies.1.budgte=1"], ["budgte", "did you mean budget?"]),
        (["run", "default", "train.epochs"], ["not key=value"]),
        (["probe", "nano", "--probes", "existense"], ["did you mean existence?"]),
        (["probe", "nano", "--items", "0"], ["--items", "0"]),
        (["probe", "nano", "--probes", "pope"], ["pope.folder", "required"]),
        (["probe", "nano", "--probes", "{name: pope, folder: nowhere}"], ["nowhere", "no file"]),
        (["probe", "nano", "--probes", "{name: pope"], ["--probes", "or mappings such as"]),
        (["report", "no-such-run"], ["no-such-run"]),
        (["table", "no-such-run"], ["no-such-run", "not a run folder"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("clmm: error: ")
    assert shown.err.count("\n") == 1
    assert not shown.out
    for word in words:
        assert word in shown.err


@pytest.mark.parametrize("arguments", [[], ["rnu"], ["ls", "modles"], ["run"]])
def test_bad_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("clmm: error: ")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no-such\.yaml"):
        cli.main(["--debug", "run", "no-such.yaml"])
    monkeypatch.setenv("CLMM_DEBUG", "1")
    with pytest.raises(ValueError, match=r"no-such\.yaml"):
        cli.main(["run", "no-such.yaml"])


def test_probe_writes_flat_figures(
    tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert (
        cli.main(["probe", str(tiny_llava), "--items", "4", "--seed", "3", "--out", str(out)]) == 0
    )
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert len(shown["existence.accuracy"]) == 4
    # What rests on no item has no interval and no items.
    assert shown["refusal.blind_floor"] == ["0.000"]
    record = json.loads(out.read_text("utf-8"))
    assert {
        "existence.accuracy",
        "existence.invalid",
        "captions.chair_i",
        "captions.cover",
        "reading.accuracy",
        "refusal.rate",
        "over_refusal.rate",
        "refusal.j",
        "bias.flip_rate",
    } <= set(record["figures"])
    assert record["seed"] == 3
    assert record["intervals"]["refusal.blind_floor"] == [None, None, 0]


def test_dry_run_and_validate_train_nothing(
    tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(EXAMPLES / "my_data.yaml")
    model = f"model={tiny_llava}"
    out = tmp_path / "run"
    assert cli.main(["run", study, model, "--dry-run", "--out", str(out)]) == 0
    plan = capsys.readouterr().out
    for word in ("colours", "shapes", "sequential_lora", "trainable", "existence", "steps"):
        assert word in plan
    rows = {line.split()[0]: line.split()[1:] for line in plan.splitlines() if line}
    assert rows["existence"] == ["400", "100"]
    assert rows["replay"][-1] == "40"
    assert "550 items are in held-out slices" in plan
    assert "2 runs, 4 stages after the base: about 80 steps" in plan
    assert cli.main(["validate", study, model]) == 0
    assert "good" in capsys.readouterr().out
    assert not out.exists()


def test_validate_finds_bad_data_before_training(
    tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    records = [
        {
            "id": "1",
            "image": "missing.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "this"},
            ],
        }
    ]
    for name in ("train.json", "test.json"):
        (data / name).write_text(json.dumps(records), "utf-8")
    started = time.monotonic()
    overrides = [f"model={tiny_llava}", f"stream={data}"]
    assert cli.main(["validate", str(EXAMPLES / "my_data.yaml"), *overrides]) == 2
    shown = capsys.readouterr().err
    assert "missing.png" in shown
    assert "train.json" in shown
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu", "default"], "there is no 'rnu'; did you mean run?"),
        (["ls", "strategy"], "there is no 'strategy'; did you mean strategies?"),
        (["probe", "nano", "--probes", "bias,bias"], "--probes: bias is there twice"),
        (["probe", "nano", "--probes", ""], "there is no ''"),
    ],
)
def test_mistyped_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(words)
    except SystemExit as stop:
        status = int(str(stop.code))
    assert status == cli.BAD_INPUT
    assert said in capsys.readouterr().err


def test_a_plan_says_what_leaks_and_leaves_out_what_is_not(
    tiny_llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from clmm import Experiment

    plan = Experiment(
        model=tiny_llava,
        stream=str(EXAMPLES / "my_data"),
        strategies=["joint", "zero_shot"],
        probes=[{"name": "bias", "items": 2, "held_out": False}],
        train={"learning_rate": 1e-3, "steps": 3},
    ).plan()
    plan.print()
    shown = capsys.readouterr().out
    assert "held-out slices" not in shown
    assert plan.each == {"joint": 6, "zero_shot": 0}
    assert "2 runs, 1 stage after the base" in shown
    dataclasses.replace(plan, leaks="[1] test item is in train").print()
    assert "\n[1] test item is in train\n" in capsys.readouterr().out


def test_what_has_no_stage_is_not_stage_0_of_0(capsys: pytest.CaptureFixture[str]) -> None:
    from clmm.progress import Display

    done = {"kind": "done", "stage": 0, "note": "was done already"}
    with Display({"zero_shot": 0, "replay": 2}) as screen:
        screen.event("zero_shot", done)
        screen.event("replay", done | {"stage": 1})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "zero_shot: trains nothing; its scores are the base's"
    assert shown[1] == "replay: stage 1 of 2, was done already"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("clmm 0.")
