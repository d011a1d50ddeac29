"""ImageBind has the published size, its blocks and heads do what is written out here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import encoder_checks
import numpy as np
import pytest
import tiny_components
import torch
from torch import nn
from transformers import ASTFeatureExtractor

from clmm.encoders.imagebind import ImageBind
from clmm.imagebind import HUGE, Block, ImageBindNetwork, Stem, TowerSize
from clmm.modeling_mmllm import values_key

MODALITIES = ["image", "video", "audio", "depth", "thermal", "imu"]


def tiny(modality: Any, features: Any = "embedding") -> ImageBind:
    spec = tiny_components.BINDS[modality]
    return ImageBind(
        **{key: v for key, v in spec.items() if key != "name"} | {"features": features}
    )


def test_published_sizes() -> None:
    with torch.device("meta"):
        network = ImageBindNetwork()
    assert encoder_checks.millions(network) == pytest.approx(1200.78, abs=0.005)
    trunks = {
        "vision": 629.7, "text": 302.3, "audio": 85.1, "depth": 21.3, "thermal": 85.1, "imu": 18.9
    }  # fmt: skip
    for name, count in trunks.items():
        trunk = network.towers[name].trunk
        assert encoder_checks.millions(trunk) == pytest.approx(count, abs=0.05), name
    for modality in MODALITIES:
        tower = network.towers["vision" if modality in ("image", "video") else modality]
        alone = encoder_checks.millions(ImageBind(modality=modality))  # type: ignore[arg-type]
        assert alone == encoder_checks.millions(tower)
    shapes = {m: ImageBind(modality=m).shape for m in MODALITIES}  # type: ignore[arg-type]
    assert shapes == {
        "image": (3, 224, 224), "video": (5, 3, 2, 224, 224), "audio": (3, 204, 128),
        "depth": (1, 224, 224), "thermal": (1, 224, 224), "imu": (6, 2000),
    }  # fmt: skip
    assert ImageBind(modality="audio", features="tokens").num_tokens((3, 204, 128)) == 3 * 229


@pytest.mark.parametrize("bias_kv", [False, True])
def test_a_block_is_pre_norm_and_may_attend_to_a_learned_place(bias_kv: bool) -> None:
    torch.manual_seed(0)
    block, states = Block(8, 2, bias_kv=bias_kv), torch.randn(2, 5, 8)
    attention = block.attention
    for n in range(2):
        normed = nn.functional.layer_norm(
            states[n], (8,), block.attention_norm.weight, block.attention_norm.bias, 1e-6
        )
        query, key, value = (normed @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(
            3, dim=-1
        )
        if bias_kv:
            key = torch.cat([key, attention.bias_k[0]])
            value = torch.cat([value, attention.bias_v[0]])
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            scores = (query[:, h] @ key[:, h].T / 2).softmax(-1)
            heads.append(scores @ value[:, h])
        middle = states[n] + attention.out_proj(torch.cat(heads, dim=-1))
        hidden = nn.functional.gelu(block.mlp[0](block.mlp_norm(middle)))
        torch.testing.assert_close(block(states)[n], middle + block.mlp[2](hidden))


def small_network() -> ImageBindNetwork:
    torch.manual_seed(0)
    inputs = {"vision": (3, 2, 28, 28), "audio": (1, 26, 36), "imu": (6, 40), "text": (7,)}
    return ImageBindNetwork(
        {
            name: TowerSize(
                width=8,
                depth=2,
                heads=2,
                input=inputs.get(name, (1, 32, 32)),
                patch=size.patch,
                stride=size.stride,
                scale=size.scale,
            )
            for name, size in HUGE.items()
        },
        out_width=6,
    ).eval()


def test_embeddings_have_the_length_of_their_scale() -> None:
    network = small_network()
    media = {
        name: torch.randn(3, *inputs)
        for name, inputs in {
            "vision": (3, 28, 28), "audio": (1, 26, 36), "depth": (1, 32, 32),
            "thermal": (1, 32, 32), "imu": (6, 40),
        }.items()
    }  # fmt: skip
    media["text"] = torch.randint(1, 100, (3, 7))
    made = network(media)
    scales = {"vision": 1, "text": 1 / 0.07, "audio": 20, "depth": 5, "thermal": 10, "imu": 5}
    for name, scale in scales.items():
        assert made[name].shape == (3, 6)
        torch.testing.assert_close(made[name].norm(dim=-1), torch.full((3,), float(scale)))
    tower: Any = network.towers["text"]
    with torch.no_grad():
        tower.head.log_scale.fill_(math.log(1e4))
    torch.testing.assert_close(tower(media["text"]).norm(dim=-1), torch.full((3,), 100.0))


def test_text_is_read_to_its_end_and_never_ahead() -> None:
    """CLIP's end of text has the highest id; what follows it changes nothing."""
    tower: Any = small_network().towers["text"]
    ids = torch.tensor([[5, 9, 49407, 0, 0, 0, 0]])
    other = torch.tensor([[5, 9, 49407, 8, 8, 8, 8]])
    torch.testing.assert_close(tower(ids), tower(other))
    states = tower.trunk(tower.stem(ids))
    expected = 1 / 0.07 * nn.functional.normalize(tower.head.project(tower.head.norm(states[:, 2])))
    torch.testing.assert_close(tower(ids), expected)


