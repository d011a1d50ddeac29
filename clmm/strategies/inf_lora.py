"""InfLoRA: a new LoRA a task that only reads what earlier tasks' inputs left unused.

y = Wx + Σ_t (α/r)·B_t A_t x, A_t fixed before the task trains, B_t trained from zero (Liang and Li
2024, arXiv 2404.00228, who write A for our B and B for our A, and have no α/r: alpha = rank). A_t
are the r singular vectors of the task's inputs X, less their part in M, that X is largest along.
M, an orthonormal basis of each layer's earlier inputs, grows after each task by as few directions
as make it hold a share ε + (1 − ε)·(t − 1)/T of ‖X‖². The paper's DualGPM stores M or what M leaves
free, whichever is smaller, for the same subspaces. Where M leaves fewer than r directions, the
other rows of A_t are zero. X are the inputs of `samples` training samples, of the whole task in
the paper.

Trains r·Σ out parameters, less than the other LoRA strategies. Stores for each task an adapter,
4·r·Σ(in + out) bytes, and M, up to 4·Σ in² bytes; needs 4·Σ in² bytes more before and after each
stage. One process; no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clmm.strategy import Context, LoraTuned, Method
from streams.settings import SettingError

if TYPE_CHECKING:
    from clmm.adapters_frozen import Stacked


@dataclass(frozen=True, kw_only=True)
class InfLora(LoraTuned):
    """What a new task learns cannot act on the directions that earlier tasks' inputs span."""

    threshold: float = 0.95
    """ε, the share of the first task's inputs that M holds; later tasks' share is larger."""
    samples: int = 256
    """Training samples, taken evenly, whose inputs stand for their task's."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise SettingError(f"inf_lora.threshold: must be between 0 and 1; got {self.threshold}")
        if self.samples < 1:
            raise SettingError(f"inf_lora.samples: must be 1 or more; got {self.samples}")

    def build(self, context: Context) -> Method:
        from clmm.adapters_frozen import Stacked

        weights = Stacked(
            context.model, rank=self.rank, alpha=self.alpha, seed=context.seed, fixed_inputs=True
        )
        inputs = EarlierInputs(weights, context, threshold=self.threshold, samples=self.samples)
        return Method(weights=weights, plugins=[inputs, *self.parts(context)])


class EarlierInputs:
    """An Avalanche plugin: M of each layer, and the A of each new adapter."""

    def __init__(
        self, weights: Stacked, context: Context, *, threshold: float, samples: int
    ) -> None:
        self._weights, self._batcher = weights, context.batcher
        self._threshold, self._samples = threshold, samples
        self._tasks = len(context.stream.tasks)
        self.bases: dict[str, Any] = {}

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        from clmm.subspaces import free_directions

        moments = self._moments(strategy)
        for name, pair in self._weights.newest().items():
            a = pair[0]
            a.data.zero_()
            if name in moments:
                basis = self._basis(name, moments[name])
                rows = free_directions(basis, moments[name])[0].T[: len(a)]
                a.data[: len(rows)] = rows

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        from clmm.subspaces import grown

        done = (strategy.stage - 1) / self._tasks
        share = self._threshold + (1 - self._threshold) * done
        for name, moment in self._moments(strategy).items():
            self.bases[name] = grown(self._basis(name, moment), moment, share)

    @property
    def stored_bytes(self) -> int:
        return sum(basis.nbytes for basis in self.bases.values())

    def state(self) -> dict[str, Any]:
        return {"bases": self.bases}

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        self.bases = dict(state["bases"])

    def _basis(self, name: str, moment: Any) -> Any:
        return self.bases[name].to(moment.device) if name in self.bases else moment[:, :0]

    def _moments(self, strategy: Any) -> dict[str, Any]:
        from clmm.adapters_frozen import lora_layers
        from clmm.subspaces import second_moments

        data = strategy.experience.dataset
        places = range(0, len(data), -(-len(data) // self._samples))
        samples = [data[place][0] for place in places]
        layers = lora_layers(strategy.model.model)
        return second_moments(strategy.model, layers, samples, self._batcher)
