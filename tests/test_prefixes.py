"""A prefix in every layer is a key–value cache that was there before, for four families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from test_batching import MIXED
from transformers import DynamicCache

from clmm import key_value_cache
from clmm.answering import Answerer
from clmm.batching import Batcher
from clmm.loading import Loaded, load
from clmm.prefixes import Prefixes, shapes
from clmm.prompts import decoder_of


@pytest.fixture(scope="module", params=sorted(tiny_models.FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    return load(tiny_models.FAMILIES[request.param](folder), device="cpu")


def drawn(rows: int, layers: tuple[int, ...] = (0, 1), length: int = 3) -> dict[int, Any]:
    torch.manual_seed(0)
    return {layer: torch.randn(1, 2, 4, length, 8).expand(rows, -1, -1, -1, -1) for layer in layers}


def test_layers_are_found(loaded: Loaded) -> None:
    batch = Batcher(loaded.processor).prompts(MIXED[:1])
    before = decoder_of(loaded.model).config._attn_implementation
    assert shapes(loaded.model, batch) == {0: (4, 8), 1: (4, 8)}
    assert Prefixes.refusal(loaded.model, batch) is None
    assert decoder_of(loaded.model).config._attn_implementation == before != "prefixes"


@pytest.mark.parametrize("left", [False, True])
def test_logits_are_those_of_a_cache_that_was_there(loaded: Loaded, left: bool) -> None:
    """The oracle: cached keys bear no position of their own, and inputs keep theirs."""
    if "qwen" in loaded.name:
        pytest.skip("it counts positions by its cache")
    model, batcher = loaded.model, Batcher(loaded.processor)
    batch = batcher.prompts(MIXED) if left else batcher.training(MIXED)
    batch.pop("labels", None)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache, prefix = DynamicCache(), drawn(len(MIXED))
    for layer, pair in prefix.items():
        cache.update(pair[:, 0], pair[:, 1], layer)
    with torch.no_grad():
        seen = torch.cat([mask.new_ones(len(MIXED), 3), mask], dim=1)
        expected = model(
            **batch | {"attention_mask": seen, key_value_cache.NAME: cache},
            position_ids=positions,
        ).logits
        prefixes = Prefixes(model, drawn)
        found = model(**batch, position_ids=positions).logits
        prefixes.remove()
        plain = model(**batch, position_ids=positions).logits
    real = mask.bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)
    assert not torch.allclose(found[real], plain[real], atol=1e-3)


def test_answers_are_what_whole_passes_give_and_stay_alone(loaded: Loaded) -> None:
    """Decoding with the cache joins the same prefixes as a pass over everything."""
    model, batcher = loaded.model, Batcher(loaded.processor)
    answerer = Answerer(model, batcher, share_prompts=False)
    plain = answerer.answer(MIXED, max_new_tokens=5)
    with torch.no_grad():
        before = model(**batcher.training(MIXED)).logits
    prefixes = Prefixes(model, lambda rows: drawn(rows, layers=(1,)))
    try:
        together = [answer.text for answer in answerer.answer(MIXED, max_new_tokens=5)]
        for batch_size in (1, 2):
            alone = Answerer(model, batcher, batch_size=batch_size, share_prompts=False)
            assert [a.text for a in alone.answer(MIXED, max_new_tokens=5)] == together
        settings = {"generation_config": answerer._greedy(5)}
        batch = batcher.prompts(MIXED)
        ids = model.generate(**batch, **settings)
        if "qwen" not in loaded.name:
            assert torch.equal(ids, model.generate(**batch, **settings, use_cache=False))
        prefixes.on = False
        assert answerer.answer(MIXED, max_new_tokens=5) == plain
    finally:
        prefixes.remove()
    assert [answer.text for answer in plain] != together
    with torch.no_grad():
        assert torch.equal(model(**batcher.training(MIXED)).logits, before)
    decoder = decoder_of(model)
    assert not decoder._forward_pre_hooks
    assert not any(hasattr(module, "prefixes") for module in decoder.modules())


def test_only_the_chosen_layer_and_row_are_trained(tmp_path: Path) -> None:
    model = load(tiny_models.mmllm(tmp_path), device="cpu")
    own = torch.randn(len(MIXED), 2, 4, 3, 8, requires_grad=True)
    prefixes = Prefixes(model.model, lambda rows: {1: own})
    batch = Batcher(model.processor).training(MIXED)
    logits: Any = model.model(**batch).logits
    with pytest.raises(RuntimeError, match="chosen for 5 rows, but 1 came"):
        model.model(**Batcher(model.processor).training(MIXED[:1]))
    prefixes.remove()
    logits[1].sum().backward()
    assert own.grad is not None
    assert [bool(row.any()) for row in own.grad] == [False, True, False, False, False]


def test_a_model_with_attention_of_its_own_is_refused(tmp_path: Path) -> None:
    loaded = load(tiny_models.llava(tmp_path), device="cpu")
    batch = Batcher(loaded.processor).prompts(MIXED[:1])
    inner: Any = loaded.model
    for layer in inner.model.language_model.layers:
        layer.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    reason = Prefixes.refusal(loaded.model, batch)
    assert reason is not None
    assert "attention interface" in reason
