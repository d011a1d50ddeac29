"""Merging task vectors: what differently tuned copies of a model changed becomes one change.

Pure functions on tensors; nothing of models or tasks. A layer's task vectors are stacked
[tasks, ...]. The rules at the end take all layers, one at a time, since together the task vectors
of a large model would fill its memory several times; they yield (layer, merged) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from clmm.training import derived_seed

Vectors = Mapping[str, Tensor]
"""Layer → its task vectors [tasks, ...]; may compute them anew whenever it is asked."""
Rule = Callable[[Vectors], Iterator[tuple[str, Tensor]]]
_HALF = 2**16


def largest(stacked: Tensor) -> Tensor:
    """Each entry from the task that changed it most (MagMax, Marczak et al. 2024)."""
    return stacked.gather(0, stacked.abs().argmax(dim=0, keepdim=True)).squeeze(0)


def elected_mean(stacked: Tensor) -> Tensor:
    """TIES' last two steps: each entry is the mean of the tasks that agree with its elected sign.

    The sign of the sum is elected, plus when the sum is zero. Zeros agree with no sign.
    """
    sign = torch.where(stacked.sum(dim=0) >= 0, 1, -1)
    agree = stacked.sign() == sign
    return (stacked * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def drop(vector: Tensor, share: float) -> Tensor:
    """DARE: drops entries with probability `share` and divides the others by 1 − `share`.

    Draws from torch's generator of the CPU, so that all devices drop the same.
    """
    kept = torch.bernoulli(torch.full(vector.shape, 1 - share)).to(vector.device)
    return vector * kept / (1 - share)


def thresholds(vectors: Vectors, share: float) -> Tensor:
    """The least magnitude [tasks] among the `share` of largest entries of each task, exactly.

    Entries of all layers together, at least one a task. Floats order as their bits do, so counting
    the upper and then the lower 16 bits finds the value without holding or sorting all entries.
    """
    size = sum(stacked[0].numel() for stacked in vectors.values())
    found = []
    for task in range(len(next(iter(vectors.values())))):
        parts = [torch.zeros(_HALF, dtype=torch.int64) for _ in range(2)]
        upper, rank = -1, max(1, int(share * size))
        for half, counts in enumerate(parts):
            for stacked in vectors.values():
                bits = stacked[task].float().abs().flatten().view(torch.int32)
                if half:
                    bits = bits[bits // _HALF == upper]
                counts += torch.bincount(
                    bits % _HALF if half else bits // _HALF, minlength=_HALF
                ).cpu()
            place, rank = _bin(counts, rank)
            upper = upper if half else place
        found.append(upper * _HALF + place)
    return torch.tensor(found, dtype=torch.int32).view(torch.float32)


def summed(vectors: Vectors, *, scale: float) -> Iterator[tuple[str, Tensor]]:
    """Task arithmetic: λ Σ_t τ_t."""
    return ((layer, scale * stacked.sum(dim=0)) for layer, stacked in vectors.items())


def max_merged(vectors: Vectors, *, scale: float) -> Iterator[tuple[str, Tensor]]:
    """λ times the largest entries."""
    return ((layer, scale * largest(stacked)) for layer, stacked in vectors.items())


def ties(vectors: Vectors, *, keep: float, scale: float) -> Iterator[tuple[str, Tensor]]:
    """λ times the elected mean of the `keep` largest entries of each task."""
    least = thresholds(vectors, keep)
    for layer, stacked in vectors.items():
        bound = least.to(stacked.device).view(-1, *[1] * (stacked.ndim - 1))
        yield layer, scale * elected_mean(stacked * (stacked.abs() >= bound))


def dare(
    vectors: Vectors, *, share: float, scale: float, then: Literal["sum", "ties"], seed: int
) -> Iterator[tuple[str, Tensor]]:
    """λ times the sum, or the elected mean, of task vectors of which `share` was dropped.

    What a task loses depends on the seed, the task and the layer, not on later tasks.
    """
    merge = elected_mean if then == "ties" else partial(torch.sum, dim=0)
    for layer, stacked in vectors.items():
        dropped = []
        for number, vector in enumerate(stacked, start=1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(seed, number, f"drop {layer}"))
                dropped.append(drop(vector, share))
        yield layer, scale * merge(torch.stack(dropped))


def _bin(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th largest, and which of that bin's largest it is."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, rank))
    return len(counts) - 1 - place, rank - (int(above[place - 1]) if place else 0)
