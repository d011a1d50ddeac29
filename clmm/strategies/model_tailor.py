"""Model Tailor: of each task's fine-tuned weights a sparse patch stays, the rest goes back.

Each task is tuned on the base, by itself. Then for each linear layer, with Δ = θ_sft − θ_pre and
H = 2XᵀX of the tuned model's inputs: score = ω·z(|Δ|) + (1 − ω)·z(Δ² / [H⁻¹]_jj), salience and the
loss that taking Δ back costs (Optimal Brain Surgeon), each standardised (z) over a row of the
weight. The `share` of entries with the largest scores is the patch K; all others R become θ_pre.
The patch is decorated for what they lost: θ_K = θ_sft,K + H_KK⁻¹ H_KR Δ_R, which minimises the
layer's error against the tuned one (Zhu et al. 2024, arXiv 2402.12048).

Our reading: the share is taken of each row. The compensation is solved exactly; the authors' code
goes column by column as SparseGPT does, adds where that subtracts, and its sensitivity has θ² for
Δ². H comes from one pass through the tuned model, damped by a hundredth of its mean diagonal. What
a model answers with after several tasks is θ_pre with the patches of all of them, an entry of
several patches being the mean of their weights. Only linear layers are trained, those that LoRA
adapts. The authors tune them fully (`tuning: full`); `lora` trains a LoRA, merged before this.

Stores a copy of these layers' base weights and 8·share·Σ(in·out) bytes a task; after a stage needs
4·Σ in² bytes more. One process; fp32 weights; no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clmm.strategy import Context, Method, Tuned
from streams.settings import SettingError

if TYPE_CHECKING:
    from clmm.adapters_edited import Edited, Rule


@dataclass(frozen=True, kw_only=True)
class ModelTailor(Tuned):
    """Most of the base stays as it was, so most of what it could do stays too."""

    share: float = 0.1
    """Share of each row's entries that a task's patch replaces; the authors' 10 %."""
    salience: float = 0.8
    """ω, the weight of salience against sensitivity; as in the authors' code."""
    samples: int = 128
    """Training samples, taken evenly, whose inputs make H; as in the authors' code."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SettingError(
                f"model_tailor.share: must be above 0 and at most 1; got {self.share}"
            )
        if not 0 <= self.salience <= 1:
            raise SettingError(f"model_tailor.salience: must be from 0 to 1; got {self.salience}")
        if self.samples < 1:
            raise SettingError(f"model_tailor.samples: must be 1 or more; got {self.samples}")
        if self.tuning not in ("lora", "full"):
            raise SettingError(f"model_tailor.tuning: must be lora or full; got {self.tuning!r}")

    def build(self, context: Context) -> Method:
        from clmm.adapters_edited import EditAfterwards, Edited

        weights = Edited(
            context.model, tuning=self.tuning, rank=self.rank, alpha=self.alpha, seed=context.seed
        )
        patches = Patches(weights, context, self)
        edit = EditAfterwards(weights, patches.rule, afresh=True)
        return Method(weights=weights, plugins=[edit, patches, *self.parts(context)])


class Patches:
    """Cuts a patch after each stage and sews all of them to the base; a plugin for its memory."""

    def __init__(self, weights: Edited, context: Context, settings: ModelTailor) -> None:
        self._weights, self._batcher, self._settings = weights, context.batcher, settings
        self.columns: dict[str, Any] = {}
        """`STAGE.LAYER` → the columns of each row that the stage's patch holds [out, kept]."""
        self.values: dict[str, Any] = {}
        """The same → the weights there."""

    def rule(self, strategy: Any, stage: int) -> Rule:
        from clmm.curvature import evenly, hessian, patch, stitched
        from clmm.subspaces import second_moments

        settings = self._settings
        samples = [row[0] for row in evenly(strategy.experience.dataset, settings.samples)]
        moments = second_moments(strategy.model, self._weights.layers, samples, self._batcher)

        def sewn(layer: str, before: Any, after: Any) -> Any:
            # A layer that saw no input learnt nothing either.
            if layer in moments:
                key, h = f"{stage:04d}.{layer}", hessian(moments[layer], len(samples))
                cut = patch(before, after, h, share=settings.share, salience=settings.salience)
                self.columns[key], self.values[key] = (tensor.cpu() for tensor in cut)
            keys = [key for key in self.columns if key.split(".", 1)[1] == layer]
            found = [(self.columns[key], self.values[key]) for key in keys]
            return stitched(self._weights.base(layer).to(after.device), found)

        return sewn

    @property
    def stored_bytes(self) -> int:
        return sum(t.nbytes for kept in (self.columns, self.values) for t in kept.values())

    def state(self) -> dict[str, Any]:
        return {"columns": self.columns, "values": self.values}

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        self.columns, self.values = (dict(state[key]) for key in ("columns", "values"))
