"""O-LoRA: a new LoRA adapter a task, pushed to be orthogonal to the earlier ones; all are summed.

loss + λ₁ Σ_layers Σ_{t'<t} Σ|A_{t'} A_tᵀ| + λ₂ Σ‖·‖₂ over the new A and B (Wang et al. 2023, arXiv
2310.14152; entry-wise absolute values and λ₂'s norms as in the authors' code). Earlier adapters
are frozen, and y = Wx + Σ_t (α/r)·B_t A_t x answers. Every stage trains as much as one LoRA of the
same rank; what answers after T stages has rank T·r.

Stores for each task an adapter, 4·r·Σ(in + out) bytes. Sets `supports_distributed = True`. No
sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clmm.strategy import Context, LoraTuned, Method
from streams.settings import SettingError

if TYPE_CHECKING:
    from clmm.adapters_frozen import Stacked


@dataclass(frozen=True, kw_only=True)
class OLora(LoraTuned):
    """Tasks are learnt in different subspaces of the layers' inputs."""

    overlap: float = 0.5
    """λ₁, the weight of the overlap with earlier adapters; the authors used 0 to 5."""
    norm: float = 0.0
    """λ₂, the weight of the new adapter's norms."""

    def __post_init__(self) -> None:
        for name in ("overlap", "norm"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise SettingError(f"o_lora.{name}: must be 0 or above; got {value}")

    def build(self, context: Context) -> Method:
        from clmm.adapters_frozen import Stacked

        weights = Stacked(context.model, rank=self.rank, alpha=self.alpha, seed=context.seed)
        penalty = Orthogonality(weights, overlap=self.overlap, norm=self.norm)
        return Method(weights=weights, plugins=[penalty, *self.parts(context)])


class Orthogonality:
    """An Avalanche plugin: adds the penalty's derivative to each update's gradient."""

    supports_distributed = True

    def __init__(self, weights: Stacked, *, overlap: float, norm: float) -> None:
        self._weights, self._overlap, self._norm = weights, overlap, norm
        self.plain_first_stage = not norm
        self._pairs: list[tuple[Any, Any]] = []
        self._new: list[Any] = []

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        import torch

        newest = self._weights.newest()
        earlier = self._weights.earlier() if self._overlap else []
        self._pairs = [
            (torch.cat([old[name][0] for old in earlier]).detach(), new)
            for name, (new, _) in newest.items()
            if earlier
        ]
        self._new = [one for pair in newest.values() for one in pair] if self._norm else []

    def after_backward(self, strategy: Any, **_: Any) -> None:
        if self._pairs or self._new:
            self._weights.penalise(self.value())

    def value(self) -> Any:
        """The penalty [] of the weights as they are."""
        overlap = sum((old @ new.T).abs().sum() for old, new in self._pairs)
        return self._overlap * overlap + self._norm * sum(one.norm() for one in self._new)
