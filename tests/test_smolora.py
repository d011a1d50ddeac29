"""SMoLoRA serves each sample by the experts of what it shows and what it asks, and by no others.

Run as a script, this file forks two processes and writes what the first saw, as
`test_distributed.py` does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import tiny_streams
import torch
from safetensors.torch import load_file, save_file
from tiny_distributed import found_by_two, main
from torch import Tensor, nn

from clmm.answering import Answerer
from clmm.learner import Learner
from clmm.separable_experts import (
    GATES_FILE,
    Chosen,
    Gates,
    SeparableAnswerer,
    SeparableLinear,
    SeparableLora,
)
from clmm.strategies.combined import Combined
from clmm.strategies.lwf import Lwf
from clmm.strategies.smolora import SMoLora
from clmm.strategy import BASE
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

STREAM, SETTINGS = tiny_runs.STREAM, tiny_runs.SETTINGS
TESTS = [sample for task in STREAM.tasks for sample in task.test[:4]]
learner = tiny_runs.learner
IMAGE_WORDS = ["red", "green", "deep blue"]


def weights_of(one: Learner) -> SeparableLora:
    weights = one._method.weights
    assert isinstance(weights, SeparableLora)
    return weights


def answering(one: Learner, batch_size: int = 64) -> SeparableAnswerer:
    found = one.answering(batch_size=batch_size)
    assert isinstance(found, SeparableAnswerer)
    return found


def separable(*, rank: int, experts: int) -> SeparableLinear:
    torch.manual_seed(0)
    layer = SeparableLinear(
        nn.Linear(5, 7), rank=rank, alpha=9, experts=2 * experts, chosen=Chosen()
    )
    nn.init.normal_(layer.lora_B)
    return layer


def one_hot(pairs: list[tuple[int, int]], experts: int) -> Tensor:
    shares = torch.zeros(len(pairs), 2 * experts)
    for row, (seen, told) in enumerate(pairs):
        shares[row, [seen, experts + told]] = 1.0
    return shares


@pytest.mark.parametrize("experts", [1, 2, 3])
def test_a_layer_is_the_formula(experts: int) -> None:
    layer = separable(rank=12, experts=experts)
    pairs = [(0, experts - 1), (experts - 1, 0), (experts // 2, experts // 2)]
    layer._chosen.shares = one_hot(pairs, experts)
    x = torch.randn(3, 4, 5)
    each = 12 // (2 * experts)
    with torch.no_grad():
        found = layer(x)
        for row, (seen, told) in enumerate(pairs):
            for column in range(4):
                token = x[row, column]
                parts = []
                for expert in (seen, experts + told):
                    own = slice(expert * each, (expert + 1) * each)
                    change = layer.lora_B[:, own] @ (layer.lora_A[own] @ token)
                    parts.append(9 / 12 * change)
                scores = [layer.fusion[k] @ parts[k] for k in range(2)]
                a, b = torch.stack(scores).softmax(dim=0)
                expected = layer.base_layer(token) + a * parts[0] + b * parts[1]
                torch.testing.assert_close(found[row, column], expected, rtol=1e-5, atol=1e-5)
        # A sample alone is served the same.
        layer._chosen.shares = one_hot(pairs[1:2], experts)
        torch.testing.assert_close(layer(x[1:2])[0], found[1])


def test_gates_choose_the_highest_score_and_learn_by_the_softmax() -> None:
    torch.manual_seed(1)
    gates, features = Gates(width=6, experts=3), torch.randn(20, 2, 6) * 3 + 5
    gates.fit(features)
    shares = gates(features)
    scores = torch.zeros(20, 2, 3)
    for row in range(20):
        for part in range(2):
            mean = features[:, part].mean(dim=0)
            spread = ((features[:, part] - mean).square().mean()
                      + 1e-4 * features[:, part].square().mean()).sqrt()  # fmt: skip
            z = (features[row, part] - mean) / spread
            scores[row, part] = gates.weight[part] @ z + gates.bias[part]
    best = scores.argmax(dim=-1)
    assert len(set(map(tuple, best.tolist()))) > 3
    assert torch.equal(shares, one_hot([(int(a), int(b)) for a, b in best], 3))
    pull = torch.randn(20, 6)
    found = torch.autograd.grad((shares * pull).sum(), [gates.weight, gates.bias])
    soft = torch.einsum(
        "spd,ped->spe",
        (features - features.mean(dim=0)) / gates.spread[:, None],
        gates.weight,
    )
    soft = (soft + gates.bias).softmax(dim=-1).flatten(1)
    wanted = torch.autograd.grad((soft * pull).sum(), [gates.weight, gates.bias])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_question_that_all_share_is_always_served_by_one_expert() -> None:
    torch.manual_seed(2)
    gates, same = Gates(width=64, experts=4), torch.randn(2, 64).expand(50, 2, 64)
    gates.fit(same)
    noisy = same + 1e-6 * torch.randn(50, 2, 64)
    assert len(set(map(tuple, gates(noisy).tolist()))) == 1
    nothing = Gates(width=64, experts=4)
    nothing.fit(torch.zeros(3, 2, 64))
    assert nothing.spread.tolist() == [1.0, 1.0]


def test_it_trains_experts_fusion_and_gates_and_the_base_comes_back() -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)
    modules = [(name, type(module)) for name, module in model.named_modules()]
    with learner(SMoLora(experts=2)) as one:
        base = Answerer(model, one.batcher).log_likelihood(TESTS, [IMAGE_WORDS] * len(TESTS))
        assert answering(one).log_likelihood(TESTS, [IMAGE_WORDS] * len(TESTS)) == base
        for stage in (1, 2):
            one.train_stage(stage)
        assert one._trainer is not None
        trained = dict(one._trainer.model.named_parameters())
        assert one.trainable_parameters == sum(w.numel() for w in trained.values())
        gates = weights_of(one).gates
        assert gates is not None
        assert one.stored_bytes == 4 * (one.trainable_parameters + gates.centre.numel() + 2)
        kinds = {name.rpartition(".")[2] for name in trained}
        assert kinds == {"lora_A", "lora_B", "fusion", "weight", "bias"}
        assert not any("projector" in name for name in trained)
        now = {n.replace(".base_layer", ""): t for n, t in model.state_dict().items()}
        assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
        assert answering(one).log_likelihood(TESTS, [IMAGE_WORDS] * len(TESTS)) != base
        one._method.weights.select(BASE)
        again = Answerer(model, one.batcher).log_likelihood(TESTS, [IMAGE_WORDS] * len(TESTS))
        assert again == base
        with pytest.raises(ValueError, match="one route"):
            one._method.weights.select("colour")
        one._method.weights.select(None)
        with pytest.raises(RuntimeError, match="no experts were chosen for these samples"):
            model(**one.batcher.prompts(TESTS[:2]))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [(name, type(module)) for name, module in model.named_modules()] == modules


def test_routing_and_answers_do_not_depend_on_the_company() -> None:
    with learner(SMoLora(rank=8, experts=4), replace(SETTINGS, learning_rate=3e-2)) as one:
        for stage in (1, 2, 3):
            one.train_stage(stage)
        weights, ask = weights_of(one), answering(one, batch_size=5)
        assert weights.gates is not None
        with torch.no_grad():
            shares = weights.gates(ask._features(TESTS))
            assert len(set(map(tuple, shares.tolist()))) > 2
            for i, sample in enumerate(TESTS):
                assert torch.equal(weights.gates(ask._features([sample]))[0], shares[i])
        words = [IMAGE_WORDS] * len(TESTS)
        together = ask.answer(TESTS, max_new_tokens=5)
        sums = torch.tensor(ask.log_likelihood(TESTS, words))
        assert [answer.sample_id for answer in together] == [sample.id for sample in TESTS]
        assert ask.answer(TESTS[::-1], max_new_tokens=5) == together[::-1]
        for i, sample in enumerate(TESTS):
            assert ask.answer([sample], max_new_tokens=5) == [together[i]]
            alone = torch.tensor(ask.log_likelihood([sample], [IMAGE_WORDS]))[0]
            torch.testing.assert_close(alone, sums[i], rtol=1e-4, atol=1e-4)
        assert ask.answer([]) == []
        # Training sees the same experts, whatever the batch.
        from clmm.benchmark import Examples

        assert one._trainer is not None
        trainer = one._trainer.model.eval()
        with torch.no_grad():
            whole = Examples(TESTS, one.batcher)
            logits, rows = trainer(whole), whole.places[0]
            for i, sample in enumerate(TESTS):
                own = trainer(Examples([sample], one.batcher))
                torch.testing.assert_close(own, logits[rows == i], rtol=1e-4, atol=1e-4)


def test_a_loaded_run_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    tiny_runs.check_resuming(SMoLora(), tmp_path)
    with learner(SMoLora()) as one:
        one.load(tmp_path / "3")
        found = answering(one).answer(TESTS, max_new_tokens=5)
        one.load(tmp_path / "again")
        assert answering(one).answer(TESTS, max_new_tokens=5) == found
    kept = load_file(tmp_path / "3" / GATES_FILE)
    save_file({name: t[..., :1].contiguous() for name, t in kept.items()},
              tmp_path / "3" / GATES_FILE)  # fmt: skip
    with learner(SMoLora()) as one, pytest.raises(ValueError, match=r"gates.safetensors: Error"):
        one.load(tmp_path / "3")


def losses(strategy: Any, train: TrainSettings) -> list[float]:
    found: list[float] = []
    with learner(strategy, train) as one:
        for stage in (1, 2):
            one.train_stage(stage, lambda event: found.append(event["loss"]))
    return found


def test_micro_batches_change_nothing_and_autocast_little() -> None:
    plain = losses(SMoLora(), SETTINGS)
    assert losses(SMoLora(), replace(SETTINGS, micro_batch_size=3)) == pytest.approx(plain, 1e-3)
    assert losses(SMoLora(), replace(SETTINGS, precision="bf16")) == pytest.approx(plain, 3e-2)


def test_a_penalty_asks_the_model_too() -> None:
    weak = losses(Combined(of=(SMoLora(), Lwf(strength=1e-9))), SETTINGS)
    assert weak == pytest.approx(losses(SMoLora(), SETTINGS), rel=1e-3)


def test_what_cannot_work_is_refused() -> None:
    with (
        learner(SMoLora(), replace(SETTINGS, gradient_checkpointing=True)) as one,
        pytest.raises(RuntimeError, match=r"smolora: train.gradient_checkpointing .* turn it off"),
    ):
        one.train_stage(1)
    layer = separable(rank=4, experts=1)
    layer._chosen.shares = one_hot([(0, 0), (0, 0)], 1)
    with pytest.raises(RuntimeError, match=r"input \[6, 5\] does not show which of 2 samples"):
        layer(torch.randn(6, 5))


@pytest.mark.parametrize("experts", [0, 3, -1, 8])
def test_settings_say_what_is_wrong(experts: int) -> None:
    spec = {"name": "smolora", "experts": experts}
    with pytest.raises(SettingError, match=f"must divide the rank, 8; got {experts}"):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")


def trajectory() -> dict[str, Any]:
    return {"losses": losses(SMoLora(), replace(SETTINGS, micro_batch_size=2, learning_rate=1e-3))}


def in_each() -> dict[str, Any]:
    return trajectory() | {"processes": torch.distributed.get_world_size()}


def test_two_processes_follow_one(tmp_path: Path) -> None:
    two = found_by_two(__file__, tmp_path)
    assert two["processes"] == 2
    assert two["losses"] == pytest.approx(trajectory()["losses"], rel=1e-3)


if __name__ == "__main__":
    main(in_each)
