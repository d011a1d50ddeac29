"""Scoring: strict parsers, a normaliser that loses no difference, an honest blind floor."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from streams.sample import Answer, Provenance, Sample, Scorer, Text, ask
from streams.scoring import (
    blind_floor,
    box,
    normalise,
    option,
    overlap,
    rouge_l,
    score,
    score_all,
    task_figures,
    vqa_accuracy,
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
        ("contains", "the ring", "A ring, of course", 1, "correct"),
        ("contains", "ring", "an earring", 0, "wrong"),
        ("contains", "ring", "", 0, "invalid"),
        ("first_letter", "B", "(b)", 1, "correct"),
        ("first_letter", "B\nBecause", "A. It", 0, "wrong"),
        ("first_letter", "B", "a ring", 0, "invalid"),
        ("first_letter", "ring", "Ring.", 1, "correct"),
        ("vqa", "ring", " ", 0, "invalid"),
    ]
    for scorer, reference, text, value, outcome in cases:
        found = score(sample("x", "?", reference, scorer), said("x", text))
        assert found.value == pytest.approx(value)
        assert found.outcome == outcome


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("b", "B"), ("(B)", "B"), ("B.", "B"), ("B: the ring", "B"), ("B, because", "B"),
        ("A\nBecause it is.", "A"), ("**A**", "A"), ("The answer is B.", "B"), ("B - ring", "B"),
        ("Answer: (C)", "C"), ("option D", "D"),
        ("A ring", None), ("a ring", None), ("The answer is A dog", None), ("No", None),
        ("I see a dog", None), ("", None), ("B ring", None), ("it's B", None),
    ],
)  # fmt: skip
def test_an_option_is_read_strictly(text: str, letter: str | None) -> None:
    assert option(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 5, 6]", "(1,2),(5,6)", "<box>(1, 2), (5, 6)</box>", "{<1><2><5><6>}", "1 2 5 6",
        "<|box_start|>(1,2),(5,6)<|box_end|>", "The 2 dogs are at [1.0, 2, 5, 6.0].",
    ],
)  # fmt: skip
def test_a_box_is_read_in_several_formats(text: str) -> None:
    assert box(text) == (1, 2, 5, 6)
    assert box("[1e-3, -.2, 5, +6]") == (0.001, -0.2, 5, 6)


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2, 5]", "[1, 2, 5, 6, 7]", "[1, 2, 5, 6], [0, 0, 1, 1]", "[5, 6, 1, 2]",
     "[1, 2, 1, 6]", "upper left", "[x-3, 2, 5, 6]", "[1-2, 2, 5, 6]"],
)  # fmt: skip
def test_what_is_not_one_box_is_not_guessed(text: str) -> None:
    assert box(text) is None
    found = score(sample("x", "?", "[0, 0, 1, 1]", "iou"), said("x", text))
    assert found.outcome == "invalid"


def test_overlap_of_boxes() -> None:
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    item = sample("x", "?", "[0, 0, 1, 1]", "iou")
    assert score(item, said("x", "[0, 0, 1, 0.51]")).outcome == "correct"
    assert score(item, said("x", "[0, 0, 1, 0.5]")).outcome == "wrong"  # just half is too little


def official_vqa(references: list[str], answer: str) -> float:
    """VQA's own formula, written out: leave one person out, count the others who agree."""
    values = []
    for left_out in range(len(references)):
        others = references[:left_out] + references[left_out + 1 :]
        values.append(min(1, others.count(answer) / 3))
    return sum(values) / len(values)


@pytest.mark.parametrize("agreeing", range(11))
def test_vqa_accuracy_is_the_official_one(agreeing: int) -> None:
    people = ["yes"] * agreeing + ["no"] * (10 - agreeing)
    assert vqa_accuracy(people, "Yes.") == pytest.approx(official_vqa(people, "yes"))


def test_few_people_cannot_outvote() -> None:
    assert vqa_accuracy(["three"], "3") == vqa_accuracy(["one", "three"], "3") == 1
    assert vqa_accuracy(["three"], "4") == 0


def test_the_best_of_several_references_counts() -> None:
    cases: list[tuple[Scorer, str, float]] = [
        ("exact", "two rings", 1), ("exact", "rings", 0), ("rouge_l", "a ring here", 0.8),
        ("contains", "I see two rings.", 1), ("vqa", "a ring", 1),
    ]  # fmt: skip
    for scorer, text, value in cases:
        item = replace(
            sample("x", "?", "a ring", scorer), metadata={"references": ("a ring", "two rings")}
        )
        assert score(item, said("x", text)).value == pytest.approx(value), (scorer, text)


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
