"""Dark experience replay ++: replayed samples have to keep both answers and earlier logits.

L = CE(x) + α·‖z − z_buf‖² + β·CE(buffer) (Buzzega et al. 2020, arXiv 2004.07211). z and z_buf are
the logits [tokens, V] at the supervised tokens of the memory batch, now and when its samples were
stored; ‖·‖² is the mean over all tokens of the memory batch and over the vocabulary, CE the mean
over tokens. As in the paper the memory is a reservoir that is filled while training, from the
first update on, with the logits of that moment, so a sample may be stored more than once and the
memory already acts in stage 1. Other than in the paper one memory batch serves both terms, which
halves its cost. A memory batch comes on top of the batch: an update costs 1 + `share` times as
much. Samples that other strategies mix in are not stored.

Stores one adapter (or the changed weights) and, for each slot of the memory, the sample and its
logits, tokens · V · 2 bytes in fp16: much with large vocabularies. One process only; no sharded
parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from clmm.memory import check_budget, slots
from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class DerPp(Tuned):
    """Sequential tuning with a memory of samples and logits; der_beta 0 is plain DER."""

    budget: float = 0.05
    """Memory: a share of all training samples of the stream if below 1, else how many samples."""
    share: float = 0.5
    """Samples drawn from the memory for each update, as a share of train.batch_size."""
    der_alpha: float = 0.5
    """α, the strength of the logits' distance. (`alpha` is LoRA's.)"""
    der_beta: float = 0.5
    """β, the strength of the memory's cross-entropy."""
    stored: Literal["fp16", "fp32"] = "fp16"
    """Precision of stored logits."""

    def __post_init__(self) -> None:
        check_budget("der_pp.budget", self.budget)
        if not 0 <= self.share <= 1:
            raise SettingError(f"der_pp.share: must be from 0 to 1; got {self.share}")
        for name in ("der_alpha", "der_beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"der_pp.{name}: must be 0 or more; got {getattr(self, name)}")
        if self.stored not in ("fp16", "fp32"):
            raise SettingError(f"der_pp.stored: must be fp16 or fp32; got {self.stored!r}")

    def parts(self, context: Context) -> list[Any]:
        import torch

        from clmm.dark_experience import DarkExperience

        return [
            DarkExperience(
                size=slots(self.budget, context.stream),
                share=self.share,
                alpha=self.der_alpha,
                beta=self.der_beta,
                dtype=torch.float16 if self.stored == "fp16" else torch.float32,
                seed=context.seed,
            )
        ]
