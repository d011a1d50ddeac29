"""Input projectors: published sizes, equality with others', refusals."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import tiny_components as tiny
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, layer_norm
from transformers import IdeficsConfig, InternVLConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import (
    InternVLModel,
    InternVLMultiModalProjector,
)

from streams.settings import SettingError, from_spec

FEATURES, WIDTH, OUTPUT = 16, 12, 24


def settings(spec: dict[str, Any]) -> Any:
    return from_spec("clmm.projectors", spec, where="input_projectors.image")


def built(spec: dict[str, Any], inputs: int = WIDTH, outputs: int = OUTPUT) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = settings(spec).build(input_width=inputs, output_width=outputs)
    return module


def instruction(module: nn.Module, rows: int = 2) -> dict[str, Tensor]:
    if not getattr(module, "reads_instruction", False):
        return {}
    ids = torch.arange(1, 1 + 5 * rows).reshape(rows, 5)
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    return {"qformer_input_ids": ids, "qformer_attention_mask": mask}


@pytest.mark.parametrize(
    ("spec", "inputs", "outputs", "millions"),
    [
        ({"name": "resampler"}, 1280, 1280, 125.96),  # IDEFICS publishes no number; its class's is
        ({"name": "concat"}, 1408, 4096, 23.07),
        ({"name": "ldp"}, 1024, 2048, 18.94),
        ({"name": "ldp_v2"}, 1024, 2048, 6.32),
        ({"name": "cross_attention", "project": False}, 1664, 4096, 75.01),
        ({"name": "cross_attention"}, 1664, 4096, 75.01 + 16.785),
        ({"name": "q_former"}, 1408, 4096, 108.31),
        ({"name": "instruct_q_former"}, 1408, 4096, 188.83),
    ],
)
def test_published_sizes(spec: dict[str, Any], inputs: int, outputs: int, millions: float) -> None:
    with torch.device("meta"):
        module = settings(spec).build(input_width=inputs, output_width=outputs)
    assert _millions(module) == pytest.approx(millions, abs=0.006)


def test_published_sizes_of_the_networks_inside() -> None:
    with torch.device("meta"):
        reader = settings({"name": "q_former"}).build(input_width=1408, output_width=8)
        instructed = settings({"name": "instruct_q_former"}).build(input_width=1408, output_width=8)
        teacher = settings({"name": "p_former"}).teacher(output_width=2560)
        flamingo = {
            "activation": "squared_relu",
            "qk_norm": False,
            "frames": 8,
            **_named("resampler"),
        }
        resampler = settings(flamingo).build(input_width=1536, output_width=1536)
    assert _millions(reader.qformer) == pytest.approx(105.14, abs=0.005)
    assert _millions(instructed.qformer) == pytest.approx(185.66, abs=0.005)
    assert _millions(teacher) - _millions(teacher.language_projection) == pytest.approx(
        129, rel=0.01
    )
    assert _millions(resampler) == pytest.approx(170, abs=0.05)


def _named(name: str) -> dict[str, Any]:
    return {"name": name}


def _millions(module: nn.Module) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


@pytest.mark.parametrize("qk_norm", [True, False])
def test_resampler_equals_idefics(qk_norm: bool) -> None:
    config = IdeficsConfig(
        vision_config={"embed_dim": WIDTH},
        perceiver_config={"qk_layer_norms_perceiver": qk_norm},
    )
    torch.manual_seed(1)
    theirs = IdeficsPerceiverResampler(config, WIDTH, 2, 2, 6, 5)
    _shaken(theirs)
    ours = built({**tiny.RESAMPLER, "qk_norm": qk_norm}, outputs=WIDTH)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(3, 7, WIDTH)
    torch.testing.assert_close(ours(features), theirs(features), atol=1e-5, rtol=0)


def test_resampler_adds_a_time_embedding_to_each_frame_and_squares_relu() -> None:
    plain = built({**tiny.RESAMPLER, "qk_norm": False}, outputs=WIDTH)
    timed = built({**tiny.RESAMPLER, "qk_norm": False, "frames": 3}, outputs=WIDTH)
    timed.load_state_dict(plain.state_dict(), strict=False)
    features = torch.randn(2, 12, WIDTH)
    times = timed.time.repeat_interleave(4, dim=0)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(timed(features), plain(features + times))
    squared = built(
        {**tiny.RESAMPLER, "qk_norm": False, "activation": "squared_relu"}, outputs=WIDTH
    )
    mlp: Any = squared.blocks[0][1]  # type: ignore[index]
    hidden = mlp.fc(mlp.ln(features))
    torch.testing.assert_close(mlp(features), mlp.c_proj(hidden.clamp(min=0) ** 2))


def test_pixel_shuffle_equals_internvl_and_idefics3() -> None:
    config = InternVLConfig(
        vision_config={"hidden_size": WIDTH},
        text_config={"model_type": "qwen2", "hidden_size": OUTPUT},
    )
    theirs = InternVLMultiModalProjector(config)
    _shaken(theirs)
    ours = built({"name": "pixel_shuffle"})
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.data.copy_(their)
    features = torch.randn(2, 36, WIDTH)
    # As `InternVLModel.get_image_features` calls it; the method reads nothing of the model.
    shuffled = InternVLModel.pixel_shuffle(None, features.reshape(2, 6, 6, WIDTH), 0.5)
    expected = theirs(shuffled.reshape(2, -1, shuffled.shape[-1]))
    torch.testing.assert_close(ours(features), expected, atol=1e-5, rtol=0)

    connector = Idefics3Connector.__new__(Idefics3Connector)
    linear = built({"name": "pixel_shuffle", "mlp": False, "factor": 3})
    expected = linear[1](connector.pixel_shuffle(features, 3))  # type: ignore[index, operator]
    torch.testing.assert_close(linear(features), expected, atol=1e-5, rtol=0)


def test_concat_joins_neighbours() -> None:
    module = built({"name": "concat"})
    features = torch.randn(2, 8, WIDTH)
    expected = module[1](features.view(2, 2, 4 * WIDTH))  # type: ignore[index, operator]
    torch.testing.assert_close(module(features), expected)


def test_cross_attention_equals_its_formula() -> None:
    """Qwen-VL's adapter, written out: queries of a 3 × 3 grid over features of a 4 × 4 grid."""
    module: Any = built({"name": "cross_attention", "queries": 9, "heads": 2})
    _shaken(module)
    features = torch.randn(2, 16, WIDTH)
    table = torch.empty(9, OUTPUT)
    for row in range(3):
        for column in range(3):
            for half, place in enumerate((column, row)):
                for i in range(OUTPUT // 4):
                    angle = place / 10000 ** (i / (OUTPUT / 4))
                    start = half * OUTPUT // 2 + i
                    table[3 * row + column, start] = math.sin(angle)
                    table[3 * row + column, start + OUTPUT // 4] = math.cos(angle)
    grid = table.T.reshape(1, OUTPUT, 3, 3)
    wide = interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)[0].flatten(1).T
    keys = module.ln_kv(features @ module.kv_proj.weight.T)
    query = module.ln_q(module.query) + table
    maps = module.attn.in_proj_weight.chunk(3)
    biases = module.attn.in_proj_bias.chunk(3)
    inputs = (query.expand(2, -1, -1), keys + wide, keys)
    q, k, v = (
        (x @ w.T + b).unflatten(2, (2, -1)).transpose(1, 2)
        for x, w, b in zip(inputs, maps, biases, strict=True)
    )
    weights = (q @ k.transpose(2, 3) / math.sqrt(OUTPUT / 2)).softmax(dim=-1)
    attended = module.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
    expected = module.ln_post(attended) @ module.proj
    torch.testing.assert_close(module(features), expected, atol=1e-5, rtol=0)


def test_ldp_equals_blocks_of_mobilenet() -> None:
    """MobileVLM builds it of torchvision's inverted residuals, with layer norms over channels."""
    from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
    from torchvision.ops.misc import SqueezeExcitation

    class Norm(nn.LayerNorm):
        def forward(self, grid: Tensor) -> Tensor:
            moved = grid.permute(0, 2, 3, 1)
            normed = layer_norm(moved, self.normalized_shape, self.weight, self.bias, self.eps)
            return normed.permute(0, 3, 1, 2)

    excitation = partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid)
    theirs = nn.Sequential(
        *(
            InvertedResidual(
                InvertedResidualConfig(OUTPUT, 3, OUTPUT, OUTPUT, True, "HS", stride, 1, 1),
                Norm,
                excitation,
            )
            for stride in (1, 2)
        )
    )
    _shaken(theirs)
    ours: Any = built({"name": "ldp"})
    for mine, their in zip(ours.blocks.parameters(), theirs.parameters(), strict=True):
        mine.data.copy_(their)
    features = torch.randn(2, 25, WIDTH)
    hidden = ours.mlp[2](gelu(ours.mlp[0](features)))
    expected = theirs(hidden.permute(0, 2, 1).reshape(2, OUTPUT, 5, 5))
    assert expected.shape[2:] == (3, 3)
    torch.testing.assert_close(
        ours(features), expected.flatten(2).permute(0, 2, 1), atol=1e-5, rtol=0
    )


