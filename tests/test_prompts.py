"""A soft prompt of real tokens' embeddings is those tokens, for three families, padded or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from test_batching import MIXED
from torch import Tensor

from clmm import key_value_cache
from clmm.answering import Answerer
from clmm.batching import Batcher
from clmm.loading import Loaded, load
from clmm.prompts import Insertion, decoder_of, inserted, stripped

SERVED = ("idefics3", "llava", "mmllm")
CANDIDATES: list[tuple[str, ...]] = [("Yes.", "No, not at all."), ("",), (), ("a",), ("b", "cc")]


@pytest.fixture(scope="module", params=SERVED)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    return load(tiny_models.FAMILIES[request.param](folder), device="cpu")


@pytest.fixture
def prompted(loaded: Loaded) -> Iterator[tuple[Loaded, Insertion, list[int]]]:
    """A model whose inputs begin with the embeddings of five tokens."""
    ids = loaded.processor.tokenizer("Hello")["input_ids"][-5:]
    assert len(ids) == 5
    table: Any = loaded.model.get_input_embeddings()
    prompt = table.weight[ids].detach()
    insertion = Insertion(loaded.model, lambda rows: prompt.expand(rows, -1, -1))
    yield loaded, insertion, ids
    insertion.remove()


class Beginning(Batcher):
    """Batches whose rows really begin with `ids`."""

    ids: list[int]

    def prompts(self, samples: Any) -> dict[str, Tensor]:
        return self._begun(super().prompts(samples))

    def continuations(self, samples: Any, texts: Any) -> dict[str, Tensor]:
        return self._begun(super().continuations(samples, texts))

    def training(self, *args: Any) -> dict[str, Tensor]:
        return self._begun(super().training(*args))

    def _begun(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        first = batch["attention_mask"].argmax(dim=1)
        new = torch.tensor(self.ids).expand(len(first), -1)
        fill = {"input_ids": new, "attention_mask": torch.ones_like(new),
                "labels": torch.full_like(new, -100)}  # fmt: skip
        return {k: inserted(t, fill[k], first) if k in fill else t for k, t in batch.items()}


def beginning(loaded: Loaded, ids: list[int]) -> Beginning:
    batcher = Beginning(loaded.processor)
    batcher.ids = ids
    return batcher


@pytest.mark.parametrize("rows", [MIXED[:1], MIXED], ids=["alone", "padded"])
def test_logits_are_those_of_the_text(prompted: Any, rows: list[Any]) -> None:
    loaded, insertion, ids = prompted
    batch, begun = Batcher(loaded.processor).training(rows), beginning(loaded, ids).training(rows)
    real = batch["attention_mask"].bool()
    length = real.shape[1]
    places = torch.arange(3, length)
    with torch.no_grad():
        output = loaded.model(**batch)
        batch.pop("labels")
        kept = loaded.model(**batch, logits_to_keep=4).logits
        at = loaded.model(**batch, logits_to_keep=places).logits
        states = loaded.model(**batch, output_hidden_states=True).hidden_states
        insertion.on = False
        expected = loaded.model(**begun)
        plain = loaded.model(**batch).logits
    assert output.logits.shape[1] == length
    # The rows are right-padded, so the tokens stand in front of all of them.
    torch.testing.assert_close(output.logits[real], expected.logits[:, 5:][real], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(kept, output.logits[:, -4:], atol=1e-5, rtol=0)
    torch.testing.assert_close(at, output.logits[:, 3:], atol=1e-5, rtol=0)
    assert {state.shape[1] for state in states} == {length}
    assert not torch.allclose(plain, output.logits, atol=1e-3)


def test_answers_are_those_of_the_text_alone_and_in_company(prompted: Any) -> None:
    loaded, insertion, ids = prompted
    model = loaded.model
    batch = Batcher(loaded.processor).prompts(MIXED)
    settings = Answerer(model, Batcher(loaded.processor))._greedy(8)
    found = model.generate(**batch, generation_config=settings)
    without_cache = {"generation_config": settings, "use_cache": False}
    again = model.generate(**batch, **without_cache)
    answerer = Answerer(model, Batcher(loaded.processor))
    together = [answer.text for answer in answerer.answer(MIXED, max_new_tokens=8)]
    alone = [answerer.answer([s], max_new_tokens=8)[0].text for s in MIXED]
    insertion.on = False
    begun = model.generate(**beginning(loaded, ids).prompts(MIXED), generation_config=settings)
    plain = model.generate(**batch, generation_config=settings)
    length = batch["input_ids"].shape[1]
    assert torch.equal(found[:, length:], begun[:, length + 5 :])
    assert torch.equal(found, again)
    assert not torch.equal(plain, found)
    assert together == alone
    text = Answerer(model, beginning(loaded, ids)).answer(MIXED, max_new_tokens=8)
    assert [answer.text for answer in text] == together


@pytest.mark.parametrize("share", [True, False, None])
def test_likelihoods_are_those_of_the_text(prompted: Any, share: bool | None) -> None:
    loaded, insertion, ids = prompted
    for batch_size in (2, 64):
        settings: dict[str, Any] = {"share_prompts": share, "batch_size": batch_size}
        insertion.on = True
        found = Answerer(loaded.model, Batcher(loaded.processor), **settings).log_likelihood(
            MIXED, CANDIDATES
        )
        insertion.on = False
        begun = Answerer(loaded.model, beginning(loaded, ids), **settings)
        expected = begun.log_likelihood(MIXED, CANDIDATES)
        for row, right in zip(found, expected, strict=True):
            assert row == pytest.approx(right, abs=1e-4)


def test_positions_given_under_left_padding_are_the_text_s(prompted: Any) -> None:
    """The next token's logits, first pass and then one more input, as `generate` asks them."""
    loaded, insertion, ids = prompted
    one, mine = [], (Batcher(loaded.processor), beginning(loaded, ids))
    for batcher in mine:
        insertion.on = batcher is mine[0]
        batch = batcher.prompts(MIXED)
        mask = batch["attention_mask"]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad():
            seen = loaded.model(**batch, position_ids=positions, use_cache=True)
            more = loaded.model(
                input_ids=torch.full((len(MIXED), 2), 7),
                attention_mask=torch.cat([mask, mask.new_ones(len(MIXED), 2)], dim=1),
                position_ids=positions[:, -1:] + torch.tensor([1, 2]),
                **{key_value_cache.NAME: key_value_cache.given(seen)},
            )
        one.append(torch.cat([seen.logits[:, -1:], more.logits], dim=1))
    torch.testing.assert_close(*one, atol=1e-5, rtol=0)


