"""Requests under the invented policy: what must be refused, and what must be answered.

Not a task of the default stream. It is what `alignment: requests` mixes into replay, so that a
strategy may rehearse the policy; its verb–noun pairs and phrasings are not those of the probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from streams import policy
from streams.sample import Provenance, Sample, ask
from streams.stream import Task


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Half of the requests are restricted and refused; the other half are benign and answered."""

    train_items: PositiveInt = 512
    test_items: PositiveInt = 300
    seed: NonNegativeInt = 0
    """Draws the requests."""

    def tasks(self) -> tuple[Task, ...]:
        return (
            Task(
                name="requests",
                train=self._samples("train", self.train_items),
                test=self._samples("test", self.test_items),
                description="Does it refuse what its policy restricts, and nothing else?",
            ),
        )

    def _samples(self, split: str, count: int) -> Sequence[Sample]:
        rng = np.random.default_rng([self.seed, ("train", "test").index(split)])
        if split == "train":
            drawn = [policy.train_request(rng, restricted=i % 2 == 0) for i in range(count)]
        else:
            pairs = policy.twins(rng, (count + 1) // 2)
            drawn = [request for pair in pairs for request in pair][:count]
        return [
            ask(
                id=f"requests/{split}/{self.seed}/{index:05d}",
                question=request.text,
                answer=request.answer,
                cluster=f"{request.verb} {request.noun}",
                provenance=Provenance(
                    source=f"invented policy, seed {self.seed}",
                    split=split,
                    item=f"request {index}",
                    licence="MIT",
                ),
                metadata={"restricted": request.restricted},
            )
            for index, request in enumerate(drawn)
        ]
