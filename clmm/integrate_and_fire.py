"""Continuous integrate-and-fire (Dong and Xu 2020, arXiv 1905.11235): frames into fewer tokens.

Every frame has a weight α_t. Weights add up from frame to frame; each time the sum reaches β a
token fires, the weighted sum of the frames since the last one. The frame at the boundary is split:
what is missing to β belongs to the token before, the rest to the next.

Knows features and weights; knows no sound.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

BETA = 1.0
TAIL = 0.5


class Fired(NamedTuple):
    """What integrate-and-fire makes of a batch."""

    tokens: Tensor
    """[N, most tokens, d]; behind a sequence's own number, zeros."""
    lengths: Tensor
    """[N], the number of tokens of each sequence."""
    weights: Tensor
    """[N, frames], α before any scaling; `quantity_loss` takes it."""


def integrate_and_fire(states: Tensor, weights: Tensor, *, lengths: Tensor | None = None) -> Fired:
    """States [N, frames, d] and weights α [N, frames] → tokens.

    With `lengths` [N], the number of tokens is known: α is scaled so that it sums to it, the
    paper's scaling strategy for training. Without, as many fire as the weights make, and one more
    at the end when at least half of β is left (the paper's tail).

    A token's share of a frame is the overlap of two intervals: the frame's, between the sums of the
    weights before and behind it, and the token's, [kβ, (k + 1)β]. So a frame can give to more than
    two tokens, and all are computed at once.
    """
    given = weights
    weights = weights.float()
    if lengths is None:
        total = weights.sum(1) / BETA
        lengths = total.floor() + (total - total.floor() >= TAIL)
    else:
        scale = lengths * BETA / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)
        weights = weights * scale[:, None]
    lengths = lengths.long()
    most = int(lengths.max()) if len(lengths) else 0
    behind = weights.cumsum(1)[:, None]
    before = behind - weights[:, None]
    start = BETA * torch.arange(most, device=weights.device)[:, None]
    share = (behind.minimum(start + BETA) - before.maximum(start)).clamp(min=0)
    own = torch.arange(most, device=weights.device) < lengths[:, None]
    share = share * own[..., None]
    return Fired(share.to(states.dtype) @ states, lengths, given)


def quantity_loss(weights: Tensor, lengths: Tensor) -> Tensor:
    """|Σα − L|, the mean over the batch: weights [N, frames] learn to count lengths [N]."""
    return (weights.float().sum(1) - lengths * BETA).abs().mean()


class IntegrateAndFire(nn.Module):
    """α_t = σ(w · conv(h)_t + b), then `integrate_and_fire`."""

    def __init__(self, width: int, *, kernel: int = 3):
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.weight = nn.Linear(width, 1)

    def forward(self, states: Tensor, lengths: Tensor | None = None) -> Fired:
        """[N, frames, width] and, where it is known, the number of tokens [N]."""
        moved = self.convolution(states.transpose(1, 2)).transpose(1, 2)
        alpha = self.weight(moved).sigmoid().squeeze(-1)
        return integrate_and_fire(states, alpha, lengths=lengths)
