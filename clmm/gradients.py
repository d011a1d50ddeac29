"""Gradients by parameter name, and their projection so that no memory's loss rises.

Knows trainable parameters, memories of samples and the trainer's callbacks; which memory is kept
is the strategy's choice (`clmm/strategies/a_gem.py`, `gem.py`). A projection acts in
`after_backward`, on the whole gradient, penalties included, before it is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from clmm.components import evaluating
from clmm.memory import Memory
from clmm.training import derived_seed

if TYPE_CHECKING:
    from clmm.benchmark import Examples

Named = dict[str, Tensor]
Multipliers = Callable[[np.ndarray, np.ndarray], np.ndarray]
RIDGE = 1e-8
"""Added to a Gram matrix of unit vectors, which equal references would make singular."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter, the trained ones alone."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def copies(model: nn.Module) -> Named:
    """What the trained parameters are now."""
    return {name: weight.detach().clone() for name, weight in trainable(model).items()}


@torch.no_grad()
def logits_with(weights: Named, model: nn.Module, examples: Examples) -> Tensor:
    """What the trainer's `model` would say with these `weights`, in evaluation mode."""
    with evaluating(model):
        logits: Tensor = functional_call(model, weights, (examples,))
    return logits


def zeros(like: Mapping[str, Tensor]) -> Named:
    return {name: torch.zeros_like(tensor) for name, tensor in like.items()}


def gradient(loss: Tensor, weights: Mapping[str, nn.Parameter]) -> Named:
    """∂loss/∂weight, zero where the loss does not depend on it; `.grad` is left alone."""
    found = torch.autograd.grad(
        loss, list(weights.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(weights, found, strict=True))


def batch_gradient(strategy: Any, parts: Sequence[Examples]) -> Named:
    """Of the mean loss over the supervised tokens of all parts, one forward pass for each."""
    weights = trainable(strategy.model)
    tokens = sum(part.tokens for part in parts)
    total = zeros(weights)
    for part in parts:
        loss = strategy._criterion(strategy.model(part), part) * (part.tokens / tokens)
        for name, found in gradient(loss, weights).items():
            total[name] += found
    return total


def dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Over all parameters, in double precision: squares of small gradients vanish in fp32."""
    return float(sum((a.double() * other[name].double()).sum() for name, a in one.items()))


def averaging(gram: np.ndarray, products: np.ndarray) -> np.ndarray:
    """A-GEM's multiplier of its one reference r: −g·r / r·r where that is positive."""
    return np.maximum(-products / gram[0], 0.0)


def episodic(gram: np.ndarray, products: np.ndarray, *, margin: float) -> np.ndarray:
    """GEM's multipliers: the v ≥ margin that minimises ½ vᵀGGᵀv + vᵀGg.

    `gram` is GGᵀ [t, t] and `products` Gg [t]. Solved for references of length one, so that the
    ridge does not outweigh small gradients.
    """
    from qpsolvers import solve_qp

    norms = np.sqrt(np.diag(gram))
    norms[norms == 0] = 1.0
    unit = gram / np.outer(norms, norms) + RIDGE * np.eye(len(norms))
    found = solve_qp(unit, products / norms, lb=margin * norms, solver="quadprog")
    if found is None:
        raise RuntimeError("gem: the quadratic programme has no solution")
    return found / norms


@torch.no_grad()
def project(
    weights: Mapping[str, nn.Parameter], references: Sequence[Named], multipliers: Multipliers
) -> None:
    """Adds vᵀG to the weights' gradient g where a reference opposes it: Gg has a negative entry.

    References that are not finite make the gradient so, at which the trainer stops.
    """
    own = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in weights.items()}
    products = np.array([dot(own, reference) for reference in references])
    gram = np.array([[dot(a, b) for b in references] for a in references])
    if not (np.isfinite(products).all() and np.isfinite(gram).all()):
        found = np.full_like(products, np.nan)
    elif (products < 0).any():
        found = multipliers(gram, products)
    else:
        return
    for name, weight in weights.items():
        shift = sum(
            v * reference[name] for v, reference in zip(found.tolist(), references, strict=True)
        )
        weight.grad = own[name] + shift


class AverageProjection:
    """An Avalanche plugin: g ← g − (g·r / r·r)·r where g·r < 0; r is a memory batch's gradient."""

    plain_first_stage = True
    supervised_only = True

    def __init__(self, memory: Memory, *, batch_size: int | None) -> None:
        self._memory, self._batch_size = memory, batch_size
        self._batches: Iterator[Any] = iter(())

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        from clmm.benchmark import Mixture

        held = self._memory.buffer
        self._batches = iter(())
        if len(held):
            size = min(self._batch_size or strategy.settings.batch_size, len(held))
            seed = derived_seed(strategy.seed, strategy.stage, "reference")
            steps = len(strategy.dataloader)
            self._batches = iter(Mixture(own=held, batch_size=size, steps=steps, seed=seed))

    def after_backward(self, strategy: Any, **_: Any) -> None:
        batch = next(self._batches, None)
        if batch is not None:
            reference = batch_gradient(strategy, _parts(strategy, batch[0]))
            project(trainable(strategy.model), [reference], averaging)


class EpisodicProjection:
    """An Avalanche plugin: the nearest gradient that opposes that of no task in the memory."""

    plain_first_stage = True
    supervised_only = True

    def __init__(self, memory: Memory, *, margin: float) -> None:
        self._memory, self._margin = memory, margin
        self._tasks: list[list[Examples]] = []

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        held = self._memory.buffer
        rows = held.targets_task_labels.val_to_idx if len(held) else {}
        # Kept for the stage: their tensors are then made once.
        self._tasks = [
            _parts(strategy, held.collate_fn([held[i] for i in places])[0])
            for _, places in sorted(rows.items())
        ]

    def after_backward(self, strategy: Any, **_: Any) -> None:
        if self._tasks:
            references = [batch_gradient(strategy, parts) for parts in self._tasks]
            multipliers = partial(episodic, margin=self._margin)
            project(trainable(strategy.model), references, multipliers)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self._tasks = []


def _parts(strategy: Any, examples: Examples) -> list[Examples]:
    return examples.to(strategy.device).split(strategy.train_mb_size)
