"""Supervised fine-tuning: the reference's tokens, given the prompt.

L = −mean over all supervised tokens of the batch of log p(token | what is before it). The objective
of instruction tuning and, on plain samples (`streams.sample.Sample.plain`), of pre-training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from clmm.benchmark import Examples
    from clmm.objective import Actor
    from streams.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Sft:
    """Has no settings."""

    def check(self, samples: Sequence[Sample]) -> None: ...

    def rows(self, examples: Examples, actor: Actor) -> Examples:
        return examples

    def size(self, examples: Examples) -> int:
        return examples.tokens

    def loss(self, logits: Tensor, rows: Examples, actor: Actor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, rows.targets)
