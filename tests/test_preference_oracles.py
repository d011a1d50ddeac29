"""Losses and gradients equal those of trl, from its own rows, on a tiny Qwen2-VL with images.

p is the model with noise in its weights, p₀ the model as it was saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_streams
import torch
from PIL import Image as Pillow
from torch import Tensor

from clmm.batching import Batcher
from clmm.benchmark import Examples
from clmm.loading import Loaded, load
from clmm.objective import Drawn
from clmm.objectives.dpo import Dpo
from clmm.objectives.grpo import Grpo
from clmm.objectives.rloo import Rloo
from clmm.objectives.sft import Sft
from clmm.trainer import TokenLogits
from streams.sample import Sample, Text

# transformers renamed gradient checkpointing; trl and its callers still say it the old way.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
K = 3
SAMPLES = [
    replace(tiny_streams.sample("colour", "train", i), rejected=(Text(text=text),))
    for i, text in enumerate(["grey", "no idea", "b", "deep orange"])
]
ANSWERS = ["red", "r", "deep blue, red", "green", "grey", "green green green", "", "deep", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.qwen2_vl(tmp_path_factory.mktemp("oracle") / "qwen2_vl")


@pytest.fixture
def loaded(folder: Path) -> Loaded:
    """A fresh one: trl puts its own forward into the model."""
    loaded = load(folder, device="cpu")
    # trl would also teach the line break that the template writes behind an answer's end.
    template = loaded.processor.chat_template
    loaded.processor.chat_template = template.replace("<|im_end|>\n", "<|im_end|>")
    return loaded


@pytest.fixture(autouse=True)
def own_randomness() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


class Fixed:
    """An actor that always draws the same answers, and whose earlier self is another model."""

    def __init__(self, reference: Any, answers: Sequence[Sequence[Drawn]] = ()) -> None:
        self._reference, self._answers = TokenLogits(reference), answers

    def draw(self, examples: Examples, **settings: Any) -> list[list[Drawn]]:
        assert settings["count"] == K
        return [list(answers) for answers in self._answers]

    def earlier(self, rows: Examples) -> Tensor:
        with torch.no_grad():
            return self._reference(rows)


def disturbed(model: Any) -> Any:
    """Noise in the weights, as if it had been trained for a while."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.03 * torch.randn_like(weight))
    return model


def record(sample: Sample) -> dict[str, Any]:
    """What trl calls an example."""
    return {
        "prompt": [{"role": "user", "content": sample.question}],
        "images": [Pillow.fromarray(image.source) for image in sample.images],
    }


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def trainer(name: str, loaded: Loaded, records: Any, path: Path, **settings: Any) -> Any:
    """trl's, in train mode; its reference model is loaded from the same folder."""
    import trl
    from datasets import Dataset

    arguments = getattr(trl, f"{name}Config")(
        output_dir=str(path), report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, **settings,
    )  # fmt: skip
    more = {"reward_funcs": lambda **_: []} if "num_generations" in settings else {}
    made = getattr(trl, f"{name}Trainer")(
        model=loaded.model,
        args=arguments,
        processing_class=loaded.processor,
        train_dataset=Dataset.from_list(records),
        **more,
    )
    made.model.train()
    return made


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}


def ours(objective: Any, model: Any, actor: Any, processor: Any, samples: Any) -> tuple[Any, Any]:
    rows = objective.rows(Examples(samples, Batcher(processor)), actor)
    return rows, objective.loss(TokenLogits(model)(rows), rows, actor)


def assert_equal(model: Any, mine: Tensor, theirs: Tensor, *, values: bool = True) -> None:
    if values:
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    own, other = gradients(model, mine), gradients(model, theirs)
    assert max(float(gradient.abs().max()) for gradient in own.values()) > 1e-3
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (Dpo(beta=0.3), {"loss_type": ["sigmoid"], "beta": 0.3}),
        (Dpo(beta=0.2, kind="ipo"), {"loss_type": ["ipo"], "beta": 0.2}),
    ],
)
def test_dpo_is_trls(mine: Dpo, theirs: dict[str, Any], loaded: Loaded, tmp_path: Path) -> None:
    records = [
        record(s) | {"chosen": said(s.reference_text), "rejected": said(s.rejected[0].text)}
        for s in SAMPLES
    ]
    oracle = trainer("DPO", loaded, records, tmp_path, max_length=None, **theirs)
    batch = oracle.data_collator([oracle.train_dataset[i] for i in range(len(SAMPLES))])
    model = disturbed(oracle.model)
    actor = Fixed(oracle.ref_model)
    rows, loss = ours(mine, model, actor, loaded.processor, SAMPLES)
    # The same tokens, in whatever order the rows are.
    own = {tuple(row[mask.bool()].tolist()) for row, mask in masked(rows.tensors)}
    assert own == {tuple(row[mask.bool()].tolist()) for row, mask in masked(batch)}
    assert_equal(model, loss, oracle._compute_loss(model, batch, False))


