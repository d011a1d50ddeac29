"""Image encoders: published sizes, feature rules, formulas, refusals."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import tiny_components as tiny
import torch
from torch import Tensor, nn
from torch.nn import functional

from clmm.composition import compose
from clmm.configuration_mmllm import MMLLMConfig
from clmm.encoding import Encoder
from streams import settings

IMAGES = [case for case, spec in tiny.ENCODERS.items() if [*spec] == ["image"]]


def encoder(spec: dict[str, Any]) -> Any:
    if spec["name"] == "nfnet":
        pytest.importorskip("timm")
    return settings.from_spec("clmm.encoders", spec, where="encoders.image")


def built(spec: dict[str, Any]) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    made = encoder(spec)
    return made, made.build().eval()


def pictures(made: Encoder, count: int = 2) -> Tensor:
    return torch.randn(count, *made.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", IMAGES)
def test_the_preprocessor_makes_its_shape(case: str) -> None:
    made = encoder(tiny.ENCODERS[case]["image"])
    picture = np.zeros((20, 30, 3), np.uint8)
    assert (
        made.preprocessor()([picture], return_tensors="pt")["pixel_values"][0].shape == made.shape
    )


BIG_G = {"name": "open_clip", "hidden_size": 1664, "depth": 48, "mlp": 8192}
GIANT = {"name": "dinov2", "hidden_size": 1536, "depth": 40, "heads": 24, "swiglu": True}
SMALL_INTERN = {
    "name": "intern_vit", "image_size": 448, "hidden_size": 1024, "depth": 24, "heads": 16,
    "mlp": 4096, "norm": "layer_norm", "qk_norm": False, "qkv_bias": True,
}  # fmt: skip
BEIT_LARGE = {"hidden_size": 1024, "depth": 24, "heads": 16, "mlp": 4096}
BEIT_BASE = {"hidden_size": 768, "depth": 12, "heads": 12, "mlp": 3072}


@pytest.mark.parametrize(
    ("spec", "millions", "tokens"),
    [
        ({"name": "open_clip"}, 630.77, 256),
        (BIG_G, 1842.78, 256),
        ({**BIG_G, "image_size": 448}, 1844.06, 1024),
        ({**BIG_G, "image_size": 448, "position_size": 224}, 1842.78, 1024),
        ({"name": "eva_clip"}, 985.95, 257),
        ({"name": "eva_clip", "image_size": 448, "class_token": False}, 987.03, 1024),
        # The published 1011.15 has no bias for keys; the class keeps one at zero.
        ({"name": "eva_clip", "depth": 40}, 1011.15 + 40 * 1408 / 1e6, 257),
        ({"name": "beit3"}, 1011.81, 256),
        ({"name": "beit3", "patch_size": 16, **BEIT_LARGE}, 303.55, 196),
        ({"name": "beit3", "patch_size": 16, **BEIT_BASE}, 85.89, 196),
        ({"name": "dinov2"}, 304.37, 256),
        ({"name": "dinov2", "registers": 4}, 304.37, 256),
        (GIANT, 1136.48, 256),
        ({"name": "sam_hq"}, 637.03, 4096),
        ({"name": "intern_vit"}, 5902.79, 256),
        ({"name": "intern_vit", "depth": 45, "image_size": 448}, 5536.50, 1024),
        (SMALL_INTERN, 304.01, 1024),
        ({"name": "nfnet"}, 435.29, 196),
        ({"name": "ram_plus_plus"}, 195.20 + (1536 + 1) * 512 / 1e6, 144),
        (
            {"name": "ram_plus_plus", "embed_dim": 128, "heads": [4, 8, 16, 32]},
            86.88 + (1024 + 1) * 512 / 1e6,
            144,
        ),
    ],
)
def test_published_sizes(spec: dict[str, Any], millions: float, tokens: int) -> None:
    made = encoder(spec)
    with torch.device("meta"):
        module = made.build()
    count = sum(p.numel() for p in module.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.0051)
    assert made.num_tokens(made.shape) == tokens


@pytest.mark.parametrize("name", ["open_clip", "eva_clip"])
def test_positions_are_interpolated(name: str) -> None:
    """As a network whose own table is the small one, stretched bicubically, class token apart."""
    spec = {"name": name, **tiny.VIT}
    _, large = built(spec)
    made, stretched = built({**spec, "position_size": 8})
    weights = stretched.state_dict()
    key = next(key for key in weights if "position_embedding" in key)
    table = weights[key].reshape(-1, 16)
    grid = table[1:].reshape(1, 2, 2, 16).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
    whole = torch.cat([table[:1], grid.permute(0, 2, 3, 1).reshape(16, 16)])
    large.load_state_dict({**weights, key: whole.reshape(large.state_dict()[key].shape)})
    values = pictures(made)
    torch.testing.assert_close(stretched(values), large(values), atol=1e-5, rtol=1e-5)


def test_feature_rules_take_what_they_say() -> None:
    values = torch.randn(2, 3, 16, 16)
    _, clip = built({"name": "open_clip", **tiny.VIT, "layers": [1, -1]})
    hidden = clip.model(values, output_hidden_states=True).hidden_states
    expected = torch.cat([hidden[1], hidden[2]], dim=-1)[:, 1:]
    torch.testing.assert_close(clip(values), expected)
    _, eva = built({"name": "eva_clip", **tiny.VIT})
    torch.testing.assert_close(eva(values), eva.model(values).last_hidden_state)
    _, dino = built({**tiny.DINO, "registers": 4})
    torch.testing.assert_close(dino(values), dino.model(values).last_hidden_state[:, 5:])
    _, sam = built(tiny.SAM)
    feature_map = sam.model(values).last_hidden_state
    assert feature_map.shape == (2, 8, 4, 4)
    torch.testing.assert_close(sam(values)[:, 4 * 2 + 3], feature_map[:, :, 2, 3])


def test_beit3_is_the_papers_formula() -> None:
    _, module = built({"name": "beit3", **tiny.VIT, "class_token": True})
    net: Any = module.model  # type: ignore[union-attr]
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    values = torch.randn(2, 3, 16, 16)
    patches = functional.unfold(values, 4, stride=4).transpose(1, 2)
    x = patches @ net.patch.weight.flatten(1).T + net.patch.bias
    x = torch.cat([net.class_token.expand(2, 1, 16), x], dim=1) + net.positions

    def norm(x: Tensor, by: Any) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * by.weight + by.bias

    for block in net.blocks:
        normed = norm(x, block.attention_norm)
        parts = (block.query, block.key, block.value)
        q, k, v = ((normed @ p.weight.T + p.bias).view(2, 17, 2, 8) for p in parts)
        weights = (torch.einsum("nihd,njhd->nhij", q, k) / 8**0.5).softmax(-1)
        attended = torch.einsum("nhij,njhd->nihd", weights, v).reshape(2, 17, 16)
        x = x + block.out(norm(attended, block.inner_attention_norm))
        up = norm(x, block.mlp_norm) @ block.up.weight.T + block.up.bias
        gelu = up * (1 + torch.erf(up / 2**0.5)) / 2
        x = x + block.down(norm(gelu, block.inner_mlp_norm))
    torch.testing.assert_close(module(values), norm(x, net.norm), atol=1e-4, rtol=1e-5)


def test_grounding_dino_gives_what_the_detectors_enhancer_receives() -> None:
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoModel

    made, module = built(tiny.ENCODERS["grounding_dino"]["image"])
    detector = GroundingDinoModel(
        GroundingDinoConfig(
            backbone_config=module.backbone.config,  # type: ignore[union-attr]
            text_config=BertConfig(
                vocab_size=2000,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
            ),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=3,
        )
    ).eval()
    weights = {
        key.replace("backbone.conv_encoder.model.", "backbone."): value
        for key, value in detector.state_dict().items()
        if key.startswith(("backbone.conv_encoder.model.", "input_proj_vision."))
    }
    module.load_state_dict(weights)
    received: list[Tensor] = []

    class ReceivedError(Exception):
        pass

    def receive(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        received.append(kwargs["vision_features"])
        raise ReceivedError

    detector.encoder.register_forward_pre_hook(receive, with_kwargs=True)
    values = pictures(made)
    with pytest.raises(ReceivedError):
        detector(pixel_values=values, input_ids=torch.tensor([[101, 7, 102]] * 2))
    torch.testing.assert_close(module(values), received[0], atol=1e-5, rtol=1e-5)


def test_grounding_dino_is_of_the_published_detector() -> None:
    from transformers import GroundingDinoConfig, GroundingDinoModel

    with torch.device("meta"):
        detector = GroundingDinoModel(GroundingDinoConfig())
        module = encoder({"name": "grounding_dino"}).build()
    assert sum(p.numel() for p in detector.parameters()) / 1e6 == pytest.approx(172.12, abs=0.005)
    parts = (detector.backbone, detector.input_proj_vision)
    expected = sum(p.numel() for part in parts for p in part.parameters())
    assert sum(p.numel() for p in module.parameters()) == expected


def test_nfnet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    made = settings.from_spec("clmm.encoders", tiny.NFNET, where="encoders.image")
    with pytest.raises(ImportError, match="nfnet: its network comes from timm; pip install timm"):
        made.build()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "open_clip", "image_size": 225},
            "open_clip: image_size 225 is no multiple of 14",
        ),
        ({"name": "beit3", "heads": 3}, "beit3: hidden_size 1408 is no multiple of 3 heads"),
        ({"name": "sam_hq", "depth": 12}, "sam_hq: global_blocks has 15, but depth is 12"),
        (
            {"name": "grounding_dino", "strides": [4]},
            r"strides is \[4\]; choose of \(8, 16, 32, 64",
        ),
        ({"name": "grounding_dino", "strides": [8, 8]}, r"strides is \[8, 8\]; .*, each once"),
        ({"name": "grounding_dino", "d_model": 100}, "d_model 100 is no multiple of 32"),
        ({"name": "grounding_dino", "heads": [1]}, "depths has 4 stages, heads 1; give 4"),
        (
            {"name": "ram_plus_plus", "features": "tags", "best": 5000},
            "best is 5000, but there are 4",
        ),
        ({"name": "ram_plus_plus", "depths": [2]}, "depths has 1 stages, heads 4"),
        ({"name": "nfnet", "depths": [1]}, "depths has 1 stages, channels 4; give 4 of both"),
        ({"name": "frames", "frames": 0}, r"encoders\.image\.frames: 0; give 1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMLLMConfig(encoders={"image": spec}, input_projectors={"image": {"name": "linear"}})


def test_joined_encoders_see_the_picture_each_in_its_own_way() -> None:
    made, module = built(tiny.LYRICS)
    assert made.shape == (3, 72, 72)
    picture = np.random.default_rng(0).integers(0, 255, (72, 72, 3), dtype=np.uint8)
    pixels = made.preprocessor()([picture], return_tensors="pt")["pixel_values"]
    features, at = module(pixels), 0
    for i, part in enumerate(made.parts):
        count = part.num_tokens(part.shape)
        mine, at = features[:, at : at + count], at + count
        if part.shape != made.shape:
            continue  # its own resampling of the picture is another
        own = part.preprocessor()([picture], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(mine, module.maps[i](module.parts[i](own)), atol=1e-4, rtol=1e-4)
    assert at == features.shape[1] == 16 + 119 + 16 + 4


def test_lyrics_is_a_composition() -> None:
    """Image queries over CLIP's features, grounding queries over the visual refiner's."""
    reader = {**tiny.PROJECTORS["mq_former"], "image_features": 16}
    torch.manual_seed(0)
    model = compose(llm=tiny.LLM, encoders={"image": tiny.LYRICS}, projectors={"image": reader})
    assert model.config.num_tokens("image") == 3 + 4
    token = model.config.token_ids["image"]
    batch = {
        "input_ids": torch.tensor([[token] * 7 + [5, 6]]),
        "pixel_values": pictures(model.config.encoder("image"), 1),
        "qformer_input_ids": torch.tensor([[1, 2, 3]]),
    }
    model(**batch, labels=batch["input_ids"].clamp(max=9)).loss.backward()
    assert all(p.grad is not None for p in model.input_projectors.parameters())
    names = ("clip", "grounding_dino", "sam_hq", "ram_plus_plus")
    large = settings.from_spec(
        "clmm.encoders", {"name": "joined", "encoders": [{"name": n} for n in names]}, where="x"
    )
    levels = 100**2 + 50**2 + 25**2 + 13**2
    assert (large.num_tokens(large.shape), large.width) == (256 + levels + 4096 + 144, 1024)
    assert large.shape == (3, 1024, 1024)
