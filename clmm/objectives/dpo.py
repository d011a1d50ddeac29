"""Direct preference optimisation: the reference above the rejected answer.

L = −mean over pairs of (1 − ε) log σ(β·h) + ε log σ(−β·h), with
h = log p(y⁺|x)/p₀(y⁺|x) − log p(y⁻|x)/p₀(y⁻|x); with ε = 0 eq. 7 of Rafailov et al. (2023, arXiv
2305.18290); ε is the share of flipped labels in Mitchell's conservative DPO. `kind: ipo` is
mean (h̄ − 1/2β)², h̄ from likelihoods a token (Azar et al. 2023, arXiv 2310.12036, eq. 17). `sft`
adds its weight times the mean over pairs of −log p(y⁺|x) a token, which keeps p(y⁺) from falling.
x holds the media. p₀ are the weights that the stage began with: in a stream, the model as the
earlier stages left it, and no second model in memory but a copy of the trained weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from streams.sample import Text
from streams.settings import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from clmm.benchmark import Examples
    from clmm.objective import Actor
    from streams.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Needs samples with a rejected answer (`streams/sources/preferences.py`)."""

    beta: float = 0.1
    """β: higher ones stay closer to the weights that the stage began with."""
    kind: Literal["sigmoid", "ipo"] = "sigmoid"
    """The shape of the loss of a pair."""
    label_smoothing: float = 0.0
    """ε; for `sigmoid` alone."""
    sft: float = 0.0
    """Weight of the preferred answer's own loss."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise SettingError(f"dpo.beta: must be above 0; got {self.beta!r}")
        if self.kind not in ("sigmoid", "ipo"):
            raise SettingError(f"dpo.kind: must be sigmoid or ipo; got {self.kind!r}")
        if not 0 <= self.label_smoothing < 0.5:
            raise SettingError(
                f"dpo.label_smoothing: must be from 0 to below 0.5; got {self.label_smoothing!r}"
            )
        if self.label_smoothing and self.kind != "sigmoid":
            raise SettingError(
                f"dpo.label_smoothing: is for kind sigmoid, not {self.kind}; "
                f"got {self.label_smoothing!r}"
            )
        if not 0 <= self.sft < math.inf:
            raise SettingError(f"dpo.sft: must be 0 or more; got {self.sft!r}")

    def check(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if not any(isinstance(part, Text) and part.text.strip() for part in sample.rejected):
                raise ValueError(
                    f"sample {sample.id}: dpo needs a rejected answer and it has none; take the "
                    "stream `preferences`, or give its records a `rejected` key"
                )

    def rows(self, examples: Examples, actor: Actor) -> Examples:
        """Two rows a sample: with the preferred answer, then with the rejected one."""
        pairs = [
            (sample, replace(sample, id=f"{sample.id}/rejected", reference=sample.rejected))
            for sample in examples.samples
        ]
        return examples.like([row for pair in pairs for row in pair])

    def size(self, examples: Examples) -> int:
        return len(examples)

    def loss(self, logits: Tensor, rows: Examples, actor: Actor) -> Tensor:
        from clmm.objective import row_sums, token_log_likelihoods

        tokens = token_log_likelihoods(logits, rows)
        now = row_sums(tokens, rows)
        then = row_sums(token_log_likelihoods(actor.earlier(rows), rows), rows)
        lengths = row_sums(tokens.new_ones(len(tokens)), rows)
        loss = self.of_pairs(now, then, lengths)
        if self.sft:
            loss = loss - self.sft * (now / lengths)[::2].mean()
        return loss

    def of_pairs(self, now: Tensor, then: Tensor, lengths: Tensor) -> Tensor:
        """The mean over pairs: log-likelihoods [2·pairs] of preferred, rejected, …, and lengths."""
        from torch.nn.functional import logsigmoid

        ratio = now - then
        if self.kind == "ipo":
            better, worse = (ratio / lengths).view(-1, 2).unbind(dim=1)
            return (better - worse - 1 / (2 * self.beta)).square().mean()
        better, worse = (self.beta * ratio).view(-1, 2).unbind(dim=1)
        margin, smooth = better - worse, self.label_smoothing
        return -((1 - smooth) * logsigmoid(margin) + smooth * logsigmoid(-margin)).mean()
