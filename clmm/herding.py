"""Herding: the samples of a task whose mean feature follows the task's mean most closely.

A sample's features are those that routers see (`clmm.routing`): the mean projected image token and
the mean embedded text token [D] each, from the base without adapters. Both are brought to length
1/√2, so that each counts the same and their join [2D] has length 1, as iCaRL's features have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from clmm.routing import PrototypeRouter
from clmm.strategy import BASE, Context
from streams.sample import Sample
from streams.settings import SettingError


class Herding:
    """A rank for `clmm.memory.TaskMemory`; as a plugin it refuses where the base is not frozen."""

    supports_distributed = True
    plain_first_stage = True

    def __init__(self, context: Context) -> None:
        base: Any = _WithoutAdapters(context.model)
        self._router = PrototypeRouter(context.model, context.batcher, base)
        self._known = context.stream.tasks[0].train[:1]
        self._before = self._router.features(self._known)

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        modules = strategy.model.modules()
        adapters: list[Any] = [module for module in modules if isinstance(module, BaseTunerLayer)]
        aside = {weight for module in adapters for weight in module.parameters()}
        for name, weight in strategy.model.named_parameters():
            if weight not in aside:
                raise SettingError(
                    "replay.policy: herding compares features of the frozen base, without peft "
                    f"adapters, but {name} is trained here; take balanced; got 'herding'"
                )

    def __call__(self, samples: Sequence[Sample], count: int) -> list[int]:
        if not samples or not count:
            return []
        if not torch.allclose(self._router.features(self._known), self._before, rtol=1e-3):
            raise RuntimeError("herding: the features of the base have changed; take balanced")
        features = nn.functional.normalize(self._router.features(samples), dim=2)
        return herded(features.flatten(start_dim=1) / 2**0.5, count)


def herded(features: Tensor, count: int) -> list[int]:
    """Rows of `features` [n, D] in the order of iCaRL's greedy choice (Rebuffi 2017, alg. 4)."""
    mean, total = features.mean(dim=0), torch.zeros(features.shape[1])
    free = torch.ones(len(features), dtype=torch.bool)
    chosen: list[int] = []
    for number in range(1, count + 1):
        distances = ((total + features) / number - mean).norm(dim=1)
        best = int(distances.masked_fill(~free, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total += features[best]
    return chosen


class _WithoutAdapters:
    """In the place of weights: the router selects the base, then what was there before."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._trained: list[nn.Parameter] = []

    def select(self, route: str | None) -> None:
        if route == BASE:
            self._trained = [w for w in self._model.parameters() if w.requires_grad]
        for module in self._model.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(route != BASE)
        if route != BASE:
            # peft makes every active adapter trainable again, frozen ones too.
            self._model.requires_grad_(False)
            for weight in self._trained:
                weight.requires_grad_(True)
