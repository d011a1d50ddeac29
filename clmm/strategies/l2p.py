"""L2P: a pool of prompts with keys; each sample is read with the prompts whose keys are nearest.

Loss + λ·mean_x Σ_{i ∈ S(x)} γ(q(x), k_i), with γ(q, k) = 1 − cos(q, k) and S(x) the `selected` of
the pool's M keys of least γ; their prompts [length, D], nearest first, stand before the inputs
(Wang et al. 2022, arXiv 2112.08654). The answer's loss trains the prompts, the pull the keys. All
tasks share the pool, and the base never changes.

Our reading: q(x) are features of the frozen base, the mean projected image token and the mean
embedded text token, each brought to length 1/√2 and joined [2D]. A choice depends on the sample
alone: no vote of the batch, as in the authors' code, and no penalty of prompts chosen often, which
they offer. Prompts start as embeddings of tokens drawn at random, keys as random directions.

Stores the pool, 4·M·(length·D + 2·D) bytes, whatever the number of tasks. One process; no sharded
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clmm.prompt_tuned import PromptTuned, check_counts, check_strength
from clmm.strategy import Context, Method
from streams.settings import SettingError

if TYPE_CHECKING:
    from clmm.prompt_weights import Parts


@dataclass(frozen=True, kw_only=True)
class L2p(PromptTuned):
    """Samples that look alike share prompts, whatever their task."""

    length: int = 5
    """Soft tokens of one prompt."""
    pool: int = 10
    """M, the prompts of the pool."""
    selected: int = 5
    """Prompts that a sample is read with."""
    pull: float = 0.5
    """λ, how strongly the chosen keys are drawn to the samples that chose them."""

    def __post_init__(self) -> None:
        check_counts("l2p", length=self.length, pool=self.pool, selected=self.selected)
        check_strength("l2p", pull=self.pull)
        if self.selected > self.pool:
            raise SettingError(
                f"l2p.selected: the pool has {self.pool} prompts; got {self.selected}"
            )

    def build(self, context: Context) -> Method:
        from clmm.prompt_weights import Pull, SoftPrompts, prompted

        recipe = _Pool(length=self.length, pool=self.pool, selected=self.selected)
        weights = SoftPrompts(context, recipe, name="l2p")
        pull = Pull(weights, recipe.distance, strength=self.pull)
        return prompted(weights, [pull, *self.parts(context)])


class _Pool:
    """A `clmm.prompt_weights.Recipe`."""

    per_sample, grows = True, False

    def __init__(self, *, length: int, pool: int, selected: int) -> None:
        self._length, self._pool, self._selected = length, pool, selected

    def tensors(self, earlier: Parts, table: Any) -> dict[str, Any]:
        import torch

        from clmm.prompt_weights import drawn_rows

        prompts = drawn_rows(table, self._pool * self._length).unflatten(0, (self._pool, -1))
        return {"prompt": prompts, "key": torch.randn(self._pool, 2 * table.shape[1])}

    def prompts(self, parts: Parts, features: Any, *, training: bool) -> Any:
        return parts[0]["prompt"][self._chosen(parts, features).indices].flatten(1, 2)

    def distance(self, parts: Parts, features: Any) -> Any:
        """Σ γ [B] of the chosen keys."""
        return (1 - self._chosen(parts, features).values).sum(dim=1)

    def _chosen(self, parts: Parts, features: Any) -> Any:
        from clmm.prompt_weights import cosines, query

        return cosines(query(features), parts[0]["key"]).topk(self._selected)
