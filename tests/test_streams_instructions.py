"""Questions in templates, and answers in several styles."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import tiny_streams

from streams.loading import load_stream
from streams.sample import Answer, Message, Provenance, Sample, Scorer, Text, ask
from streams.scoring import option, score
from streams.settings import SettingError
from streams.sources._forms import form, written
from streams.sources.instructed import HELD_OUT, TEMPLATES
from streams.stream import Stream, Task

BASE = load_stream({"name": "default", "train_items": 60, "test_items": 10})
DIGITS = {"name": "digits", "train_items": 600, "test_items": 10}
SOURCE = Provenance(source="test", split="train", item="0")
CHOICE = "Who?\nA. a baker\nB. a pilot\nC. a king\nAnswer with the option's letter directly."


def sample(id: str, question: str, answer: str, scorer: Scorer = "exact") -> Sample:
    return ask(id=id, question=question, answer=answer, provenance=SOURCE, scorer=scorer)


def stream(*samples: Sample) -> Stream:
    return Stream(name="s", tasks=(Task(name="t", train=samples, test=samples[:1]),))


def test_forms() -> None:
    assert form(sample("1", "?", "yes", "yes_no")) == "yes_no"
    assert form(sample("1", "?", "B", "first_letter")) == "choice"
    assert form(sample("1", "?", "two red rings")) == "short"
    assert form(sample("1", "?", "It is a red ring.")) == "sentence"
    assert form(sample("1", "?", "[0, 0, 1, 1]", "iou")) is None
    assert form(replace(sample("1", "", "a ring"), plain=True)) is None


def test_a_template_goes_round_the_whole_question() -> None:
    image = tiny_streams.sample("colour", "train", 0).images[0]
    parts = (Text(text="Is this"), image, Text(text="a ring?"))
    one = replace(sample("1", "", "no"), messages=(Message(role="user", parts=parts),))
    made = written(one, "Look. {question} Say it.").messages[0].parts
    assert made == (Text(text="Look. Is this"), image, Text(text="a ring? Say it."))
    bare = replace(one, messages=(Message(role="user", parts=(image,)),))
    assert written(bare, "Look. {question} Say it.").question == "Look.  Say it."


# Templates


@pytest.mark.parametrize("test", ["same", "held_out", "bare"])
def test_questions_become_instructions_of_their_form(test: str) -> None:
    tasks = load_stream({"name": "instructed", "of": BASE, "test": test}).tasks
    by_form = {"same": TEMPLATES, "held_out": HELD_OUT}.get(test)
    for task, old in zip(tasks, BASE.tasks, strict=True):
        seen = set()
        for part, was, templates in (
            (task.train, old.train, TEMPLATES),
            (task.test, old.test, by_form),
        ):
            for new, one in zip(part, was, strict=True):
                assert (new.id, new.reference, new.images) == (one.id, one.reference, one.images)
                if templates is None:
                    assert new is one
                    continue
                wanted = form(one)
                assert wanted
                texts = [t.replace("{question}", one.question) for t in templates[wanted]]
                assert new.question in texts
                seen.add(texts.index(new.question))
        assert seen == {0, 1, 2}


def test_templates_are_drawn_by_the_seed_and_ones_own_are_taken() -> None:
    def texts(**spec: Any) -> list[str]:
        tasks = load_stream({"name": "instructed", "of": BASE, **spec}).tasks
        return [s.question for task in tasks for s in (*task.train, *task.test)]

    assert texts() == texts() != texts(seed=1)
    own = texts(templates=["Q: {question} A:"], held_out=["Test: {question}"], test="held_out")
    assert Counter(text.split()[0] for text in own) == {"Q:": 300, "Test:": 50}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"templates": ["Answer."]}, r"instructed\.templates: must have \{question\} once"),
        ({"held_out": ["{question}{question}"]}, r"instructed\.held_out: must have"),
        ({"templates": []}, r"instructed\.templates: give at least one"),
        ({"templates": ["{question}"], "test": "held_out"}, r"instructed\.held_out: give some"),
        ({"test": "other"}, r"instructed\.test"),
    ],
)
def test_bad_templates_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_stream({"name": "instructed", "of": BASE, **spec})


# Answer styles


def test_a_share_is_asked_in_every_other_form_by_turns() -> None:
    tasks = load_stream({"name": "diversified", "of": BASE, "share": 0.4}).tasks
    counts = {}
    for task, old in zip(tasks, BASE.tasks, strict=True):
        changed = [(s, was) for s, was in zip(task.train, old.train, strict=True) if s is not was]
        assert task.test is old.test
        counts[task.name] = Counter(s.scorer for s, _ in changed)
        for new, was in changed:
            assert new.question.startswith(was.question)
            assert new.metadata["was"] == was.reference_text
            right = score(new, Answer(sample_id=new.id, parts=new.reference))
            assert right.outcome == "correct"
    assert counts["digits"] == {"yes_no": 8, "first_letter": 8, "exact": 8}
    assert counts["parity"] == {"first_letter": 12, "exact": 12}
    assert counts["position"] == {"yes_no": 12, "first_letter": 12}
    digits = [s for s in tasks[0].train if s.scorer == "yes_no"]
    assert Counter(s.reference_text for s in digits) == {"yes": 4, "no": 4}


def test_what_is_asked_in_another_form_is_true() -> None:
    for task in load_stream({"name": "diversified", "of": BASE, "share": 1}).tasks:
        for made in task.train:
            was, lines = str(made.metadata["was"]).rstrip("."), made.question.split("\n")
            if lines[-1] == "Answer in a sentence.":
                assert made.reference_text == f"The answer is {was}."
            elif made.scorer == "first_letter":
                options = dict(line.split(". ", 1) for line in lines if line[1:3] == ". ")
                assert options[made.reference_text] == was
                assert len(set(options.values())) == len(options) == (2 if was in "yes no" else 4)
            else:
                claimed = lines[-1].split('"')[1]
                assert (claimed == was) == (made.reference_text == "yes")


def test_the_right_option_is_at_no_favourite_place() -> None:
    spec = {"name": "diversified", "of": DIGITS, "share": 1}
    task = load_stream(spec).tasks[0]
    places = Counter(s.reference_text for s in task.train if s.scorer == "first_letter")
    assert set(places) == set("ABCD")
    assert min(places.values()) > 30


def test_a_multiple_choice_loses_its_options() -> None:
    samples = [sample(str(i), CHOICE, "ABC"[i % 3], "first_letter") for i in range(12)]
    (task,) = load_stream({"name": "diversified", "of": stream(*samples), "share": 1}).tasks
    names = dict(zip("ABC", ("a baker", "a pilot", "a king"), strict=True))
    assert Counter(s.scorer for s in task.train) == {"yes_no": 6, "exact": 6}
    for made in task.train:
        right = names[option(made.metadata["was"]) or ""]
        if made.scorer == "exact":
            assert (made.question, made.reference_text) == ("Who?\nGive a short answer.", right)
        else:
            assert made.question.startswith('Who?\nIs the answer "a ')
            assert (f'"{right}"' in made.question) == (made.reference_text == "yes")


def test_what_has_no_other_form_stays_as_it_is() -> None:
    samples = [
        sample("1", "Where?", "[0, 0, 1, 1]", "iou"),
        sample("2", "Which letter?", "B", "first_letter"),
        replace(sample("3", "", "a ring"), plain=True),
    ]
    (task,) = load_stream({"name": "diversified", "of": stream(*samples), "share": 1}).tasks
    assert list(task.train) == samples
    with pytest.raises(SettingError, match=r"diversified\.share"):
        load_stream({"name": "diversified", "of": BASE, "share": 2})
