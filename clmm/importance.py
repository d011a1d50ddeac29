"""Quadratic penalties that hold important weights: scale · Σ Ω (θ − θ*)².

Knows trainable parameters by name, gradients and the trainer's callbacks. How Ω is found is the
difference between EWC, MAS, SI and RWalk; all share `Consolidation`.

A penalty's derivative is added to the whole gradient, in `after_backward`, before it is clipped.
As a part of the loss it would keep a graph of all weights, and with several processes fail at
batches without pictures, of which the projector gets no gradient but the penalty's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from clmm.components import evaluating
from clmm.gradients import Named, copies, gradient, trainable, zeros
from clmm.training import derived_seed

TINY = torch.finfo(torch.float32).tiny
"""In place of 0 below a fraction whose numerator is then 0 too."""


class Consolidation:
    """An Avalanche plugin with one quadratic penalty for all stages so far.

    After a stage with importance Ω_t and weights θ_t, Ω becomes decay·Ω + Ω_t. θ* becomes θ_t, or,
    if `centred`, the mean of θ* and θ_t with weights decay·Ω and Ω_t: a sum of quadratics is a
    quadratic around their weighted mean, and a number that no gradient sees.
    """

    supports_distributed = True

    def __init__(self, *, scale: float, decay: float = 1.0, centred: bool = False) -> None:
        self.importance: Named = {}
        self.anchor: Named = {}
        self._scale, self._decay, self._centred = scale, decay, centred

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        weights = trainable(strategy.model)
        if self.importance and not self.importance.keys() & weights.keys():
            raise RuntimeError(
                f"stage {strategy.stage} trains none of the weights whose importance was measured; "
                "penalties want weights that all stages share, as sequential_lora has"
            )
        for kept in self._kept().values():
            kept.update({n: t.to(strategy.device) for n, t in kept.items()})

    @torch.no_grad()
    def after_backward(self, strategy: Any, **_: Any) -> None:
        for name, weight in trainable(strategy.model).items():
            if name in self.importance and self._scale:
                pull = 2 * self._scale * self.importance[name] * (weight - self.anchor[name])
                weight.grad = pull if weight.grad is None else weight.grad.add_(pull)

    @torch.no_grad()
    def consolidate(self, fresh: Named, weights: Mapping[str, Tensor]) -> None:
        """A stage is over: `fresh` is what it adds to the importance, `weights` where it ended."""
        for name, new in fresh.items():
            now = weights[name].detach().clone()
            if name in self.importance:
                total = self._decay * self.importance[name] + new
                if self._centred:
                    now = self.anchor[name].lerp(now, new / total.clamp_min(TINY))
                new = total
            self.importance[name], self.anchor[name] = new, now

    @property
    def stored_bytes(self) -> int:
        return sum(t.nbytes for kept in self._kept().values() for t in kept.values())

    def state(self) -> dict[str, Any]:
        return {key: dict(kept) for key, kept in self._kept().items()}

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        for key, kept in self._kept().items():
            kept.clear()
            kept.update(state[key])

    def _kept(self) -> dict[str, Named]:
        """What outlives a stage."""
        return {"importance": self.importance, "anchor": self.anchor}


# Importance from samples: EWC, MAS


class Sampled(Consolidation):
    """After each stage `measure` looks at up to `samples` of its own training samples."""

    plain_first_stage = True

    def __init__(
        self,
        measure: Callable[[Any, int], Named],
        *,
        samples: int,
        scale: float,
        decay: float = 1.0,
        centred: bool = False,
    ) -> None:
        super().__init__(scale=scale, decay=decay, centred=centred)
        self._measure, self._samples = measure, samples

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self.consolidate(self._measure(strategy, self._samples), trainable(strategy.model))


def fisher(strategy: Any, samples: int) -> Named:
    """The mean of squared gradients of each sample's loss: the empirical Fisher's diagonal."""
    return _mean(strategy, samples, loss=strategy._criterion, each=torch.square)


def sensitivity(strategy: Any, samples: int) -> Named:
    """The mean of absolute gradients of each sample's ‖logits‖², a mean over its tokens."""
    return _mean(strategy, samples, loss=lambda z, _: z.square().sum(dim=1).mean(), each=torch.abs)


def _mean(
    strategy: Any,
    samples: int,
    *,
    loss: Callable[[Tensor, Any], Tensor],
    each: Callable[[Tensor], Tensor],
) -> Named:
    """`each` of the gradient of one sample's loss, averaged over samples, in eval mode.

    Samples are drawn without replacement; processes share them.
    """
    model, data = strategy.model, strategy.experience.dataset
    weights = trainable(model)
    total = zeros(weights)
    generator = torch.Generator().manual_seed(
        derived_seed(strategy.seed, strategy.stage, "importance")
    )
    chosen = torch.randperm(len(data), generator=generator)[:samples].tolist()
    with evaluating(model):
        for index in chosen[strategy.accelerator.process_index :: strategy.world]:
            examples = data.collate_fn([data[index]])[0].to(strategy.device)
            for name, found in gradient(loss(model(examples), examples), weights).items():
                total[name] += each(found)
    summed: Named = strategy.accelerator.reduce(total, "sum")
    return {name: tensor / len(chosen) for name, tensor in summed.items()}