def test_ldp_v2_equals_its_formula() -> None:
    module: Any = built({"name": "ldp_v2", "grid": 2})
    features = torch.randn(2, 16, WIDTH)
    hidden = module.mlp(features).reshape(2, 2, 2, 2, 2, OUTPUT)
    pooled = hidden.mean(dim=(2, 4))
    padded = torch.zeros(2, 4, 4, OUTPUT)
    padded[:, 1:3, 1:3] = pooled
    kernel = module.positions.weight[:, 0]
    moved = module.positions.bias + sum(
        padded[:, i : i + 2, j : j + 2] * kernel[:, i, j] for i in range(3) for j in range(3)
    )
    torch.testing.assert_close(module(features), (pooled + moved).flatten(1, 2), atol=1e-5, rtol=0)


def test_two_query_sets_read_only_what_is_theirs() -> None:
    """With one layer, each set depends on its own features; with two, on both."""
    for depth, other in ((1, False), (2, True)):
        spec = {**tiny.PROJECTORS["mq_former, without text"], "depth": depth}
        module = built(spec).eval()
        features = torch.randn(1, FEATURES, WIDTH, requires_grad=True)
        for queries, own in ((slice(0, 3), slice(0, 10)), (slice(3, 7), slice(10, 16))):
            (grad,) = torch.autograd.grad(module(features)[:, queries].sum(), features)
            mask = torch.zeros(FEATURES, dtype=torch.bool)
            mask[own] = True
            assert grad[0, mask].abs().sum() > 0
            assert bool(grad[0, ~mask].abs().sum() > 0) == other


