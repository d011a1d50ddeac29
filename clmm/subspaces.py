"""Subspaces of layers' inputs: what tasks use of them, and directions that they leave free.

Knows layers, tensors and how the trainer's model is asked; nothing of losses. Inputs X [tokens, in]
are looked at through their second moment XᵀX, since only that fits into memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from clmm import components
from clmm.batching import Batcher
from clmm.benchmark import Examples
from streams.sample import Sample


@torch.no_grad()
def second_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], samples: Sequence[Sample], batcher: Batcher
) -> dict[str, Tensor]:
    """Layer → XᵀX [in, in] in fp32 over all tokens of the samples, answers included.

    `model` takes examples, as the trainer's does. One sample at a time, so that nothing is padded.
    """
    found: dict[str, Tensor] = {}

    def add(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].flatten(0, -2).float()
        # The model may compute in half precision; squares must not.
        with torch.autocast(rows.device.type, enabled=False):
            square = rows.T @ rows
        found[name] = found[name] + square if name in found else square

    hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    try:
        with components.evaluating(model):
            for sample in samples:
                model(Examples([sample], batcher))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def free_directions(basis: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions [in, in − m] outside of `basis` [in, m], and X's square along each.

    Those along which X is largest come first: the singular vectors of X less its part within.
    """
    free = torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]
    squares, within = torch.linalg.eigh(free.T @ moment @ free)
    return free @ within.flip(1), squares.flip(0).clamp(min=0)


def grown(basis: Tensor, moment: Tensor, share: float) -> Tensor:
    """`basis` and as few directions more as make it hold `share` of ‖X‖² (Saha et al. 2021)."""
    missing = share * moment.trace() - (basis.T @ moment @ basis).trace()
    if missing <= 0:
        return basis
    directions, squares = free_directions(basis, moment)
    count = 1 + int((squares.cumsum(0) < missing).sum())
    return torch.cat([basis, directions[:, :count]], dim=1)
