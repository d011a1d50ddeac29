"""HiDe-LLaVA: one LoRA a task; its own in the top layer, the mean of all in the layers below.

A sample belongs to t = argmax ½·cos(f_image, a_t) + ½·cos(f_text, b_t), a_t and b_t the means over
task t's training samples. It is answered with y = Wx + (α/r)·B_t A_t x in the language model's top
layer and y = Wx + (α/r)·(1/T)·Σ_u B_u A_u x in all others (Guo et al. 2025, HiDe-LLaVA, arXiv
2503.12941). Adapters are trained alone.

Our reading: features come from the frozen base, since a model need not have CLIP's encoders: the
mean projected image token and the text's feature (`text`), over at most 640 samples. The fused LoRA
is the mean of the tasks' updates B_u A_u; the public code adds up the As and the Bs apart, so that
it also multiplies one task's A with another's B, and grows with the number of tasks. The public
code also lets the top layer mix all tasks by a softmax; here the likeliest answers alone. The
projector counts as below. Once a task is learnt no sample is left to the base.

Stores for each task an adapter, 4·r·Σ(in + out) bytes (all are kept: the mean may still be taken
anew), and two means, 8·D bytes. Answers of earlier tasks change with each later one. Supports
several processes; no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategy import Context, LoraTuned, Method, Stages
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class HideLlava(LoraTuned):
    """Every task has its own adapter of this rank, so each stage trains as much as one LoRA."""

    top: int = 1
    """How many of the language model's layers, from the top, keep the tasks apart."""
    text: Literal["words", "state"] = "words"
    """A text's feature. words: its mean embedded token. state: the base's last hidden state where
    the prompt ends, the images left out."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise SettingError(f"hide_llava.top: must be at least 1; got {self.top}")

    def stages(self, tasks: Sequence[str]) -> Stages:
        return IsolatedLora().stages(tasks)

    def build(self, context: Context) -> Method:
        from clmm.adapters_layered import LayeredLora
        from clmm.routing_anchors import AnchorRouter, image_and
        from clmm.routing_features import Features

        try:
            lora = LayeredLora(
                context.model, rank=self.rank, alpha=self.alpha, seed=context.seed, top=self.top
            )
        except ValueError as error:
            raise SettingError(f"hide_llava.top: {error}; got {self.top}") from None
        features = Features(context.model, context.batcher, lora, image_and(self.text))
        router = AnchorRouter(features, context.stream.tasks[0].train[:1])
        return Method(weights=lora, router=router, plugins=self.parts(context))
