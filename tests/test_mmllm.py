"""The multimodal LLM class and its processor keep the conventions and refuse what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from clmm.configuration_mmllm import MMLLMConfig
from clmm.loading import load
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from clmm.processing_mmllm import MMLLMProcessor, byte_tokenizer, image_processor
from streams.settings import SettingError

TEXT = {
    "model_type": "llama", "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
VISIONS = {
    "convnext": {
        "model_type": "convnext", "image_size": 24, "patch_size": 4, "num_stages": 2,
        "hidden_sizes": [8, 16], "depths": [1, 1],
    },
    "vit": {
        "model_type": "vit", "image_size": 24, "patch_size": 8, "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    },
    "clip": {
        "model_type": "clip_vision_model", "image_size": 24, "patch_size": 8, "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    },
}  # fmt: skip


def made(vision: str, **settings: object) -> tuple[MMLLMForConditionalGeneration, MMLLMProcessor]:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = MMLLMConfig(
        vision_config=VISIONS[vision],
        text_config=TEXT,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **settings,
    )
    model = MMLLMForConditionalGeneration(config).eval()
    return model, MMLLMProcessor(image_processor(24), tokenizer, config.num_image_tokens)


def inputs(processor: MMLLMProcessor, pictures: int = 2) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (24, 24, 3), dtype=np.uint8) for _ in range(pictures)]
    text = ["<|user|><image>Is it?<|assistant|>"] * pictures
    return dict(processor(text=text, images=images, return_tensors="pt", padding=True))


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("projector", ["mlp", "linear"])
def test_forward_backward_reaches_every_component(vision: str, projector: str) -> None:
    model, processor = made(vision, input_projector={"name": projector})
    batch = inputs(processor)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    for part in (model.encoder, model.input_projector, model.language_model):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize("vision", VISIONS)
def test_saved_and_loaded_is_the_same(vision: str, tmp_path: Path) -> None:
    model, processor = made(vision)
    batch = inputs(processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert isinstance(again, MMLLMForConditionalGeneration)
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
    other = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(other, MMLLMProcessor)
    assert torch.equal(inputs(other)["input_ids"], batch["input_ids"])
    assert load(str(tmp_path)).name


def test_features_computed_before_stand_in_for_pixels() -> None:
    model, processor = made("convnext")
    batch = inputs(processor)
    pixels = batch.pop("pixel_values")
    features = model.encode_images(pixels)
    assert features.shape == (2, model.config.num_image_tokens, 16)
    one = model.generate(**batch, pixel_values=pixels, max_new_tokens=6, do_sample=False)
    other = model.generate(**batch, image_features=features, max_new_tokens=6, do_sample=False)
    assert torch.equal(one, other)


def test_generation_with_and_without_cache_agree() -> None:
    model, processor = made("convnext")
    batch = inputs(processor)
    runs = [
        model.generate(**batch, max_new_tokens=6, do_sample=False, use_cache=use)
        for use in (True, False)
    ]
    assert torch.equal(*runs)


def test_numbers_of_tokens_must_fit() -> None:
    model, processor = made("convnext")
    batch = inputs(processor)
    with pytest.raises(ValueError, match=r"18 image tokens in the text, but 9 from the images"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:1]})
    batch.pop("pixel_values")
    with pytest.raises(ValueError, match="18 image tokens in the text, but no image"):
        model(**batch)
    with pytest.raises(ValueError, match="1 <image> placeholders in the text, 2 images"):
        processor(text="<image>", images=[np.zeros((4, 4, 3), np.uint8)] * 2)


def test_refuses_what_it_cannot_be_yet() -> None:
    with pytest.raises(ValueError, match=r"config\.generator: this version's output is text"):
        made("vit", generator={"name": "latent_diffusion"})
    with pytest.raises(SettingError, match=r"there is no 'mlpp'; did you mean mlp\?"):
        made("vit", input_projector={"name": "mlpp"})
