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
from clmm.processing_mmllm import MMLLMProcessor, byte_tokenizer
from streams.settings import SettingError

TEXT = {
    "model_type": "llama", "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
ENCODERS = {
    "convnext": {"patch_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "vit": {"patch_size": 8, "hidden_size": 16, "depth": 1, "heads": 2, "mlp": 16},
    "clip": {"patch_size": 8, "hidden_size": 16, "depth": 2, "heads": 2, "mlp": 16},
}


def made(
    encoder: str, *, projector: str = "mlp"
) -> tuple[MMLLMForConditionalGeneration, MMLLMProcessor]:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = MMLLMConfig(
        encoders={"image": {"name": encoder, "image_size": 24, **ENCODERS[encoder]}},
        input_projectors={"image": {"name": projector}},
        text_config=TEXT,
        token_ids={"image": tokenizer.convert_tokens_to_ids("<image>")},
    )
    model = MMLLMForConditionalGeneration(config).eval()
    images = config.encoder("image").preprocessor()
    return model, MMLLMProcessor(images, tokenizer, {"image": config.num_tokens("image")})


def inputs(processor: MMLLMProcessor, pictures: int = 2) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (24, 24, 3), dtype=np.uint8) for _ in range(pictures)]
    text = ["<|user|><image>Is it?<|assistant|>"] * pictures
    return dict(processor(text=text, images=images, return_tensors="pt", padding=True))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("projector", ["mlp", "linear"])
def test_forward_backward_reaches_every_component(encoder: str, projector: str) -> None:
    model, processor = made(encoder, projector=projector)
    batch = inputs(processor)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    for part in (model.encoders, model.input_projectors, model.language_model):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_saved_and_loaded_is_the_same(encoder: str, tmp_path: Path) -> None:
    model, processor = made(encoder)
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
    assert features.shape == (2, model.config.num_tokens("image"), 16)
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


def test_components_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match=r"there is no 'mlpp'; did you mean mlp\?"):
        made("vit", projector="mlpp")
    with pytest.raises(SettingError, match=r"encoders\.image: there is no input_projectors\.image"):
        MMLLMConfig(encoders={"image": {"name": "vit"}})
    with pytest.raises(ValueError, match="image_size 30 is no multiple of 16"):
        MMLLMConfig(
            encoders={"image": {"name": "vit", "image_size": 30}},
            input_projectors={"image": {"name": "linear"}},
        )


def test_the_order_of_components_stays() -> None:
    """Adapters draw in it: another order would be another training by the same seed."""
    model, _ = made("vit")
    names = [name for name, _ in model.named_children()]
    assert names[:3] == ["encoders", "language_model", "input_projectors"]
