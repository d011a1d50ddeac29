"""RegLoRA's penalty is the published one, on the adapter in training alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_runs
import tiny_streams
import torch

from clmm.adapters_frozen import lora_layers
from clmm.learner import Learner
from clmm.strategies.o_lora import OLora
from clmm.strategies.reg_lora import RegLora
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", "count", train=16)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2, clip_norm=None)


def learner(strategy: Any, train: TrainSettings = SETTINGS) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), STREAM, train, seed=0)


def changes(model: Any, stage: int) -> dict[str, torch.Tensor]:
    """BA of a stage's adapter."""
    name = f"stage-{stage:04d}"
    return {
        key: (layer.lora_B[name].weight @ layer.lora_A[name].weight).detach()
        for key, layer in lora_layers(model).items()
    }


class Watch:
    """Notes the penalty's value and what it adds to the gradient; frames the other plugins."""

    def __init__(self, one: Learner) -> None:
        self.penalty = one._method.plugins[0]
        one._method.plugins.insert(0, SimpleNamespace(after_backward=self.keep_own))
        one._method.plugins.append(self)
        self.value = 0.0

    def keep_own(self, strategy: Any, **_: Any) -> None:
        self.own = {n: w.grad.clone() for n, w in strategy.model.named_parameters()}

    def after_backward(self, strategy: Any, **_: Any) -> None:
        named = dict(strategy.model.named_parameters())
        self.added = {n: w.grad - self.own[n] for n, w in named.items()}
        self.weights = {n: w.detach().clone() for n, w in named.items()}
        *self.earlier, self.new = [
            changes(strategy.model.model, n + 1) for n in range(strategy.stage)
        ]
        if self.earlier:
            self.value = float(self.penalty.value().detach())


@pytest.mark.parametrize("share", [0.02, 1e-6])
def test_the_penalty_is_the_published_one(share: float) -> None:
    with learner(RegLora(strength=100, share=share, rank=2)) as one:
        watch = Watch(one)
        for stage in (1, 2, 3):
            one.train_stage(stage)
            means = []
            for key, change in watch.new.items():
                places = []
                for old in watch.earlier:
                    order = old[key].abs().flatten().argsort(descending=True).tolist()
                    places += order[: max(1, int(share * len(order)))]
                means.append(sum(abs(float(change.flatten()[n])) for n in places))
                means[-1] /= max(1, len(places))
                slope = torch.zeros_like(change)
                for row, column in (divmod(n, change.shape[1]) for n in places):
                    slope[row, column] += 100 / len(watch.new) / len(places)
                slope *= change.sign()
                name = f"model.{key}.{{}}.stage-{stage:04d}.weight"
                a, b = (watch.weights[name.format(part)] for part in ("lora_A", "lora_B"))
                for part, pull in (("lora_A", b.T @ slope), ("lora_B", slope @ a.T)):
                    found = watch.added[name.format(part)]
                    torch.testing.assert_close(found, pull, rtol=1e-4, atol=1e-6)
            assert watch.value == pytest.approx(100 * sum(means) / len(means), rel=1e-5)
            assert (watch.value > 1e-3) == (stage > 1)


def losses(strategy: Any) -> list[float]:
    found: list[float] = []
    with learner(strategy, TrainSettings(steps=3, batch_size=8, learning_rate=1e-2)) as one:
        for stage in (1, 2):
            one.train_stage(stage, lambda event: found.append(event["loss"]))
    return found


def test_strength_zero_only_adds_adapters_up() -> None:
    none, some, plain = (losses(s) for s in (RegLora(strength=0), RegLora(), SequentialLora()))
    assert none == losses(OLora(overlap=0))
    assert some[:3] == plain[:3]
    # At BA = 0 the penalty has no slope: it moves the second update, which the third loss shows.
    assert none[:5] == some[:5]
    assert none[5] != some[5]


def test_key_elements_change_less() -> None:
    shares = []
    for strength in (0.0, 2.5e3):
        train = TrainSettings(steps=6, learning_rate=1e-2)
        with learner(RegLora(strength=strength), train) as one:
            one.train_stage(1)
            one.train_stage(2)
            first, second = changes(one._model, 1), changes(one._model, 2)
        inside = outside = 0.0
        for key, change in second.items():
            size = first[key].abs()
            chosen = size >= size.flatten().topk(int(0.02 * size.numel())).values[-1]
            inside += float(change[chosen].abs().mean())
            outside += float(change[~chosen].abs().mean())
        shares.append(inside / outside)
    assert shares[1] < 0.7 * shares[0]


def test_a_loaded_run_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    tiny_runs.check_resuming(RegLora(), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": -1}, "reg_lora.strength: must be 0 or above; got -1"),
        ({"share": 0}, "reg_lora.share: must be above 0 and at most 1; got 0"),
        ({"share": 1.5}, "reg_lora.share: must be above 0 and at most 1; got 1.5"),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", {"name": "reg_lora", **values}, where="strategies[0]")
