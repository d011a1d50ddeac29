"""LoRA experts on linear layers, mixed token by token by a learnt gate.

y = Wx + (α/r)·Σ_e softmax(Gx)_e B_e A_e x with E experts of rank r/E, on the layers that
`clmm.adapters.Lora` takes. No peft: layers are wrapped here and unwrapped by `restore`; what is
saved is one safetensors file that only `ExpertLora.load` reads. Knows nothing of data or losses.
Sharded parameters are not supported.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clmm.adapters import Lora
from clmm.strategy import BASE
from clmm.training import derived_seed

EXPERTS_FILE = "experts.safetensors"


class ExpertLinear(nn.Module):
    """A frozen linear layer and its experts: A [r, in], B [out, r], gate [E, in], in fp32.

    Expert e owns the e-th r/E rows of A and columns of B. As in LoRA, A and the gate start as
    linear layers do and B at zero.
    """

    def __init__(self, base_layer: nn.Linear, *, rank: int, alpha: int, experts: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale, self.experts, self.enabled = alpha / rank, experts, True
        weight = base_layer.weight
        width_out, width_in = weight.shape
        # Drawn on the CPU, so that all devices start the same.
        starts = [torch.zeros(rows, width_in) for rows in (rank, experts)]
        for start in starts:
            nn.init.kaiming_uniform_(start, a=math.sqrt(5))
        self.lora_A, self.gate = (nn.Parameter(start.to(weight.device)) for start in starts)
        self.lora_B = nn.Parameter(torch.zeros(width_out, rank, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        if not self.enabled:
            return result
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_A.dtype)
        shares = nn.functional.linear(x, self.gate).softmax(dim=-1)
        hidden = nn.functional.linear(x, self.lora_A).unflatten(-1, (self.experts, -1))
        mixed = nn.functional.linear((hidden * shares.unsqueeze(-1)).flatten(-2), self.lora_B)
        return result + (mixed * self.scale).to(result.dtype)

    # What models read off a linear layer:

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features


class ExpertLora(Lora):
    """One set of experts for all stages, on LoRA's layers; trains as much and the gates."""

    def __init__(self, model: Any, *, rank: int, alpha: int, experts: int, seed: int) -> None:
        if any(isinstance(module, ExpertLinear) for module in model.modules()):
            raise RuntimeError("the model carries experts; close its other Learner first")
        super().__init__(model, rank=rank, alpha=alpha, seed=seed)
        layers = [model.get_submodule(name) for name in self._targets]
        self.trainable_parameters += sum(experts * layer.weight.shape[1] for layer in layers)
        self._sizes = {"rank": rank, "alpha": alpha, "experts": experts}
        self._layers: dict[str, ExpertLinear] = {}

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._trained().values())

    def begin(self, task: str) -> None:
        if not self._layers:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(self._seed, 0, "adapter"))
                self._wrap()
        self.select(None)

    def select(self, route: str | None) -> None:
        if route not in (None, BASE):
            raise ValueError("experts that all tasks share have one route")
        for layer in self._layers.values():
            layer.enabled = route is None

    def save(self, folder: Path) -> None:
        save_file(self._trained(), folder / EXPERTS_FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        self.restore()
        kept = load_file(folder / EXPERTS_FILE)
        if not kept:
            return
        with torch.random.fork_rng(devices=[]):
            self._wrap()
        mine = self._trained()
        for name in sorted(kept.keys() | mine.keys()):
            found, wanted = (list(one[name].shape) if name in one else None for one in (kept, mine))
            if found != wanted:
                raise ValueError(f"{folder / EXPERTS_FILE}: {name} is {found}, not {wanted}")
            self._model.get_parameter(name).copy_(kept[name])

    def restore(self) -> None:
        for name, layer in self._layers.items():
            self._model.set_submodule(name, layer.base_layer)
        self._layers = {}
        self._model.requires_grad_(False)

    def _wrap(self) -> None:
        for name in self._targets:
            self._layers[name] = ExpertLinear(self._model.get_submodule(name), **self._sizes)
            self._model.set_submodule(name, self._layers[name])

    def _trained(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": weight.detach().cpu().contiguous()
            for name, layer in self._layers.items()
            for key, weight in layer.named_parameters(recurse=False)
        }
