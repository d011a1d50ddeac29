"""Questions written as instructions, which say in what form to answer, as instruction tuning has.

`stream: {name: instructed, of: default}`. "What digit is this?" becomes "What digit is this?
Answer with a single word or phrase."; which template a sample gets is drawn by the seed. Yes and
no, options, short answers and sentences have templates of their own, after those of LLaVA-1.5 (Liu
et al. 2023, arXiv 2310.03744). Test questions are written as the training ones, into templates
never trained on, or stay bare: so what a model knows and whether it follows the form come apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from pydantic import NonNegativeInt

from streams.loading import load_stream
from streams.phrasings import pick
from streams.sample import Sample
from streams.settings import SettingError
from streams.sources._drawn import Drawn, Split, generator
from streams.sources._forms import QUESTION, Form, form, written
from streams.stream import Task

TEMPLATES: dict[Form, tuple[str, ...]] = {
    "yes_no": (
        "{question}\nAnswer yes or no.",
        "{question}\nPlease answer with yes or no.",
        "Answer the question with yes or no.\n{question}",
    ),
    "choice": (
        "{question}\nAnswer with the letter of the right option.",
        "{question}\nGive the letter of the option that is right.",
        "Choose an option and answer with its letter.\n{question}",
    ),
    "short": (
        "{question}\nAnswer with a single word or phrase.",
        "{question}\nGive a short answer.",
        "Answer the question in a word or two.\n{question}",
    ),
    "sentence": (
        "{question}\nAnswer in a sentence.",
        "{question}\nGive a whole sentence.",
        "Write a sentence that answers the question.\n{question}",
    ),
}
HELD_OUT: dict[Form, tuple[str, ...]] = {
    "yes_no": ("Say yes or no: {question}",),
    "choice": ("{question}\nWhich letter is right?",),
    "short": ("Briefly: {question}",),
    "sentence": ("{question}\nPlease use a full sentence.",),
}


@dataclass(frozen=True, kw_only=True)
class Instructed:
    """Questions that want a box, and plain text, stay as they are."""

    of: Any
    """The stream: a name, a path, a mapping or a list, as `stream` of a study takes."""
    templates: tuple[str, ...] | None = None
    """Yours, each with `{question}` once; left out, those for the form of the answer."""
    held_out: tuple[str, ...] | None = None
    """Yours for the test; left out, those for the form of the answer."""
    test: Literal["same", "held_out", "bare"] = "same"
    """How test questions are written: as in training, into held-out templates, or not at all."""
    seed: NonNegativeInt = 0
    """Draws each sample's template."""

    def __post_init__(self) -> None:
        for field in ("templates", "held_out"):
            own = getattr(self, field)
            for template in own or ():
                if template.count(QUESTION) != 1:
                    raise SettingError(
                        f"instructed.{field}: must have {QUESTION} once; got {template!r}"
                    )
            if own == ():
                raise SettingError(f"instructed.{field}: give at least one; got none")
        if self.test == "held_out" and self.templates and not self.held_out:
            raise SettingError(
                "instructed.held_out: give some beside your templates; got test held_out"
            )

    def tasks(self) -> tuple[Task, ...]:
        held = self.test == "held_out"
        own = self.held_out if held else self.templates
        return tuple(
            replace(
                task,
                train=self._written(task, "train", task.train, self.templates, TEMPLATES),
                test=task.test
                if self.test == "bare"
                else self._written(task, "test", task.test, own, HELD_OUT if held else TEMPLATES),
            )
            for task in load_stream(self.of, where="instructed.of").tasks
        )

    def _written(
        self,
        task: Task,
        split: Split,
        samples: Sequence[Sample],
        own: tuple[str, ...] | None,
        by_form: dict[Form, tuple[str, ...]],
    ) -> Drawn:
        name = f"instructed/{task.name}"
        return Drawn(len(samples), partial(_sample, samples, own, by_form, name, split, self.seed))


def _sample(
    samples: Sequence[Sample],
    own: tuple[str, ...] | None,
    by_form: dict[Form, tuple[str, ...]],
    name: str,
    split: Split,
    seed: int,
    index: int,
) -> Sample:
    sample = samples[index]
    wanted = form(sample)
    if wanted is None:
        return sample
    return written(sample, pick(own or by_form[wanted], generator(name, split, seed, index)))
