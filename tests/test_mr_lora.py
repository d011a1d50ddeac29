"""The model names a sample's task, likeliest name first, and that task's adapter answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_streams
import torch
from torch import Tensor

from clmm.adapters_router import ROUTER, ROUTER_FOLDER
from clmm.batching import IGNORED, SampleError
from clmm.learner import Learner
from clmm.loading import Loaded, load
from clmm.strategies.combined import Combined
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.mr_lora import MrLora
from clmm.strategy import BASE
from clmm.training import TrainSettings
from streams.settings import SettingError, from_spec

STREAM = tiny_streams.stream("colour", "yes", "count", train=12)
SETTINGS = TrainSettings(steps=2, batch_size=6, learning_rate=1e-2)
ROUTED = MrLora(router_rank=4, router_epochs=3, samples=4)
LEARNING = MrLora(router_epochs=30, samples=6, router_learning_rate=1e-2, question="?")
TEXT_ONLY = [tiny_streams.sample("colour", "test", 7, image=False)]
MIXED = [task.test[i] for i in range(2) for task in STREAM.tasks] + TEXT_ONLY
WORDS = [("red", "a much longer answer")] * len(MIXED)


def fresh() -> Loaded:
    return load(tiny_streams.loaded().path, device="cpu")


def learner(strategy: Any, *, loaded: Loaded | None = None, stages: int = 2, **kw: Any) -> Learner:
    settings = replace(SETTINGS, **kw)
    one = Learner(strategy, loaded or tiny_streams.loaded(), STREAM, settings, seed=0)
    for stage in range(1, stages + 1):
        one.train_stage(stage)
    return one


def scores(one: Learner, batch_size: int = 64) -> Tensor:
    answering: Any = one.answering(batch_size=batch_size)
    return torch.tensor(answering.log_likelihood(MIXED, WORDS))


def weights(one: Learner) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in one._model.named_parameters()}


@pytest.fixture(scope="module")
def routed() -> Any:
    """With a head that can tell tokens apart, which random ones hardly do."""
    loaded: Any = fresh()
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.mul_(20)
    with learner(LEARNING, loaded=loaded) as one:
        yield one


def test_the_route_is_the_likeliest_name(routed: Learner) -> None:
    """Written out from logits of single rows: prompt, question, name and end token."""
    router: Any = routed._method.router
    found = torch.tensor(router.log_likelihoods(MIXED))
    routed._method.weights.select(ROUTER)
    for i, sample in enumerate(MIXED):
        asked = router.asked(sample)
        assert asked.question == f"{sample.question}\n?"
        assert asked.images == sample.images
        for j, name in enumerate(("colour", "yes")):
            batch = routed.batcher.continuations([asked], [name])
            labels = batch.pop("labels")[0, 1:]
            with torch.no_grad():
                logits = routed._model.eval()(**batch).logits
            likely = logits[0, :-1].log_softmax(dim=-1)
            kept = (labels != IGNORED).nonzero()[:, 0]
            assert len(kept) == len(routed.batcher.answer_ids(name))
            expected = likely[kept, labels[kept]].sum()
            torch.testing.assert_close(found[i, j], expected, rtol=1e-5, atol=1e-5)
    routed._method.weights.select(None)
    names = ["colour", "yes"]
    assert router.routes(MIXED) == [names[int(row.argmax())] for row in found]


def test_it_learns_to_name_the_tasks(routed: Learner) -> None:
    routing = routed.routing_accuracy()
    assert routing is not None
    assert set(routing.by_task) == {"colour", "yes"}
    assert routing.accuracy >= 0.9
    kept: Any = routed._method.router
    for task in STREAM.tasks[:2]:
        ids = {sample.id for sample in kept._kept[task.name]}
        assert len(ids) == 6
        assert ids <= {sample.id for sample in task.train}
    for name, route in (("yes", "yes"), ("count", BASE)):
        oracle = routed.oracle_answering(name)
        assert oracle is not None
        assert {a.route for a in oracle.answer(MIXED, max_new_tokens=1)} == {route}


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_a_sample_is_routed_alike_alone_and_in_company(family: str, tmp_path: Path) -> None:
    loaded = load(tiny_models.FAMILIES[family](tmp_path), device="cpu")
    before = tiny_streams.weights(loaded.model)
    with learner(ROUTED, loaded=loaded) as one:
        router: Any = one._method.router
        together = torch.tensor(router.log_likelihoods(MIXED))
        routes, answers = router.routes(MIXED), one.answering().answer(MIXED, max_new_tokens=2)
        assert routes == [answer.route for answer in answers]
        for i, sample in enumerate(MIXED):
            alone = torch.tensor(router.log_likelihoods([sample]))[0]
            torch.testing.assert_close(alone, together[i], rtol=1e-4, atol=1e-4)
            router._known, one._known = {}, {}
            (answer,) = one.answering().answer([sample], max_new_tokens=2)
            assert (answer.route, answer.text) == (answers[i].route, answers[i].text)
    after = loaded.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_adapters_are_those_of_isolated_lora_and_the_router_is_not_trained_by_stages() -> None:
    with learner(ROUTED, stages=3) as one, learner(IsolatedLora(), loaded=fresh(), stages=3) as two:
        mine, theirs = weights(one), weights(two)
        router = {name for name in mine if f".{ROUTER}." in name}
        assert mine.keys() - router == theirs.keys()
        assert all(torch.equal(tensor, mine[name]) for name, tensor in theirs.items())
        assert any(mine[name].any() for name in router if "lora_B" in name)
        assert one.trainable_parameters == two.trainable_parameters
        trained = {n for n, w in one._model.named_parameters() if w.requires_grad}
        assert trained == {name for name in mine if ".count." in name}
        assert one._method.weights.stored_bytes == 4 * sum(
            tensor.numel() for name, tensor in mine.items() if "lora_" in name
        )
        assert one.stored_bytes > one._method.weights.stored_bytes + 3 * 4 * 32 * 32 * 3


def test_one_task_needs_no_router(tmp_path: Path) -> None:
    with learner(ROUTED, stages=0) as one:
        assert {a.route for a in one.answering().answer(MIXED, max_new_tokens=1)} == {BASE}
        assert one.routing_accuracy() is None
        one.train_stage(1)
        assert {a.route for a in one.answering().answer(MIXED, max_new_tokens=1)} == {"colour"}
        assert not any(ROUTER in name for name in weights(one))
        one.save(tmp_path)
        assert not (tmp_path / ROUTER_FOLDER).exists()


def test_loading_and_going_on_changes_no_bit(tmp_path: Path) -> None:
    with learner(ROUTED) as one:
        one.save(tmp_path / "2")
        one.train_stage(3)
        one.save(tmp_path / "3")
        expected = scores(one)
        likely = one._method.router.log_likelihoods(MIXED)  # type: ignore[union-attr]
    with learner(ROUTED, stages=0) as other:
        other.load(tmp_path / "2")
        other.answering().answer(MIXED[:2], max_new_tokens=1)
        other.train_stage(3)
        other.save(tmp_path / "again")
        assert torch.equal(scores(other), expected)
        assert other._method.router.log_likelihoods(MIXED) == likely  # type: ignore[union-attr]
    for path in sorted(p for p in (tmp_path / "3").rglob("*") if p.is_file()):
        again = tmp_path / "again" / path.relative_to(tmp_path / "3")
        assert again.read_bytes() == path.read_bytes()


def test_training_the_router_leaves_global_randomness_as_it_was() -> None:
    with learner(ROUTED) as one:
        router: Any = one._method.router
        before = torch.get_rng_state()
        router._train()
        assert torch.equal(torch.get_rng_state(), before)


def test_under_autocast_it_trains_and_answers() -> None:
    with learner(ROUTED, precision="bf16") as one:
        assert scores(one).isfinite().all()
        assert one.routing_accuracy() is not None


def test_the_router_takes_its_own_passes_where_stages_take_one() -> None:
    with learner(ROUTED, steps=None, online=True) as one:
        assert set(one._method.router.routes(MIXED)) <= {"colour", "yes"}  # type: ignore[union-attr]


def test_it_takes_replay_but_brings_its_own_weights() -> None:
    with learner(Combined(of=(ROUTED, {"name": "replay", "budget": 4}))) as one:
        answers = one.answering().answer(MIXED, max_new_tokens=1)
        assert {answer.route for answer in answers} <= {"colour", "yes"}
    with pytest.raises(SettingError, match=r"of\[1\]: MrLora brings weights of its own"):
        Combined(of=("replay", "mr_lora"))


def test_a_question_that_does_not_fit_is_refused_before_training() -> None:
    longest = max(len(s.question) for t in STREAM.tasks for s in (*t.train, *t.test))
    with learner(ROUTED, stages=0, max_length=longest + 60) as one:
        events: list[Any] = []
        with pytest.raises(SampleError, match="but max_length is"):
            one.train_stage(1, events.append)
        assert not events


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"samples": 0}, "mr_lora.samples: must be above 0; got 0"),
        ({"router_rank": -1}, "mr_lora.router_rank: must be above 0; got -1"),
        ({"router_learning_rate": 0}, "mr_lora.router_learning_rate: must be above 0; got 0"),
        ({"router_epochs": float("inf")}, "mr_lora.router_epochs: must be above 0; got inf"),
        ({"question": " "}, "mr_lora.question: must ask something; got ' '"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        from_spec("clmm.strategies", {"name": "mr_lora", **spec}, where="strategies[0]")
    with pytest.raises(ValueError, match="task '_router': the router's adapter is so called"):
        MrLora().stages(["_router"])
