"""Converted tiny models of transformers: same inputs from the processors, same logits, same tokens.

Their own classes are the oracles. Everything goes the way that a user's checkpoint goes: saved,
converted, loaded, and asked through the processor that came out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_oracles
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from clmm.converting import convert

NEW = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
WORDS = ("What is it?", "Is there a house to be seen?", "Why")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Theirs and ours, each with its processor."""

    name: str
    model: Any
    processor: Any
    composed: Any
    own: Any

    @property
    def seq2seq(self) -> bool:
        return bool(self.composed.config.is_encoder_decoder)


@pytest.fixture(scope="module", params=tiny_oracles.ORACLES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_oracles.ORACLES[request.param](folder / "published")
    convert(folder / "published", folder / "ours")
    config = AutoConfig.from_pretrained(folder / "published")
    auto = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    theirs = auto.get(type(config), AutoModelForMultimodalLM)
    return Pair(
        name=request.param,
        model=theirs.from_pretrained(folder / "published").eval(),
        processor=AutoProcessor.from_pretrained(folder / "published"),
        composed=AutoModelForMultimodalLM.from_pretrained(folder / "ours").eval(),
        own=AutoProcessor.from_pretrained(folder / "ours"),
    )


def pictures(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(7)
    return [
        Image.fromarray(generator.integers(0, 255, (20 + i, 24, 3), dtype=np.uint8))
        for i in range(count)
    ]


def recordings(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [
        generator.normal(size=tiny_oracles.SECOND).astype(np.float32) * 0.1 for _ in range(count)
    ]


def inputs(pair: Pair, texts: tuple[str, ...], side: str = "right") -> tuple[Any, Any]:
    """What both processors make of one medium and words a row."""
    how: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
    for processor in (pair.processor, pair.own):
        processor.tokenizer.padding_side = side
    seen = pictures(len(texts))
    if pair.name == "qwen2_audio":
        written = [f"<|audio_bos|><|AUDIO|><|audio_eos|>{text}" for text in texts]
        heard = recordings(len(texts))
        rate = {"sampling_rate": tiny_oracles.SECOND}
        return (
            pair.processor(text=written, audio=heard, **how, **rate),
            pair.own(text=written, audio=heard, **how, **rate),
        )
    if pair.name.startswith("idefics"):
        mixed = [["User:", image, text] for image, text in zip(seen, texts, strict=True)]
        theirs = pair.processor(text=mixed, add_end_of_utterance_token=False, **how)
        written = [f"<s>User:<image>{text}" for text in texts]
        return theirs, pair.own(seen, written, add_special_tokens=False, **how)
    token = pair.own.image_token
    written = [f"{token}{text}" for text in texts]
    given = [*texts] if "blip" in pair.name else written
    if pair.name == "intern_vl":
        theirs = pair.processor(
            images=seen, text=given, crop_to_patches=False, padding_side=side, **how
        )
    else:
        theirs = pair.processor(images=seen, text=given, **how)
    return theirs, pair.own(seen, written, **how)


def answers(pair: Pair, rows: int) -> dict[str, torch.Tensor]:
    """What the decoder of an encoder–decoder reads."""
    if not pair.seq2seq:
        return {}
    return {"decoder_input_ids": torch.tensor([[258, 40, 50, 60], [258, 70, 80, 90]][:rows])}


def test_processors_make_the_same(pair: Pair) -> None:
    theirs, ours = inputs(pair, WORDS)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])
    assert set(ours) <= set(theirs)
    for key in set(ours) - {"input_ids", "attention_mask", "pixel_values"}:
        torch.testing.assert_close(ours[key], theirs[key])
    if "pixel_values" in ours:
        pixels = theirs["pixel_values"].flatten(0, -4)
        # IDEFICS resizes in another order of steps, by less than one shade of 255.
        torch.testing.assert_close(ours["pixel_values"], pixels, atol=0.02, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_same_weights_give_the_same_logits(pair: Pair, side: str) -> None:
    if side == "left" and "blip" in pair.name:
        pytest.skip("its processor puts an image's tokens before the padding")
    theirs, ours = inputs(pair, WORDS[:2], side)
    assert not ours["attention_mask"].all()
    if "pixel_values" in ours:
        ours["pixel_values"] = theirs["pixel_values"].flatten(0, -4)
    with torch.no_grad():
        expected = pair.model(**theirs, **answers(pair, 2)).logits
        found = pair.composed(**ours, **answers(pair, 2)).logits
    if not pair.seq2seq:
        there = ours["attention_mask"].bool()
        expected, found = expected[there], found[there]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_media_matter(pair: Pair) -> None:
    """Else the test above would say little."""
    _, ours = inputs(pair, WORDS[:1])
    key = "input_features" if pair.name == "qwen2_audio" else "pixel_values"
    with torch.no_grad():
        one = pair.composed(**ours, **answers(pair, 1)).logits
        other = pair.composed(**ours | {key: -ours[key]}, **answers(pair, 1)).logits
    assert (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_same_greedy_tokens(pair: Pair, use_cache: bool) -> None:
    for text in WORDS[:2]:
        theirs, ours = inputs(pair, (text,))
        if "pixel_values" in ours:
            ours["pixel_values"] = theirs["pixel_values"].flatten(0, -4)
        expected = pair.model.generate(**theirs, **NEW)[:, -8:]
        found = pair.composed.generate(**ours, **NEW, use_cache=use_cache)[:, -8:]
        assert torch.equal(found, expected)


def test_rows_do_not_depend_on_their_company(pair: Pair) -> None:
    texts = WORDS[:2]
    _, together = inputs(pair, texts, "left")
    found = pair.composed.generate(**together, **NEW)[:, -8:]
    media = [key for key in together if key not in ("input_ids", "attention_mask")]
    for row, text in enumerate(texts):
        _, alone = inputs(pair, (text,))
        for key in media:
            if not key.startswith("qformer"):
                alone[key] = together[key][row : row + 1]
        assert torch.equal(pair.composed.generate(**alone, **NEW)[:, -8:], found[row : row + 1])


def test_the_loss_is_the_same(pair: Pair) -> None:
    if pair.name.startswith("idefics"):
        pytest.skip("transformers 5.24 leaves the additional vocabulary out of its loss and fails")
    theirs, ours = inputs(pair, WORDS[:1])
    if "pixel_values" in ours:
        ours["pixel_values"] = theirs["pixel_values"].flatten(0, -4)
    labels = torch.tensor([[40, 50, 257]]) if pair.seq2seq else ours["input_ids"]
    with torch.no_grad():
        expected = pair.model(**theirs, labels=labels).loss
        found = pair.composed(**ours, labels=labels).loss
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_idefics_sees_the_last_image_alone(tmp_path: Path) -> None:
    """Two images in a row, and their additional tokens in the loss, taken from the logits."""
    tiny_oracles.idefics(tmp_path / "published")
    convert(tmp_path / "published", tmp_path / "ours")
    config = AutoConfig.from_pretrained(tmp_path / "published")
    model = (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
        .from_pretrained(tmp_path / "published")
        .eval()
    )
    composed = AutoModelForMultimodalLM.from_pretrained(tmp_path / "ours").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "published")
    own = AutoProcessor.from_pretrained(tmp_path / "ours")
    seen = pictures(3)
    mixed = [["Look:", seen[0], seen[1], "or", seen[2], "more?"]]
    theirs = processor(text=mixed, add_end_of_utterance_token=False, return_tensors="pt")
    written = "<s>Look:<image><image>or<image>more?"
    ours = own(seen, written, add_special_tokens=False, return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    ours["pixel_values"] = theirs["pixel_values"][0]
    with torch.no_grad():
        expected = model(**theirs).logits
        found = composed(**ours, labels=ours["input_ids"])
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)
    by_hand = torch.nn.functional.cross_entropy(expected[0, :-1], ours["input_ids"][0, 1:])
    torch.testing.assert_close(found.loss, by_hand)
    assert torch.equal(composed.generate(**ours, **NEW), model.generate(**theirs, **NEW))
