"""A task's own adapter on top, the mean of all below, chosen by image and text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_streams
import torch
from torch import Tensor, nn

from clmm import components
from clmm.adapters_frozen import lora_layers
from clmm.adapters_layered import top_linears
from clmm.batching import IGNORED
from clmm.learner import Learner
from clmm.loading import Loaded, load
from clmm.strategies.combined import Combined
from clmm.strategies.hide_llava import HideLlava
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategy import BASE
from clmm.training import TrainSettings
from streams.sample import Sample
from streams.settings import SettingError, from_spec

STREAM = tiny_streams.stream("colour", "yes", "count", train=12)
SETTINGS = TrainSettings(steps=3, batch_size=6, learning_rate=3e-2)
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


def scores(one: Learner, samples: list[Sample] = MIXED, batch_size: int = 64) -> Tensor:
    answering: Any = one.answering(batch_size=batch_size)
    return torch.tensor(answering.log_likelihood(samples, WORDS[: len(samples)]))


def by_hand(one: Learner, sample: Sample) -> tuple[Tensor, Tensor]:
    """Mean projected image vector (zero without image) and mean embedded word."""
    model, tokenizer = one._model, one.batcher.processor.tokenizer
    one._method.weights.select(BASE)
    with torch.no_grad():
        ids = tokenizer.encode(sample.question, add_special_tokens=False)
        read = model.get_input_embeddings()(torch.tensor(ids)).mean(dim=0)
        seen = torch.zeros_like(read)
        if sample.images:
            pixels = one.batcher.prompts([sample])["pixel_values"]
            seen = model.get_image_features(pixel_values=pixels).pooler_output[0].mean(dim=0)
    one._method.weights.select(None)
    return seen, read


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a.norm() * b.norm()).clamp(min=1e-8)


def test_the_route_is_the_formula() -> None:
    with learner(HideLlava()) as one:
        router: Any = one._method.router
        names = ["colour", "yes"]
        anchors = []
        for task in STREAM.tasks[:2]:
            parts = zip(*(by_hand(one, sample) for sample in task.train), strict=True)
            anchors.append([torch.stack(part).mean(dim=0) for part in parts])
        found = router.similarities(MIXED)
        for sample, row in zip(MIXED, found, strict=True):
            seen, read = by_hand(one, sample)
            expected = torch.stack([0.5 * cosine(seen, a) + 0.5 * cosine(read, b)
                                    for a, b in anchors])  # fmt: skip
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
            assert router.routes([sample]) == [names[int(expected.argmax())]]
            torch.testing.assert_close(router.similarities([sample])[0], row, rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", ["colour", "yes"])
def test_the_weights_are_the_formula(task: str) -> None:
    """Those of dense W + (α/r)·BA on top and W + (α/r)·mean(BA) below."""
    with learner(HideLlava()) as one:
        found = torch.tensor(one.oracle_answering(task).log_likelihood(MIXED, WORDS))  # type: ignore[union-attr]
        one._method.weights.select(BASE)
        layers = lora_layers(one._model)
        base = {name: layer.base_layer.weight.clone() for name, layer in layers.items()}
        with torch.no_grad():
            for name, layer in layers.items():
                names = [task] if ".layers.1." in name else ["colour", "yes"]
                change = [layer.lora_B[n].weight @ layer.lora_A[n].weight for n in names]
                layer.base_layer.weight.add_(16 / 8 * torch.stack(change).mean(dim=0))
            for i, sample in enumerate(MIXED):
                for j, text in enumerate(WORDS[0]):
                    batch = one.batcher.continuations([sample], [text])
                    labels = batch.pop("labels")[0, 1:]
                    likely = one._model.eval()(**batch).logits[0, :-1].log_softmax(dim=-1)
                    kept = (labels != IGNORED).nonzero()[:, 0]
                    expected = likely[kept, labels[kept]].sum()
                    torch.testing.assert_close(found[i, j], expected, rtol=1e-5, atol=1e-5)
            for name, layer in layers.items():
                layer.base_layer.weight.copy_(base[name])


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_a_sample_is_answered_alike_alone_and_in_company(family: str, tmp_path: Path) -> None:
    loaded = load(tiny_models.FAMILIES[family](tmp_path), device="cpu")
    before = tiny_streams.weights(loaded.model)
    with learner(HideLlava(), loaded=loaded) as one:
        together, likely = one.answering().answer(MIXED, max_new_tokens=3), scores(one)
        assert {answer.route for answer in together} == {"colour", "yes"}
        for i, sample in enumerate(MIXED):
            (alone,) = one.answering().answer([sample], max_new_tokens=3)
            assert (alone.route, alone.text) == (together[i].route, together[i].text)
        for i in range(3):
            alone_likely = scores(one, [MIXED[i]])[0]
            torch.testing.assert_close(alone_likely, likely[i], rtol=1e-4, atol=1e-4)
        turned = scores(one, MIXED[::-1], batch_size=3).flip(0)
        torch.testing.assert_close(turned, likely, rtol=1e-4, atol=1e-4)
    after = loaded.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_the_top_is_the_last_block(family: str, tmp_path: Path) -> None:
    model = load(tiny_models.FAMILIES[family](tmp_path), device="cpu").model
    every, top = components.language_linears(model), top_linears(model, 1)
    assert len(top) == 7
    assert all(".layers.1." in name for name in top)
    assert set(every) - set(top)
    with pytest.raises(ValueError, match="2 top layers of 2 leave none below"):
        top_linears(model, 2)


def test_a_model_without_blocks_is_refused() -> None:
    model = nn.ModuleDict({"language_model": nn.Sequential(nn.Linear(2, 2))})
    with pytest.raises(ValueError, match=r"has no list of layers.*take isolated_lora"):
        top_linears(model, 1)


def test_the_base_answers_first_and_one_task_is_its_adapter() -> None:
    with (
        learner(HideLlava(), stages=0) as one,
        learner(IsolatedLora(), loaded=fresh(), stages=0) as isolated,
    ):
        assert {a.route for a in one.answering().answer(MIXED, max_new_tokens=1)} == {BASE}
        assert one.routing_accuracy() is None
        for each in (one, isolated):
            each.train_stage(1)
        assert {a.route for a in one.answering().answer(MIXED, max_new_tokens=1)} == {"colour"}
        expected = isolated.oracle_answering("colour")
        assert expected is not None
        found = torch.tensor(expected.log_likelihood(MIXED, WORDS))
        torch.testing.assert_close(scores(one), found, rtol=1e-5, atol=1e-5)


def test_answering_between_the_stages_changes_no_training() -> None:
    """Adapters, and what is trained, are isolated_lora's whatever was asked before."""
    with (
        learner(HideLlava(), stages=0) as one,
        learner(IsolatedLora(), loaded=fresh()) as isolated,
    ):
        for stage in (1, 2):
            one.train_stage(stage)
            one.answering().answer(MIXED, max_new_tokens=1)
            trained = [n for n, w in one._model.named_parameters() if w.requires_grad]
            assert sum(one._model.get_parameter(n).numel() for n in trained) == (
                one.trainable_parameters
            )
        theirs = dict(isolated._model.named_parameters())
        mine = dict(one._model.named_parameters())
        assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
        routing = one.routing_accuracy()
        assert routing is not None
        assert set(routing.by_task) == {"colour", "yes"}
        assert one.oracle_answering("count").answer(MIXED[:1])[0].route == BASE  # type: ignore[union-attr]