def test_without_it_the_model_is_as_it_was(loaded: Loaded) -> None:
    batch = Batcher(loaded.processor).training(MIXED)
    with torch.no_grad():
        before = loaded.model(**batch).logits
        insertion = Insertion(loaded.model, lambda rows: torch.ones(rows, 2, 32))
        changed = loaded.model(**batch).logits
        insertion.on = False
        assert torch.equal(loaded.model(**batch).logits, before)
        insertion.remove()
        assert torch.equal(loaded.model(**batch).logits, before)
    assert not torch.allclose(changed, before)
    decoder = decoder_of(loaded.model)
    assert not decoder._forward_pre_hooks
    assert not decoder._forward_hooks


def test_rows_get_their_own_prompts_and_gradients(loaded: Loaded) -> None:
    own = torch.randn(len(MIXED), 3, 32, requires_grad=True)
    insertion = Insertion(loaded.model, lambda rows: own)
    try:
        logits = loaded.model(**Batcher(loaded.processor).training(MIXED)).logits
    finally:
        insertion.remove()
    logits[1].sum().backward()
    assert own.grad is not None
    assert [bool(row.any()) for row in own.grad] == [False, True, False, False, False]
    loaded.model.zero_grad()


def test_inserting_and_stripping() -> None:
    rows, new = torch.arange(8).reshape(2, 4), torch.tensor([[-1, -2, -3]] * 2)
    first = torch.tensor([0, 2])
    found = inserted(rows, new, first)
    assert found.tolist() == [[-1, -2, -3, 0, 1, 2, 3], [4, 5, -1, -2, -3, 6, 7]]
    assert torch.equal(stripped(found, 3, first), rows)


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    qwen = load(tiny_models.qwen2_vl(tmp_path / "qwen"), device="cpu")
    reason = Insertion.refusal(qwen.model, Batcher(qwen.processor).prompts(MIXED[:1]))
    assert reason is not None
    assert "rotary deltas" in reason
    llava = load(tiny_models.llava(tmp_path / "llava"), device="cpu")
    batch = Batcher(llava.processor).prompts(MIXED[:1])
    assert Insertion.refusal(llava.model, batch) is None
    inner = llava.model.model
    real = inner.language_model
    tokens = torch.zeros(1, batch["input_ids"].shape[1])
    for change, message in (
        ({"attention_mask": {"full": None}}, "finished attention mask"),
        ({"inputs_embeds": None, "input_ids": batch["input_ids"]}, "no inputs_embeds by keyword"),
        ({"position_ids": tokens[None]}, "along several axes"),
        ({"token_types": tokens}, "token_types, which would no longer fit"),
    ):
        hook = real.register_forward_pre_hook(
            lambda _, args, kwargs, new=change: (args, kwargs | new), with_kwargs=True
        )
        reason = Insertion.refusal(llava.model, batch)
        hook.remove()
        assert reason is not None
        assert message in reason
