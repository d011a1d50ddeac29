"""KeepLoRA: a new LoRA a task, outside of what the base's weights and earlier inputs occupy.

y = Wx + Σ_t (α/r)·B_t A_t x, A_t fixed before the task trains, B_t trained from zero (Luo et al.
2026, arXiv 2601.19659). Of each layer, M is an orthonormal basis of directions of its inputs. It
begins as the fewest right singular vectors of W that hold a share `principal` of ‖W‖², and grows
after each task by as few directions as make it hold a share `threshold` of ‖X‖², X the task's
inputs. The rows of A_t are the r singular vectors of G(I − MMᵀ) with the largest values, where G
is ∂loss/∂W [out, in], the mean over the task's supervised tokens before it trains. What a layer
makes of inputs within M therefore stays as it was. Where M leaves fewer than r directions, the
other rows of A_t are zero.

Read off the paper's abstract and the authors' code for CLIP, in which the two shares are 0.85 (0.2
in the text encoder) and 0.99; their code for LLaVA grows M by gradients in place of inputs. Our
reading: G and X are those of `samples` training samples, G of the base with all earlier adapters;
these are summed, where the authors merge them into W.

Trains r·Σ out parameters, less than the other LoRA strategies. Stores for each task an adapter,
4·r·Σ(in + out) bytes, and M, up to 4·Σ in² bytes; needs 4·Σ in·out bytes more before each stage
and 4·Σ in² after it. One process; no sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clmm.strategies.inf_lora import EarlierInputs
from clmm.strategy import Context, LoraTuned, Method
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class KeepLora(LoraTuned):
    """What a new task learns leaves the base's main directions and earlier inputs alone."""

    principal: float = 0.85
    """Share of the squared weights of each layer that no task may touch; 0 for none."""
    threshold: float = 0.99
    """Share of each task's squared inputs that later tasks may not touch."""
    samples: int = 256
    """Training samples, taken evenly, whose gradient and inputs stand for their task's."""

    def __post_init__(self) -> None:
        if not 0 <= self.principal < 1:
            raise SettingError(
                f"keep_lora.principal: must be from 0 to below 1; got {self.principal}"
            )
        if not 0 < self.threshold < 1:
            raise SettingError(
                f"keep_lora.threshold: must be between 0 and 1; got {self.threshold}"
            )
        if self.samples < 1:
            raise SettingError(f"keep_lora.samples: must be 1 or more; got {self.samples}")

    def build(self, context: Context) -> Method:
        from clmm.adapters_frozen import Stacked

        weights = Stacked(
            context.model, rank=self.rank, alpha=self.alpha, seed=context.seed, fixed_inputs=True
        )
        kept = Kept(
            weights,
            context,
            threshold=self.threshold,
            samples=self.samples,
            principal=self.principal,
        )
        return Method(weights=weights, plugins=[kept, *self.parts(context)])


class Kept(EarlierInputs):
    """An Avalanche plugin: M of each layer, and the A of each new adapter."""

    supervised_only = True

    def __init__(self, *args: Any, principal: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._principal = principal

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        from clmm.subspaces import free_directions, grown

        gradients = self._gradients(strategy)
        for name, (a, _b) in self._weights.newest().items():
            if name not in self.bases:
                weight = self._layers(strategy)[name].detach().float()
                moment = weight.T @ weight
                self.bases[name] = grown(moment[:, :0], moment, self._principal)
            found = gradients.pop(name)
            # Gradients are small, and their squares must not vanish.
            found /= found.norm().clamp(min=1e-30)
            rows = free_directions(self.bases[name].to(found.device), found.T @ found)[0].T
            a.data.zero_()
            a.data[: len(rows)] = rows[: len(a)]

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        from clmm.subspaces import grown

        for name, moment in self._moments(strategy).items():
            self.bases[name] = grown(self._basis(name, moment), moment, self._threshold)

    def _layers(self, strategy: Any) -> dict[str, Any]:
        """Layer → W [out, in]."""
        from clmm.adapters_frozen import lora_layers

        layers = lora_layers(strategy.model.model).items()
        return {name: layer.get_base_layer().weight for name, layer in layers}

    def _gradients(self, strategy: Any) -> dict[str, Any]:
        """Layer → G [out, in] in fp32; one sample at a time, so that nothing is padded."""
        import torch

        from clmm.benchmark import Examples
        from clmm.components import evaluating
        from clmm.gradients import gradient

        data = strategy.experience.dataset
        places = range(0, len(data), -(-len(data) // self._samples))
        rows = [Examples([data[i][0]], self._batcher, strategy.device) for i in places]
        tokens = sum(one.tokens for one in rows)
        weights = self._layers(strategy)
        total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
        try:
            for weight in weights.values():
                weight.requires_grad_(True)
            with evaluating(strategy.model):
                for one in rows:
                    loss = strategy._criterion(strategy.model(one), one) * (one.tokens / tokens)
                    for name, found in gradient(loss, weights).items():
                        total[name] += found
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)
        return total
