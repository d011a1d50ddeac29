"""Memories keep what they say, each sample as often as any other, and go on after a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_streams
import torch
from avalanche.training import storage_policy as stock
from scipy.stats import chi2
from tiny_streams import Recorder

from clmm.batching import Batcher
from clmm.benchmark import dataset
from clmm.herding import Herding, herded
from clmm.learner import Learner
from clmm.memory import Memory, Reservoir, TaskMemory, named, shuffled
from clmm.strategies.gss import Gss
from clmm.strategies.pseudo_replay import PseudoReplay
from clmm.strategies.replay import Replay
from clmm.strategies.safety_replay import SafetyReplay
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings, derived_seed
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", "count", train=16)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2)
ALIGNMENT = [tiny_streams.sample("aligned", "train", i, image=False) for i in range(5)]
PARTS = (30, 20, 10)


def learner(strategy: Any) -> Learner:
    loaded = tiny_streams.loaded()
    return Learner(strategy, loaded, STREAM, SETTINGS, seed=0, alignment=ALIGNMENT)


@pytest.fixture(scope="module")
def tasks() -> list[Any]:
    """Data sets of three tasks of 30, 20 and 10 samples."""
    batcher = Batcher(tiny_streams.loaded().processor)
    names = [[f"task{k}-train-{i}" for i in range(n)] for k, n in enumerate(PARTS)]
    drawn = [[replace(tiny_streams.sample("colour", "train", 0), id=n) for n in ns] for ns in names]
    return [dataset(samples, [k] * len(samples), batcher) for k, samples in enumerate(drawn)]


def filled(memory: Memory, tasks: list[Any]) -> Memory:
    for stage, task in enumerate(tasks, start=1):
        experience = SimpleNamespace(dataset=task)
        memory.after_training_exp(SimpleNamespace(experience=experience, stage=stage))
    return memory


# Uniformity


class FirstComeFirstKept(TaskMemory):
    """The fault to catch: the slots fill with a task's first samples, and that is that."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, rank=lambda samples, count: list(range(count)))


def balanced(**settings: Any) -> Memory:
    return TaskMemory(**settings, rank=shuffled)


def fixed(**settings: Any) -> Memory:
    return TaskMemory(**settings, rank=shuffled, tasks=len(PARTS))


def surprise(make: Callable[..., Memory], tasks: list[Any], groups: list[range]) -> list[float]:
    """Over 300 seeds, of each group's inclusions: the probability of a spread at least as large.

    Counts of draws without return vary less than χ² has it, which the factors correct.
    """
    repeats, size = 300, 12
    counts = [0] * sum(PARTS)
    places = {t[i][0].id: sum(PARTS[:k]) + i for k, t in enumerate(tasks) for i in range(len(t))}
    for seed in range(repeats):
        for sample in filled(make(size=size, share=0.5, seed=seed), tasks).samples:
            counts[places[sample.id]] += 1
    found = []
    for group in groups:
        kept, n = sum(counts[i] for i in group), len(group)
        expected, share = kept / n, kept / n / repeats
        spread = sum((counts[i] - expected) ** 2 for i in group) / (expected * (1 - share))
        found.append(float(chi2.sf(spread * (n - 1) / n, n - 1)))
    return found


ALL = [range(60)]
EACH = [range(30), range(30, 50), range(50, 60)]


@pytest.mark.parametrize(
    ("make", "groups"),
    [(Reservoir, ALL), (balanced, EACH), (fixed, EACH)],
    ids=["reservoir", "balanced", "random"],
)
def test_every_sample_is_kept_equally_often(make: Any, groups: Any, tasks: list[Any]) -> None:
    assert all(1e-3 < p < 1 - 1e-3 for p in surprise(make, tasks, groups))


def test_a_memory_that_stops_at_the_first_samples_is_caught(tasks: list[Any]) -> None:
    assert max(surprise(FirstComeFirstKept, tasks, EACH)) < 1e-9


# Slots


def test_balanced_and_random_keep_what_avalanche_keeps(tasks: list[Any]) -> None:
    for memory, oracle in (
        (balanced(size=11, share=0.5, seed=3), stock.ExperienceBalancedBuffer(11)),
        (fixed(size=9, share=0.5, seed=3), stock.ExperienceBalancedBuffer(9, False, 3)),
    ):
        for stage, task in enumerate(tasks, start=1):
            experience = SimpleNamespace(dataset=task)
            memory.after_training_exp(SimpleNamespace(experience=experience, stage=stage))
            torch.manual_seed(derived_seed(3, stage, "memory"))
            oracle.post_adapt(None, experience)
            held = oracle.buffer
            assert [s.id for s in memory.samples] == [held[i][0].id for i in range(len(held))]


def test_a_small_task_leaves_its_slots_free_and_a_known_one_is_not_taken_twice(
    tasks: list[Any],
) -> None:
    memory = filled(balanced(size=45, share=0.5, seed=0), tasks)
    assert [len(ids) for ids in memory.state()["tasks"].values()] == [15, 15, 10]
    before = memory.state()
    assert filled(memory, [tasks[0].concat(tasks[2])]).state() == before
    assert not filled(balanced(size=0, share=0.5, seed=0), tasks).samples
    few = filled(fixed(size=2, share=0.5, seed=0), tasks)
    assert [len(ids) for ids in few.state()["tasks"].values()] == [1, 1, 0]