def test_loading_and_going_on_changes_no_bit(tmp_path: Path) -> None:
    with learner(HideLlava(text="state"), stages=2) as one:
        one.save(tmp_path)
        one.train_stage(3)
        expected, answers = scores(one), one.answering().answer(MIXED, max_new_tokens=3)
    with learner(HideLlava(text="state"), stages=0) as other:
        other.load(tmp_path)
        other.train_stage(3)
        assert torch.equal(scores(other), expected)
        assert other.answering().answer(MIXED, max_new_tokens=3) == answers
        assert other.stored_bytes == 3 * (4 * other.trainable_parameters + 8 * 32)


def test_under_autocast_answers_differ_little() -> None:
    with learner(HideLlava()) as one:
        wide = scores(one)
        one.settings = replace(one.settings, precision="bf16")
        torch.testing.assert_close(scores(one), wide, rtol=3e-2, atol=3e-1)
    with learner(HideLlava(), precision="bf16") as narrow:
        assert scores(narrow).isfinite().all()


def test_it_takes_replay_but_brings_its_own_weights() -> None:
    with learner(Combined(of=("hide_llava", {"name": "replay", "budget": 4}))) as one:
        assert {a.route for a in one.answering().answer(MIXED)} <= {"colour", "yes"}
    with pytest.raises(SettingError, match=r"of\[1\]: HideLlava brings weights of its own"):
        Combined(of=("replay", "hide_llava"))


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(SettingError, match=r"hide_llava.top: must be at least 1; got 0"):
        from_spec("clmm.strategies", {"name": "hide_llava", "top": 0}, where="strategies[0]")
    with pytest.raises(SettingError, match=r"hide_llava.top: 2 top layers of 2 .*; got 2"):
        learner(HideLlava(top=2), stages=0)
    with pytest.raises(ValueError, match="task 'base': an adapter cannot bear this name"):
        HideLlava().stages(["base"])
