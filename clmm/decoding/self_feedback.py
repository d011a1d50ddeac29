"""The model criticises its answer, revises it and decides which is better, a few times over.

Volcano, Lee et al. 2024 (arXiv 2311.07362), whose model was trained to do all four; the wording
here is ours and asks any model. Log-likelihoods are of the first turn, that is of the plain model.
All turns are asked of the weights that gave the answer, whatever a router would make of them.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from streams.sample import Message, Provenance, Sample, Text, ask

if TYPE_CHECKING:
    from clmm.decoding_options import Ask

_LETTER = re.compile(r"(?:Answer )?\(?([AB])\)?[.:]?")


@dataclass(frozen=True, kw_only=True)
class SelfFeedback:
    """a₀ = M(x); then f = M(x, a, criticise), r = M(x, a, f, revise), a ← M(x, {a, r}, decide).

    That is one round; it ends when a is kept, when r says the same as a or nothing, when the
    decision cannot be read, and after `rounds`. Which of a and r is shown as A depends on their
    texts alone. A decision is read strictly: a letter by itself (`B`, `(B)`, `B.`, `Answer B`), or
    the line that was shown, as it was shown. One that cannot be read keeps the answer, and is
    counted, as is a turn that cannot be asked: too long, or with a word that stands for an image.
    Plain documents have no turns and keep their first answer.
    """

    rounds: int = 3
    """At most so many."""
    feedback_tokens: int = 128
    """Longest criticism, in tokens."""
    criticise: str = "Look at the question again, and at the image: what is wrong in your answer?"
    """Asked behind an answer."""
    revise: str = "Now answer the question again, without these faults. Give the answer alone."
    """Asked behind the criticism."""
    decide: str = "Which answer is better? Reply with A or B alone."
    """Asked behind the question and both answers."""

    def __post_init__(self) -> None:
        for name in ("rounds", "feedback_tokens"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"self_feedback.{name}: must be at least 1; got {value}")
        for name in ("criticise", "revise", "decide"):
            if not getattr(self, name).strip():
                raise ValueError(f"self_feedback.{name}: must say something; got an empty text")

    def refusal(self, model: Any, batcher: Any) -> str | None:
        from jinja2 import TemplateError

        origin = Provenance(source="self_feedback", split="check", item="turns")
        first = ask(id="self_feedback", question="x", answer="", provenance=origin)
        mark = "said-before"
        try:
            heard = mark in batcher.turns.render(_behind(first, mark, self.criticise))
        except TemplateError as error:
            return f"takes no conversation of several turns ({error}); {_INSTEAD}"
        return None if heard else f"has a chat template that leaves out earlier answers; {_INSTEAD}"

    def revised(
        self, samples: Sequence[Sample], answers: Sequence[str], ask: Ask, *, max_new_tokens: int
    ) -> tuple[list[str], Counter[str]]:
        now, decisions = list(answers), Counter[str]()
        going = [row for row, sample in enumerate(samples) if not sample.plain]

        def asked(turns: dict[int, Sample], tokens: int) -> dict[int, str]:
            texts = ask(list(turns), list(turns.values()), tokens) if turns else []
            decisions["unasked"] += texts.count(None)
            return {row: t for row, t in zip(turns, texts, strict=True) if t is not None}

        for number in range(self.rounds):
            doubted = {row: _behind(samples[row], now[row], self.criticise) for row in going}
            faults = asked(doubted, self.feedback_tokens)
            mending = {row: _behind(doubted[row], f, self.revise) for row, f in faults.items()}
            others = asked(mending, max_new_tokens)
            shown: dict[int, dict[str, str]] = {}
            for row, other in others.items():
                if other in ("", now[row]):
                    decisions["unchanged"] += 1
                else:
                    shown[row] = _lettered(samples[row], number, now[row], other)
            voting = {row: self._vote(samples[row], pair) for row, pair in shown.items()}
            going = []
            # The line that was shown is the longest decision that can be read.
            for row, decision in asked(voting, max_new_tokens + _LINE_TOKENS).items():
                text = _read(decision, shown[row])
                if text is None:
                    decisions["unparsed"] += 1
                elif text == now[row]:
                    decisions["kept"] += 1
                else:
                    decisions["revised"] += 1
                    now[row] = text
                    going.append(row)
        return now, +decisions

    def _vote(self, sample: Sample, pair: dict[str, str]) -> Sample:
        """The question itself with both answers behind it; the criticism is not shown."""
        lines = [*(f"{letter}. {text}" for letter, text in pair.items()), self.decide]
        last = sample.messages[-1]
        text = "\n".join(["", *lines] if last.text else lines)
        turn = Message(role=last.role, parts=(*last.parts, Text(text=text)))
        return replace(sample, messages=(*sample.messages[:-1], turn))


_INSTEAD = "take contrastive, newline_ban or single_paragraph"
_LINE_TOKENS = 8
"""What a letter before an answer takes."""


def _behind(sample: Sample, answer: str, question: str) -> Sample:
    """The conversation with an answer and a further question."""
    turns = (
        Message(role="assistant", parts=(Text(text=answer),)),
        Message(role="user", parts=(Text(text=question),)),
    )
    return replace(sample, messages=(*sample.messages, *turns))


def _lettered(sample: Sample, number: int, now: str, other: str) -> dict[str, str]:
    """A and B, in an order that is drawn from the texts: a model may prefer a place."""
    said = [message.text for message in sample.messages]
    swap = zlib.crc32(repr((number, said, now, other)).encode()) % 2
    return {"A": other, "B": now} if swap else {"A": now, "B": other}


def _read(decision: str, pair: dict[str, str]) -> str | None:
    """The answer that was chosen; None when that cannot be told."""
    decision = decision.strip()
    if letter := _LETTER.fullmatch(decision):
        return pair[letter[1]]
    return next((t for letter, t in pair.items() if decision == f"{letter}. {t}"), None)
