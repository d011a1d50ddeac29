"""Progressive Prompts: a new soft prompt a task, before the earlier ones, which stay frozen.

The language model reads [P_t, …, P_1, x], with x the embedded text and projected images and P_i
[length, D]; of stage t only P_t is trained (Razdaibiedina et al. 2023, arXiv 2301.12314). The base
never changes. The authors are told each sample's task; here a router finds it from the sample
(`clmm.routing.PrototypeRouter`), the prompts up to that task's answer, and figures of the oracle,
the authors' setting, are reported beside. With `router: none` all prompts so far answer, so that
later ones can harm earlier tasks.

Our reading: prompts start as embeddings of tokens drawn at random, and are trained as they are,
without the residual MLP through which the authors train them.

Stores for each task a prompt, 4·length·D bytes, and a prototype, about 136·D bytes. Several
processes are supported; no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from clmm.prompt_tuned import PromptTuned, check_counts
from clmm.strategy import BASE, Context, Method, Stages, one_by_one

if TYPE_CHECKING:
    from clmm.prompt_weights import Parts


@dataclass(frozen=True, kw_only=True)
class ProgressivePrompts(PromptTuned):
    """A later task reads what the earlier ones learnt, and cannot change it."""

    router: Literal["prototype", "none"] = "prototype"
    """How samples find the prompts that answer them; none: all of them do."""
    quantile: float = 0.99
    """Samples farther from a task than this share of its training samples (and a tenth more) are
    answered by other prompts, or by the base."""

    def __post_init__(self) -> None:
        check_counts("progressive_prompts", length=self.length)

    def stages(self, tasks: Sequence[str]) -> Stages:
        if BASE in tasks:
            raise ValueError(f"task {BASE!r}: prompts cannot bear this name; rename the task")
        return one_by_one(tasks)

    def build(self, context: Context) -> Method:
        from clmm.prompt_weights import SoftPrompts
        from clmm.routing import PrototypeRouter

        weights = SoftPrompts(context, _OnePerTask(self.length), name="progressive_prompts")
        method = Method(weights=weights, plugins=self.parts(context))
        if self.router == "prototype":
            method.router = PrototypeRouter(
                context.model, context.batcher, weights, quantile=self.quantile
            )
            method.routes_stay = True
        return method


class _OnePerTask:
    """A `clmm.prompt_weights.Recipe`."""

    per_sample, grows = False, True

    def __init__(self, length: int) -> None:
        self._length = length

    def tensors(self, earlier: Parts, table: Any) -> dict[str, Any]:
        from clmm.prompt_weights import drawn_rows

        return {"prompt": drawn_rows(table, self._length)}

    def prompts(self, parts: Parts, features: Any, *, training: bool) -> Any:
        import torch

        return torch.cat([part["prompt"] for part in reversed(parts)]).unsqueeze(0)
