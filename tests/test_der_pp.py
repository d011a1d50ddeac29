"""DER++: the loss is the paper's, logits are those of the moment, a restart loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_streams
import torch
from safetensors.torch import load_file
from scipy.stats import chi2

from clmm.batching import Batcher
from clmm.benchmark import Examples
from clmm.dark_experience import DarkExperience, distances
from clmm.learner import Learner
from clmm.memory import sample_bytes
from clmm.strategies.combined import Combined
from clmm.strategies.der_pp import DerPp
from clmm.strategies.replay import Replay
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", "count", train=16)
SETTINGS = TrainSettings(steps=3, batch_size=8, learning_rate=1e-2)
ALPHA, BETA = 0.7, 0.3


def learner(strategy: Any, train: TrainSettings = SETTINGS) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), STREAM, train, seed=0)


class Check:
    """An Avalanche plugin, last in line: compares each update's loss with the paper's."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.drawn: list[int] = []
        self.one_pass = True

    def before_backward(self, strategy: Any, **_: Any) -> None:
        memory = next(p for p in strategy.plugins if isinstance(p, DarkExperience))
        self.drawn.append(len(memory.drawn))
        if not self.one_pass:
            return
        with torch.no_grad():
            logits = strategy.model(strategy.mb_x)
            expected = torch.nn.functional.cross_entropy(logits, strategy.mb_x.targets)
            squares, logs, values, tokens = 0.0, 0.0, 0, 0
            for entry in memory.drawn:
                examples = Examples([entry.sample], strategy.mb_x.batcher)
                now = strategy.model(examples)
                squares += float((now - entry.logits.float()).square().sum())
                logs -= float(now.log_softmax(1)[range(len(now)), examples.targets].sum())
                values, tokens = values + now.numel(), tokens + len(now)
            if memory.drawn:
                expected += ALPHA * squares / values + BETA * logs / tokens
        torch.testing.assert_close(strategy.loss.detach().squeeze(), expected, rtol=1e-5, atol=1e-5)

    def after_backward(self, strategy: Any, **_: Any) -> None:
        named = strategy.model.named_parameters()
        self.gradients.append({name: weight.grad.clone() for name, weight in named})


def derpp(**kwargs: Any) -> DerPp:
    return DerPp(**{"budget": 6, "der_alpha": ALPHA, "der_beta": BETA, **kwargs})


def test_the_loss_is_the_papers() -> None:
    check = Check()
    with learner(derpp(plugins=(check,))) as one:
        for stage in (1, 2):
            one.train_stage(stage)
    assert check.drawn == [0, 4, 4, 4, 4, 4]


def test_tokens_that_are_ruled_out_differ_by_nothing() -> None:
    now = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, -3e38, 4.0]], requires_grad=True)
    then = torch.tensor([[0.0, 4.0, -torch.inf], [1.0, -3e38, 4.0]]).half().float()
    found = distances(now, then)
    torch.testing.assert_close(found, torch.tensor([5 / 3, 1 / 3]))
    (slope,) = torch.autograd.grad(found.sum(), now)
    torch.testing.assert_close(slope, torch.tensor([[2, -4, 0], [-2, 0, 0.0]]) / 3)


def test_micro_batches_change_nothing() -> None:
    found = []
    for size in (None, 3):
        check = Check()
        check.one_pass = size is None
        train = replace(SETTINGS, micro_batch_size=size)
        with learner(derpp(plugins=(check,), stored="fp32"), train) as one:
            one.train_stage(1)
            found.append((check.gradients, one._method.plugins[0].state()))
    (whole, one_state), (parts, other_state) = found
    for a, b in zip(whole, parts, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)
    assert one_state["ids"] == other_state["ids"]


@pytest.mark.parametrize(
    "settings", [{"der_alpha": 0.0, "der_beta": 0.0}, {"share": 0.0}, {"budget": 0}]
)
def test_strength_nothing_is_sequential_tuning(settings: dict[str, Any]) -> None:
    def trajectory(strategy: Any) -> list[Any]:
        found: list[Any] = []
        with learner(strategy) as one:
            for stage in (1, 2):
                one.train_stage(stage, lambda event: found.append(event["loss"]))
            found += [w.detach().clone() for w in one._model.parameters() if w.requires_grad]
        return found

    pairs = zip(trajectory(derpp(**settings)), trajectory(SequentialLora()), strict=True)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


