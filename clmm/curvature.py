"""What changing a linear layer's weights costs to second order, and edits that follow from it.

Moving a row w [in] of a layer's weight by δ raises the layer's squared error ‖Xδ‖² on its inputs
X by ½ δᵀHδ with H = 2XᵀX, the same H for all rows: Optimal Brain Surgeon (Hassibi and Stork 1993),
layer by layer. Pure functions on tensors, in fp64; nothing of models or tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from clmm.importance import TINY

DAMPING = 0.01
"""Raises H's diagonal by so much of its mean, as SparseGPT does; XᵀX is often singular."""
_ROOM = 2**24
"""Numbers that one batch of linear systems may take."""

Patch = tuple[Tensor, Tensor]
"""Of each row: the columns that are kept [out, kept] in int32, and the weights there."""


def evenly(items: Any, wanted: int) -> list[Any]:
    """At most `wanted` items of a sequence or data set, evenly spaced."""
    step = max(1, -(-len(items) // wanted))
    return [items[place] for place in range(0, len(items), step)]


def hessian(moment: Tensor, samples: int) -> Tensor:
    """2XᵀX / samples [in, in] from XᵀX, damped so that it can be inverted."""
    found = moment.double() * (2 / samples)
    diagonal = found.diagonal()
    diagonal += (DAMPING * diagonal.mean()).clamp_min(TINY)
    return found


def prices(hessian: Tensor) -> Tensor:
    """1/[H⁻¹]_jj of each column j [in].

    Δ²/[H⁻¹]_jj is twice what taking back a change Δ costs when all others adapt to it.
    """
    return 1 / torch.cholesky_inverse(torch.linalg.cholesky(hessian)).diagonal()


# Model Tailor


def patch(
    before: Tensor, after: Tensor, hessian: Tensor, *, share: float, salience: float
) -> Patch:
    """The `share` of each row's entries [out, in] that matters most, compensated for the others.

    With Δ = after − before, K a row's kept entries and R the others, which go back to `before`:
    δ_K = H_KK⁻¹ H_KR Δ_R minimises ½ δᵀHδ under δ_R = −Δ_R.
    """
    change = after.double() - before.double()
    sensitivity = change.square() * prices(hessian)
    score = salience * _standard(change.abs()) + (1 - salience) * _standard(sensitivity)
    count = max(1, round(share * change.shape[1]))
    columns = score.topk(count, dim=1).indices.sort(dim=1).values
    pull = (change.scatter(1, columns, 0) @ hessian).gather(1, columns)
    moved = []
    for rows, pulls in zip(
        *(t.split(max(1, _ROOM // count**2)) for t in (columns, pull)), strict=True
    ):
        factor = torch.linalg.cholesky(hessian[rows[:, :, None], rows[:, None, :]])
        moved.append(torch.cholesky_solve(pulls[..., None], factor)[..., 0])
    kept = after.double().gather(1, columns) + torch.cat(moved)
    return columns.int(), kept.to(after.dtype)


def stitched(base: Tensor, patches: Iterable[Patch]) -> Tensor:
    """`base` with each patch's entries in place of its own; where several have one, their mean."""
    total, count = torch.zeros_like(base), torch.zeros_like(base)
    for columns, kept in patches:
        places = columns.to(base.device, torch.int64)
        total.scatter_add_(1, places, kept.to(base))
        count.scatter_add_(1, places, torch.ones_like(kept).to(base))
    return torch.where(count > 0, total / count.clamp_min(1), base)


def _standard(scores: Tensor) -> Tensor:
    """Each row with mean 0 and standard deviation 1; a row of equals becomes zeros."""
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / centred.square().mean(dim=1, keepdim=True).sqrt().clamp_min(TINY)


# HPA


def retained(
    change: Tensor, safety: Tensor, task: Tensor, *, share: float, balance: Sequence[float]
) -> Tensor:
    """Which columns [in] of a change [out, in] are taken back, `share` of them, by their prices.

    Those that matter to safety and not to the task come first, then those that matter to both, by
    safety's score less α times the task's; α lies between the two values of `balance`.
    """
    size = change.double().square().mean(dim=0)
    count, width = round(share * len(size)), len(size)
    focus = min(width, round(2 * share * width))
    everywhere = torch.ones_like(size, dtype=torch.bool)
    for_safety = _best(size * safety, everywhere, focus)
    for_task = _best(size * task, everywhere, focus)
    low, high = balance
    alpha = low + (high - low) * (1 + (safety / task).log().mean().tanh()) / 2
    alone = _best(size * safety, for_safety & ~for_task, count)
    shared = _best(size * (safety - alpha * task), for_safety & for_task, count - int(alone.sum()))
    return alone | shared


def orthogonal(change: Tensor, weight: Tensor) -> Tensor:
    """The change less its part along the weight: ΔW − ⟨ΔW, W⟩ / ‖W‖² · W, in fp64."""
    change, weight = change.double(), weight.double()
    along = (change * weight).sum() / weight.square().sum().clamp_min(TINY)
    return change - along * weight


def _best(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """Marks the `count` largest scores among those marked, or all of these if they are fewer."""
    chosen = scores.masked_fill(~among, -torch.inf).topk(min(count, int(among.sum()))).indices
    return torch.zeros_like(among).index_fill(0, chosen, True)
