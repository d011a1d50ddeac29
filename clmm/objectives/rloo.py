"""REINFORCE, leave one out: answers are drawn, and those that score above their siblings learnt.

k answers yᵢ to a prompt have rewards Rᵢ = score(yᵢ) − β·(log p(yᵢ|x) − log p₀(yᵢ|x)) and advantages
Aᵢ = Rᵢ − mean of the others' rewards; L = −mean Aᵢ·log p(yᵢ|x), A without gradient (Ahmadian et al.
2024, arXiv 2402.14740, eq. 9). The score is the task's own rule on the answer
(`streams.scoring.score`), in [0, 1]: a reward that can be checked, and no reward model. p₀ are the
weights that the stage began with. Answers are drawn anew for every update, so no ratio of old and
new probabilities is needed. Each sample costs k rows; `train.micro_batch_size` bounds samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.settings import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from clmm.benchmark import Examples
    from clmm.objective import Actor
    from streams.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Rloo:
    """Reinforcement by the task's own score."""

    samples: int = 4
    """k, answers drawn for each prompt."""
    beta: float = 0.05
    """β, the price of leaving the weights that the stage began with (nats)."""
    temperature: float = 1.0
    """Of drawing; the likelihoods are those of the same temperature."""
    max_new_tokens: int = 20
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if self.samples < 2:
            raise SettingError(f"{name}.samples: needs two answers to compare; got {self.samples}")
        if not 0 <= self.beta < math.inf:
            raise SettingError(f"{name}.beta: must be 0 or more; got {self.beta!r}")
        if not 0 < self.temperature < math.inf:
            raise SettingError(f"{name}.temperature: must be above 0; got {self.temperature!r}")
        if self.max_new_tokens < 1:
            raise SettingError(
                f"{name}.max_new_tokens: must be at least 1; got {self.max_new_tokens}"
            )

    def check(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.plain:
                raise ValueError(f"sample {sample.id}: plain text asks nothing that can be scored")

    def rows(self, examples: Examples, actor: Actor) -> Examples:
        """k rows a sample, one after another, each with the reward of its answer."""
        from streams.sample import Answer, Text
        from streams.scoring import score

        drawn = actor.draw(
            examples,
            count=self.samples,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
        )
        rewards = [
            score(sample, Answer(sample_id=sample.id, parts=(Text(text=one.text),))).value
            for sample, answers in zip(examples.samples, drawn, strict=True)
            for one in answers
        ]
        return examples.like(
            [sample for sample in examples.samples for _ in range(self.samples)],
            answers=[one.ids for answers in drawn for one in answers],
            rewards=rewards,
        )

    def size(self, examples: Examples) -> int:
        return len(examples)

    def loss(self, logits: Tensor, rows: Examples, actor: Actor) -> Tensor:
        from clmm.objective import log_likelihoods

        now = log_likelihoods(logits, rows, self.temperature)
        rewards = now.new_tensor(rows.rewards)
        if self.beta:
            then = log_likelihoods(actor.earlier(rows), rows, self.temperature)
            rewards = rewards - self.beta * (now.detach() - then)
        return -(self.advantages(rewards) * now).mean()

    def advantages(self, rewards: Tensor) -> Tensor:
        """Of rewards [prompts · k]: each less the mean of its siblings'."""
        groups = rewards.view(-1, self.samples)
        others = (groups.sum(dim=1, keepdim=True) - groups) / (self.samples - 1)
        return (groups - others).flatten()
