"""CODA-Prompt: every sample's prompt is a sum of components, weighed by attention to it.

p(x) = Σ_m α_m P_m, α_m = cos(q(x) ⊙ A_m, K_m), over the components of all tasks so far; a stage
adds `components` and trains them, the earlier ones are frozen. Loss + λ·Σ_{B ∈ {P, K, A}}
‖B Bᵀ − I‖², rows of B the components, over old and new ones (Smith et al. 2023, arXiv 2211.13218).
New components start orthonormal to one another and orthogonal to the earlier ones, as in the
authors' code. The base never changes.

Our reading: p(x) [length, D] stands before the language model's inputs, where the authors put a
prompt into the keys and values of five layers; ‖·‖² sums squares; q(x) are features of the frozen
base, the mean projected image token and the mean embedded text token, each brought to length 1/√2
and joined [2D].

Stores 4·components·(length·D + 4·D) bytes a task. One process; no sharded parameters.
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
class CodaPrompt(PromptTuned):
    """Later tasks may use what earlier ones learnt, and add to it."""

    length: int = 8
    """Soft tokens of one prompt."""
    components: int = 10
    """Components that each task adds."""
    orthogonality: float = 0.1
    """λ, the weight of the penalty."""

    def __post_init__(self) -> None:
        check_counts("coda_prompt", length=self.length, components=self.components)
        check_strength("coda_prompt", orthogonality=self.orthogonality)

    def build(self, context: Context) -> Method:
        from clmm.prompt_weights import Penalty, SoftPrompts, prompted

        recipe = _Components(length=self.length, components=self.components)
        width = context.model.get_input_embeddings().weight.shape[1]
        total, most = len(context.stream.tasks) * self.components, min(2, self.length) * width
        if total > most:
            raise SettingError(
                f"coda_prompt.components: {len(context.stream.tasks)} tasks make {total} "
                f"components, of which at most {most} can be orthogonal here; take fewer; "
                f"got {self.components}"
            )
        weights = SoftPrompts(context, recipe, name="coda_prompt")
        penalty = Penalty(weights, lambda parts: self.orthogonality * overlap(parts))
        return prompted(weights, [*([penalty] if self.orthogonality else []), *self.parts(context)])


class _Components:
    """A `clmm.prompt_weights.Recipe`."""

    per_sample, grows = True, True

    def __init__(self, *, length: int, components: int) -> None:
        self._length, self._components = length, components

    def tensors(self, earlier: Parts, table: Any) -> dict[str, Any]:
        width = table.shape[1]
        sizes = {"prompt": self._length * width, "key": 2 * width, "attention": 2 * width}
        found = {
            name: orthonormal([part[name].flatten(1) for part in earlier], self._components, size)
            for name, size in sizes.items()
        }
        return found | {"prompt": found["prompt"].unflatten(1, (self._length, -1))}

    def prompts(self, parts: Parts, features: Any, *, training: bool) -> Any:
        import torch

        from clmm.prompt_weights import query

        prompt, key, attention = (joined(parts, name) for name in ("prompt", "key", "attention"))
        asked = query(features).unsqueeze(1) * attention
        weights = torch.nn.functional.cosine_similarity(asked, key.unsqueeze(0), dim=2)
        return torch.einsum("bm,mld->bld", weights, prompt)


def overlap(parts: Parts) -> Any:
    """Σ_B ‖B Bᵀ − I‖² of prompts, keys and attentions."""
    import torch

    total: Any = 0.0
    for name in ("prompt", "key", "attention"):
        rows = joined(parts, name).flatten(1)
        unit = torch.eye(len(rows), device=rows.device)
        total = total + (rows @ rows.T - unit).square().sum()
    return total


def joined(parts: Parts, name: str) -> Any:
    """All components so far."""
    import torch

    return torch.cat([part[name] for part in parts])


def orthonormal(earlier: list[Any], count: int, width: int) -> Any:
    """Random rows [count, width], orthonormal, and orthogonal to the `earlier` ones."""
    import torch

    rows = torch.cat([*earlier, torch.randn(count, width)])
    return torch.linalg.qr(rows.T).Q.T[-count:].contiguous()
