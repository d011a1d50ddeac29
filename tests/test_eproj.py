"""EProj grows projectors, finds them by similarity, and leaves all else of the model alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_runs
import tiny_streams
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clmm.learner import Learner, batcher_of
from clmm.loading import load
from clmm.projector_growth import PROJECTORS_FILE, GrownProjectors
from clmm.routing_anchors import AnchorRouter
from clmm.routing_features import embedded_inputs
from clmm.strategies.combined import Combined
from clmm.strategies.eproj import EProj
from clmm.strategies.replay import Replay
from clmm.strategy import BASE
from streams import settings
from streams.settings import SettingError
from streams.stream import Stream, Task

STREAM, SETTINGS = tiny_runs.STREAM, tiny_runs.SETTINGS
TESTS = [sample for task in STREAM.tasks for sample in task.test[:3]]
learner = tiny_runs.learner


def projector(model: nn.Module) -> dict[str, Tensor]:
    return {n: w.detach().clone() for n, w in model.named_parameters() if "projector" in n}


def logits(one: Learner) -> Tensor:
    with torch.no_grad():
        found: Tensor = one._model.eval()(**one.batcher.training(TESTS)).logits
    return found


def test_each_task_grows_a_projector_from_the_last_and_keeps_it() -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)
    started: list[dict[str, Tensor]] = []
    learnt: list[dict[str, Tensor]] = []

    class Start:
        def before_training_epoch(self, strategy: Any, **_: Any) -> None:
            started.append(projector(strategy.model.model))

    with learner(EProj()) as one:
        one._method.plugins.append(Start())
        base = logits(one)
        for stage in (1, 2, 3):
            one.train_stage(stage)
            learnt.append(projector(model))
            trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
            assert trained.keys() == learnt[0].keys()
            assert one.trainable_parameters == sum(w.numel() for w in trained.values())
            # A key is two vectors of the language model's width.
            assert one.stored_bytes == stage * 4 * (one.trainable_parameters + 2 * 32)
        assert tiny_runs.same(started, [{n: before[n] for n in learnt[0]}, *learnt[:2]])
        assert not any(tiny_runs.same([a], [b]) for a, b in zip(started, learnt, strict=True))
        for task, kept in zip(STREAM.tasks, learnt, strict=True):
            one._method.weights.select(task.name)
            assert tiny_runs.same(projector(model), kept)
        one._method.weights.select(BASE)
        assert torch.equal(logits(one), base)
        one._method.weights.select(None)
        assert tiny_runs.same(projector(model), learnt[2])
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()
                   if "projector" not in n)  # fmt: skip
        with pytest.raises(ValueError, match="no projector of 'shapes' has been trained yet"):
            one._method.weights.select("shapes")
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(weight.requires_grad for weight in model.parameters())


def parts_of(one: Learner, sample: Any) -> list[Tensor]:
    """Mean image token and mean text token of a sample alone, from the model as it is."""
    batch = one.batcher.prompts([sample])
    embeds = embedded_inputs(one._model, batch)[0]
    image = batch["input_ids"][0] == one.batcher.processor.image_token_id
    return [embeds[image].mean(dim=0), embeds[~image].mean(dim=0)]


def test_similarity_is_the_mean_of_two_cosines_with_the_base_s_features() -> None:
    with learner(EProj()) as one:
        features = {t.name: [parts_of(one, s) for s in t.train] for t in STREAM.tasks}
        asked = [parts_of(one, sample) for sample in TESTS]
        router = one._method.router
        assert isinstance(router, AnchorRouter)
        assert router.routes(TESTS) == [BASE] * len(TESTS)
        for stage in (1, 2, 3):
            one.train_stage(stage)
        keys = {
            name: [torch.stack([row[part] for row in rows]).mean(dim=0) for part in range(2)]
            for name, rows in features.items()
        }
        found = router.similarities(TESTS)
        names = sorted(keys)
        for i, parts in enumerate(asked):
            for j, name in enumerate(names):
                cosines = [
                    (a @ b) / (a.norm() * b.norm()) for a, b in zip(parts, keys[name], strict=True)
                ]
                torch.testing.assert_close(found[i, j], sum(cosines) / 2, rtol=1e-5, atol=1e-5)
        assert router.routes(TESTS) == [names[row.argmax()] for row in found]
        accuracy = one.routing_accuracy()
        assert accuracy is not None
        assert accuracy.accuracy == 1


def test_answers_do_not_depend_on_the_company_and_are_the_projector_s() -> None:
    with learner(EProj()) as one:
        for stage in (1, 2, 3):
            one.train_stage(stage)
        together = one.answering(batch_size=4).answer(TESTS, max_new_tokens=6)
        one._known.clear()
        for sample, answer in zip(reversed(TESTS), reversed(together), strict=True):
            alone = one.answering().answer([sample], max_new_tokens=6)[0]
            assert (alone.text, alone.route) == (answer.text, answer.route)
            oracle = one.oracle_answering(answer.route or "")
            assert oracle is not None
            assert oracle.answer([sample], max_new_tokens=6)[0].text == answer.text


def test_kept_encoder_features_serve_every_projector(tmp_path: Path) -> None:
    """Of a model whose pictures are encoded once, before any projector."""
    loaded = load(tiny_models.mmllm(tmp_path / "mmllm"), device="cpu")
    with Learner(EProj(), loaded, STREAM, SETTINGS, seed=0) as one:
        base = logits(one)
        assert "image_features" in one.batcher.training(TESTS)
        for stage in (1, 2):
            one.train_stage(stage)
        seen = []
        for route in ("yes", "colour", BASE):
            one._method.weights.select(route)
            seen.append(logits(one))
            pixels = batcher_of(loaded)
            pixels._encode_images = None
            with torch.no_grad():
                fresh = loaded.model.eval()(**pixels.training(TESTS)).logits
            torch.testing.assert_close(seen[-1], fresh, rtol=1e-4, atol=1e-5)
        assert torch.equal(seen[2], base)
        assert not torch.allclose(seen[0], seen[1], atol=1e-3)
        assert not torch.allclose(seen[0], base, atol=1e-3)


def test_similar_tasks_share_a_projector() -> None:
    with learner(EProj(reuse=-1)) as one:
        assert not one._method.routes_stay
        for stage in (1, 2, 3):
            one.train_stage(stage)
        weights = one._method.weights
        assert isinstance(weights, GrownProjectors)
        assert weights._of == {"yes": 0, "colour": 0, "count": 0}
        assert len(weights._grown) == 1
    with learner(EProj()) as one:
        one.train_stage(1)
        router = one._method.router
        assert isinstance(router, AnchorRouter)
        first = float(router.similarities(STREAM.tasks[1].train).mean())
    for reuse, shared in ((first - 1e-4, True), (first + 1e-4, False)):
        with learner(EProj(reuse=reuse)) as one:
            one.train_stage(1)
            one.train_stage(2)
            weights = one._method.weights
            assert isinstance(weights, GrownProjectors)
            assert weights._of == {"yes": 0, "colour": 0 if shared else 1}


@pytest.mark.parametrize("reuse", [1.0, 0.5])
def test_a_loaded_run_goes_on_to_the_last_bit(tmp_path: Path, reuse: float) -> None:
    tiny_runs.check_resuming(EProj(reuse=reuse), tmp_path)
    with learner(EProj(reuse=reuse)) as one:
        one.load(tmp_path / "3")
        expected = [answer.text for answer in one.answering().answer(TESTS, max_new_tokens=4)]
        one.load(tmp_path / "3")
        assert [a.text for a in one.answering().answer(TESTS, max_new_tokens=4)] == expected
        kept = load_file(tmp_path / "3" / PROJECTORS_FILE)
        weights = one._method.weights
        assert isinstance(weights, GrownProjectors)
        last = {n: kept[f"{weights._latest}/{n}"] for n in projector(one._model)}
        assert tiny_runs.same(projector(one._model), last)


def test_projectors_of_another_shape_are_refused(tmp_path: Path) -> None:
    with learner(EProj()) as one:
        one.train_stage(1)
        one.save(tmp_path)
    place = tmp_path / PROJECTORS_FILE
    kept = {name: tensor[:1].clone() for name, tensor in load_file(place).items()}
    save_file(kept, place, metadata={"tasks": '[{"yes": 0}, 0]'})
    with learner(EProj()) as one, pytest.raises(ValueError, match=r"is \[1.*\], not \[32"):
        one.load(tmp_path)


def test_replay_can_be_added() -> None:
    with learner(Combined(of=(EProj(), Replay(budget=0.5)))) as one:
        one.train_stage(1)
        one.train_stage(2)
        assert one._method.plugins


def test_refusals() -> None:
    loaded = tiny_streams.loaded()
    half = replace(loaded, model=copy.deepcopy(loaded.model).half())
    with pytest.raises(ValueError, match=r"projector in torch.float16 loses small updates"):
        Learner(EProj(), half, STREAM, SETTINGS, seed=0)
    bare = copy.deepcopy(loaded.model)
    bare.model.multi_modal_projector = nn.Identity()
    with pytest.raises(
        ValueError, match=r"eproj: .* has no input projector to grow; take isolated"
    ):
        Learner(EProj(), replace(loaded, model=bare), STREAM, SETTINGS, seed=0)
    blind = [tiny_streams.sample("yes", "train", i, image=i < 3) for i in range(4)]
    stream = Stream(name="blind", tasks=(Task(name="yes", train=blind, test=blind[:1]),))
    with pytest.raises(ValueError, match="sample yes-train-3 of yes has no image"):
        Learner(EProj(), loaded, stream, SETTINGS, seed=0)
    with pytest.raises(ValueError, match="task 'base': a projector cannot bear this name"):
        EProj().stages(["colour", "base"])


@pytest.mark.parametrize("reuse", [1.5, -2, float("nan")])
def test_settings_say_what_is_wrong(reuse: float) -> None:
    with pytest.raises(SettingError, match=r"eproj.reuse: must be from -1 to 1; got"):
        settings.from_spec("clmm.strategies", {"name": "eproj", "reuse": reuse}, where="s[0]")
