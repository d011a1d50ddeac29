"""SMoLoRA: LoRA experts for what is seen and others for what is asked, chosen apart and fused.

y = Wx + softmax(w_v·v, w_u·u)·(v, u), v = (α/r)·B_i A_i x, u = (α/r)·B'_j A'_j x, where a sample's
experts are i = argmax R_v z_v, z_v the mean of its visual features, and j = argmax R_u z_u, z_u the
embedding of its instruction (Wang et al. 2025, arXiv 2411.13949). All 2E experts have rank r/2E and
are tuned on task after task; w are two vectors [out] a layer, so that each token weighs v and u.
Read off the abstract and the authors' code.

Our reading: z_v is the mean image token as the frozen base projects it, z_u the mean embedded text
token of the prompt, R one pair of routers for all layers, with a bias, z less its mean over the
first task and in units of its spread there. So a sample's experts depend on it alone, answering
included. In the authors' code each layer has routers, z_v is the mean over all tokens of the
layer's input, which differs from token to token while answering, z_u comes of a sentence encoder
and is given by the task, and no gradient reaches R; here it does, by that of the softmax. Layers of
the language model alone have experts: what reaches a projector does not show its sample.

Trains a LoRA of rank r on the language model's layers, w and R: 2·Σ out + 2E·(D + 1) parameters
more. Stores them in fp32, and 8·(D + 1) bytes, whatever the number of tasks. All experts are
computed, as much work as one LoRA of rank r. Does without gradient checkpointing. Sets
`supports_distributed = True`. No sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from clmm.strategy import Context, LoraTuned, Method
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class SMoLora(LoraTuned):
    """New pictures of known questions, or new questions, need not overwrite the other."""

    experts: int = 2
    """E, the experts of each of the two sets in each layer; 2E divides the rank."""

    def __post_init__(self) -> None:
        if self.experts < 1 or self.rank % (2 * self.experts):
            raise SettingError(
                f"smolora.experts: twice their number must divide the rank, {self.rank}; "
                f"got {self.experts}"
            )

    def build(self, context: Context) -> Method:
        from functools import partial

        from clmm.routing_features import Features, image_and_text
        from clmm.separable_experts import ChosenInTraining, SeparableAnswerer, SeparableLora

        weights = SeparableLora(
            context.model,
            rank=self.rank,
            alpha=self.alpha,
            experts=self.experts,
            seed=context.seed,
        )
        features = Features(context.model, context.batcher, weights, image_and_text)
        # A model that does not give them is refused before it is trained.
        features(context.stream.tasks[0].train[:1])
        return Method(
            weights=weights,
            plugins=[ChosenInTraining(weights, features), *self.parts(context)],
            answering=partial(SeparableAnswerer, weights, features),
        )
