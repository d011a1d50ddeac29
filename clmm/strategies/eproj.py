"""EProj: an input projector a task, grown from the last one and found by similarity to its key.

y = LLM(P_k(F_X), F_T), k = argmax_t ½·(cos(v, v_t) + cos(q, q_t)), only P_k trained (He et al.
2023, arXiv 2311.16206). Of a sample, v is the mean image token as the base projects it and q the
mean embedded text token of its prompt; v_t and q_t, the key of task t, are their means over its
training samples. Encoder and language model are frozen and features are the base's, so keys never
change, and only a wrong choice of the projector can forget. Every sample gets a task's projector
once there is one, be it ever so far from all tasks.

Our reading, as only the paper's abstract was at hand: features, similarity and keys are as said
above; a projector starts as the newest one; a task whose samples are on average more similar to an
earlier task than `reuse` goes on training that task's projector, with no penalty on its change.

Trains the projector. Stores for each projector its parameters in fp32 and for each task 8·D bytes
of keys. Needs fp32 weights, a model with a projector and an image in every training sample. No
sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clmm.strategy import BASE, Context, Method, Stages, one_by_one
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class EProj:
    """New tasks are learnt by new projectors; the language model stays as it is."""

    reuse: float = 1.0
    """Tasks more similar than this (a cosine) share a projector; at 1 each has its own."""
    learning_rate: float | None = None
    """In place of train.learning_rate."""
    plugins: tuple[Any, ...] = ()
    """Stock Avalanche plugins by name and settings, e.g. {name: EWCPlugin, ewc_lambda: 1.0}."""

    def __post_init__(self) -> None:
        if not -1 <= self.reuse <= 1:
            raise SettingError(f"eproj.reuse: must be from -1 to 1; got {self.reuse}")

    def stages(self, tasks: Sequence[str]) -> Stages:
        if BASE in tasks:
            raise ValueError(f"task {BASE!r}: a projector cannot bear this name; rename the task")
        return one_by_one(tasks)

    def parts(self, context: Context) -> list[Any]:
        return []

    def build(self, context: Context) -> Method:
        from clmm.projector_growth import GrownProjectors
        from clmm.routing_anchors import AnchorRouter
        from clmm.routing_features import Features, image_and_text

        tasks = {task.name: task.train for task in context.stream.tasks}
        for name, samples in tasks.items():
            blind = next((sample for sample in samples if not sample.media), None)
            if blind is not None:
                raise ValueError(
                    f"eproj: sample {blind.id} of {name} has no image or other medium, so a "
                    "projector learns nothing from it; take isolated_lora"
                )

        def shares_with(task: str) -> str | None:
            # Rounding can lift a cosine above 1.
            if self.reuse >= 1 or not router.tasks:
                return None
            nearest = router.similarities(tasks[task]).mean(dim=0).max(dim=0)
            return router.tasks[int(nearest.indices)] if nearest.values > self.reuse else None

        weights = GrownProjectors(context.model, shares_with=shares_with)
        features = Features(context.model, context.batcher, weights, image_and_text)
        router = AnchorRouter(features, context.stream.tasks[0].train[:1])
        return Method(weights=weights, router=router, routes_stay=self.reuse >= 1)
