"""Scores answers against references: one rule a sample, figures for a task, and its blind floor.

Knows no model. An answer is scored by its sample's rule: `yes_no`, `exact` or `rouge_l`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from streams.sample import Answer, Sample, Scorer, Text
from streams.stream import Task

Outcome = Literal["correct", "partial", "wrong", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one answer is worth, in [0, 1]. An invalid answer has no reading and is worth 0."""

    value: float
    outcome: Outcome


def yes_or_no(text: str) -> Literal["yes", "no"] | None:
    """Strict: the first word is yes or no, in any case; anything else is None."""
    first = re.match(r"[\W_]*([^\W_]+)", text)
    word = first.group(1).lower() if first else ""
    return "yes" if word == "yes" else "no" if word == "no" else None


_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}


def normalise(text: str) -> str:
    """VQA's normalisation (Antol et al. 2015): case, punctuation, number words, articles.

    Apart from the official one in three ways, so that no two different answers become the same
    empty string: a number keeps its sign, a lone article (the option `A`) stays, and so does a
    text of punctuation alone.
    """
    plain = unicodedata.normalize("NFKC", text).lower().strip()
    bare = re.sub(r"(?<=\d),(?=\d)", "", re.sub(r"['’]", "", plain))
    # Points inside numbers and signs before them are part of the number.
    bare = re.sub(r"(?!(?<=\d)\.(?=\d))(?!(?<!\w)-(?=\d))[^\w\s]|_", " ", bare)
    words = [_DIGITS.get(word, word) for word in bare.split()]
    return " ".join([word for word in words if word not in _ARTICLES] or words) or plain


def rouge_l(reference: str, answer: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), no stemming."""
    a, b = (re.findall(r"\w+", text.lower()) for text in (reference, answer))
    row = [0] * (len(b) + 1)
    for word in a:
        above = row
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return 2 * row[-1] / (len(a) + len(b)) if a and b else 0.0


def _yes_no(reference: str, answer: str) -> float | None:
    said = yes_or_no(answer)
    return None if said is None else float(said == yes_or_no(reference))


def _exact(reference: str, answer: str) -> float | None:
    return float(normalise(answer) == normalise(reference)) if answer.strip() else None


def _rouge_l(reference: str, answer: str) -> float | None:
    return rouge_l(reference, answer) if answer.strip() else None


_RULES: Mapping[Scorer, Callable[[str, str], float | None]] = {
    "yes_no": _yes_no,
    "exact": _exact,
    "rouge_l": _rouge_l,
}
"""Each gives a value in [0, 1], or None for an answer that it cannot read."""


def score(sample: Sample, answer: Answer) -> Score:
    """Raises ValueError when the answer is another sample's."""
    if answer.sample_id != sample.id:
        raise ValueError(f"sample {sample.id}: this is the answer to {answer.sample_id}")
    value = _RULES[sample.scorer](sample.reference_text, answer.text)
    if value is None:
        return Score(value=0.0, outcome="invalid")
    outcome: Outcome = "correct" if value == 1 else "wrong" if value == 0 else "partial"
    return Score(value=value, outcome=outcome)


def score_all(samples: Sequence[Sample], answers: Sequence[Answer]) -> list[Score]:
    """One score a sample, joined by id, never by order. Raises ValueError for a missing answer."""
    by_id = {answer.sample_id: answer for answer in answers}
    missing = [sample.id for sample in samples if sample.id not in by_id]
    if missing:
        raise ValueError(f"{len(missing)} samples have no answer, the first is {missing[0]}")
    return [score(sample, by_id[sample.id]) for sample in samples]


def task_figures(task: Task, answers: Sequence[Answer]) -> dict[str, float]:
    """`task.NAME.accuracy` (mean value) and `task.NAME.invalid` (share) over the test items."""
    scores = score_all(task.test, answers)
    return {
        f"task.{task.name}.accuracy": sum(s.value for s in scores) / len(scores),
        f"task.{task.name}.invalid": sum(s.outcome == "invalid" for s in scores) / len(scores),
    }


def blind_floor(task: Task) -> float:
    """What answering without looking earns on the test items.

    The answer to a question is the commonest one in train to the same question text, else the
    commonest one in train altogether.
    """
    overall: Counter[str] = Counter()
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in task.train:
        overall[sample.reference_text] += 1
        by_question[normalise(sample.question)][sample.reference_text] += 1

    def guess(sample: Sample) -> Answer:
        counts = by_question.get(normalise(sample.question), overall)
        return Answer(
            sample_id=sample.id, parts=(Text(text=counts.most_common(1)[0][0]),), route="blind"
        )

    return sum(score(sample, guess(sample)).value for sample in task.test) / len(task.test)
