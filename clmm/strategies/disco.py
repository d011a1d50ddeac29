"""DISCO: one LoRA adapter a task; all answer together, weighted by how like a sample's text is.

y = Wx + (α/r)·Σ_t s_t·B_t A_t x with s = softmax(cos(f, p_t) / τ), f the sample's text feature, p_t
the mean of task t's training samples, τ = 0.05 (Guo et al. 2025, Federated Continual Instruction
Tuning, arXiv 2503.12897; their subspace selective activation, one client). Each sample has its own
weights, whatever batch it is in; the public code takes the cosine of the batch's mean.

Our reading: the paper's f comes from CLIP's text encoder, which a model need not have; here it
comes from the frozen base (`text`). Its cosines differ less than CLIP's, so at the same τ more
adapters have a say; lower `temperature` for sharper weights. Adapters are trained alone. Once a
task is learnt no sample is left to the base. The route on an answer is the largest weight; oracle
figures are those of the task's adapter alone.

Stores for each task an adapter, 4·r·Σ(in + out) bytes, and a mean, 4·D bytes. A model whose layers
do not show which sample a vector belongs to (mixtures of experts, resamplers) is asked one sample
at a time. Supports several processes; no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategy import Context, LoraTuned, Method, Stages
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Disco(LoraTuned):
    """Every task has its own adapter of this rank, so each stage trains as much as one LoRA."""

    temperature: float = 0.05
    """τ: the smaller, the more the likeliest task's adapter answers alone."""
    text: Literal["words", "state"] = "words"
    """A text's feature. words: its mean embedded token. state: the base's last hidden state where
    the prompt ends, the images left out."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise SettingError(f"disco.temperature: must be above 0; got {self.temperature}")

    def stages(self, tasks: Sequence[str]) -> Stages:
        return IsolatedLora().stages(tasks)

    def build(self, context: Context) -> Method:
        from functools import partial

        from clmm.adapters_mixed import MixedLora
        from clmm.routing_anchors import TEXT, AnchorRouter
        from clmm.routing_features import Features
        from clmm.routing_mixed import MixedAnswerer

        lora = MixedLora(context.model, rank=self.rank, alpha=self.alpha, seed=context.seed)
        features = Features(context.model, context.batcher, lora, TEXT[self.text])
        router = AnchorRouter(features, context.stream.tasks[0].train[:1])
        return Method(
            weights=lora,
            router=router,
            plugins=self.parts(context),
            answering=partial(MixedAnswerer, router, lora, self.temperature),
        )