# Importance from the path: SI, RWalk


class Path(Consolidation):
    """Follows every update; subclasses make importance of what each weight gained.

    g is the gradient of the loss without this penalty, before clipping. A weight's gain −g·Δθ is
    how much the loss fell, to first order, by its moving.
    """

    def __init__(self, *, scale: float) -> None:
        super().__init__(scale=scale)
        self._before: Named = {}
        self._gradient: Named = {}

    @torch.no_grad()
    def after_backward(self, strategy: Any, **_: Any) -> None:
        self._before = copies(strategy.model)
        self._gradient = {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
            for name, weight in trainable(strategy.model).items()
        }
        super().after_backward(strategy)

    def gains(self, weights: Mapping[str, Tensor]) -> Named:
        """Of the update that led to `weights`."""
        before, found = self._before, self._gradient
        return {name: found[name] * (before[name] - now) for name, now in weights.items()}


class PathIntegral(Path):
    """SI: Ω_t = max(0, Σ gain) / ((θ_t − θ_start)² + damping), the sum over the stage's updates."""

    def __init__(self, *, scale: float, damping: float) -> None:
        super().__init__(scale=scale)
        self._damping = damping
        self._start: Named = {}
        self._gain: Named = {}

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        super().before_training_exp(strategy)
        self._start = copies(strategy.model)
        self._gain = zeros(self._start)

    @torch.no_grad()
    def after_update(self, strategy: Any, **_: Any) -> None:
        for name, gain in self.gains(trainable(strategy.model)).items():
            self._gain[name] += gain

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        weights = trainable(strategy.model)
        fresh = {
            name: gain.clamp_min(0) / ((weights[name] - self._start[name]).square() + self._damping)
            for name, gain in self._gain.items()
        }
        self.consolidate(fresh, weights)
        self._start = self._gain = self._before = self._gradient = {}


class Walk(Path):
    """RWalk: Ω = F / max F + max(0, s) / max s, renewed after each stage.

    F ← mix·g² + (1 − mix)·F at every update of all stages. In intervals of so many updates, and in
    what is left of them at a stage's end, a score adds up gain / (½·F·Δθ² + damping); s is the
    first stage's, then the mean of what it was and the new stage's.
    """

    def __init__(self, *, scale: float, mix: float, interval: int, damping: float) -> None:
        super().__init__(scale=scale)
        self._mix, self._interval, self._damping = mix, interval, damping
        self._fisher: Named = {}
        self._scores: Named = {}
        self._score: Named = {}
        self._gain: Named = {}
        self._since: Named = {}
        self._updates = 0

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        super().before_training_exp(strategy)
        self._since, self._updates = copies(strategy.model), 0
        self._gain, self._score = zeros(self._since), zeros(self._since)

    @torch.no_grad()
    def after_backward(self, strategy: Any, **_: Any) -> None:
        super().after_backward(strategy)
        for name, found in self._gradient.items():
            square = found.square()
            self._fisher[name] = self._fisher.get(name, square).lerp(square, self._mix)

    @torch.no_grad()
    def after_update(self, strategy: Any, **_: Any) -> None:
        for name, gain in self.gains(trainable(strategy.model)).items():
            self._gain[name] += gain
        self._updates += 1
        if self._updates % self._interval == 0:
            self._close_interval(strategy)

    def _close_interval(self, strategy: Any) -> None:
        now = copies(strategy.model)
        for name, since in self._since.items():
            cost = 0.5 * self._fisher[name] * (now[name] - since).square() + self._damping
            self._score[name] += self._gain[name] / cost
        self._since, self._gain = now, zeros(now)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self._close_interval(strategy)
        for name, score in self._score.items():
            self._scores[name] = (self._scores.get(name, score) + score) / 2
        fisher = _to_one({name: self._fisher[name] for name in self._score})
        scores = _to_one({name: self._scores[name].clamp_min(0) for name in self._score})
        for name, weight in copies(strategy.model).items():
            self.importance[name], self.anchor[name] = fisher[name] + scores[name], weight
        self._score = self._gain = self._since = self._before = self._gradient = {}

    def _kept(self) -> dict[str, Named]:
        return {**super()._kept(), "fisher": self._fisher, "scores": self._scores}


def _to_one(values: Named) -> Named:
    """Divided by the largest value of all parameters; all 0 stay 0."""
    largest = torch.stack([tensor.max() for tensor in values.values()]).max().clamp_min(TINY)
    return {name: tensor / largest for name, tensor in values.items()}
