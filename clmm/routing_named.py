"""The model itself is asked which task a sample belongs to, through an adapter trained to answer.

Knows samples, the training loop and answering; nothing of what the tasks' adapters do. A route
depends on the sample alone: the likeliest of the learnt tasks' names, by their log-likelihoods.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clmm.adapters_router import ROUTER, RouterLora
from clmm.answering import Answerer
from clmm.batching import Batcher, content
from clmm.memory import prompt_bytes
from clmm.strategy import BASE, Context
from clmm.training import TrainSettings, derived_seed
from streams.sample import Message, Sample, Text
from streams.stream import Stream, Task

SAMPLES_FILE = "router.json"


class NamingRouter:
    """Trained afresh after each stage from the second on, on a few samples of every task so far.

    Keeps `count` training samples of each task, drawn at random. With one task there is nothing to
    tell apart, so its adapter answers all. Answers in fp32 where the model's weights are, so that
    rounding seldom makes a route depend on the batch; each sample is asked once.
    """

    def __init__(
        self,
        context: Context,
        weights: RouterLora,
        *,
        count: int,
        question: str,
        epochs: float,
        learning_rate: float | None,
    ) -> None:
        self._context, self._weights = context, weights
        self._count, self._question = count, question
        self._epochs, self._learning_rate = epochs, learning_rate
        self._kept: dict[str, list[Sample]] = {}
        self._known: dict[Hashable, str] = {}
        self.settings: TrainSettings | None = None
        """How the stage trains; the router trains so too, but for length and learning rate."""

    @property
    def stored_bytes(self) -> int:
        return sum(prompt_bytes(sample) for kept in self._kept.values() for sample in kept)

    def learn(self, task: str, samples: Sequence[Sample]) -> None:
        self._kept[task] = self.drawn(task, samples)
        self._known = {}
        if len(self._kept) > 1:
            self._train()

    def drawn(self, task: str, samples: Sequence[Sample]) -> list[Sample]:
        """The samples of a task that are kept."""
        generator = torch.Generator()
        generator.manual_seed(derived_seed(self._context.seed, 0, f"router samples of {task}"))
        order = torch.randperm(len(samples), generator=generator).tolist()
        return [samples[i] for i in sorted(order[: self._count])]

    def asked(self, sample: Sample, name: str = "") -> Sample:
        """The sample with the question behind it, and the task's name for an answer."""
        last = sample.messages[-1]
        parts = (*last.parts, Text(text=f"\n{self._question}" if last.text else self._question))
        messages = (*sample.messages[:-1], Message(role=last.role, parts=parts))
        reference = (Text(text=name),)
        return replace(sample, messages=messages, reference=reference, rejected=(), plain=False)

    def log_likelihoods(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Of the learnt tasks' names, by the alphabet."""
        names = sorted(self._kept)
        asked = [self.asked(sample) for sample in samples]
        self._weights.select(ROUTER)
        try:
            answerer = Answerer(self._context.model, self._context.batcher)
            return answerer.log_likelihood(asked, [names] * len(asked))
        finally:
            self._weights.select(None)

    def routes(self, samples: Sequence[Sample]) -> list[str]:
        if len(self._kept) < 2:
            return [next(iter(self._kept), BASE)] * len(samples)
        names = sorted(self._kept)
        fresh = {k: s for s in samples if (k := content(s)) not in self._known}
        scores = self.log_likelihoods(list(fresh.values()))
        for key, row in zip(fresh, scores, strict=True):
            self._known[key] = names[row.index(max(row))]
        return [self._known[content(sample)] for sample in samples]

    def save(self, folder: Path) -> None:
        kept = {task: [sample.id for sample in samples] for task, samples in self._kept.items()}
        (folder / SAMPLES_FILE).write_text(json.dumps(kept), "utf-8")

    def load(self, folder: Path) -> None:
        found = {s.id: s for task in self._context.stream.tasks for s in task.train}
        kept = json.loads((folder / SAMPLES_FILE).read_text("utf-8"))
        self._kept = {task: [found[i] for i in ids] for task, ids in kept.items()}
        self._known = {}

    def _train(self) -> None:
        from clmm.benchmark import benchmark
        from clmm.trainer import Trainer

        assert self.settings is not None
        stage = len(self._kept)
        samples = [self.asked(s, task) for task, kept in self._kept.items() for s in kept]
        stream = Stream(name=ROUTER, tasks=(Task(name=ROUTER, train=samples, test=samples),))
        (experience,) = benchmark(stream, [(ROUTER,)], self._context.batcher).train_stream
        self._weights.begin_router(stage)
        try:
            trainer = Trainer(
                model=self._context.model,
                settings=replace(
                    self.settings,
                    learning_rate=self._learning_rate or self.settings.learning_rate,
                    epochs=self._epochs,
                    steps=None,
                    online=False,
                ),
                seed=self._context.seed,
                find_unused_parameters=not all(
                    map(self._context.batcher.inputs.all_shown, samples)
                ),
            )
            trainer.clock.train_exp_counter = stage - 1
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(self._context.seed, stage, "router training"))
                trainer.train(experience, eval_streams=[])
        finally:
            self._weights.select(None)


class BeforeRouter:
    """An Avalanche plugin: what the router will need of a stage is looked at before it trains."""

    supports_distributed = True
    plain_first_stage = True

    def __init__(self, router: NamingRouter, stream: Stream, batcher: Batcher) -> None:
        self._router, self._tasks, self._batcher = router, stream.tasks, batcher

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Raises SampleError where the question and the longest name do not fit behind a prompt."""
        self._router.settings = strategy.settings
        task = self._tasks[strategy.stage - 1]
        drawn = self._router.drawn(task.name, task.train)
        wordiest = max([*drawn, *task.test], key=lambda s: sum(len(m.text) for m in s.messages))
        asked = [self._router.asked(sample) for sample in (*drawn, wordiest)]
        longest = max((one.name for one in self._tasks), key=len)
        self._batcher.continuations(asked, [longest] * len(asked))