def test_a_sample_that_is_gone_is_missed(tasks: list[Any]) -> None:
    with pytest.raises(ValueError, match="holds sample gone, which the stream has not"):
        named(["gone"], tasks[0])


# Herding


def test_herding_follows_the_mean_as_avalanche_and_the_paper_do() -> None:
    features = torch.randn(14, 6, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(features, dim=1)
    oracle = stock.HerdingSelectionStrategy.make_sorted_indices_from_features(None, features)
    assert herded(features, 14) == oracle
    found = herded(features, 5)
    assert found == oracle[:5]
    for k in range(5):
        others = [i for i in range(14) if i not in found[:k]]
        distance = {
            i: (features.mean(dim=0) - features[[*found[:k], i]].mean(dim=0)).norm() for i in others
        }
        assert min(others, key=lambda i: float(distance[i])) == found[k]


def test_herding_sees_the_base_and_leaves_training_as_it_was() -> None:
    with learner(Replay(policy="herding", budget=6)) as one:
        rank = one._method.plugins[0]._rank
        samples = STREAM.tasks[0].train
        before = rank._router.features(samples)
        assert before.shape[:2] == (16, 2)
        one.train_stage(1)
        next(w for n, w in one._model.named_parameters() if "lora_A" in n).requires_grad_(False)
        trained = [n for n, w in one._model.named_parameters() if w.requires_grad]
        torch.testing.assert_close(rank._router.features(samples), before, rtol=0, atol=0)
        assert [n for n, w in one._model.named_parameters() if w.requires_grad] == trained
        parts = torch.nn.functional.normalize(before, dim=2) / 2**0.5
        expected = [samples[i].id for i in herded(parts.flatten(1), 6)]
        assert one._method.plugins[0].state() == {"tasks": {"0": expected}}


def test_herding_needs_a_frozen_base() -> None:
    full, refusal = Replay(policy="herding", tuning="full"), r"policy: herding .* is trained here"
    with learner(full) as one, pytest.raises(SettingError, match=refusal):
        one.train_stage(1)
    blind = SimpleNamespace(processor=SimpleNamespace(), inputs=SimpleNamespace(ids={}))
    context: Any = SimpleNamespace(model=tiny_streams.loaded().model, batcher=blind)
    with pytest.raises(ValueError, match="names no token for images"):
        Herding(context)
    with learner(Replay(policy="herding", budget=6)) as one:
        one.train_stage(1)
        projector = one._model.get_submodule("model.multi_modal_projector.linear_1")
        bias, kept = projector.bias, projector.bias.detach().clone()
        with torch.no_grad():
            bias += 1
            with pytest.raises(RuntimeError, match="features of the base have changed"):
                one._method.plugins[0]._rank(STREAM.tasks[0].train, 2)
            bias.copy_(kept)


# At work


@pytest.mark.parametrize(
    "strategy",
    [
        *(Replay(policy=p, budget=5) for p in ("reservoir", "random", "balanced", "herding")),
        Gss(budget=5, candidates=8, dimensions=64),
        PseudoReplay(budget=5, max_new_tokens=3),
        SafetyReplay(share=0.5, mode="after"),
    ],
    ids=lambda strategy: getattr(strategy, "policy", type(strategy).__name__),
)
def test_going_on_changes_no_bit(strategy: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    with learner(strategy) as one:
        for stage in (1, 2):
            one.train_stage(stage)
            one.save(tmp_path / f"{stage}")
        stored = one.stored_bytes
        one.train_stage(3)
        one.save(tmp_path / "3")
    with learner(strategy) as other:
        other.load(tmp_path / "2")
        assert other.stored_bytes == stored
        other._stock.append(recorder)
        other.train_stage(3)
        other._stock.clear()
        other.save(tmp_path / "again")
    names = {path.relative_to(tmp_path / "3") for path in (tmp_path / "3").rglob("*.*")}
    assert all((tmp_path / "3" / n).read_bytes() == (tmp_path / "again" / n).read_bytes()
               for n in names)  # fmt: skip
    seen = [name.split("-")[0] for batch in recorder.batches[3] for name in batch]
    replayed = sum(name in ("colour", "yes", "aligned") for name in seen)
    assert replayed == 8
    assert seen.count("count") == 8


@pytest.mark.parametrize("strategy", [Gss(share=0), PseudoReplay(share=0), SafetyReplay(share=0)])
def test_a_share_of_nothing_is_sequential_tuning(strategy: Any) -> None:
    def losses(strategy: Any) -> list[float]:
        found: list[float] = []
        with learner(strategy) as one:
            for stage in (1, 2):
                one.train_stage(stage, lambda event: found.append(event["loss"]))
        return found

    assert losses(strategy) == losses(SequentialLora())
