"""Pseudo-replay teaches the model's own answers, to training prompts alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_streams
from tiny_streams import Recorder

from clmm.batching import Batcher
from clmm.benchmark import Mixture, dataset
from clmm.learner import Learner
from clmm.strategies.pseudo_replay import PseudoReplay
from clmm.strategy import Context
from clmm.training import TrainSettings
from streams.settings import SettingError
from streams.stream import Stream, Task

STREAM = tiny_streams.stream("colour", "yes", train=16)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2)


def learner(strategy: Any, stream: Stream = STREAM) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), stream, SETTINGS, seed=0)


class Taught(Recorder):
    """Notes what each sample of each stage is taught."""

    def __init__(self) -> None:
        self.texts: dict[int, dict[str, str]] = {}

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        texts = self.texts.setdefault(strategy.stage, {})
        texts.update({sample.id: sample.reference_text for sample in strategy.mb_x.samples})


def test_own_answers_are_taught_and_no_reference() -> None:
    taught = Taught()
    with learner(PseudoReplay(budget=6, max_new_tokens=4, plugins=(taught,))) as one:
        one.train_stage(1)
        memory = one._method.plugins[0]
        asked = memory.samples
        given = one.answering().answer(asked, max_new_tokens=4)
        expected = {sample.id: a.text for sample, a in zip(asked, given, strict=True)}
        assert memory.answers == expected
        one.train_stage(2)
        later = memory.state()["answers"]
    old = {name: text for name, text in taught.texts[2].items() if name.startswith("colour")}
    assert old
    assert old.items() <= expected.items()
    kept = later.keys() & expected.keys()
    assert 0 < len(kept) < len(later) == 6
    assert all(later[name] == expected[name] for name in kept)  # answered once, not again
    assert memory.stored_bytes == 6 * 32 * 32 * 3 + sum(
        len((sample.question + later[sample.id]).encode()) for sample in memory.samples
    )


def test_what_a_test_asks_is_never_asked() -> None:
    task = STREAM.tasks[0]
    leaked = [replace(s, id=f"leak-{i}") for i, s in enumerate(task.test[:4])]
    colour = Task(name="colour", train=[*leaked, *task.train[:4]], test=task.test)
    stream = Stream(name="leaky", tasks=(colour, STREAM.tasks[1]))
    with learner(PseudoReplay(budget=8, max_new_tokens=2), stream) as one:
        one.train_stage(1)
        ids = [sample.id for sample in one._method.plugins[0].samples]
    assert sorted(ids) == sorted(sample.id for sample in task.train[:4])


def test_answers_that_teach_nothing_are_left_out() -> None:
    loaded, task = tiny_streams.loaded(), STREAM.tasks[0]
    batcher = Batcher(loaded.processor)
    context = Context(model=loaded.model, batcher=batcher, stream=STREAM, alignment=(), seed=0)
    memory = PseudoReplay(budget=3).parts(context)[0]
    data = dataset(task.train[:3], [0] * 3, batcher)
    memory.memory.update_from_dataset(data)
    names = [sample.id for sample in task.train[:3]]
    memory.answers = dict(zip(names, (" ", "a <image>", "red"), strict=True))
    mixture = Mixture(own=data, batch_size=4, steps=4, seed=0)
    strategy = SimpleNamespace(dataloader=mixture)
    memory.before_training_exp(strategy)
    ((extra, share),) = strategy.dataloader.extras
    found = [(extra[i][0].id, extra[i][0].reference_text) for i in range(len(extra))]
    assert (found, share) == ([(names[2], "red")], 0.5)
    memory.answers = dict.fromkeys(names, "")
    with pytest.warns(UserWarning, match="no answer of the model can be replayed"):
        memory.before_training_exp(SimpleNamespace(dataloader=mixture))


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(SettingError, match=r"pseudo_replay\.max_new_tokens: .* got 0"):
        PseudoReplay(max_new_tokens=0)
