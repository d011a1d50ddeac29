"""DualPrompt: a prefix that all tasks train and one for each task, which the sample's query finds.

In layers `general_layers` attention reads [p_K; K] and [p_V; V] with the general prefix g, in
`expert_layers` with the expert prefix e_t (prefix tuning). In training t is the new task, and loss
+ λ·mean_x γ(q(x), k_t), γ = 1 − cos, draws its key to its samples; in answering t is the task of
the nearest key. Earlier experts and keys are frozen, g is trained on (Wang et al. 2022, arXiv
2204.04799; prefixes as keys and values themselves, as in the authors' code). The base never
changes.

Our reading: a prefix has no rotary position; it starts as normal numbers of deviation 0.02; q(x)
are features of the frozen base, the mean projected image token and the mean embedded text token,
each brought to length 1/√2 and joined [2D]. Replayed samples are read with the new expert too.

Stores for each task e_t, k_t and g as it then was: 4·(2·heads·width·(Σ tokens over layers) + 2·D)
bytes. One process; no sharded parameters.
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
class DualPrompt(PromptTuned):
    """What all tasks need is learnt apart from what one task needs."""

    length: int = 20
    """Tokens of an expert prefix, in each of its layers."""
    general_length: int = 5
    """Tokens of the general prefix, in each of its layers."""
    general_layers: tuple[int, ...] = (1, 2)
    """Layers that read the general prefix, from 1."""
    expert_layers: tuple[int, ...] = (3, 4, 5)
    """Layers that read an expert prefix, from 1."""
    pull: float = 0.5
    """λ, how strongly a new key is drawn to its task's samples."""

    def __post_init__(self) -> None:
        check_counts("dual_prompt", length=self.length, general_length=self.general_length)
        check_strength("dual_prompt", pull=self.pull)
        layers = (*self.general_layers, *self.expert_layers)
        if not self.expert_layers or len(set(layers)) < len(layers) or min(layers) < 1:
            raise SettingError(
                "dual_prompt.expert_layers: one layer or more, from 1, none of them twice or in "
                f"general_layers {self.general_layers}; got {self.expert_layers}"
            )

    def build(self, context: Context) -> Method:
        from clmm.prefixes import Prefixes, shapes
        from clmm.prompt_weights import Pull, SoftPrompts, prompted

        example = context.stream.tasks[0].train[:1]
        found = shapes(context.model, context.batcher.prompts(example))
        layers = (*self.general_layers, *self.expert_layers)
        sizes = {found.get(layer - 1) for layer in layers}
        if found and (None in sizes or len(sizes) > 1):
            raise SettingError(
                f"dual_prompt.expert_layers: {type(context.model).__name__} has {len(found)} "
                "layers that can have a prefix, and those chosen must be among them and have "
                f"equal heads; got {layers}"
            )
        recipe = _General(self, *(sizes.pop() or (0, 0)))
        weights = SoftPrompts(context, recipe, name="dual_prompt", site=Prefixes)
        pull = Pull(weights, recipe.distance, strength=self.pull)
        return prompted(weights, [pull, *self.parts(context)])


class _General:
    """A `clmm.prompt_weights.Recipe`."""

    per_sample, grows = True, True

    def __init__(self, settings: DualPrompt, heads: int, width: int) -> None:
        self._settings, self._heads, self._width = settings, heads, width

    def tensors(self, earlier: Parts, table: Any) -> dict[str, Any]:
        import torch

        def drawn(layers: tuple[int, ...], length: int) -> Any:
            return 0.02 * torch.randn(len(layers), 2, self._heads, length, self._width)

        mine = self._settings
        fresh = {
            "general": drawn(mine.general_layers, mine.general_length),
            "expert": drawn(mine.expert_layers, mine.length),
            "key": torch.randn(2 * table.shape[1]),
        }
        return fresh | ({"general": earlier[-1]["general"]} if earlier else {})

    def prompts(self, parts: Parts, features: Any, *, training: bool) -> Any:
        import torch

        from clmm.prompt_weights import cosines, query

        keys = torch.stack([part["key"] for part in parts])
        nearest = cosines(query(features), keys).argmax(dim=1)
        chosen = torch.full_like(nearest, len(parts) - 1) if training else nearest
        experts = torch.stack([part["expert"] for part in parts])[chosen]
        general = parts[-1]["general"].expand(len(features), -1, -1, -1, -1, -1)
        layers = (*self._settings.general_layers, *self._settings.expert_layers)
        found = [*general.unbind(1), *experts.unbind(1)]
        return {layer - 1: prefix for layer, prefix in zip(layers, found, strict=True)}

    def distance(self, parts: Parts, features: Any) -> Any:
        """γ [B] of the newest key."""
        from clmm.prompt_weights import cosines, query

        return 1 - cosines(query(features), parts[-1]["key"].unsqueeze(0)).squeeze(1)
