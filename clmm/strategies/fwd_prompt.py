"""Fwd-Prompt: L2P whose prompts learn where the base is at home and earlier inputs left room.

The gradient g [pool, length, D] of the prompts becomes gFFᵀ before each update, F an orthonormal
basis of the directions that lie in the pre-trained subspace, so that what the base knows is used,
and in the residual space of all earlier tasks, so that they are not disturbed (Zheng et al. 2024,
arXiv 2401.09181). Prompts are chosen by similarity, and keys learn, as in `l2p`.

Read off the paper's abstract alone, which names both projections and a singular value
decomposition of input embeddings. Our reading is the rest. The pre-trained subspace are the fewest
directions that hold a share `pretrained` of ‖E‖², E the base's token embeddings [V, D]. F begins
as all of it; after each task it loses as few directions as make what is outside F hold a share
`threshold` of ‖X‖², X the task's inputs [tokens, D] to the language model: texts and projected
images of 640 training samples at most, without answers and soft prompts. So F lies in both
subspaces at once, where one projection after the other would leave the first again. AdamW's steps
leave the subspace of its gradients, so each step is projected too. When no direction is left,
prompts no longer move. Keys move freely.

Stores the pool or, where it `grows`, a pool a task, 4·pool·(length·D + 2·D) bytes each, and what is
outside F, up to 4·D² bytes. One process; no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clmm.prompt_tuned import PromptTuned, check_counts, check_strength
from clmm.strategies.l2p import _Pool
from clmm.strategy import Context, Method
from streams.settings import SettingError

if TYPE_CHECKING:
    from clmm.prompt_weights import Parts, SoftPrompts


@dataclass(frozen=True, kw_only=True)
class FwdPrompt(PromptTuned):
    """Tasks share prompts, and each moves them along directions of its own."""

    length: int = 5
    """Soft tokens of one prompt."""
    pool: int = 10
    """Prompts of the pool."""
    selected: int = 5
    """Prompts that a sample is read with."""
    pull: float = 0.5
    """How strongly the chosen keys are drawn to the samples that chose them."""
    pretrained: float = 0.95
    """Share of the squared token embeddings that the pre-trained subspace holds; 1 for no bound."""
    threshold: float = 0.95
    """Share of each task's squared inputs that later tasks may not touch; 0 for none."""
    grows: bool = False
    """Whether each task adds a pool and the earlier ones are frozen; else all tasks share one."""

    def __post_init__(self) -> None:
        check_counts("fwd_prompt", length=self.length, pool=self.pool, selected=self.selected)
        check_strength("fwd_prompt", pull=self.pull)
        if self.selected > self.pool:
            raise SettingError(
                f"fwd_prompt.selected: the pool has {self.pool} prompts; got {self.selected}"
            )
        if not 0 < self.pretrained <= 1:
            raise SettingError(
                f"fwd_prompt.pretrained: must be above 0, at most 1; got {self.pretrained}"
            )
        if not 0 <= self.threshold < 1:
            raise SettingError(
                f"fwd_prompt.threshold: must be from 0 to below 1; got {self.threshold}"
            )

    def build(self, context: Context) -> Method:
        from clmm.prompt_weights import Pull, SoftPrompts, prompted

        kind = _Pools if self.grows else _Pool
        recipe = kind(length=self.length, pool=self.pool, selected=self.selected)
        weights = SoftPrompts(context, recipe, name="fwd_prompt")
        pull = Pull(weights, recipe.distance, strength=self.pull)
        inside = FreeSpace(weights, context, pretrained=self.pretrained, threshold=self.threshold)
        return prompted(weights, [pull, *self.parts(context), inside])


class _Pools(_Pool):
    """A `clmm.prompt_weights.Recipe`: trains with the newest pool, answers with all."""

    grows = True

    def prompts(self, parts: Parts, features: Any, *, training: bool) -> Any:
        from clmm.strategies.coda_prompt import joined

        asked = parts[-1:] if training else parts
        whole = {name: joined(asked, name) for name in ("prompt", "key")}
        return super().prompts([whole], features, training=training)

    def distance(self, parts: Parts, features: Any) -> Any:
        return super().distance(parts[-1:], features)


class FreeSpace:
    """An Avalanche plugin: prompts move within F alone."""

    def __init__(
        self, weights: SoftPrompts, context: Context, *, pretrained: float, threshold: float
    ) -> None:
        from clmm.routing_features import Features

        self._weights = weights
        self._table: Any = context.model.get_input_embeddings().weight
        self._moments = Features(context.model, context.batcher, weights, _moment)
        self._pretrained, self._threshold = pretrained, threshold
        self.outside: Any = None
        """An orthonormal basis [D, D − f] of what F is not; None before the first stage."""
        self._free: Any = None
        self._before: Any = None

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        import torch

        if self.outside is None:
            self.outside = self._foreign()
        self.outside = self.outside.to(self._table.device)
        count = self.outside.shape[1]
        # Nothing is outside: not even a rounding may differ from a pool that is not projected.
        self._free = torch.linalg.qr(self.outside, "complete").Q[:, count:] if count else None

    def after_backward(self, strategy: Any, **_: Any) -> None:
        if self._free is not None:
            self._prompt.grad = self._inside(self._prompt.grad)

    def before_update(self, strategy: Any, **_: Any) -> None:
        if self._free is not None:
            self._before = self._prompt.detach().clone()

    def after_update(self, strategy: Any, **_: Any) -> None:
        if self._free is not None:
            self._prompt.data = self._before + self._inside(self._prompt.data - self._before)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        from clmm.routing_features import LEARNT
        from clmm.subspaces import grown

        self._free = self._before = None
        if self._threshold:
            data = strategy.experience.dataset
            places = range(0, len(data), -(-len(data) // LEARNT))
            moment = self._moments([data[place][0] for place in places]).sum(dim=0)
            self.outside = grown(self.outside, moment, self._threshold)

    @property
    def stored_bytes(self) -> int:
        return 0 if self.outside is None else int(self.outside.nbytes)

    def state(self) -> dict[str, Any]:
        return {} if self.outside is None else {"outside": self.outside}

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        self.outside = state.get("outside")

    @property
    def _prompt(self) -> Any:
        return self._weights.parts[-1]["prompt"]

    def _inside(self, rows: Any) -> Any:
        """rows·F·Fᵀ [..., D]."""
        return rows @ self._free @ self._free.T

    def _foreign(self) -> Any:
        """An orthonormal basis of what is outside of the pre-trained subspace."""
        from clmm.subspaces import free_directions, grown

        table = self._table.detach().float()
        moment = table.T @ table
        none = moment[:, :0]
        if self._pretrained == 1:
            return none
        return free_directions(grown(none, moment, self._pretrained), moment)[0]


def _moment(model: Any, batcher: Any, samples: Any) -> Any:
    """XᵀX [1, D, D] of these samples' inputs to the language model."""
    from clmm.routing_features import embedded_inputs

    prompts = batcher.prompts(samples)
    rows = embedded_inputs(model, prompts)[prompts["attention_mask"].bool()].float()
    return (rows.T @ rows).unsqueeze(0)
