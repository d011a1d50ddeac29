"""Settings: what is read is what is meant, what is wrong is named with its place, and what is
written back makes the same study again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.replay import Replay
from clmm.study import Study, read, to_yaml
from clmm.training import TrainSettings
from safety import standard_probes
from streams.settings import SettingError

STUDY = """\
model: nano
stream: default
strategies:
  - sequential_lora
  - name: replay
    budget: 0.1
seeds: [0, 1]
train:
  learning_rate: 1e-3
  epochs: 2
"""


def _write(folder: Path, text: str = STUDY) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_and_a_script_say_the_same(tmp_path: Path) -> None:
    written = read(_write(tmp_path)).study()
    scripted = Study.resolve(
        {
            "strategies": ["sequential_lora", Replay(budget=0.1)],
            "seeds": [0, 1],
            "train": TrainSettings(learning_rate=1e-3, epochs=2),
            "probes": standard_probes(),
        }
    )
    assert written == scripted
    assert written.train.learning_rate == 1e-3
    assert written.labels == ("sequential_lora", "replay")


def test_the_resolved_study_read_back_is_the_same(tmp_path: Path) -> None:
    study = read(_write(tmp_path), ["stream.name=default", "stream.items=3"]).study()
    again = read(_write(tmp_path, to_yaml(study.plain()))).study()
    assert again == study
    assert again.plain() == study.plain()


def test_the_packaged_default_study_is_good() -> None:
    written = read("default")
    assert written.name == "default"
    assert len(written.study().strategies) == 3


def test_overrides_reach_into_mappings_lists_and_names(tmp_path: Path) -> None:
    overrides = [
        "seeds=[5]",
        "train.learning_rate=5e-4",
        "strategies.1.budget=0.2",
        "strategies.0.rank=4",
        "workers=1",
    ]
    study = read(_write(tmp_path), overrides).study()
    assert study.seeds == (5,)
    assert study.train.learning_rate == 5e-4
    assert study.train.epochs == 2
    assert study.strategies[0].rank == 4
    assert study.strategies[1].budget == 0.2
    assert study.workers == 1


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (STUDY + "trian: {}\n", ":11: ", ["trian: no such setting", "did you mean train?"]),
        (STUDY.replace("learning_rate", "learningrate"), ":9: ", ["learning_rate?"]),
        (STUDY.replace("epochs: 2", "epochs: two"), ":10: ", ["train.epochs", "'two'"]),
        (STUDY.replace("epochs: 2", "epochs: -2"), ":10: ", ["train.epochs", "above 0", "-2"]),
        (STUDY.replace("budget", "budgte"), ":6: ", ["budgte", "did you mean budget?"]),
        (STUDY.replace("name: replay", "name: reply"), ":5: ", ["'reply'", "replay?"]),
        (STUDY.replace("[0, 1]", "[0, 0]"), ":7: ", ["seeds", "[0, 0]"]),
        (STUDY.replace("[0, 1]", "zero"), ":7: ", ["seeds"]),
        (STUDY.replace("budget: 0.1", "budget: -3"), ":6: ", ["strategies[1]", "-3"]),
        (STUDY + "seeds: [3]\n", ":11: ", ["seeds is given twice", "line 7"]),
        (STUDY + "precision: fp31\n", ":11: ", ["precision", "did you mean fp32?"]),
        (STUDY + "probes: [existense]\n", ":11: ", ["did you mean existence?"]),
        ("model: [unclosed\n", ":2: ", ["not YAML"]),
        ("- a\n- b\n", ": ", ["mapping"]),
        ("model: nano\n", ": ", ["strategies", "at least one"]),
        (STUDY.replace("- sequential_lora", "- replay\n  - replay"), ":5: ", ["label"]),
    ],
)
def test_an_error_names_the_line_the_value_and_the_likely_intent(
    tmp_path: Path, text: str, place: str, words: list[str]
) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(SettingError) as caught:
        read(path).study()
    message = str(caught.value)
    assert message.startswith(f"{path}{place}"), message
    for word in words:
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seeds", ["not key=value"]),
        ("strategies.7.rank=1", ["strategies.7.rank", "0 to 1"]),
        ("train.learningrate=1", ["command line", "learning_rate?"]),
        ("model.depth.more=1", ["command line", "model"]),
        ("strategies=[{name: reply}]", ["command line: strategies[0]", "replay?"]),
        (
            "strategies=[joint, {name: replay, budget: -3}]",
            ["command line: strategies[1]: replay.budget: -3"],
        ),
        (
            "strategies=[joint, {name: combined, of: [replay]}]",
            ["command line: strategies[1]: combined.of: name two"],
        ),
        ("strategies.1.budget=-3", ["command line: strategies[1]: replay.budget: -3"]),
        ("strategies.1.budget=x", ["command line", "budget: give a number; got 'x'"]),
        ("probes=[{name: bias, items: 0}]", ["command line: probes[0]: bias.items"]),
        (
            "seeds=0..3",
            ["command line: seeds: give a list of whole numbers, such as [0, 1]; got '0..3'"],
        ),
        ("seeds=[0.5]", ["seeds: give a list of whole numbers"]),
        ("train.steps=a", ["command line: train.steps: give a whole number; got 'a'"]),
    ],
)
def test_a_bad_override_is_blamed_on_the_command_line(
    tmp_path: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(SettingError) as caught:
        read(_write(tmp_path), [override]).study()
    for word in words:
        assert word in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    path = _write(tmp_path)
    with pytest.raises(SettingError, match=r"did you mean .*mine\.yaml"):
        read(tmp_path / "mime.yaml")
    assert path.exists()


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError):
        read(_write(tmp_path, "model: !!python/object/apply:os.getcwd []\n"))


def test_namesakes_are_told_apart_by_what_differs_or_by_a_label() -> None:
    values = {"strategies": [Replay(budget=0.05), Replay(budget=0.2), IsolatedLora()]}
    assert Study.resolve(values).labels == (
        "replay-budget-0.05",
        "replay-budget-0.2",
        "isolated_lora",
    )
    named = [{"name": "replay", "label": "small"}, {"name": "replay", "budget": 0.2}]
    study = Study.resolve({"strategies": named})
    assert study.labels[0] == "small"
    assert [entry["label"] for entry in study.plain()["strategies"]] == list(study.labels)


def test_the_plain_form_is_yaml_without_workers() -> None:
    study = Study.resolve({"strategies": [Replay()], "workers": 3})
    plain = study.plain()
    assert yaml.safe_load(to_yaml(plain)) == plain
    assert "workers" not in plain


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strategies": [3]}, r"strategies\[0\]: 3 is not one"),
        (
            {"strategies": ["streams.sources.digits:Digits"]},
            r"strategies\[0\]: Digits.* is not one",
        ),
        (
            {"strategies": [{"name": "replay", "rank": 0}]},
            r"strategies\[0\]\.rank: must be at least",
        ),
        ({"strategies": ["joint"], "train": 3}, r"train: give settings.*got 3"),
        (
            {"strategies": ["joint"], "device": "cdua"},
            r"device: there is no 'cdua'; did you mean cuda",
        ),
        ({"strategies": ["joint"], "seeds": [-1]}, "a seed must not be negative; got -1"),
    ],
)
def test_what_cannot_run_is_refused_when_it_is_read(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Study.resolve(settings)


@pytest.mark.parametrize("name", ["default", "comparison", "others"])
def test_packaged_studies_go_by_their_names(name: str) -> None:
    found = read(name).study()
    assert found.model == "nano"
    assert len(set(found.labels)) == len(found.strategies)


def test_the_packaged_studies_name_every_strategy() -> None:
    from streams import catalog

    named = set()
    for study in ("comparison", "others"):
        for strategy in read(study).study().strategies:
            named |= {type(part).__module__ for part in (strategy, *getattr(strategy, "of", ()))}
    everyone = {f"clmm.strategies.{name}" for name in catalog.names("clmm.strategies")}
    assert everyone - named == set()


def test_gates_are_margins_and_kept_only_where_given() -> None:
    given = Study.resolve({"strategies": ["zero_shot"], "gates": {"association.s_amb": 0.03}})
    assert given.plain()["gates"] == {"association.s_amb": 0.03}
    assert "gates" not in Study.resolve({"strategies": ["zero_shot"]}).plain()
    for gates, words in (
        (["refusal.rate"], "gates: give a mapping"),
        ({"refusal.rate": 0}, r"gates.refusal.rate: a margin must be a positive number; got 0"),
        ({"refusal.rate": True}, "got True"),
    ):
        with pytest.raises(SettingError, match=words):
            Study.resolve({"strategies": ["zero_shot"], "gates": gates})
