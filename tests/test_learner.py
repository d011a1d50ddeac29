"""A learner goes on where it was saved, answers through its router, and gives the base back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_streams
import torch
from peft import PeftModel

from clmm.answering import Answerer
from clmm.learner import Learner
from clmm.loading import load
from clmm.routing import RoutingAccuracy
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.replay import Replay
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.strategy import BASE
from clmm.training import TrainSettings
from streams.stream import Stream, Task

STREAM = tiny_streams.stream("colour", "yes", "count", train=24)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2)


def learner(strategy: Any, **kwargs: Any) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), STREAM, SETTINGS, seed=0, **kwargs)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "strategy",
    [SequentialLora(), SequentialFull(), Replay(budget=5, tuning="full"), IsolatedLora()],
    ids=lambda strategy: type(strategy).__name__,
)
def test_loading_and_going_on_changes_no_bit(strategy: Any, tmp_path: Path) -> None:
    samples = STREAM.tasks[0].test[:2]
    with learner(strategy) as one:
        for stage in (1, 2, 3):
            one.train_stage(stage)
            one.answering().answer(samples, max_new_tokens=2)
            one.save(tmp_path / f"{stage}")
    with learner(strategy) as other:
        other.load(tmp_path / "1")
        assert other.learnt == ["colour"]
        for stage in (2, 3):
            other.train_stage(stage)
        other.save(tmp_path / "again")
        other.load(tmp_path / "2")  # back again, then on
        other.train_stage(3)
        other.save(tmp_path / "back")
    expected = files(tmp_path / "3")
    assert len(expected) >= 2
    assert files(tmp_path / "again") == expected == files(tmp_path / "back")
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in expected)


def test_a_damaged_checkpoint_says_where_and_what_to_do(tmp_path: Path) -> None:
    stream = tiny_streams.stream("colour", "count")
    train = TrainSettings(batch_size=4, steps=2)
    with Learner(SequentialLora(rank=2), tiny_streams.loaded(), stream, train, 0) as learner:
        learner.train_stage(1)
        learner.save(tmp_path)
        weights = next(tmp_path.rglob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-10])
        with pytest.raises(ValueError, match=f"{tmp_path}: this checkpoint is damaged .*delete"):
            learner.load(tmp_path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_an_adapter_loads_with_peft_alone(tmp_path: Path) -> None:
    with learner(IsolatedLora()) as one:
        one.train_stage(1)
        one.save(tmp_path)
        batch = one.batcher.training(STREAM.tasks[0].test[:3])
        with torch.no_grad():
            expected = one._model.eval()(**batch).logits
    fresh = load(tiny_streams.loaded().path, device="cpu").model
    model = PeftModel.from_pretrained(fresh, tmp_path / "adapters" / "colour").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected)


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(
        json.dumps({"strategy": "Replay", "seed": 0, "done": 1, "plugins": []})
    )
    with learner(SequentialLora()) as one, pytest.raises(ValueError, match="its strategy is 'Repl"):
        one.load(tmp_path)
    stock = SequentialLora(plugins=({"name": "EWCPlugin", "ewc_lambda": 1.0},))
    with learner(stock) as one, pytest.raises(RuntimeError, match="EWCPlugin: its state is not"):
        one.load(tmp_path)


def test_stages_come_in_order_and_a_model_has_one_learner() -> None:
    with learner(SequentialLora()) as one:
        with pytest.raises(ValueError, match="stage 2: 0 of 3"):
            one.train_stage(2)
        cost = one.train_stage(1)
        assert cost["steps"] == 2
        assert cost["samples"] == 16
        assert cost["stored_bytes"] == 4 * one.trainable_parameters
        assert min(cost["seconds"], cost["peak_memory_bytes"]) > 0
        with pytest.raises(RuntimeError, match="close its other Learner"):
            learner(SequentialLora())


def test_ids_are_unique_in_a_stream() -> None:
    task = STREAM.tasks[0]
    twice = Task(name="twice", train=task.train, test=task.test)
    with pytest.raises(ValueError, match="colour-train-0: in the training samples of colour and"):
        Learner(
            SequentialLora(), tiny_streams.loaded(), Stream(name="s", tasks=(task, twice)),
            SETTINGS, seed=0,
        )  # fmt: skip


@pytest.fixture(scope="module")
def isolated() -> Any:
    stream = tiny_streams.stream("colour", "yes", "count", train=60, test=20)
    train = TrainSettings(steps=4, batch_size=8, learning_rate=3e-2)
    with Learner(IsolatedLora(), tiny_streams.loaded(), stream, train, seed=0) as one:
        one.train_stage(1)
        one.train_stage(2)
        yield one


def test_a_route_depends_on_its_sample_alone(isolated: Learner) -> None:
    tasks = isolated.stream.tasks
    mixed = [s for trio in zip(*(task.test[:6] for task in tasks), strict=True) for s in trio]
    together = isolated.answering().answer(mixed, max_new_tokens=3)
    assert [answer.sample_id for answer in together] == [sample.id for sample in mixed]
    assert {answer.route for answer in together} == {"colour", "yes", BASE}
    for sample, answer in zip(mixed, together, strict=True):
        (alone,) = isolated.answering().answer([sample], max_new_tokens=3)
        assert (alone.route, alone.text) == (answer.route, answer.text)
    candidates = [("red", "yes")] * len(mixed)
    scores = isolated.answering().log_likelihood(mixed, candidates)
    alone = [isolated.answering().log_likelihood([s], [("red", "yes")])[0] for s in mixed]
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(alone))


def test_what_fixed_routes_answered_is_not_asked_again(
    isolated: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = isolated.stream.tasks[0].test
    first = isolated.answering().answer(samples, max_new_tokens=2)
    sums = isolated.answering().log_likelihood(samples, [("red", "yes")] * len(samples))
    for name in ("answer", "log_likelihood"):
        monkeypatch.setattr(Answerer, name, None)  # whoever asks fails
    assert isolated.answering().answer(samples, max_new_tokens=2) == first
    again = isolated.answering().log_likelihood(samples, [("red", "yes")] * len(samples))
    assert again == sums
    with pytest.raises(TypeError):
        isolated.answering().answer(samples, max_new_tokens=3)


def test_routing_accuracy_and_the_oracle(isolated: Learner) -> None:
    routing = isolated.routing_accuracy()
    assert routing is not None
    assert set(routing.by_task) == {"colour", "yes"}
    assert routing.accuracy >= 0.9
    assert not routing.failed
    assert RoutingAccuracy(by_task={}, accuracy=0.89).failed
    samples = isolated.stream.tasks[0].test[:3]
    oracle = isolated.oracle_answering("yes")
    assert oracle is not None
    assert {answer.route for answer in oracle.answer(samples, max_new_tokens=2)} == {"yes"}
    unlearnt = isolated.oracle_answering("count")
    assert unlearnt is not None
    assert {answer.route for answer in unlearnt.answer(samples, max_new_tokens=2)} == {BASE}


def test_what_looks_like_no_task_goes_to_the_base(isolated: Learner) -> None:
    unlike = [tiny_streams.sample("yes", "test", i, image=False) for i in range(4)]
    answers = isolated.answering().answer(unlike, max_new_tokens=3)
    assert {answer.route for answer in answers} == {BASE}
    loaded = tiny_streams.loaded()
    fresh = load(loaded.path, device="cpu")
    with Learner(SequentialLora(), fresh, STREAM, SETTINGS, seed=0) as base:
        assert [a.text for a in base.answering().answer(unlike, max_new_tokens=3)] == [
            answer.text for answer in answers
        ]
        assert base.oracle_answering("colour") is None
        assert base.routing_accuracy() is None
