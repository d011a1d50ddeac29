"""The three losses of the output side: language, alignment, denoising (survey, (2), (4), (5)).

Knows tensors and weights; no model and no generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100

Distance = Literal["mse", "l2norm", "cosine"]


@dataclass(frozen=True, kw_only=True)
class GenerationLoss:
    """λ_lm · (2) + λ_a · Σ_X (4) + λ_d · Σ_X (5), over the outputs X."""

    alignment: Distance = "mse"
    """How far H_X is from τ_X(t): mse as in the survey, l2norm as GILL's and NExT-GPT's code has
    it, cosine as CoDi-2's."""
    language_weight: float = 1.0
    """λ_lm; MiniGPT-5 has 0.01."""
    alignment_weight: float = 1.0
    """λ_a; 0 where nothing is aligned; MiniGPT-5 and CoDi-2 have 0.1."""
    denoising_weight: float = 1.0
    """λ_d; 0 where the generator is not asked in training."""
    drop: float = 0.1
    """Share of conditions replaced by the empty one in (5), for guidance without a classifier."""
    signals: Literal["first", "all"] = "first"
    """Which signal tokens (2) teaches: the first, for decoding forces the others, or all."""

    def __post_init__(self) -> None:
        for name in ("language_weight", "alignment_weight", "denoising_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"generation_loss.{name}: {getattr(self, name)} is below 0")
        if not 0 <= self.drop < 1:
            raise ValueError(f"generation_loss.drop: {self.drop} is no share in [0, 1)")

    def total(
        self, language: Tensor | None, alignment: Tensor | None, denoising: Tensor | None
    ) -> Tensor:
        """The weighted sum of those that are given; ValueError when none is."""
        parts = [
            weight * part
            for weight, part in (
                (self.language_weight, language),
                (self.alignment_weight, alignment),
                (self.denoising_weight, denoising),
            )
            if part is not None
        ]
        if not parts:
            raise ValueError("give labels, a target condition or a target medium")
        return torch.stack([part.to(parts[0]) for part in parts]).sum()


def language(logits: Tensor, labels: Tensor) -> Tensor:
    """(2): mean cross-entropy of each next token; logits [B, N, V], labels [B, N], −100 ignored."""
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def alignment(condition: Tensor, target: Tensor, distance: Distance = "mse") -> Tensor:
    """(4): distance of H_X from τ_X(t), both [n, L, d_c], as a mean over media and tokens.

    mse: (H − τ)², a mean over the width as well. l2norm: ‖H − τ‖₂ of each token. cosine:
    1 − H·τ / (‖H‖ ‖τ‖) of each token. Raises ValueError for unequal shapes, which would be
    broadcast in silence.
    """
    if condition.shape != target.shape:
        raise ValueError(f"H_X is {[*condition.shape]}, but its target {[*target.shape]}")
    condition, target = condition.float(), target.float()
    if distance == "mse":
        return (condition - target).square().mean()
    if distance == "l2norm":
        return torch.linalg.vector_norm(condition - target, dim=-1).mean()
    return (1 - functional.cosine_similarity(condition, target, dim=-1)).mean()


def denoising(prediction: Tensor, target: Tensor) -> Tensor:
    """(5): (ε − ε_X)², a mean over media and elements, where the survey writes a squared norm."""
    return (prediction.float() - target.float()).square().mean()
