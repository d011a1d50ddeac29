"""Adaptive gradient clipping: each unit's gradient against the size of its own weights.

Knows parameters and their gradients; nothing of optimisers or of who trains.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_adaptively(
    parameters: Iterable[Tensor], *, clipping: float = 0.01, smallest: float = 1e-3
) -> None:
    """Scales gradients in place (Brock et al. 2021, arXiv 2102.06171, equation 3).

    G_i ← λ · ‖W_i‖* / ‖G_i‖ · G_i where ‖G_i‖ / ‖W_i‖* > λ, and as it is elsewhere. A unit i is a
    row of a weight with its fan-in, [out, …], or the whole of a vector or number; ‖W_i‖* is
    max(‖W_i‖, ε), so that weights of zero can leave it. `clipping` is λ, `smallest` is ε. The paper
    leaves the classifier's last layer out: do not give it.
    """
    for parameter in parameters:
        if parameter.grad is None:
            continue
        most = clipping * _unit_norm(parameter).clamp(min=smallest)
        norm = _unit_norm(parameter.grad)
        parameter.grad.mul_(torch.where(norm > most, most / norm, 1.0))


def _unit_norm(tensor: Tensor) -> Tensor:
    if tensor.dim() <= 1:
        return torch.linalg.vector_norm(tensor)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())), keepdim=True)
