"""One LoRA adapter a task, trained on the base; between the stages their merge answers.

Task vectors are the dense ΔW = (α/r)·BA of each layer. Their merge (`clmm.merging`) is added to
the base weights after a stage and taken out before the next, by putting back a copy: the base is
the same bit for bit. In half precision the sum is rounded to the weights' precision. Knows
peft's layers; nothing of data or losses. Sharded parameters are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clmm.adapters_frozen import StageAdapters, lora_layers
from clmm.merging import Rule
from clmm.strategy import BASE, Context, LoraTuned, Method


def method(strategy: LoraTuned, context: Context, rule: Rule) -> Method:
    """Tunes a fresh adapter in each stage and answers with the rule's merge of all so far."""
    weights = Merged(
        context.model, rank=strategy.rank, alpha=strategy.alpha, seed=context.seed, rule=rule
    )
    return Method(weights=weights, plugins=[*strategy.parts(context), MergeAfterwards(weights)])


class Merged(StageAdapters):
    """Adapters for training, their merge for answering.

    While a merge is in the model, the touched base weights are kept on the CPU. Raises ValueError
    for weights to which nothing can be added exactly: quantised ones, or one shared by two layers.
    """

    as_trained = False
    trains_plainly = True

    def __init__(self, model: Any, *, rank: int, alpha: int, seed: int, rule: Rule) -> None:
        super().__init__(model, rank=rank, alpha=alpha, seed=seed)
        touched = {name: model.get_submodule(name).weight for name in self._targets}
        seen: dict[int, str] = {}
        for name, weight in touched.items():
            if not weight.is_floating_point():
                raise ValueError(
                    f"{name}: its weights are {weight.dtype}, to which no task vector can be "
                    "added; load the model unquantised, or keep adapters apart (isolated_lora)"
                )
            if (other := seen.setdefault(id(weight), name)) != name:
                raise ValueError(
                    f"{name} and {other} share one weight, which two task vectors would change; "
                    "keep adapters apart (isolated_lora)"
                )
        self._rule = rule
        self._learnt = False
        self._base: dict[str, Tensor] = {}

    def begin(self, task: str) -> None:
        self._learnt = False
        super().begin(task)

    def finish(self) -> None:
        """The stage has trained: from now on the merge answers."""
        self._learnt = True
        self.select(None)

    def select(self, route: str | None) -> None:
        """None is the merge once a stage is over, and the adapter in training before."""
        self._put_back()
        merge = route is None and self._learnt
        super().select(BASE if merge else route)
        if merge:
            self._merge()

    def load(self, folder: Path) -> None:
        super().load(folder)
        if self.adapters:
            self.finish()

    def restore(self) -> None:
        self._put_back()
        self._learnt = False
        super().restore()

    @torch.no_grad()
    def _merge(self) -> None:
        layers = lora_layers(self._model)
        for name, change in self._rule(TaskVectors(layers, self.adapters)):
            weight = layers[name].base_layer.weight
            self._base[name] = weight.to("cpu", copy=True)
            weight.copy_(weight + change)  # in the wider of the two precisions

    @torch.no_grad()
    def _put_back(self) -> None:
        for name, weight in self._base.items():
            self._model.get_submodule(name).base_layer.weight.copy_(weight)
        self._base = {}


class TaskVectors(Mapping[str, Tensor]):
    """Layer → ΔW of the named adapters [adapters, out, in] in fp32, computed when asked for."""

    def __init__(self, layers: Mapping[str, Any], adapters: Sequence[str]) -> None:
        self._layers, self._adapters = layers, adapters

    def __getitem__(self, layer: str) -> Tensor:
        deltas = [self._layers[layer].get_delta_weight(name) for name in self._adapters]
        return torch.stack(deltas).detach().float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class MergeAfterwards:
    """An Avalanche plugin: merges when the other plugins are done with the stage's own adapter."""

    supports_distributed = True
    plain_first_stage = True

    def __init__(self, weights: Merged) -> None:
        self._weights = weights

    def after_training(self, strategy: Any, **_: Any) -> None:
        self._weights.finish()
