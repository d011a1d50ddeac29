"""RegLoRA: a new LoRA a task, kept small where earlier tasks changed the weights most.

loss + λ · mean over layers of mean |(BA)_ij| over (i, j) in the layer's key elements: for each
earlier task the `share` of entries where |B_t A_t| was largest, tasks joined, an entry of two
tasks counted twice (SEFE, Chen et al. 2025, arXiv 2505.02486, read as its authors' code does it).
There every task starts a fresh LoRA on a model into which the earlier ones were merged, BA is taken
without α/r, and λ = 2.5e3 goes with the mean over layers, not their sum. Here earlier adapters are
frozen and summed, y = Wx + Σ_t (α/r)·B_t A_t x, which is merging without its rounding. SEFE's other
half, answers rewritten in several styles, is a matter of data.

Stores for each task an adapter, 4·r·Σ(in + out) bytes; key elements are found anew in each stage
and take 8·share·Σ(in·out) bytes for each earlier task while it trains. Sets
`supports_distributed = True`. No sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clmm.strategy import Context, LoraTuned, Method
from streams.settings import SettingError

if TYPE_CHECKING:
    from clmm.adapters_frozen import Stacked


@dataclass(frozen=True, kw_only=True)
class RegLora(LoraTuned):
    """What earlier tasks changed most is what knows them, so it should change little more."""

    strength: float = 2.5e3
    """λ, the weight of the penalty."""
    share: float = 0.02
    """Share of a layer's entries that are key elements of a task."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise SettingError(f"reg_lora.strength: must be 0 or above; got {self.strength}")
        if not 0 < self.share <= 1:
            raise SettingError(f"reg_lora.share: must be above 0 and at most 1; got {self.share}")

    def build(self, context: Context) -> Method:
        from clmm.adapters_frozen import Stacked

        weights = Stacked(context.model, rank=self.rank, alpha=self.alpha, seed=context.seed)
        penalty = KeyElements(weights, strength=self.strength, share=self.share)
        return Method(weights=weights, plugins=[penalty, *self.parts(context)])


class KeyElements:
    """An Avalanche plugin: adds the penalty's derivative to each update's gradient."""

    supports_distributed = True
    plain_first_stage = True

    def __init__(self, weights: Stacked, *, strength: float, share: float) -> None:
        self._weights, self._strength, self._share = weights, strength, share
        self._layers: list[tuple[Any, Any, Any]] = []

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        import torch

        earlier = self._weights.earlier() if self._strength else []
        with torch.no_grad():
            self._layers = [
                (a, b, torch.cat([self._largest(*old[name]) for old in earlier]))
                for name, (a, b) in self._weights.newest().items()
                if earlier
            ]

    def after_backward(self, strategy: Any, **_: Any) -> None:
        if self._layers:
            self._weights.penalise(self.value())

    def value(self) -> Any:
        """The penalty [] of the weights as they are."""
        means = [(b @ a).flatten()[places].abs().mean() for a, b, places in self._layers]
        return self._strength * sum(means) / len(means)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self._layers = []

    def _largest(self, a: Any, b: Any) -> Any:
        """Places in the flattened BA [out·in] of a task's key elements."""
        change = (b @ a).abs().flatten()
        return change.topk(max(1, int(self._share * len(change)))).indices
