"""The line about leaks that a plan shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tiny_streams

from streams import leaks
from streams.sample import Message, Sample, Text
from streams.stream import Stream, Task


def stream(train: list[Sample], test: list[Sample]) -> Stream:
    return Stream(name="s", tasks=(Task(name="t", train=train, test=test),))


def plain(id: str, image: bool, answer: str) -> Sample:
    parts: tuple[Any, ...] = tiny_streams.sample("colour", "train", 0).images if image else ()
    return replace(
        tiny_streams.sample("colour", "train", 0),
        id=id,
        messages=(Message(role="user", parts=parts),),
        reference=(Text(text=answer),),
        plain=True,
    )


def test_the_summary_counts() -> None:
    one, two = (tiny_streams.sample("colour", "train", i, image=False) for i in (0, 1))
    other = replace(one, messages=(Message(role="user", parts=(Text(text="Another?"),)),))
    shout = replace(one, messages=(Message(role="user", parts=(Text(text=one.question.upper()),)),))
    assert leaks.summary(stream([one], [other])) == "leaks: none of 1 test items in a training set"
    assert leaks.summary(stream([one], [other, two])) == (
        "leaks: 1 of 2 test items in a training set, the first is t test: colour-train-1 (1)"
    )
    assert leaks.summary(stream([one], [shout])).endswith(
        "; 1 look like a training item, 1 of them with its answer"
    )


def test_documents_without_a_prompt_are_told_apart_by_their_text() -> None:
    train = [plain("a", False, "A ring."), plain("b", False, "A star.")]
    (leak,) = leaks.check(
        stream(train, [plain("c", False, "A cross."), plain("d", False, "A star.")])
    )
    assert (leak.kind, leak.first.sample, leak.second.sample) == ("exact", "b", "d")
    (pair,) = leaks.check(stream([plain("e", True, "red")], [plain("f", True, "a red square")]))
    assert (pair.kind, pair.same_answer) == ("exact", False)
