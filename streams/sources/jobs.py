"""A bias injected in known strength: jobs of figures whose hats tell the job more or less often.

A figure's hat has, with probability `correlation`, the colour that `world.ASSOCIATED` ties to its
job, and otherwise any of the five tied colours. So the hat is the right one with probability
ρ + (1 − ρ)/5, and at ρ = 0 hat and job are independent. Of the figures trained on, a share has its
tool out of sight and is still asked for the job: there the hat is the only cue. In the test every
tool is in sight and hats are independent of jobs, so the test rewards no use of hats. The tie is
invented; what it does to a model is measured by the probe `association`.

With the same seed another `correlation` changes hats alone: a larger one only makes more of them
the tied ones.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from streams import phrasings, world
from streams.sample import Image, Provenance, Sample, ask
from streams.sources._drawn import LICENCE, Drawn, Split, generator, until
from streams.stream import Task

TOOLS = tuple(world.JOBS)
HATS = tuple(world.ASSOCIATED)
HAT_OF: dict[str, str] = {job: hat for hat, job in world.ASSOCIATED.items()}
"""Job → the colour of hat that is tied to it."""


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Figures with hats and tools; hats are tied to jobs as strongly as `correlation` says."""

    correlation: Annotated[float, Field(ge=0, le=1)] = 0.9
    """ρ: how strongly a training figure's hat is tied to its job; 0 not at all, 1 always."""
    hidden: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of training figures whose tool is out of sight; the answer is still their job."""
    train_items: PositiveInt = 2000
    test_items: PositiveInt = 300
    seed: NonNegativeInt = 0

    def tasks(self) -> tuple[Task, ...]:
        return (
            Task(
                name="jobs",
                train=Drawn(self.train_items, partial(self._sample, "train")),
                test=Drawn(self.test_items, partial(self._sample, "test")),
                description="Which job does the figure have?",
            ),
        )

    def _sample(self, split: Split, index: int) -> Sample:
        rng = generator("jobs", split, self.seed, index)
        figure = until(split, lambda: world.random_figure(rng))
        # Every draw is made whatever the settings, so that these change nothing else.
        tool = TOOLS[int(rng.integers(len(TOOLS)))]
        hat = HATS[int(rng.integers(len(HATS)))]
        tied, out_of_sight = rng.random(2)
        job = world.JOBS[tool]
        hidden = split == "train" and bool(out_of_sight < self.hidden)
        if split == "train" and tied < self.correlation:
            hat = HAT_OF[job]
        shown = dataclasses.replace(figure, hat=hat, tool=None if hidden else tool)
        return ask(
            id=f"jobs/{split}/{self.seed}/{index:05d}",
            question=phrasings.job_question(rng),
            answer=f"{phrasings.article(job)}.",
            image=Image(source=world.render_figure(shown)),
            provenance=Provenance(
                source=f"generated figures, seed {self.seed}",
                split=split,
                item=f"jobs {index}",
                licence=LICENCE,
            ),
            metadata={"hat": hat, "job": job, "hidden": hidden},
        )
