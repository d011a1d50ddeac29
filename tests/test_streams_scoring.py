"""Scoring: strict parsers, a normaliser that loses no difference, an honest blind floor."""

from __future__ import annotations

from itertools import combinations

import pytest

from streams.sample import Answer, Provenance, Sample, Scorer, Text, ask
from streams.scoring import (
    blind_floor,
    normalise,
    rouge_l,
    score,
    score_all,
    task_figures,
    yes_or_no,
)
from streams.stream import Task

SOURCE = Provenance(source="test", split="test", item="0")


def sample(id: str, question: str, answer: str, scorer: Scorer = "exact") -> Sample:
    return ask(id=id, question=question, answer=answer, provenance=SOURCE, scorer=scorer)


def said(id: str, text: str) -> Answer:
    return Answer(sample_id=id, parts=(Text(text=text),))


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("Yes.", "yes"), ("yes", "yes"), ("YES, there is a dog", "yes"), ("**No**", "no"),
        (" no", "no"), ("_yes_", "yes"), ("\nNo, not here.", "no"),
        ("", None), ("Nope", None), ("not", None), ("isn't", None), ("yesterday", None),
        ("There is no dog.", None), ("I cannot help with that.", None), ("y", None), ("...", None),
    ],
)  # fmt: skip
def test_yes_or_no_is_strict(text: str, reading: str | None) -> None:
    assert yes_or_no(text) == reading


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Three", "3"), ("3.", "3"), ("none", "0"), ("The red ring.", "red ring"),
        ("don't know", "dont know"), ("1,000", "1000"), ("t-shirt", "t shirt"), ("A", "a."),
        ("  two\nthings ", "2 things"), ("ﬁsh", "fish"), ("The ring is in the upper left.",
        "the ring is in upper left"), ("“teal”", "teal"),
    ],
)  # fmt: skip
def test_equal_answers_become_equal(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


def test_different_answers_stay_different() -> None:
    answers = ["A", "The", "an", "+", "-", "5", "-5", "3.5", "35", "3 5", "", "left", "upper left"]
    for one, other in combinations(answers, 2):
        assert normalise(one) != normalise(other), (one, other)


def test_rouge_l() -> None:
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert rouge_l("police killed the gunman", "the gunman kill police") == pytest.approx(0.5)
    assert rouge_l("a b c d", "a c") == pytest.approx(2 * 2 / 6)
    assert rouge_l("Same words.", "same WORDS") == 1
    assert rouge_l("a", "") == rouge_l("", "") == 0


def test_outcomes() -> None:
    cases: list[tuple[Scorer, str, str, float, str]] = [
        ("yes_no", "Yes.", "yes, it is", 1, "correct"),
        ("yes_no", "yes", "no", 0, "wrong"),
        ("yes_no", "no", "I cannot help with that.", 0, "invalid"),
        ("exact", "three", "3", 1, "correct"),
        ("exact", "three", "four", 0, "wrong"),
        ("exact", "three", " ", 0, "invalid"),
        ("rouge_l", "a red ring", "a blue ring", 2 / 3, "partial"),
        ("rouge_l", "a red ring", "", 0, "invalid"),
    ]
    for scorer, reference, text, value, outcome in cases:
        found = score(sample("x", "?", reference, scorer), said("x", text))
        assert found.value == pytest.approx(value)
        assert found.outcome == outcome


def test_answers_are_joined_by_id() -> None:
    items = [sample("a", "?", "one"), sample("b", "?", "two")]
    answers = [said("b", "two"), said("a", "three")]
    assert [found.value for found in score_all(items, answers)] == [0, 1]
    task = Task(name="count", train=items, test=items)
    assert task_figures(task, answers) == {"task.count.accuracy": 0.5, "task.count.invalid": 0}
    with pytest.raises(ValueError, match="1 samples have no answer, the first is a"):
        score_all(items, answers[:1])
    with pytest.raises(ValueError, match="answer to b"):
        score(items[0], answers[0])


def test_the_blind_floor_learns_from_train_alone() -> None:
    train = [
        sample("1", "Is it red?", "no"), sample("2", "Is it red?", "no"),
        sample("3", "Is it red?", "yes"), sample("4", "What is it?", "ring"),
    ]  # fmt: skip
    test = [
        sample("5", "is it red", "no"),  # majority of the same question
        sample("6", "What is it?", "star"),  # ring was the answer in train
        sample("7", "New question?", "no"),  # majority of all
        sample("8", "New question?", "yes"),
    ]
    assert blind_floor(Task(name="t", train=train, test=test)) == 0.5
