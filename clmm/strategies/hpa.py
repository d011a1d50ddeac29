"""HPA: after each task, columns of the weights that hold safety go back to what they were.

For each linear layer, ΔW = W_t − W_{t−1} and H_s, H_t = 2XᵀX of its inputs on safety and on task
samples: column scores ε_j = mean_i ΔW_ij² / [H_s⁻¹]_jj and ζ_j alike with H_t. The 2p largest of
each are the focused columns. Of all columns the share p is retained: first those focused on safety
alone, then, of those focused on both, the largest ε − α·ζ, with α between `balance` by tanh of the
mean of log(ε/ζ). p falls from `first` to `last` with the layer's depth. What is not retained loses
its part along the old weights: W̃ = W_{t−1} + ΔW − ⟨ΔW, W_{t−1}⟩ / ‖W_{t−1}‖² · W_{t−1}, and
Ŵ = M ⊙ W_{t−1} + (1 − M) ⊙ W̃ goes on to the next task (Harmonious Parameter Adaptation, Wang et
al. 2025, arXiv 2511.20158).

Our reading: safety samples are the study's `alignment`, for which the authors take harmful prompts
and the aligned model's own answers. H is divided by the number of its samples, or many task samples
would outweigh few safety ones, and damped by a hundredth of its mean diagonal. α is
α₀ + (α₁ − α₀)·(1 + tanh)/2, its mean over all columns of the layer. If more columns are focused on
safety alone than may be retained, the largest ε are. Depth counts the linear layers, those of the
projector first. Layers that no safety sample reaches (the projector, when these have no picture)
retain no column. Only linear layers are trained, those that LoRA adapts; the authors tune LoRA and
merge it before this (`tuning: lora`), `full` trains the layers themselves.

Stores a copy of these layers' base weights, whatever the number of tasks; after a stage needs
4·Σ in² bytes more. One process; fp32 weights; no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from clmm.strategy import Context, Method, Tuned
from streams.sample import Sample
from streams.settings import SettingError

if TYPE_CHECKING:
    from clmm.adapters_edited import Edited, Rule


@dataclass(frozen=True, kw_only=True)
class Hpa(Tuned):
    """Sequential tuning that may change little of what keeps the model safe."""

    first: float = 0.15
    """Share of the first layer's columns that keep their old weights; the authors' p_max."""
    last: float = 0.05
    """The same of the last layer, with a straight line between them; the authors' p_min."""
    balance: tuple[float, float] = (0.4, 0.8)
    """α₀ and α₁: how much a column's worth to the task counts against its worth to safety."""
    orthogonal: bool = True
    """Whether the update loses its part along the old weights."""
    safety_samples: int = 8
    """Alignment samples, taken evenly, whose inputs make H_s."""
    task_samples: int = 128
    """Training samples, taken evenly, whose inputs make H_t."""

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"hpa.{name}: must be from 0 to 1; got {getattr(self, name)}")
        if not 0 <= self.balance[0] <= self.balance[1] < float("inf"):
            raise SettingError(
                f"hpa.balance: must be two numbers from 0 on, the larger last; got {self.balance}"
            )
        for name in ("safety_samples", "task_samples"):
            if getattr(self, name) < 1:
                raise SettingError(f"hpa.{name}: must be 1 or more; got {getattr(self, name)}")
        if self.tuning not in ("lora", "full"):
            raise SettingError(f"hpa.tuning: must be lora or full; got {self.tuning!r}")

    def build(self, context: Context) -> Method:
        from clmm.adapters_edited import EditAfterwards, Edited

        if not context.alignment:
            raise SettingError(
                f"hpa.safety_samples: is {self.safety_samples}, but the study has no alignment "
                "samples; name their source in `alignment`, or take model_tailor"
            )
        weights = Edited(
            context.model, tuning=self.tuning, rank=self.rank, alpha=self.alpha, seed=context.seed
        )
        edit = EditAfterwards(weights, partial(harmonised, self, weights, context))
        return Method(weights=weights, plugins=[edit, *self.parts(context)])


def harmonised(settings: Hpa, weights: Edited, context: Context, strategy: Any, stage: int) -> Rule:
    """Says what Ŵ is of each layer that the stage has trained."""
    from clmm.curvature import evenly, hessian, orthogonal, prices, retained
    from clmm.subspaces import second_moments

    def priced(samples: Sequence[Sample]) -> dict[str, Any]:
        """Layer → 1/[H⁻¹]_jj."""
        moments = second_moments(strategy.model, weights.layers, samples, context.batcher)
        return {layer: prices(hessian(m, len(samples))) for layer, m in moments.items()}

    rows = evenly(strategy.experience.dataset, settings.task_samples)
    safety = priced(evenly(context.alignment, settings.safety_samples))
    task = priced([row[0] for row in rows])
    depths = {layer: depth for depth, layer in enumerate(weights.layers)}
    deepest = max(1, len(depths) - 1)

    def rule(layer: str, before: Any, after: Any) -> Any:
        change = after.double() - before.double()
        edited = after
        if settings.orthogonal:
            edited = (before.double() + orthogonal(change, before)).to(before.dtype)
        if layer in safety and layer in task:
            share = settings.first - depths[layer] / deepest * (settings.first - settings.last)
            mask = retained(
                change, safety[layer], task[layer], share=share, balance=settings.balance
            )
            edited = before.where(mask, edited)
        return edited

    return rule
