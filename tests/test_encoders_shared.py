"""Encoders that borrow another input's: maps through the image's CLIP, video by its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from clmm.configuration_mmllm import MMLLMConfig
from clmm.encoders.frames import FrameProcessor, uniform_frames
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from streams.settings import SettingError

TEXT = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
CLIP = {
    "name": "clip", "image_size": 16, "patch_size": 4, "hidden_size": 16, "depth": 2, "heads": 2,
    "mlp": 24,
}  # fmt: skip
SHARING = {
    "image": CLIP,
    "depth": {"name": "vcoder", "of": "image"},
    "segmentation": {"name": "vcoder"},
    "video": {"name": "frames", "frames": 3},
}


def composed(encoders: dict[str, dict[str, Any]]) -> MMLLMForConditionalGeneration:
    torch.manual_seed(0)
    config = MMLLMConfig(
        encoders=encoders,
        input_projectors={name: {"name": "linear"} for name in encoders},
        text_config=TEXT,
        token_ids={name: 30 + i for i, name in enumerate(encoders)},
    )
    return MMLLMForConditionalGeneration(config).eval()


def test_a_shared_encoder_is_in_the_weights_once(tmp_path: Path) -> None:
    alone, model = composed({"image": CLIP}), composed(SHARING)
    kept = [key for key in model.state_dict() if key.startswith("encoders.")]
    assert kept == [key for key in alone.state_dict() if key.startswith("encoders.")]
    assert {*model.encoders} == {"image"}
    assert {*model.input_projectors} == {*SHARING}
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert again.config.encoders == model.config.encoders
    picture, video = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 3, 16, 16)
    for name, values in (("image", picture), ("depth", picture), ("video", video)):
        torch.testing.assert_close(again.encode(name, values), model.encode(name, values))


def test_what_shares_an_encoder_sees_as_its_owner_does() -> None:
    model = composed(SHARING)
    picture, video = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 3, 16, 16)
    image = model.encode("image", picture)
    assert torch.equal(model.encode("depth", picture), image)
    assert torch.equal(model.encode("segmentation", picture), image)
    assert model.config.num_tokens("video") == 3 * 16
    features = model.encode("video", video)
    assert features.shape == (2, 48, 16)
    frames = [model.encode("image", video[:, i]) for i in range(3)]
    torch.testing.assert_close(features, torch.cat(frames, dim=1), atol=1e-5, rtol=1e-5)
    alone = model.config.encoder("video").build().eval()
    alone.model.load_state_dict(model.encoders["image"].state_dict())
    torch.testing.assert_close(alone(video), features)


def test_one_sentence_with_depth_segmentation_image_and_video() -> None:
    model = composed(SHARING)
    counts = {name: model.config.num_tokens(name) for name in SHARING}
    assert counts == {"image": 16, "depth": 16, "segmentation": 16, "video": 48}
    order = ("depth", "segmentation", "image", "video")
    ids = [i for n in order for i in [model.config.token_ids[n]] * counts[n]]
    ids = torch.tensor([[*ids, 5, 6, 7]])
    picture = torch.randn(3, 1, 3, 16, 16)
    media = {
        "depth_values": picture[0],
        "segmentation_values": picture[1],
        "pixel_values": picture[2],
        "pixel_values_videos": torch.randn(1, 3, 3, 16, 16),
    }
    model(input_ids=ids, labels=ids.masked_fill(ids >= 30, -100), **media).loss.backward()
    for projector in model.input_projectors.values():
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())
    for parameter in model.encoders["image"].parameters():
        parameter.requires_grad_(False)
    weight = next(model.encoders["image"].parameters())
    assert not any(p.requires_grad for p in model.encoders.parameters())
    assert weight.data_ptr() == next(model.encoders.parameters()).data_ptr()
    out = model.generate(input_ids=ids, **media, max_new_tokens=2, do_sample=False)
    assert out.shape[1] > ids.shape[1]
    with pytest.raises(ValueError, match="16 depth tokens in the text, but no depth"):
        model(input_ids=ids, **{key: v for key, v in media.items() if key != "depth_values"})


def test_whose_encoder_it_is_must_be_known() -> None:
    for of, message in (
        ("imge", r"encoders\.depth\.of: 'imge' has no encoder of its own; did you mean image\?"),
        ("depth", r"encoders\.depth\.of: 'depth' has no encoder of its own; known: image"),
        ("video", r"encoders\.depth\.of: 'video' has no encoder of its own; known: image"),
    ):
        with pytest.raises(SettingError, match=message):
            composed({**SHARING, "depth": {"name": "vcoder", "of": of}})
    with pytest.raises(SettingError, match=r"encoders\.video\.of: 'image' has no encoder of its"):
        composed({"video": {"name": "frames"}})
    with pytest.raises(SettingError, match=r"vcoder\.off: no such setting; did you mean of\?"):
        composed({**SHARING, "depth": {"name": "vcoder", "off": "image"}})


def test_frames_are_sampled_uniformly() -> None:
    assert uniform_frames(101, 5) == [0, 25, 50, 75, 100]
    assert uniform_frames(10, 5) == [0, 2, 4, 7, 9]  # 2.25, 4.5 (to even), 6.75
    assert uniform_frames(5, 5) == [0, 1, 2, 3, 4]
    assert uniform_frames(2, 5) == [0, 0, 0, 1, 1]
    assert uniform_frames(1, 5) == [0] * 5
    assert uniform_frames(9, 1) == [0]
    with pytest.raises(ValueError, match="the video has no frames"):
        uniform_frames(0, 5)


def test_videos_are_preprocessed_as_their_frames_are() -> None:
    config = composed({"image": CLIP, "video": {"name": "frames"}}).config
    video = np.random.default_rng(0).integers(0, 255, (9, 20, 30, 3), dtype=np.uint8)
    processor = config.encoder("video").preprocessor()
    assert isinstance(processor, FrameProcessor)
    values = processor([video, list(video[:3])])["pixel_values_videos"]
    assert values.shape == (2, *config.encoder("video").shape) == (2, 5, 3, 16, 16)
    images = config.encoder("image").preprocessor()
    frames = images([video[i] for i in (0, 2, 4, 6, 8)], return_tensors="pt")["pixel_values"]
    assert torch.equal(values[0], frames)
