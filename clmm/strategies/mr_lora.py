"""MR-LoRA: one LoRA a task; the model itself, through a router LoRA, says which one answers.

After each stage from the second on, a LoRA of its own is trained to continue `sample + question`
with the name of the sample's task, on a few kept samples of every task so far. A sample goes to
t = argmax log p(name_t | sample + question), the end token included (Zhao et al. 2025, MLLM-CL,
arXiv 2506.05453).

Our reading: the paper describes the tasks in the prompt and lets the router write a letter, a
random one where it writes none; here it is trained on the tasks' names and the likeliest of them is
taken, so a route is always a learnt task's and never random. Long names are as likely as short ones
only once the router has learnt. The base is no candidate: the router has seen no sample that
belongs to no task. Its weights start afresh each time, and its training counts in the stage's
seconds, not in its steps.

Stores for each task an adapter, 4·r·Σ(in + out) bytes, and `samples` training samples with their
images; and the router, 4·`router_rank`·Σ(in + out) bytes. Supports several processes;
no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategy import Context, LoraTuned, Method, Stages
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class MrLora(LoraTuned):
    """Every task has its own adapter of this rank, so each stage trains as much as one LoRA."""

    router_rank: int = 8
    """Rank of the router's LoRA, whose scale is 2. The paper's, for 7 billion parameters: 128."""
    router_learning_rate: float | None = None
    """Of the router, in place of the stage's. The paper's: 5e-6."""
    router_epochs: float = 20
    """Passes over the kept samples, in batches of train.batch_size. The public scripts': 40."""
    samples: int = 20
    """Training samples kept of each task."""
    question: str = "Which task is this? Answer with its name."
    """What follows a sample's own words."""

    def __post_init__(self) -> None:
        for name in ("router_rank", "router_learning_rate", "router_epochs", "samples"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise SettingError(f"mr_lora.{name}: must be above 0; got {value}")
        if not self.question.strip():
            raise SettingError(f"mr_lora.question: must ask something; got {self.question!r}")

    def stages(self, tasks: Sequence[str]) -> Stages:
        if "_router" in tasks:
            raise ValueError("task '_router': the router's adapter is so called; rename the task")
        return IsolatedLora().stages(tasks)

    def build(self, context: Context) -> Method:
        from clmm.adapters_router import RouterLora
        from clmm.routing_named import BeforeRouter, NamingRouter

        lora = RouterLora(
            context.model, rank=self.rank, alpha=self.alpha, seed=context.seed,
            router_rank=self.router_rank,
        )  # fmt: skip
        router = NamingRouter(
            context, lora, count=self.samples, question=self.question,
            epochs=self.router_epochs, learning_rate=self.router_learning_rate,
        )  # fmt: skip
        plugin = BeforeRouter(router, context.stream, context.batcher)
        return Method(
            weights=lora, router=router, plugins=[*self.parts(context), plugin], routes_stay=True
        )
