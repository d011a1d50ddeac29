"""One LoRA adapter a task; answers take a task's own in the top layers and the mean of all below.

Top: y = Wx + (α/r)·B_t A_t x. Below, and in the projector: y = Wx + (α/r)·(1/T)·Σ_t B_t A_t x.
Knows peft's layers; nothing of data or routers. Sharded parameters are not supported.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from clmm import components
from clmm.adapters import Lora
from clmm.adapters_frozen import lora_layers
from clmm.strategy import BASE


class LayeredLora(Lora):
    """Adapters that are trained alone and in all layers; a task's route shares the lower ones."""

    trains_plainly = True

    def __init__(self, model: Any, *, rank: int, alpha: int, seed: int, top: int) -> None:
        super().__init__(model, rank=rank, alpha=alpha, seed=seed, one_per_task=True)
        own = set(top_linears(model, top))
        self._below = [name for name in self._targets if name not in own]
        self._scale = alpha / rank

    def select(self, route: str | None) -> None:
        """A task's name: its own adapter on top, the mean of all below. None: the latest alone."""
        super().select(route)
        # By the alphabet, as after loading: sums depend on their order.
        names = sorted(self.adapters)
        shared = route not in (None, BASE)
        layers = lora_layers(self._model)
        for layer in (layers[name] for name in self._below if layers):
            layer.scaling.update(dict.fromkeys(names, self._scale / (len(names) if shared else 1)))
            if shared:
                layer.set_adapter(names, inference_mode=True)


def top_linears(model: nn.Module, count: int) -> list[str]:
    """Linear layers of the language model's last `count` blocks.

    The blocks are the list of modules that holds most of its linear layers. ValueError when none
    would be left below.
    """
    linears = components.language_linears(model)
    inside = {
        name: [one for one in linears if one.startswith(name + ".")]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    if not any(inside.values()):
        raise ValueError(
            f"the language model of {type(model).__name__} has no list of layers, so which is the "
            "top cannot be told; take isolated_lora"
        )
    blocks = max(inside, key=lambda name: len(inside[name]))
    layers: Any = model.get_submodule(blocks)
    if count >= len(layers):
        raise ValueError(
            f"{count} top layers of {len(layers)} leave none below; take fewer, or isolated_lora"
        )
    roots = tuple(f"{blocks}.{i}." for i in range(len(layers) - count, len(layers)))
    return [name for name in inside[blocks] if name.startswith(roots)]