def masked(batch: Any) -> Any:
    return zip(batch["input_ids"], batch["attention_mask"], strict=True)


def test_conservative_dpo_is_trls(loaded: Loaded, tmp_path: Path) -> None:
    # trl's sigmoid has no smoothing; its aot has, and of a single pair they are the same.
    sample = SAMPLES[3]
    pair = {"chosen": said(sample.reference_text), "rejected": said("deep orange")}
    settings = {"loss_type": ["aot"], "beta": 0.3, "label_smoothing": 0.2, "max_length": None}
    oracle = trainer("DPO", loaded, [record(sample) | pair], tmp_path, **settings)
    batch = oracle.data_collator([oracle.train_dataset[0]])
    model = disturbed(oracle.model)
    actor = Fixed(oracle.ref_model)
    _, loss = ours(Dpo(beta=0.3, label_smoothing=0.2), model, actor, loaded.processor, [sample])
    assert_equal(model, loss, oracle._compute_loss(model, batch, False))


@pytest.mark.parametrize(("mine", "beta"), [(Rloo, 0.0), (Rloo, 0.4), (Grpo, 0.0), (Grpo, 0.4)])
def test_reinforcement_is_trls(
    mine: type[Rloo], beta: float, loaded: Loaded, tmp_path: Path
) -> None:
    samples, name = [replace(s, scorer="rouge_l") for s in SAMPLES[:3]], mine.__name__.upper()
    objective = mine(samples=K, beta=beta, temperature=0.7, max_new_tokens=40)
    tokenizer = loaded.processor.tokenizer
    # All end but the last, which was cut.
    ids = [(*tokenizer.encode(text), tokenizer.eos_token_id) for text in ANSWERS]
    ids[-1] = ids[-1][:-1]
    drawn = [Drawn(ids=i, text=text) for i, text in zip(ids, ANSWERS, strict=True)]
    settings = {"num_generations": K, "per_device_train_batch_size": len(ids), "beta": beta,
                "temperature": 0.7, "max_completion_length": 40}  # fmt: skip
    if mine is Grpo:
        # The paper's KL (Shao et al. 2024), without the ratio that trl puts before it by default.
        settings |= {"loss_type": "grpo", "use_bias_correction_kl": False}
    records = [record(sample) for sample in samples]
    oracle = trainer(name, loaded, records, tmp_path, **settings)
    model = disturbed(oracle.model)
    actor = Fixed(
        oracle.ref_model if beta else loaded.model,
        [drawn[i : i + K] for i in range(0, len(drawn), K)],
    )
    rows, loss = ours(objective, model, actor, loaded.processor, samples)
    assert len(set(rows.rewards)) > 2
    written = [list(one) for one in ids]
    oracle._generate_single_turn = lambda *_, **__: (written, None) if mine is Grpo else written
    oracle._calculate_rewards = lambda *_: torch.tensor(rows.rewards)[:, None]
    oracle.current_gradient_accumulation_steps = 1
    inputs = oracle._generate_and_score_completions([one for one in records for _ in range(K)])
    rewards = torch.tensor(rows.rewards)
    if mine is Rloo and beta:
        # The KL of the whole answer is part of the reward.
        now = likelihoods(TokenLogits(model)(rows), rows)
        rewards = rewards - beta * (now - likelihoods(actor.earlier(rows), rows)).detach()
    torch.testing.assert_close(
        objective.advantages(rewards), inputs["advantages"], rtol=1e-4, atol=1e-5
    )
    theirs = oracle._compute_loss(model, inputs)
    # RLOO's own value is −mean A·log p; trl's ratio has the same gradient and another value.
    assert_equal(model, loss, theirs, values=mine is Grpo)


def likelihoods(logits: Tensor, rows: Examples) -> Tensor:
    """Written out: the log-likelihood of each row's answer at temperature 0.7."""
    tokens = (logits / 0.7).log_softmax(dim=-1)[torch.arange(len(rows.targets)), rows.targets]
    place = rows.places[0]
    return torch.stack([tokens[place == row].sum() for row in range(len(rows))])


def test_supervised_loss_is_trls(loaded: Loaded, tmp_path: Path) -> None:
    records = [record(s) | {"completion": said(s.reference_text)} for s in SAMPLES]
    settings = {"max_length": None, "completion_only_loss": True}
    oracle = trainer("SFT", loaded, records, tmp_path, **settings)
    batch = oracle.data_collator([oracle.train_dataset[i] for i in range(len(SAMPLES))])
    _, loss = ours(Sft(), oracle.model, None, loaded.processor, SAMPLES)
    assert_equal(oracle.model, loss, oracle.compute_loss(oracle.model, dict(batch)))
