"""One strategy on one model through one stream: trains stages, answers, saves, goes on.

The experiment's only way to training. Knows no file layout but its own checkpoint's: what the
strategy's parts write, and `state.json`. Avalanche is imported when the first stage trains, or
when the strategy names a stock plugin.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clmm import avalanche_plugins, components, decoder_rows, objective
from clmm.answering import Answerer
from clmm.batching import Batcher
from clmm.checkpoint import joined, parted
from clmm.decoding_options import Decoding
from clmm.objectives.sft import Sft
from clmm.process_memory import peak_memory_bytes
from clmm.routing import Known, RoutedAnswerer, RoutingAccuracy
from clmm.strategy import BASE, Context, Prefixed, Stages, Stateful, Strategy
from clmm.training import TrainSettings, derived_seed
from safety.answering import Answering
from streams.sample import Sample
from streams.stream import Stream

if TYPE_CHECKING:
    from clmm.loading import Loaded
    from clmm.trainer import Trainer

STATE_FILE, TENSORS_FILE, ANSWERS_FILE = "state.json", "state.safetensors", "answers.json"


class Learner:
    """Takes the model until `close`, which puts the base back, bit for bit.

    Stage k trains on the tasks `stages[k - 1]`; joint training has one stage, zero-shot none. All
    randomness of a stage derives from the seed and the stage, so a stage that was cut short, or
    one that follows `load`, comes out the same. Training seeds the global generators. `decoding`
    options change how it answers, not what it learns.
    """

    def __init__(
        self,
        strategy: Strategy,
        loaded: Loaded,
        stream: Stream,
        train: TrainSettings,
        seed: int,
        alignment: Sequence[Sample] = (),
        *,
        batcher: Batcher | None = None,
        decoding: Sequence[Any] = (),
    ) -> None:
        own = getattr(strategy, "learning_rate", None)
        self.settings = train if own is None else replace(train, learning_rate=own)
        self.strategy, self.stream, self.seed = strategy, stream, seed
        _check_ids(stream)
        self.stages: Stages = strategy.stages([task.name for task in stream.tasks])
        self.done = 0
        self._model: Any = loaded.model
        if hasattr(self._model, "peft_config"):
            raise RuntimeError("the model carries adapters; close its other Learner first")
        self._model.requires_grad_(False)
        self.batcher = batcher or batcher_of(loaded, max_length=train.max_length)
        self._alignment = tuple(alignment)
        self._trainer: Trainer | None = None
        self._known: Known = {}
        self.decoding = Decoding(decoding)
        self.decoding.check(self._model, self.batcher)
        self._objectives = [
            objective.of(task.objective, where=f"task {task.name}: objective")
            for task in stream.tasks
        ]
        for task, one in zip(stream.tasks, self._objectives, strict=True):
            one.check(task.train)
        self._build()

    def _build(self) -> None:
        self._stock = [
            avalanche_plugins.build(spec, self.settings, where=f"plugins[{number}]")
            for number, spec in enumerate(getattr(self.strategy, "plugins", ()))
        ]
        self._method = self.strategy.build(
            Context(
                model=self._model,
                batcher=self.batcher,
                stream=self.stream,
                alignment=self._alignment,
                seed=self.seed,
            )
        )
        other = [one for one in self._objectives if not isinstance(one, Sft)]
        for plugin in [*self._method.plugins, *self._stock]:
            if other and getattr(plugin, "supervised_only", plugin in self._stock):
                self.close()
                raise ValueError(
                    f"{type(plugin).__name__} works on the predictions of references, so it cannot "
                    f"act on a task that is learnt by {type(other[0]).__name__.lower()}; take "
                    "replay, or another strategy"
                )

    @property
    def resumable(self) -> bool:
        """Whether `load` can go on; a stock plugin's state cannot be saved."""
        return not self._stock

    @property
    def trainable_parameters(self) -> int:
        """Parameters that one stage trains."""
        return self._method.weights.trainable_parameters if self.stages else 0

    @property
    def first_stage(self) -> Hashable | None:
        """Equal for learners of one study and seed whose first stage trains the same.

        None where it is unlike any other's, or that cannot be told.
        """
        weights, plugins = self._method.weights, self._method.plugins
        plain = all(getattr(plugin, "plain_first_stage", False) for plugin in plugins)
        if self._stock or not plain or not isinstance(weights, Prefixed) or weights.trains is None:
            return None
        return weights.trains, self.settings.learning_rate, self.stages[:1]

    @property
    def answers_as_trained(self) -> bool:
        """Whether the trained weights answer every sample, as they are."""
        routed = self._method.router is not None or self.mixes_routes
        return not routed and getattr(self._method.weights, "as_trained", False)

    @property
    def mixed_in(self) -> tuple[Sample, ...]:
        """Samples that belong to no task and that a plugin mixes into every stage."""
        found = [getattr(plugin, "mixed_in", ()) for plugin in self._method.plugins]
        return tuple(sample for samples in found for sample in samples)

    @property
    def mixes_routes(self) -> bool:
        """Whether answers come from more than the weights of the route that they name."""
        return self._method.answering is not None

    @property
    def stored_bytes(self) -> int:
        """Bytes kept beside the base so far: weights, memory, prototypes."""
        router, plugins = self._method.router, self._method.plugins
        parts = [self._method.weights, *([router] if router else []), *plugins]
        return sum(getattr(part, "stored_bytes", 0) for part in parts)

    @property
    def learnt(self) -> list[str]:
        """Tasks of the stages that are done."""
        return [name for names in self.stages[: self.done] for name in names]

    def updates(self, stage: int) -> int:
        """Updates that a stage takes."""
        tasks = self._tasks(stage)
        return self.settings.updates(sum(len(task.train) for task in tasks), len(tasks))

    def train_stage(
        self,
        stage: int,
        report: Callable[[dict[str, Any]], None] | None = None,
        *,
        like: Path | None = None,
    ) -> dict[str, Any]:
        """Trains stage `stage` (from 1; in order) and returns what it cost.

        `report` gets {"stage", "step", "steps", "loss", "seconds"} after every update. The cost is
        {"seconds", "steps", "samples", "peak_memory_bytes", "trainable_parameters",
        "stored_bytes"}. `like` is the checkpoint of a first stage with equal `first_stage`: its
        weights are taken, no update is made. Raises TrainingDiverged when the loss stops being a
        number; the learner is then of no more use, but what was saved is.
        """
        if stage != self.done + 1 or stage > len(self.stages):
            raise ValueError(
                f"stage {stage}: {self.done} of {len(self.stages)} stages are done, in their order"
            )
        start = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        names = self.stages[stage - 1]
        self._method.weights.begin(names[0])
        trainer, experience = self._prepare(stage)
        trainer.report, trainer.samples, trainer.steps = report or (lambda event: None), 0, 0
        trainer.instead = None if like is None else partial(self._take, like)
        set_seed(derived_seed(self.seed, stage, "training"))
        trainer.train(experience, eval_streams=[])
        for task in self._tasks(stage):
            if self._method.router is not None:
                self._method.router.learn(task.name, task.train)
        self.done = stage
        return {
            "seconds": time.perf_counter() - start,
            "steps": trainer.steps,
            "samples": trainer.samples,
            "peak_memory_bytes": peak_memory_bytes(),
            "trainable_parameters": self.trainable_parameters,
            "stored_bytes": self.stored_bytes,
        }

    def answering(self, *, batch_size: int = 64) -> Answering:
        """Answers as any user would get them: through the learnt router where there is one."""
        return self._answering(None, batch_size)

    def oracle_answering(self, task: str, *, batch_size: int = 64) -> RoutedAnswerer | None:
        """Answers through this task's own adapter (before it is learnt, the base).

        None when the strategy has no router. Task-incremental: call its figures so.
        """
        if self._method.router is None:
            return None
        answering = self._answering(task if task in self.learnt else BASE, batch_size)
        assert isinstance(answering, RoutedAnswerer)
        return answering

    def routing_accuracy(self) -> RoutingAccuracy | None:
        """Over the test items of the tasks learnt so far; None without a router or a task."""
        router = self._method.router
        if router is None or not self.learnt:
            return None
        tasks = [task for task in self.stream.tasks if task.name in self.learnt]
        right = {t.name: sum(r == t.name for r in router.routes(t.test)) for t in tasks}
        return RoutingAccuracy(
            by_task={task.name: right[task.name] / len(task.test) for task in tasks},
            accuracy=sum(right.values()) / sum(len(task.test) for task in tasks),
        )

    def save(self, folder: str | Path) -> None:
        """Everything the next stage needs; the first process writes."""
        folder = Path(folder)
        if self._trainer is None or self._trainer.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            self._method.weights.save(folder)
            if self._method.router is not None:
                self._method.router.save(folder)
            states, tensors = parted([p.state() for p in self._stateful])
            state = {
                "strategy": type(self.strategy).__name__,
                "seed": self.seed,
                "done": self.done,
                "plugins": states,
            }
            if tensors:
                save_file(tensors, folder / TENSORS_FILE)
            (folder / STATE_FILE).write_text(json.dumps(state), "utf-8")
        if self._trainer is not None:
            self._trainer.accelerator.wait_for_everyone()

    def load(self, folder: str | Path) -> None:
        """Goes on after the stage that `folder` was saved at; the next stage comes out the same.

        Raises ValueError for another strategy's or seed's checkpoint, RuntimeError when not
        `resumable`.
        """
        folder = Path(folder)
        if not self.resumable:
            names = ", ".join(type(plugin).__name__ for plugin in self._stock)
            raise RuntimeError(f"{names}: its state is not saved; start this strategy anew")
        try:
            self._load(folder)
        except (OSError, json.JSONDecodeError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{folder}: this checkpoint is damaged ({error}); delete the stage's folder and "
                "those after it, and the same command trains them again"
            ) from error

    def _load(self, folder: Path) -> None:
        state = json.loads((folder / STATE_FILE).read_text("utf-8"))
        for key, mine in (("strategy", type(self.strategy).__name__), ("seed", self.seed)):
            if state[key] != mine:
                raise ValueError(f"{folder}: its {key} is {state[key]!r}, not {mine!r}")
        self.close()
        self._build()
        self._method.weights.load(folder)
        if self._method.router is not None:
            self._method.router.load(folder)
        kept = folder / TENSORS_FILE
        states = joined(state["plugins"], load_file(kept) if kept.exists() else {})
        for plugin, saved in zip(self._stateful, states, strict=True):
            plugin.load_state(saved, self._pool())
        self.done = state["done"]
        answers = folder / ANSWERS_FILE
        self._known = json.loads(answers.read_text("utf-8")) if answers.exists() else {}

    def close(self) -> None:
        """Puts the base model back as it was."""
        self._method.weights.restore()
        self._model.requires_grad_(False).eval().zero_grad()
        self._trainer = None

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save_answers(self, folder: str | Path) -> None:
        """What fixed routes have answered so far, beside what `save` wrote after training."""
        main = self._trainer is None or self._trainer.accelerator.is_main_process
        if main and self._method.routes_stay:
            (Path(folder) / ANSWERS_FILE).write_text(json.dumps(self._known), "utf-8")

    @property
    def _stateful(self) -> list[Stateful]:
        return [plugin for plugin in self._method.plugins if isinstance(plugin, Stateful)]

    def _prepare(self, stage: int) -> tuple[Trainer, Any]:
        from clmm.benchmark import benchmark
        from clmm.trainer import Trainer

        if self._trainer is None:
            self._trainer = Trainer(
                model=self._model,
                settings=self.settings,
                seed=self.seed,
                plugins=[*self._method.plugins, *self._stock],
                objectives=self._objectives,
                # Samples without media of an input leave its projector without a gradient.
                find_unused_parameters=not all(
                    self.batcher.inputs.all_shown(s)
                    for samples in (*(t.train for t in self.stream.tasks), self.mixed_in)
                    for s in samples
                ),
            )
            self._trainer.clock.train_exp_counter = stage - 1
        return self._trainer, benchmark(self.stream, self.stages, self.batcher).train_stream[
            stage - 1
        ]

    def _take(self, folder: Path) -> None:
        weights = self._method.weights
        assert isinstance(weights, Prefixed)
        weights.take(folder)

    def _pool(self) -> Any:
        from clmm.benchmark import dataset

        numbered = [(s, n) for n, task in enumerate(self.stream.tasks) for s in task.train]
        return dataset([s for s, _ in numbered], [n for _, n in numbered], self.batcher)

    def _answering(self, oracle: str | None, batch_size: int) -> Any:
        autocast = torch.bfloat16 if self.settings.precision == "bf16" else None
        made: dict[str, Any] = {"autocast": autocast, "decoding": self.decoding}
        answerer = Answerer(self._model, self.batcher, batch_size=batch_size, **made)
        if self._method.answering is not None and oracle is None:
            return self._method.answering(answerer)
        if self._method.router is None:
            return answerer
        return RoutedAnswerer(
            self._method.router,
            self._method.weights,
            answerer,
            oracle=oracle,
            known=self._known if self._method.routes_stay and self.resumable else None,
        )

    def _tasks(self, stage: int) -> list[Any]:
        return [task for task in self.stream.tasks if task.name in self.stages[stage - 1]]


def batcher_of(loaded: Loaded, *, max_length: int | None = None) -> Batcher:
    """Batches for a model whose encoder stays frozen: each picture is encoded once."""
    model: Any = loaded.model
    model.requires_grad_(False)
    return Batcher(
        loaded.processor,
        max_length=max_length,
        encode_images=components.frozen_encoder(model),
        decoder_start=decoder_rows.start_of(model),
    )


def _check_ids(stream: Stream) -> None:
    """Memories keep samples by id, so two training samples must not share one."""
    seen: dict[str, str] = {}
    for task in stream.tasks:
        for sample in task.train:
            if sample.id in seen:
                raise ValueError(
                    f"sample {sample.id}: in the training samples of {seen[sample.id]} and again "
                    f"of {task.name}; ids must be unique in a stream"
                )
            seen[sample.id] = task.name