def test_an_image_is_a_still_video() -> None:
    tower: Any = small_network().towers["vision"]
    image = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(tower(image), tower(torch.stack([image, image], dim=2)))


def test_motion_is_cut_into_tokens_of_all_channels() -> None:
    torch.manual_seed(0)
    size = TowerSize(width=8, depth=1, heads=2, input=(6, 40), patch=8, stride=8)
    stem, readings = Stem("imu", size), torch.randn(2, 6, 40)
    made = stem(readings)
    assert made.shape == (2, 6, 8)
    token = stem.norm(stem.patches(readings[1, :, 16:24].reshape(48)))
    torch.testing.assert_close(made[1, 3], token + stem.positions[0, 3])


def test_clips_are_averaged_or_joined() -> None:
    torch.manual_seed(0)
    encoder = tiny("audio")
    module: Any = encoder.build().eval()
    values = encoder_checks.values(encoder)
    clips = [module.tower(values[:, i].transpose(1, 2)[:, None]) for i in range(2)]
    torch.testing.assert_close(module(values)[:, 0], (clips[0] + clips[1]) / 2)
    module = tiny("audio", "tokens").build().eval()
    second = module.tower.tokens(values[:, 1].transpose(1, 2)[:, None])
    torch.testing.assert_close(module(values)[:, 7:], second)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_preprocessor_makes_the_shape(modality: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    media = {
        "image": rng.integers(0, 255, (2, 40, 30, 3), dtype=np.uint8),
        "video": rng.integers(0, 255, (2, 9, 40, 30, 3), dtype=np.uint8),
        "audio": rng.normal(size=(2, 50000)),
        "depth": rng.uniform(size=(2, 40, 30)),
        "thermal": rng.uniform(size=(2, 40, 30)),
        "imu": rng.normal(size=(2, 6, 30)),
    }[modality]
    encoder = tiny(modality)
    extractor = encoder.preprocessor()
    made = extractor(list(media), return_tensors="pt")
    (key,) = made
    assert key == values_key(modality)
    assert made[key].shape == (2, *encoder.shape)
    assert made[key].dtype == torch.float32
    extractor.save_pretrained(tmp_path)
    again = type(extractor).from_pretrained(tmp_path)
    assert torch.equal(again(list(media), return_tensors="pt")[key], made[key])


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_a_clip_of_sound_is_ast_s_with_imagebind_s_numbers() -> None:
    wave = np.random.default_rng(0).normal(size=32000).astype(np.float32)
    ast = ASTFeatureExtractor(max_length=204, mean=-4.268, std=9.138 / 2)
    expected = ast(wave, sampling_rate=16000, return_tensors="pt")["input_values"]
    made = ImageBind(modality="audio").preprocessor()(wave, return_tensors="pt")
    torch.testing.assert_close(made["input_features"][0], expected.expand(3, -1, -1))


def test_depth_is_normalised() -> None:
    made = tiny("depth").preprocessor()(np.full((32, 32), 0.1), return_tensors="pt")
    expected = torch.full((1, 1, 32, 32), (0.1 - 0.0418) / 0.0295)
    torch.testing.assert_close(made["depth_values"], expected)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="the 230 places of image are no multiple of 14"):
        ImageBind(image_size=230)
    with pytest.raises(ValueError, match="the 2001 places of imu are no multiple of 8"):
        ImageBind(modality="imu", samples=2001)
    with pytest.raises(ValueError, match="10 is less than a patch's 16"):
        ImageBind(modality="audio", frames=10)
    tower: Any = tiny("image", "tokens").build()
    with pytest.raises(ValueError, match="built without a head"):
        tower.tower(torch.zeros(1, 3, 28, 28))
