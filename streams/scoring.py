"""Scores answers against references: one rule a sample, figures for a task, and its blind floor.

Knows no model. An answer is scored by its sample's rule:

- `yes_no`: its first word is that of the reference, yes or no;
- `exact`: the same text after VQA's normalisation;
- `contains`: the reference's words stand in it, one behind the other;
- `first_letter`: it names the same option of a multiple choice: `B`, `(b)`, `B. because …`;
- `vqa`: as many of several people said it (`vqa_accuracy`);
- `iou`: its box and the reference's overlap by more than half of what both cover;
- `rouge_l`: F1 of the longest common subsequence of words.

Where several answers count, `metadata["references"]` of the sample is the tuple of all of them;
its `reference` is then what training teaches. `vqa` compares with all at once, repeated ones too;
for the other rules the best counts.
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
    words = _words(plain)
    return " ".join([word for word in words if word not in _ARTICLES] or words) or plain


def _words(plain: str) -> list[str]:
    bare = re.sub(r"(?<=\d),(?=\d)", "", re.sub(r"['’]", "", plain))
    # Points inside numbers and signs before them are part of the number.
    bare = re.sub(r"(?!(?<=\d)\.(?=\d))(?!(?<!\w)-(?=\d))[^\w\s]|_", " ", bare)
    return [_DIGITS.get(word, word) for word in bare.split()]


def option(text: str) -> str | None:
    """Strict: the option's letter that an answer begins with or is said to be, as a capital.

    `b`, `(B)`, `B.`, `B: the ring`, `B, because …` and `The answer is B` are read as B; `A ring`
    is not, since its A may be an article.
    """
    text = text.strip()
    alone = re.match(r"[\W_]*([A-Za-z])(?:[.):,;\]*]|\s*$|\s*\n|\s[-–—]\s)", text)
    told = re.search(r"(?i:\b(?:answer|option)(?: is)?):? \(?([A-Z])\b(?!\s+[a-z])", text)
    found = alone or told
    return found.group(1).upper() if found else None


_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?"
_RUN = re.compile(rf"(?<![\w.+-]){_NUMBER}(?:[\s,;()\[\]{{}}<>|]+{_NUMBER})+(?![\w.]*\d)")

Box = tuple[float, float, float, float]


def box(text: str) -> Box | None:
    """Strict: the one box (left, top, right, bottom) that a text holds, in its own units.

    Reads `[0.1, 0.2, 0.5, 0.6]`, `(1,2),(5,6)`, `{<1><2><5><6>}` and four bare numbers, with words
    around them. None for two boxes, for five numbers, and for a box without an area.
    """
    runs = [re.findall(_NUMBER, run) for run in _RUN.findall(text)]
    if len(runs) != 1 or len(runs[0]) != 4:
        return None
    left, top, right, bottom = (float(number) for number in runs[0])
    return (left, top, right, bottom) if left < right and top < bottom else None


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    return shared / (sum(areas) - shared)


def vqa_accuracy(references: Sequence[str], answer: str) -> float:
    """VQA's accuracy (Antol et al. 2015): the mean, over leaving out each person, of
    min(1, n/3), n the others who gave this answer.

    Below four references nobody could earn 1; there it is whether one of them is the answer.
    """
    said = normalise(answer)
    same = [normalise(reference) == said for reference in references]
    if len(same) < 4:
        return float(any(same))
    return sum(min(1.0, (sum(same) - one) / 3) for one in same) / len(same)


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


def references(sample: Sample) -> tuple[str, ...]:
    """All answers that count; the sample's own alone where it names no others."""
    return tuple(sample.metadata.get("references") or (sample.reference_text,))


def _best(rule: Callable[[str, str], float | None]) -> _Rule:
    def best(references: Sequence[str], answer: str) -> float | None:
        values = [rule(reference, answer) for reference in references]
        return max((value for value in values if value is not None), default=None)

    return best


def _yes_no(reference: str, answer: str) -> float | None:
    said = yes_or_no(answer)
    return None if said is None else float(said == yes_or_no(reference))


def _exact(reference: str, answer: str) -> float | None:
    return float(normalise(answer) == normalise(reference)) if answer.strip() else None


def _contains(reference: str, answer: str) -> float | None:
    if not answer.strip():
        return None
    return float(f" {normalise(reference)} " in f" {normalise(answer)} ")


def _first_letter(reference: str, answer: str) -> float | None:
    right, said = option(reference), option(answer)
    if right is None:  # the reference names no option, so its words are what is asked for
        return _exact(reference, answer)
    return None if said is None else float(said == right)


def _vqa(references: Sequence[str], answer: str) -> float | None:
    return vqa_accuracy(references, answer) if answer.strip() else None


def _iou(reference: str, answer: str) -> float | None:
    right, said = box(reference), box(answer)
    if right is None:
        return _exact(reference, answer)
    return None if said is None else float(overlap(right, said) > 0.5)


def _rouge_l(reference: str, answer: str) -> float | None:
    return rouge_l(reference, answer) if answer.strip() else None


_Rule = Callable[[Sequence[str], str], float | None]
_RULES: Mapping[Scorer, _Rule] = {
    "yes_no": _best(_yes_no),
    "exact": _best(_exact),
    "contains": _best(_contains),
    "first_letter": _best(_first_letter),
    "vqa": _vqa,
    "iou": _best(_iou),
    "rouge_l": _best(_rouge_l),
}
"""Each gives a value in [0, 1], or None for an answer that it cannot read."""


def score(sample: Sample, answer: Answer) -> Score:
    """Raises ValueError when the answer is another sample's."""
    if answer.sample_id != sample.id:
        raise ValueError(f"sample {sample.id}: this is the answer to {answer.sample_id}")
    value = _RULES[sample.scorer](references(sample), answer.text)
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
