"""Every sample is answered by its own mixture of adapters, whatever batch it is in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_streams
import torch
from torch import Tensor

from clmm.adapters_frozen import lora_layers
from clmm.adapters_mixed import Rows, RowsUnknown
from clmm.learner import Learner
from clmm.loading import Loaded, load
from clmm.strategies.combined import Combined
from clmm.strategies.disco import Disco
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategy import BASE
from clmm.training import TrainSettings
from streams.sample import Message, Sample, Text
from streams.settings import SettingError, from_spec

STREAM = tiny_streams.stream("colour", "yes", "count", train=12)
SETTINGS = TrainSettings(steps=3, batch_size=6, learning_rate=3e-2)
SHARP = Disco(temperature=0.02)
"""Tiny random embeddings are alike: at this temperature shares are neither equal nor 0 and 1."""
TEXT_ONLY = [tiny_streams.sample("colour", "test", 7, image=False)]
MIXED = [task.test[i] for i in range(2) for task in STREAM.tasks] + TEXT_ONLY
WORDS = [("red", "a much longer answer")] * len(MIXED)


def learner(strategy: Any, *, loaded: Loaded | None = None, stages: int = 2, **kw: Any) -> Learner:
    settings = replace(SETTINGS, **kw)
    one = Learner(strategy, loaded or tiny_streams.loaded(), STREAM, settings, seed=0)
    for stage in range(1, stages + 1):
        one.train_stage(stage)
    return one


def shares_of(one: Learner, samples: list[Sample]) -> Tensor:
    router: Any = one._method.router
    return router.shares(samples, one.strategy.temperature)  # type: ignore[attr-defined]


def scores(one: Learner, samples: list[Sample] = MIXED, batch_size: int = 64) -> Tensor:
    answering: Any = one.answering(batch_size=batch_size)
    return torch.tensor(answering.log_likelihood(samples, WORDS[: len(samples)]))


def by_hand(one: Learner, sample: Sample) -> Tensor:
    """Text feature of one sample, from the base, nothing padded."""
    model, tokenizer = one._model, one.batcher.processor.tokenizer
    with torch.no_grad():
        if one.strategy.text == "words":  # type: ignore[attr-defined]
            ids = tokenizer.encode(sample.question, add_special_tokens=False)
            return model.get_input_embeddings()(torch.tensor(ids)).mean(dim=0)
        message = Message(role="user", parts=(Text(text=sample.question),))
        batch = one.batcher.prompts([replace(sample, messages=(message,))])
        one._method.weights.select(BASE)
        states = model.eval()(**batch, output_hidden_states=True).hidden_states[-1]
        one._method.weights.select(None)
        return states[0, -1]


@pytest.mark.parametrize("text", ["words", "state"])
def test_shares_are_the_formula(text: Any) -> None:
    with learner(replace(SHARP, text=text)) as one:
        # By the alphabet: colour, yes.
        anchors = [
            torch.stack([by_hand(one, sample) for sample in task.train]).mean(dim=0)
            for task in STREAM.tasks[:2]
        ]
        found = shares_of(one, MIXED)
        for sample, row in zip(MIXED, found, strict=True):
            feature = by_hand(one, sample)
            cosines = [feature @ a / (feature.norm() * a.norm()) for a in anchors]
            expected = (torch.stack(cosines) / 0.02).softmax(dim=0)
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(shares_of(one, [sample])[0], row, rtol=0, atol=1e-5)
        assert len({round(float(row[0]), 4) for row in found}) > 2


def test_the_mixture_is_the_formula() -> None:
    """Logits of a mixed batch are those of dense weights W + (α/r)·Σ s·BA, sample by sample."""
    with learner(SHARP) as one:
        weights: Any = one._method.weights
        shares, batch = shares_of(one, MIXED), one.batcher.training(MIXED)
        del batch["labels"]
        media = (batch["input_ids"] == one.batcher.processor.image_token_id).sum(dim=1)
        assert media.min() == 0 < media.max()
        with weights.mixing(["colour", "yes"]), torch.no_grad():
            weights.rows = Rows(shares=shares, media=media)
            together = one._model.eval()(**batch).logits
        weights.select(BASE)
        layers = lora_layers(one._model)
        base = {name: layer.base_layer.weight.clone() for name, layer in layers.items()}
        for i, sample in enumerate(MIXED):
            alone = one.batcher.training([sample])
            length = alone.pop("labels").shape[1]
            with torch.no_grad():
                for name, layer in layers.items():
                    change = sum(
                        float(shares[i, t]) * layer.lora_B[task].weight @ layer.lora_A[task].weight
                        for t, task in enumerate(["colour", "yes"])
                    )
                    layer.base_layer.weight.copy_(base[name] + 16 / 8 * change)
                expected = one._model(**alone).logits[0]
            torch.testing.assert_close(together[i, :length], expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for name, layer in layers.items():
                layer.base_layer.weight.copy_(base[name])


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_a_sample_is_answered_alike_alone_and_in_company(family: str, tmp_path: Path) -> None:
    with learner(SHARP, loaded=load(tiny_models.FAMILIES[family](tmp_path), device="cpu")) as one:
        together, likely = one.answering().answer(MIXED, max_new_tokens=3), scores(one)
        assert not one._method.weights.one_by_one  # type: ignore[attr-defined]
        for i, sample in enumerate(MIXED):
            (alone,) = one.answering().answer([sample], max_new_tokens=3)
            assert (alone.route, alone.text) == (together[i].route, together[i].text)
            torch.testing.assert_close(scores(one, [sample])[0], likely[i], rtol=1e-4, atol=1e-4)
        turned = scores(one, MIXED[::-1], batch_size=3).flip(0)
        torch.testing.assert_close(turned, likely, rtol=1e-4, atol=1e-4)


def test_where_rows_are_unknown_each_sample_is_asked_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with learner(SHARP) as one:
        expected, answers = scores(one), one.answering().answer(MIXED, max_new_tokens=3)
        real = Rows.of

        def flattened(self: Rows, x: Tensor, *, projector: bool) -> Tensor:
            return real(self, x.flatten(0, -2) if not projector else x, projector=projector)

        monkeypatch.setattr(Rows, "of", flattened)
        torch.testing.assert_close(scores(one), expected, rtol=1e-4, atol=1e-4)
        assert one._method.weights.one_by_one  # type: ignore[attr-defined]
        assert one.answering().answer(MIXED, max_new_tokens=3) == answers


def test_rows_that_cannot_be_told_are_not_guessed() -> None:
    rows = Rows(shares=torch.tensor([[0.2, 0.8], [0.6, 0.4]]), media=torch.tensor([2, 1]))
    found = rows.of(torch.zeros(2, 5, 4), projector=False)
    assert torch.equal(found, rows.shares.unsqueeze(1))
    found = rows.of(torch.zeros(3, 4), projector=True)
    assert torch.equal(found, rows.shares[[0, 0, 1]])
    for shape, projector in (((10, 4), False), ((1, 10, 4), False), ((2, 4), True), ((6, 4), True)):
        with pytest.raises(RowsUnknown, match="for 2 rows"):
            rows.of(torch.zeros(shape), projector=projector)
    alike = replace(rows, shares=torch.tensor([[0.2, 0.8]] * 2))
    torch.testing.assert_close(alike.of(torch.zeros(10, 4), projector=False), alike.shares[0])


def test_the_base_answers_first_and_one_task_answers_alone() -> None:
    with learner(SHARP, stages=0) as one, learner(IsolatedLora(), loaded=fresh(), stages=0) as base:
        assert {a.route for a in one.answering().answer(MIXED, max_new_tokens=1)} == {BASE}
        torch.testing.assert_close(scores(one), scores(base))
        assert one.routing_accuracy() is None
        one.train_stage(1)
        oracle = one.oracle_answering("colour")
        assert oracle is not None
        assert {a.route for a in one.answering().answer(MIXED, max_new_tokens=1)} == {"colour"}
        found = torch.tensor(oracle.log_likelihood(MIXED, WORDS))
        torch.testing.assert_close(scores(one), found, rtol=1e-4, atol=1e-4)


def fresh() -> Loaded:
    return load(tiny_streams.loaded().path, device="cpu")


def test_adapters_are_those_of_isolated_lora_and_a_cold_mixture_is_one_of_them() -> None:
    with (
        learner(replace(SHARP, temperature=1e-7)) as one,
        learner(IsolatedLora(), loaded=fresh()) as isolated,
    ):
        mine, theirs = (dict(x._model.named_parameters()) for x in (one, isolated))
        assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
        routing = one.routing_accuracy()
        assert routing is not None
        assert set(routing.by_task) == {"colour", "yes"}
        assert routing.accuracy == 1
        for number, task in enumerate(STREAM.tasks[:2]):
            oracle = one.oracle_answering(task.name)
            assert oracle is not None
            found = torch.tensor(oracle.log_likelihood(task.test, WORDS[:1] * 8))
            answering: Any = one.answering()
            mixed = torch.tensor(answering.log_likelihood(task.test, WORDS[:1] * 8))
            assert (shares_of(one, list(task.test))[:, number] > 0.999).all()
            torch.testing.assert_close(mixed, found, rtol=1e-4, atol=1e-3)


def test_loading_and_going_on_changes_no_bit(tmp_path: Path) -> None:
    with learner(SHARP, stages=1) as one:
        one.save(tmp_path)
        one.train_stage(2)
        expected, answers = scores(one), one.answering().answer(MIXED, max_new_tokens=3)
    with learner(SHARP, stages=0) as other:
        other.load(tmp_path)
        other.train_stage(2)
        assert torch.equal(scores(other), expected)
        assert other.answering().answer(MIXED, max_new_tokens=3) == answers
        assert other.stored_bytes == 2 * (4 * other.trainable_parameters + 4 * 32)
        trained = {n for n, w in other._model.named_parameters() if w.requires_grad}
        assert trained
        assert all(".yes." in name for name in trained)


def test_under_autocast_answers_differ_little() -> None:
    with learner(SHARP) as one:
        wide = scores(one)
        one.settings = replace(one.settings, precision="bf16")
        torch.testing.assert_close(scores(one), wide, rtol=3e-2, atol=3e-1)
    with learner(SHARP, precision="bf16") as narrow:
        assert scores(narrow).isfinite().all()


def test_it_takes_replay_but_brings_its_own_weights() -> None:
    with learner(Combined(of=(SHARP, {"name": "replay", "budget": 4}))) as one:
        assert {a.route for a in one.answering().answer(MIXED)} <= {"colour", "yes"}
    with pytest.raises(SettingError, match=r"of\[1\]: Disco brings weights of its own"):
        Combined(of=("replay", "disco"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"temperature": 0}, "disco.temperature: must be above 0; got 0"),
        ({"temperature": float("nan")}, "disco.temperature: must be above 0; got nan"),
        ({"text": "clip"}, "disco.text: .*'words' or 'state'"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        from_spec("clmm.strategies", {"name": "disco", **spec}, where="strategies[0]")
    with pytest.raises(ValueError, match=r"task 'a.b': an adapter cannot bear this name"):
        Disco().stages(["a.b"])