def test_stored_logits_are_those_of_the_moment() -> None:
    """The first update's are the base's: LoRA starts at nothing."""
    with learner(derpp(budget=100, stored="fp32", share=0.0), replace(SETTINGS, steps=1)) as one:
        with torch.no_grad():
            texts = [one.batcher.training([sample]) for sample in STREAM.tasks[0].train]
            expected = {}
            for sample, batch in zip(STREAM.tasks[0].train, texts, strict=True):
                logits = one._model(**batch).logits[0, :-1]
                expected[sample.id] = logits[batch["labels"][0, 1:] != -100]
        one.train_stage(1)
        memory = one._method.plugins[0]
        assert len({entry.sample.id for entry in memory.entries}) == 8
        for entry in memory.entries:
            torch.testing.assert_close(
                entry.logits, expected[entry.sample.id], rtol=1e-4, atol=1e-5
            )
        logits = sum(expected[entry.sample.id].numel() * 4 for entry in memory.entries)
        samples = sum(sample_bytes(entry.sample) for entry in memory.entries)
        assert memory.stored_bytes == logits + samples


def test_half_precision_takes_half_the_room() -> None:
    sizes = {}
    for stored in ("fp16", "fp32"):
        with learner(derpp(stored=stored, share=0.0), replace(SETTINGS, steps=1)) as one:
            one.train_stage(1)
            memory = one._method.plugins[0]
            sizes[stored] = sum(entry.logits.nbytes for entry in memory.entries)
    assert sizes["fp32"] == 2 * sizes["fp16"]


@pytest.mark.parametrize("stored", ["fp16", "fp32"])
def test_going_on_changes_no_bit(stored: Any, tmp_path: Path) -> None:
    strategy = derpp(stored=stored, tuning="full")
    with learner(strategy) as one:
        for stage in (1, 2, 3):
            one.train_stage(stage)
            one.save(tmp_path / f"{stage}")
    with learner(strategy) as other:
        other.load(tmp_path / "1")
        for stage in (2, 3):
            other.train_stage(stage)
        other.save(tmp_path / "again")
    files = [path.name for path in (tmp_path / "3").iterdir()]
    assert sorted(files) == ["state.json", "state.safetensors", "weights.safetensors"]
    for name in files:
        assert (tmp_path / "3" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    kept = load_file(tmp_path / "3" / "state.safetensors")
    assert {t.dtype for t in kept.values()} == {getattr(torch, f"float{stored[2:]}")}


def test_the_reservoir_is_uniform_over_all_offers() -> None:
    """240 seeds, 40 samples offered in two stages and parts of 8; a fault would keep the first."""
    size, repeats, offered = 10, 240, 40
    batcher = Batcher(tiny_streams.loaded().processor)
    base = tiny_streams.sample("colour", "train", 0)
    examples = [
        Examples([replace(base, id=f"{i}") for i in range(start, start + 8)], batcher)
        for start in range(0, offered, 8)
    ]
    tokens = examples[0].tokens
    for part in examples[1:]:
        part.places = examples[0].places
    counts = [0] * offered
    for seed in range(repeats):
        memory = DarkExperience(
            size=size, share=0.5, alpha=0.0, beta=0.0, dtype=torch.float32, seed=seed
        )
        for number, part in enumerate(examples):
            labels = SimpleNamespace(targets_task_labels=SimpleNamespace(uniques={0}))
            if number in (0, 3):
                experience = SimpleNamespace(dataset=labels)
                memory.before_training_exp(SimpleNamespace(stage=number, experience=experience))
            memory._offer(part, [0] * 8, torch.zeros(tokens, 1))
        for entry in memory.entries:
            counts[int(entry.sample.id)] += 1
    expected, share = repeats * size / offered, size / offered
    spread = sum((count - expected) ** 2 for count in counts) / (expected * (1 - share))
    assert 1e-3 < chi2.sf(spread * (offered - 1) / offered, offered - 1) < 1 - 1e-3


def test_what_other_parts_mix_in_is_not_stored() -> None:
    strategy = Combined(of=(derpp(budget=40), Replay(budget=8, share=0.5)))
    with learner(strategy) as one:
        for stage in (1, 2):
            one.train_stage(stage)
        kinds = [entry.sample.id.split("-")[0] for entry in one._method.plugins[0].entries]
    assert [kinds.count(kind) for kind in ("colour", "yes")] == [24, 12]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"share": 1.5}, r"der_pp\.share: must be from 0 to 1; got 1\.5"),
        ({"der_alpha": -1}, r"der_pp\.der_alpha: must be 0 or more; got -1"),
        ({"der_beta": float("nan")}, r"der_pp\.der_beta: must be 0 or more"),
        ({"budget": 1.5}, r"der_pp\.budget: 1\.5 is neither"),
        ({"stored": "fp8"}, r"der_pp\.stored: .*'fp16' or 'fp32'"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", {"name": "der_pp", **spec}, where="strategies[0]")
