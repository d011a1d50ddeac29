"""Linear layers that a stage trains, themselves or by a LoRA, and edits when it is over.

An edit sees each layer's weight as it was before and after the stage and says what it becomes. A
LoRA lives for one stage: its ΔW is added to the weight, W + (α/r)·BA, and it is gone. So between
stages there are plain weights alone, saved as those that differ from the base. The layers are
those that LoRA adapts: of projector and language model, without the head; nothing else is trained.
Knows modules and peft's layers; nothing of data or losses. Sharded parameters are not supported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clmm import components
from clmm.adapters import Full, Lora
from clmm.adapters_frozen import lora_layers
from clmm.adapters_merged import TaskVectors
from clmm.training import derived_seed

Rule = Callable[[str, Tensor, Tensor], Tensor]
"""Layer's name, its weight [out, in] before and after the stage → what the weight becomes."""


class StageLora(Lora):
    """A fresh adapter for one stage; the same as the other LoRA strategies' of that stage."""

    def targets(self) -> list[str]:
        """Full names of the layers, the projector's first, each in the model's order."""
        language = components.language_linears(self._model)
        projector = set(self._targets) - set(language)
        return [*(name for name, _ in self._model.named_modules() if name in projector), *language]

    def start(self, stage: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, stage - 1, "adapter"))
            self._add(f"stage-{stage:04d}")

    def changes(self) -> TaskVectors:
        """Layer → its ΔW [1, out, in]."""
        return TaskVectors(lora_layers(self._model), self.adapters)


class Edited(Full):
    """Keeps a copy of the base's weights on the CPU; full tuning keeps one more while it trains.

    Raises ValueError for weights that cannot be edited: in half precision, whose rounding would
    lose small changes, quantised, or shared by two layers.
    """

    def __init__(
        self, model: Any, *, tuning: Literal["lora", "full"], rank: int, alpha: int, seed: int
    ) -> None:
        self._model = model
        self._lora = StageLora(model, rank=rank, alpha=alpha, seed=seed)
        self._weights: dict[str, nn.Parameter] = {}
        for name in self._lora.targets():
            weight = model.get_submodule(name).weight
            other = next((n for n, w in self._weights.items() if w is weight), None)
            if weight.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{name}: its weights are {weight.dtype}, but edits change the weights "
                    "themselves, which takes fp32 (precision: fp32; train.precision: bf16 still "
                    "computes in bf16); or keep adapters apart (isolated_lora, ties)"
                )
            if other is not None:
                raise ValueError(
                    f"{name} and {other} share one weight, which two edits would change; keep "
                    "adapters apart (isolated_lora)"
                )
            self._weights[name] = weight
        super().__init__(model)
        model.requires_grad_(False)
        self._trained = {f"{name}.weight": weight for name, weight in self._weights.items()}
        self._base = {name: self._base[name] for name in self._trained}
        self.by_lora = tuning == "lora"
        self.trainable_parameters = (
            self._lora.trainable_parameters
            if self.by_lora
            else sum(weight.numel() for weight in self._weights.values())
        )
        self._before: dict[str, Tensor] = {}

    @property
    def layers(self) -> dict[str, nn.Module]:
        """Name → linear layer, or the LoRA layer around it while a stage trains."""
        return {name: self._model.get_submodule(name) for name in self._weights}

    def begin(self, task: str) -> None:
        """Nothing: `start` needs the stage's number."""

    @torch.no_grad()
    def start(self, stage: int, *, afresh: bool) -> None:
        """Makes ready what stage `stage` trains, from the base's weights if `afresh`."""
        for name, weight in self._weights.items():
            if afresh:
                weight.copy_(self.base(name))
            if not self.by_lora:
                weight.requires_grad_(True)
                self._before[name] = self.base(name) if afresh else weight.to("cpu", copy=True)
        if self.by_lora:
            self._lora.start(stage)

    @torch.no_grad()
    def edit(self, rule: Rule) -> None:
        """The stage has trained: `rule` says what each weight becomes."""
        changes = self._lora.changes()
        for name, weight in self._weights.items():
            before = weight if self.by_lora else self._before[name].to(weight.device)
            after = weight + changes[name][0] if self.by_lora else weight
            weight.copy_(rule(name, before, after))
        self._before = {}
        if self.by_lora:
            self._lora.restore()

    def load(self, folder: Path) -> None:
        self._lora.restore()
        super().load(folder)

    def restore(self) -> None:
        self._lora.restore()
        self._before = {}
        super().restore()

    def base(self, name: str) -> Tensor:
        """A layer's weight in the base, on the CPU."""
        return self._base[f"{name}.weight"]


class EditAfterwards:
    """An Avalanche plugin: after each stage `rules(strategy, stage)` says what weights become.

    Fully tuned weights are edited before other plugins see them, which thus measure what stays; a
    LoRA, which others may look at too, when these are done.
    """

    def __init__(
        self, weights: Edited, rules: Callable[[Any, int], Rule], *, afresh: bool = False
    ) -> None:
        self._weights, self._rules, self._afresh = weights, rules, afresh
        self._stage = 0

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        self._stage = strategy.stage
        self._weights.start(self._stage, afresh=self._afresh)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        if not self._weights.by_lora:
            self._weights.edit(self._rules(strategy, self._stage))

    def after_training(self, strategy: Any, **_: Any) -> None:
        if self._weights.by_lora:
            self._weights.edit(self._rules(strategy, self._stage))
