"""LoRA adapters that are added up: a new one for each stage, the earlier ones frozen.

y = Wx + Σ_t (α/r)·B_t A_t x over all stages so far. Nothing is merged into W, so the sum is exact
in any precision. Knows peft's layers; nothing of data or losses. Each adapter is saved as in
`clmm.adapters`, under its stage's number. Sharded parameters are not supported.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from peft.functional import set_adapter
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from clmm.adapters import Lora


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Name → layer, of the layers that bear adapters now."""
    return {name: one for name, one in model.named_modules() if isinstance(one, LoraLayer)}


class StageAdapters(Lora):
    """A fresh adapter for each stage, whatever its task is called."""

    trains_plainly = True

    def __init__(self, model: Any, *, rank: int, alpha: int, seed: int) -> None:
        super().__init__(model, rank=rank, alpha=alpha, seed=seed, one_per_task=True)

    def begin(self, task: str) -> None:
        # Loading goes by the alphabet, and the order of the stages must survive it.
        super().begin(f"stage-{len(self.adapters) + 1:04d}")

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.select(None)


class Stacked(StageAdapters):
    """All adapters at once, of which only the newest is trained.

    With `fixed_inputs` its A is not trained either.
    """

    trains_plainly = True

    def __init__(
        self, model: Any, *, rank: int, alpha: int, seed: int, fixed_inputs: bool = False
    ) -> None:
        super().__init__(model, rank=rank, alpha=alpha, seed=seed)
        self._fixed_inputs = fixed_inputs
        if fixed_inputs:
            layers = [model.get_submodule(name) for name in self._targets]
            self.trainable_parameters = sum(rank * layer.weight.shape[0] for layer in layers)

    @property
    def trains(self) -> Hashable | None:
        return None if self._fixed_inputs else super().trains

    def select(self, route: str | None) -> None:
        super().select(route)
        if route is None and self.adapters:
            set_adapter(self._model, self.adapters)
            for layer in lora_layers(self._model).values():
                for name in self.adapters:
                    new = name == self._latest
                    layer.lora_A[name].weight.requires_grad_(new and not self._fixed_inputs)
                    layer.lora_B[name].weight.requires_grad_(new)

    def newest(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer → A [r, in] and B [out, r] of the adapter that is trained."""
        return self._of(self._latest) if self._latest else {}

    def earlier(self) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """The same of the adapters before it, in their order."""
        return [self._of(name) for name in self.adapters[:-1]]

    def penalise(self, penalty: Tensor) -> None:
        """Adds the penalty's derivative to the whole gradient of what is trained.

        Not by way of the loss: processes that replicate the model refuse a gradient of weights
        that no sample of theirs reached, as of a projector when no sample has an image.
        """
        pairs = self.newest().values()
        trained = [weight for pair in pairs for weight in pair if weight.requires_grad]
        found = torch.autograd.grad(penalty, trained, allow_unused=True, materialize_grads=True)
        for weight, pull in zip(trained, found, strict=True):
            weight.grad = pull if weight.grad is None else weight.grad.add_(pull)

    def _of(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        layers = lora_layers(self._model).items()
        return {key: (one.lora_A[name].weight, one.lora_B[name].weight) for key, one in layers}
