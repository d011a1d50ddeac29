"""Wrong answers: preference pairs, feedback on them, and pairs that users bring."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_streams

from clmm import objective
from streams.loading import StreamError, load_stream
from streams.sample import Answer, Provenance, Sample, Scorer, Text, ask
from streams.scoring import score
from streams.settings import SettingError
from streams.sources._answers import Answers
from streams.stream import Stream, Task

BASE = load_stream({"name": "default", "train_items": 60, "test_items": 10})
SOURCE = Provenance(source="test", split="train", item="0")


def sample(id: str, question: str, answer: str, scorer: Scorer = "exact") -> Sample:
    return ask(id=id, question=question, answer=answer, provenance=SOURCE, scorer=scorer)


def stream(*samples: Sample) -> Stream:
    return Stream(name="s", tasks=(Task(name="t", train=samples, test=samples[:1]),))


def rejected(sample: Sample) -> str:
    return "".join(part.text for part in sample.rejected if isinstance(part, Text))


# Wrong answers


def test_an_answer_to_the_same_question_goes_first_then_one_of_its_kind() -> None:
    samples = [
        sample("1", "What color is the ring?", "red"),
        sample("2", "what color is the ring", "blue"),
        sample("3", "What color is it?", "teal"),
        sample("4", "How many rings?", "three"),
        sample("5", "Where?", "Here"),
    ]
    answers, rng = Answers("t", samples), np.random.default_rng(0)
    assert answers.wrong(samples[0], rng) == ("blue",)
    assert answers.wrong(samples[0], rng, 2) == ("blue", "teal")
    assert {answers.wrong(samples[2], rng)[0] for _ in range(20)} == {"red", "blue"}
    assert set(answers.wrong(samples[0], rng, 9)) == {"blue", "teal", "three", "Here"}


@pytest.mark.parametrize(("said", "other"), [("yes", "no"), ("No.", "Yes."), ("Yes", "No")])
def test_yes_and_no_are_turned_round(said: str, other: str) -> None:
    one = sample("1", "Is it?", said, "yes_no")
    assert Answers("t", [one]).wrong(one, np.random.default_rng(0)) == (other,)


def test_what_the_scorer_takes_for_right_is_no_wrong_answer() -> None:
    one = sample("1", "How many?", "three")
    several = replace(one, metadata={"references": ("three", "four")})
    answers = Answers("t", [several, sample("2", "How many?", "3"), sample("3", "How many?", "4")])
    with pytest.raises(StreamError, match="task t: sample 1: no other answer of the task is wrong"):
        answers.wrong(several, np.random.default_rng(0))
    assert answers.wrong(one, np.random.default_rng(0)) == ("4",)


# Preference pairs


def test_every_training_sample_gets_a_wrong_answer_of_its_task() -> None:
    beta = {"name": "dpo", "beta": 0.2}
    tasks = load_stream({"name": "preferences", "of": BASE, "objective": beta}).tasks
    for task, old in zip(tasks, BASE.tasks, strict=True):
        assert task.objective == beta
        assert task.test is old.test
        known = {s.reference_text for s in old.train}
        for new, was in zip(task.train, old.train, strict=True):
            assert (new.id, new.messages, new.reference) == (was.id, was.messages, was.reference)
            assert rejected(new) in known
            found = score(was, Answer(sample_id=was.id, parts=new.rejected))
            assert (found.value, found.outcome) == (0, "wrong")
    assert len(Counter(rejected(s) for s in tasks[0].train)) == 10


def test_preferences_are_drawn_by_the_seed_when_they_are_asked_for() -> None:
    def texts(seed: int) -> list[str]:
        tasks = load_stream({"name": "preferences", "of": BASE, "seed": seed}).tasks
        return [rejected(s) for task in tasks for s in task.train]

    assert texts(0) == texts(0) != texts(1)
    tasks = load_stream({"name": "preferences", "of": BASE}).tasks
    assert tasks[0].objective == "dpo"
    assert all(made is None for made in tasks[0].train._made)  # type: ignore[attr-defined]


def test_a_rejected_answer_of_the_users_own_stays() -> None:
    own = replace(sample("1", "What?", "red"), rejected=(Text(text="mine"),))
    base = stream(own, sample("2", "What?", "blue"))
    first, second = load_stream({"name": "preferences", "of": base}).tasks[0].train
    assert (rejected(first), rejected(second)) == ("mine", "red")


def test_the_objective_finds_what_it_needs() -> None:
    (task, *_) = load_stream({"name": "preferences", "of": tiny_streams.stream()}).tasks
    objective.of(task.objective, where="here").check(task.train)


# Pairs of users


def record(**more: Any) -> dict[str, Any]:
    turns = [("human", "What?"), ("gpt", "Red."), ("human", "Sure?"), ("gpt", "Quite.")]
    talk = [{"from": who, "value": text} for who, text in turns]
    return {"id": "a", "conversations": talk, **more}


def folder(tmp_path: Path, *records: Any) -> Path:
    for name in ("train", "test"):
        changed = [{**one, "id": f"{name}{i}"} for i, one in enumerate(records)]
        if name == "test":
            for one in changed:
                one.pop("rejected", None)
                one["conversations"] = [
                    {"from": "human", "value": "Who?"},
                    record()["conversations"][1],
                ]
        (tmp_path / f"{name}.json").write_text(json.dumps(changed))
    return tmp_path


def test_a_record_with_a_rejected_answer_is_one_pair(tmp_path: Path) -> None:
    base = folder(tmp_path, record(rejected="No."), record())
    (task,) = load_stream({"name": "staged", "of": base, "objective": "dpo"}).tasks
    pair, first, second = task.train
    assert (rejected(pair), pair.reference_text, len(pair.messages)) == ("No.", "Quite.", 3)
    assert (first.rejected, second.rejected, task.objective) == ((), (), "dpo")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"rejected": ["No."]}, "rejected: must be an answer of text alone, not ['No.']"),
        ({"rejected": " "}, "rejected: must be an answer of text alone"),
        ({"rejected": "<image>"}, "rejected: must be an answer of text alone"),
        ({"rejected": "Quite. "}, "rejected: is the same as the last answer"),
        ({"reject": "No."}, "reject: no such field; did you mean rejected?"),
        ({"imgae": "a.png"}, "imgae: no such field; did you mean image?"),
        ({"Image": "a.png"}, "Image: no such field; did you mean image?"),
    ],
)
def test_faults_of_a_record_are_named(tmp_path: Path, more: Any, reason: str) -> None:
    with pytest.raises(StreamError) as caught:
        load_stream(folder(tmp_path, record(), record(**more)))
    assert "train.json, record 2 (line 1): " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: one.update(conversation=one.pop("conversations")),
         "conversation: no such field; did you mean conversations?"),
        (lambda one: one["conversations"][0].update(frm=one["conversations"][0].pop("from")),
         "conversations, turn 1: frm: no such field; did you mean from?"),
        (lambda one: one["conversations"][1].update(valeu=one["conversations"][1].pop("value")),
         "conversations, turn 2: valeu: no such field; did you mean value?"),
        (lambda one: one["conversations"][1].update(form=one["conversations"][1].pop("from")),
         "conversations, turn 2: form: no such field; did you mean from?"),
    ],
)  # fmt: skip
def test_misspelt_fields_are_named(tmp_path: Path, change: Any, reason: str) -> None:
    one = record()
    change(one)
    (tmp_path / "chat.json").write_text(json.dumps([one]))
    with pytest.raises(StreamError) as caught:
        load_stream(tmp_path)
    assert f"chat.json, record 1 (line 1): {reason}" in str(caught.value)


def test_other_fields_are_welcome(tmp_path: Path) -> None:
    known = record(image_id=7, idx=3, source="web", ids=[1], model="", conversation_id=4)
    assert len(load_stream(folder(tmp_path, known)).tasks[0].train) == 2


# Feedback


def test_a_share_gets_a_wrong_answer_and_a_reply_to_it() -> None:
    tasks = load_stream({"name": "feedback", "of": BASE, "share": 0.4}).tasks
    for task, old in zip(tasks, BASE.tasks, strict=True):
        talks = [(s, was) for s, was in zip(task.train, old.train, strict=True) if s is not was]
        assert len(talks) == 24
        assert (task.objective, task.test) == ("sft", old.test)
        for new, was in talks:
            *context, wrong, reply = new.messages
            assert tuple(context) == was.messages
            assert (wrong.role, reply.role) == ("assistant", "user")
            assert new.reference == was.reference
            assert score(was, Answer(sample_id=was.id, parts=wrong.parts)).outcome == "wrong"
            assert was.reference_text not in reply.text.split('"')
    assert "Keep " in "".join(s.messages[-1].text for s in tasks[1].train)


def test_feedback_takes_the_rejected_answer_and_refuses_plain_text() -> None:
    own = replace(sample("1", "What?", "red"), rejected=(Text(text="mine"),))
    (task,) = load_stream({"name": "feedback", "of": stream(own), "share": 1}).tasks
    assert task.train[0].messages[1].text == "mine"
    plain = load_stream({"name": "feedback", "of": "visual_domains", "share": 1}).tasks[0]
    with pytest.raises(StreamError, match="task handwriting: plain text has no turns to reply to"):
        plain.train[0]
    with pytest.raises(SettingError, match=r"feedback\.share"):
        load_stream({"name": "feedback", "of": BASE, "share": 0})
