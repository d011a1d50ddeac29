"""Pseudo-replay: prompts of earlier tasks come back with the answers that the model gave itself.

L = CE on batches of which `share` are stored prompts with the model's answers, as in replay. After
each stage the model answers, greedily, the prompts that a reservoir takes from that stage's
training samples; no reference is stored or replayed, so what is rehearsed is what the model had
learnt, mistakes included. After pseudorehearsal (Robins 1995), which makes up inputs too; here
prompts are real.

Leak guard: prompts come from the training samples of the stage that was just trained, never from
test samples, and a training prompt with the words and pictures of any test prompt of the stream is
never stored.

Stores one adapter (or the changed weights), and for each slot the prompt's images and text and
the answer's text. Supports several processes; no sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clmm.memory import check_budget, check_share, slots
from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class PseudoReplay(Tuned):
    """Replay of the model's own answers; they are written after each stage, which takes time."""

    budget: float = 0.05
    """Memory: a share of all training samples of the stream if below 1, else how many prompts."""
    share: float = 0.5
    """Part of each batch that is drawn from the memory once it holds something (stage 2 on)."""
    max_new_tokens: int = 48
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        check_budget("pseudo_replay.budget", self.budget)
        check_share("pseudo_replay.share", self.share)
        if self.max_new_tokens < 1:
            raise SettingError(
                f"pseudo_replay.max_new_tokens: must be at least 1; got {self.max_new_tokens}"
            )

    def parts(self, context: Context) -> list[Any]:
        from clmm.own_answers import OwnAnswers

        size = slots(self.budget, context.stream)
        return [
            OwnAnswers(context, size=size, share=self.share, max_new_tokens=self.max_new_tokens)
        ]
