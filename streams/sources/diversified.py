"""Answer styles mixed within every task, so that a later task's style does not displace an earlier.

`stream: {name: diversified, of: default}`. A share of each task's training samples is asked in
another form, by turns in all that fit:

- yes or no: `… Is the answer "seven"? Answer yes or no.`, right half of the time;
- multiple choice: up to four options, the others drawn from the task's other answers;
- a short answer: to a multiple choice, its options left out;
- a sentence: `The answer is seven.`

Answer style diversification, of SEFE (Chen et al. 2025, arXiv 2505.02486; its other half is the
strategy `reg_lora`). It tells superficial forgetting, answers in the wrong form, from essential
forgetting, wrong answers in the right form: what this stream does not cure is the latter. There a
large model also writes brief and detailed explanations; our reading leaves those out, since
nothing true about a picture is known but the sample's own answer, and takes the wrong answers from
the task where there a model invents them. Test sets stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt

from streams.loading import load_stream
from streams.sample import Sample, Scorer, Text
from streams.scoring import option
from streams.sources._answers import Answers
from streams.sources._drawn import Drawn, chosen, generator
from streams.sources._forms import Form, form, written
from streams.stream import Task

_FORMS: Mapping[Form, tuple[Form, ...]] = {
    "yes_no": ("choice", "sentence"),
    "choice": ("yes_no", "short"),
    "short": ("yes_no", "choice", "sentence"),
    "sentence": ("yes_no", "choice"),
}
"""Into which forms each may be turned."""
_OPTION = re.compile(r"^\(?([A-Z])[.):]\)?[ \t]*(\S.*?)[ \t]*$\n?", re.MULTILINE)
_ORDER = re.compile(r"\n?[^\n]*\boption's letter\b[^\n]*|\n?[^\n]*\bletter of the\b[^\n]*")


@dataclass(frozen=True, kw_only=True)
class Diversified:
    """Questions that want a box, and plain text, stay as they are."""

    of: Any
    """The stream: a name, a path, a mapping or a list, as `stream` of a study takes."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of each task's training samples that change their form; 0.2 is the paper's."""
    seed: NonNegativeInt = 0
    """Draws the samples, the wrong answers and the order of options."""

    def tasks(self) -> tuple[Task, ...]:
        made = []
        for task in load_stream(self.of, where="diversified.of").tasks:
            ranks = chosen(f"diversified/{task.name}", len(task.train), self.share, self.seed)
            answers = Answers(task.name, task.train)
            draw = partial(_sample, task, ranks, answers, self.seed)
            made.append(replace(task, train=Drawn(len(task.train), draw)))
        return tuple(made)


def _sample(
    task: Task, ranks: Mapping[int, int], answers: Answers, seed: int, index: int
) -> Sample:
    sample = task.train[index]
    own = form(sample)
    if index not in ranks or own is None:
        return sample
    options = dict(_OPTION.findall(sample.question)) if own == "choice" else {}
    letter = option(sample.reference_text) if own == "choice" else None
    if own == "choice" and (letter not in options or len(options) < 2):
        return sample  # its options are not written as a list
    forms = _FORMS[own]
    rng = generator(f"diversified/{task.name}", "train", seed, index)
    wanted = forms[ranks[index] % len(forms)]
    if letter:
        wrong = [text for name, text in options.items() if name != letter]
        right = options[letter]
        sample = _without_options(sample)
    else:
        right = sample.reference_text.strip()
        wrong = list(answers.wrong(sample, rng, 3 if wanted == "choice" else 1))
    return _asked(sample, wanted, right, wrong, ranks[index] // len(forms) % 2 == 0, rng)


def _asked(
    sample: Sample,
    wanted: Form,
    right: str,
    wrong: list[str],
    truly: bool,
    rng: np.random.Generator,
) -> Sample:
    """The sample in the form `wanted`; `truly` whether a yes-or-no question gets a yes."""
    if wanted == "yes_no":
        said = right if truly else wrong[int(rng.integers(len(wrong)))]
        template = f'{{question}}\nIs the answer "{_bare(said)}"? Answer yes or no.'
        return _made(sample, template, "yes" if truly else "no", "yes_no")
    if wanted == "choice":
        every = [right, *wrong]
        order = rng.permutation(len(every)).tolist()
        lines = [f"{chr(65 + place)}. {_bare(every[i])}" for place, i in enumerate(order)]
        template = "\n".join(["{question}", *lines, "Answer with the letter of the right option."])
        return _made(sample, template, chr(65 + order.index(0)), "first_letter")
    if wanted == "short":
        return _made(sample, "{question}\nGive a short answer.", right, "exact")
    return _made(
        sample, "{question}\nAnswer in a sentence.", f"The answer is {_bare(right)}.", "exact"
    )


def _made(sample: Sample, template: str, answer: str, scorer: Scorer) -> Sample:
    return replace(
        written(sample, template),
        reference=(Text(text=answer),),
        scorer=scorer,
        rejected=(),
        metadata=MappingProxyType({"was": sample.reference_text}),
    )


def _bare(text: str) -> str:
    return text.strip().rstrip(".")


def _without_options(sample: Sample) -> Sample:
    """Its question without the options and without the order to answer with a letter."""
    *turns, last = sample.messages
    parts = tuple(
        Text(text=_ORDER.sub("", _OPTION.sub("", part.text)).strip())
        if isinstance(part, Text)
        else part
        for part in last.parts
    )
    return replace(sample, messages=(*turns, replace(last, parts=parts)))