@pytest.mark.parametrize("name", ["instruct_q_former", "mq_former"])
def test_instructions_are_read_and_their_padding_is_not(name: str) -> None:
    module = built(tiny.PROJECTORS[name]).eval()
    features, text = torch.randn(2, FEATURES, WIDTH), instruction(module)
    tokens = module(features, **text)
    padded, changed = text["qformer_input_ids"].clone(), text["qformer_input_ids"].clone()
    padded[0, 4] = 29
    torch.testing.assert_close(module(features, **{**text, "qformer_input_ids": padded}), tokens)
    changed[0, 1] = 29
    other = module(features, **{**text, "qformer_input_ids": changed})
    assert not torch.allclose(other[0], tokens[0])
    torch.testing.assert_close(other[1], tokens[1])


def test_tiles_share_one_projector() -> None:
    module: Any = built(tiny.PROJECTORS["tiles"])
    features = torch.randn(2, FEATURES, WIDTH)
    apart = [module.projector(features[:, i : i + 4]) for i in range(0, FEATURES, 4)]
    torch.testing.assert_close(module(features), torch.cat(apart, dim=1))


def test_windows_of_an_image_go_through_one_encoder() -> None:
    inner = {"name": "clip", "image_size": 8, "patch_size": 4, "hidden_size": 8, "depth": 2,
             "heads": 2, "mlp": 8}  # fmt: skip
    encoder = from_spec(
        "clmm.encoders", {"name": "tiles", "encoder": inner, "rows": 2, "columns": 3}, where="x"
    )
    module: Any = encoder.build().eval()
    image = torch.randn(2, 3, 16, 24)
    features = module(image)
    assert encoder.shape == image.shape[1:]
    assert features.shape == (2, encoder.num_tokens(encoder.shape), encoder.width) == (2, 28, 8)
    lower_right = module.encoder(image[:, :, 8:, 16:])
    torch.testing.assert_close(features[:, 20:24], lower_right)
    small = interpolate(image, size=(8, 8), mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(features[:, 24:], module.encoder(small))
    pixels = encoder.preprocessor()(torch.zeros(3, 40, 40, dtype=torch.uint8), return_tensors="pt")
    assert pixels["pixel_values"].shape == (1, 3, 16, 24)
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), but the windows fill \(3, 16, 24\)"):
        encoder.num_tokens((3, 8, 8))


@pytest.mark.parametrize(
    ("spec", "features", "said"),
    [
        ({"name": "concat"}, 10, "10 features are no multiple of group 4"),
        ({"name": "pixel_shuffle"}, 12, "12 features are no square grid"),
        ({"name": "pixel_shuffle"}, 9, "3 x 3 features is no multiple of factor 2"),
        ({"name": "ldp"}, 12, "12 features are no square grid"),
        ({"name": "ldp_v2"}, 16, "4 x 4 features is less than 12"),
        ({"name": "cross_attention"}, 12, "12 features are no square grid"),
        ({**tiny.RESAMPLER, "frames": 5}, 16, "16 features are no multiple of frames 5"),
        ({"name": "mq_former"}, 256, "of 256 features the first 256"),
        ({"name": "tiles"}, 16, "16 features are no multiple of tiles 7"),
    ],
)
def test_counts_that_do_not_fit_are_refused(spec: Any, features: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(spec).num_tokens(features)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match="10 features are no square grid"):
        settings({"name": "cross_attention", "queries": 10})
    with pytest.raises(ValueError, match="output width 30 is no multiple of 4 and of heads 32"):
        settings({"name": "cross_attention"}).build(input_width=8, output_width=30)
    with pytest.raises(ValueError, match="makes no tokens that could be joined"):
        settings({"name": "tiles", "projector": {"name": "gated_cross_attention"}}).num_tokens(7)
    for name in ("instruct_q_former", "mq_former"):
        module, features = built(tiny.PROJECTORS[name]), torch.randn(2, FEATURES, WIDTH)
        with pytest.raises(ValueError, match="give qformer_input_ids"):
            module(features)
        with pytest.raises(ValueError, match=r"1 (instructions|texts) for 2 media"):
            module(features, qformer_input_ids=torch.ones(1, 3, dtype=torch.long))


def _shaken(module: nn.Module) -> None:
    """Weights that no two of which are alike, norms and biases too."""
    torch.manual_seed(2)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
