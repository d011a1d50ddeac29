"""ModalPrompt: prompts a task, chosen and joined by how near both image and text are to them.

Task t has a prompt P_t [length, D] and a prototype z_t, the mean over its tokens p of
W₂·SiLU(W₁p + b₁) + b₂. Guidance is g_t(x) = s·cos(v(x), z_t) + (1 − s)·cos(u(x), z_t), v of the
image, u of the text. In training the new prompt stands nearest the inputs, before it the
`fused` − 1 earlier prompts of most guidance; in answering the `fused` of most guidance among all,
most last. Loss + λ·mean_x [(1 − cos(v, z_t)) + (1 − cos(u, z_t))], t the new task; earlier tasks'
tensors are frozen (Zeng et al. 2024, arXiv 2410.05849; order, prototypes and s = ½ as in the
authors' code). The base never changes.

Our reading: v and u are the mean projected image token and the mean embedded text token of the
frozen base [D], where the authors take CLIP's; a sample without image has cosine 0 there. Replayed
samples are read with the new prompt too. Only P_t, W and b are trained, no projector.

Stores for each task 4·(length·D + 2·D² + 2·D) bytes. One process; no sharded parameters.
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
class ModalPrompt(PromptTuned):
    """Tasks have prompts of their own; alike ones help each other, and the sample says which."""

    fused: int = 3
    """Prompts that a sample is read with, fewer while there are fewer."""
    image_share: float = 0.5
    """s, the image's part in the guidance; the rest is the text's."""
    align: float = 1.0
    """λ, how strongly a new prototype is drawn to its task's images and texts."""

    def __post_init__(self) -> None:
        check_counts("modal_prompt", length=self.length, fused=self.fused)
        check_strength("modal_prompt", align=self.align)
        if not 0 <= self.image_share <= 1:
            raise SettingError(
                f"modal_prompt.image_share: must be from 0 to 1; got {self.image_share}"
            )

    def build(self, context: Context) -> Method:
        from clmm.prompt_weights import Pull, SoftPrompts, prompted

        recipe = _Guided(length=self.length, fused=self.fused, image_share=self.image_share)
        weights = SoftPrompts(context, recipe, name="modal_prompt")
        pull = Pull(weights, recipe.distance, strength=self.align)
        return prompted(weights, [pull, *self.parts(context)])


class _Guided:
    """A `clmm.prompt_weights.Recipe`."""

    per_sample, grows = True, True

    def __init__(self, *, length: int, fused: int, image_share: float) -> None:
        self._length, self._fused, self._image_share = length, fused, image_share

    def tensors(self, earlier: Parts, table: Any) -> dict[str, Any]:
        from torch import nn

        from clmm.prompt_weights import drawn_rows

        width = table.shape[1]
        first, second = nn.Linear(width, width), nn.Linear(width, width)
        return {
            "prompt": drawn_rows(table, self._length),
            "inner_weight": first.weight.detach(),
            "inner_bias": first.bias.detach(),
            "outer_weight": second.weight.detach(),
            "outer_bias": second.bias.detach(),
        }

    def prompts(self, parts: Parts, features: Any, *, training: bool) -> Any:
        import torch

        prompts = torch.stack([part["prompt"] for part in parts])
        guidance = self.guidance(parts, features)
        if training:
            # The new prompt is always there and always last.
            guidance[:, -1] = torch.inf
        chosen = guidance.topk(min(self._fused, len(parts))).indices.flip(1)
        return prompts[chosen].flatten(1, 2)

    def guidance(self, parts: Parts, features: Any) -> Any:
        """[B, tasks]."""
        import torch

        from clmm.prompt_weights import cosines

        with torch.no_grad():
            prototypes = torch.stack([prototype(part) for part in parts])
            image, text = (cosines(features[:, part], prototypes) for part in (0, 1))
            return self._image_share * image + (1 - self._image_share) * text

    def distance(self, parts: Parts, features: Any) -> Any:
        """[B], of the newest task's prototype."""
        from clmm.prompt_weights import cosines

        newest = prototype(parts[-1]).unsqueeze(0)
        return sum(1 - cosines(features[:, part], newest).squeeze(1) for part in (0, 1))


def prototype(part: Any) -> Any:
    """z [D] of one task."""
    from torch.nn import functional

    hidden = functional.linear(part["prompt"], part["inner_weight"], part["inner_bias"])
    outer = functional.linear(functional.silu(hidden), part["outer_weight"], part["outer_bias"])
    return outer.mean(dim=0)
