"""Gated cross-attention: its blocks are IDEFICS's, and they come into any decoder's layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DynamicCache,
    IdeficsConfig,
)
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer

from clmm import components, gated_layers, key_value_cache
from clmm.configuration_mmllm import MMLLMConfig
from clmm.gated_layers import GatedBlock, Media, laid_out
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from streams.settings import from_spec

WIDTH, MEDIA, IMAGE, FRAME = 16, 8, 5, 6
BLOCK: dict[str, Any] = {
    "media_width": MEDIA, "heads": 2, "mlp": 20, "gated_mlp": True, "activation": "silu",
    "norm": "rms", "qk_norm": True, "gate": "float", "eps": 1e-6,
}  # fmt: skip
GATED: dict[str, Any] = {
    "name": "gated_cross_attention", "every": 2, "heads": 2, "mlp": 20,
    "resampler": {"name": "resampler", "latents": 3, "depth": 1, "heads": 2, "head_width": 4},
}  # fmt: skip
VIT = {"name": "vit", "image_size": 8, "patch_size": 4, "hidden_size": MEDIA, "depth": 1,
       "heads": 2, "mlp": 8}  # fmt: skip
TEXT: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": WIDTH, "intermediate_size": 16,
    "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "llama": TEXT,
    "qwen3": {**TEXT, "model_type": "qwen3", "head_dim": 8},
    "gemma2": {**TEXT, "model_type": "gemma2", "head_dim": 8},
    "opt": {
        "model_type": "opt", "vocab_size": 40, "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH,
        "ffn_dim": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 1, "max_position_embeddings": 64,
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 40, "n_embd": WIDTH, "n_layer": 3, "n_head": 2,
        "n_positions": 64, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    },
    "gpt_neox": {**TEXT, "model_type": "gpt_neox"},
}  # fmt: skip
IDS = torch.tensor([[7, IMAGE, 8, 9, IMAGE, 10, 11], [0, 0, 12, IMAGE, 13, 14, 15]])
NEVER = [0, IMAGE]
MASK = (IDS != 0).long()


def made(
    text: dict[str, Any] = TEXT, *, open_gates: bool = True, **settings: Any
) -> MMLLMForConditionalGeneration:
    torch.manual_seed(0)
    config = MMLLMConfig(
        encoders={"image": VIT},
        input_projectors={"image": {**GATED, **settings}},
        text_config=text,
        token_ids={"image": IMAGE},
    )
    model = MMLLMForConditionalGeneration(config).eval()
    if open_gates:
        for name, weight in model.named_parameters():
            if ".alpha_" in name:
                nn.init.constant_(weight, 0.7)
    return model


def batch() -> dict[str, Tensor]:
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"input_ids": IDS, "attention_mask": MASK, "pixel_values": pixels}


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("gate", ["float", "vector"])
def test_a_block_equals_idefics(qk_norm: bool, gate: str) -> None:
    config = IdeficsConfig(
        hidden_size=WIDTH, intermediate_size=20, num_attention_heads=2, dropout=0.0,
        qk_layer_norms=qk_norm, alpha_type=gate, alpha_initializer="zeros", rms_norm_eps=1e-6,
        vision_config={"embed_dim": MEDIA}, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = IdeficsGatedCrossAttentionLayer(config, layer_idx=0)
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.5)
    ours = GatedBlock(WIDTH, **{**BLOCK, "qk_norm": qk_norm, "gate": gate})
    ours.load_state_dict(theirs.state_dict())
    hidden, values = torch.randn(2, 5, WIDTH), torch.randn(2, 2, 3, MEDIA)
    seen = torch.tensor([[-1, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    allowed = (seen[..., None] == torch.arange(2)).repeat_interleave(3, dim=2)
    expected = theirs(
        hidden,
        image_hidden_states=values.flatten(1, 2),
        image_attention_mask=torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None],
        cross_attention_gate=(seen >= 0).long(),
    )
    torch.testing.assert_close(ours(hidden, Media(values, seen)), expected, atol=1e-5, rtol=1e-5)


def test_flamingos_block_equals_its_formula() -> None:
    torch.manual_seed(0)
    settings = {"gated_mlp": False, "activation": "squared_relu", "norm": "layer", "qk_norm": False}
    block: Any = GatedBlock(WIDTH, **{**BLOCK, **settings})
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.5)
    y, x = torch.randn(1, 3, WIDTH), torch.randn(1, 1, 4, MEDIA)
    normed, a = block.input_layernorm(y), block.cross_attn
    q, k, v = (
        z.unflatten(2, (2, -1)).transpose(1, 2)
        for z in (a.q_proj(normed), a.k_proj(x[:, 0]), a.v_proj(x[:, 0]))
    )
    mixed = ((q @ k.transpose(2, 3) * 8**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    y2 = y + torch.tanh(block.alpha_cross_attn) * (mixed @ a.o_proj.weight.T)
    inner = (block.post_attention_layernorm(y2) @ block.mlp.up_proj.weight.T).clamp(min=0) ** 2
    y3 = y2 + torch.tanh(block.alpha_dense) * (inner @ block.mlp.down_proj.weight.T)
    media = Media(x, torch.zeros(1, 3, dtype=torch.long))
    torch.testing.assert_close(block(y, media), y3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("width", "media", "depth", "heads", "every", "mlp", "blocks", "millions"),
    [
        (4096, 1280, 32, 32, 4, 11008, 8, 1434.5),  # IDEFICS-9B
        (8192, 1280, 80, 64, 4, 22016, 20, 13925.4),  # IDEFICS-80B
    ],
)
def test_published_sizes_of_idefics(
    width: int, media: int, depth: int, heads: int, every: int, mlp: int, blocks: int,
    millions: float,
) -> None:  # fmt: skip
    spec = {"name": "gated_cross_attention", "heads": heads, "every": every, "mlp": mlp}
    with torch.device("meta"):
        module = _projector(spec).build(input_width=media, output_width=width, depth=depth)
    assert len(module.blocks) == blocks
    assert _millions(module.blocks) == pytest.approx(millions, abs=0.05)
    assert _millions(module.resampler) == pytest.approx(126.0, abs=0.05)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "every", "blocks", "billions"),
    [(2048, 24, 16, 1, 24, 1.16), (3840, 40, 30, 4, 10, 1.59), (8192, 80, 64, 7, 12, 8.4)],
)
def test_flamingos_sizes_by_formula(
    width: int, depth: int, heads: int, every: int, blocks: int, billions: float
) -> None:
    spec = {
        "name": "gated_cross_attention", "heads": heads, "every": every, "mlp": None,
        "gated_mlp": False, "activation": "squared_relu", "norm": "layer", "qk_norm": False,
        "resampler": None,
    }  # fmt: skip
    with torch.device("meta"):
        module = _projector(spec).build(input_width=1536, output_width=width, depth=depth)
    assert len(module.blocks) == blocks
    assert _millions(module.blocks) / 1000 == pytest.approx(billions, rel=0.01)


def _projector(spec: dict[str, Any]) -> Any:
    return from_spec("clmm.projectors", spec, where="input_projectors.image")


def _millions(module: nn.Module) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


def test_each_token_sees_the_last_medium_before_it() -> None:
    here = IDS == IMAGE
    tokens = torch.arange(3.0).reshape(3, 1, 1)
    media = laid_out(tokens, here)
    assert media.seen.tolist() == [[-1, 0, 0, 0, 1, 1, 1], [-1, -1, -1, 0, 0, 0, 0]]
    assert media.values is not None
    assert media.values[:, :, 0, 0].tolist() == [[0, 1], [2, 0]]
    more = torch.tensor([[False, False], [False, True]])
    after = laid_out(torch.full((1, 1, 1), 9.0), more, media)
    assert after.seen.tolist() == [[1, 1], [0, 2]]
    assert after.values is not None
    assert after.values[1, :, 0, 0].tolist() == [2, 0, 9]
    with pytest.raises(ValueError, match="3 placeholders in the text, but 2 media"):
        laid_out(tokens[:2], here)
    with pytest.raises(ValueError, match="1 rows follow a cache of 2"):
        laid_out(None, ~here[:1] & here[:1], media)


@pytest.mark.parametrize("decoder", DECODERS)
def test_closed_gates_leave_any_decoder_as_it_was(decoder: str) -> None:
    model = made(DECODERS[decoder], open_gates=False)
    expected = model.language_model(input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(model(**batch()).logits, expected)


@pytest.mark.parametrize("decoder", DECODERS)
def test_any_decoder_sees_the_media_in_its_layers(decoder: str) -> None:
    model = made(DECODERS[decoder])
    given = batch()
    logits = model(**given).logits
    given["pixel_values"] = given["pixel_values"].clone()
    given["pixel_values"][1] += 1.0
    changed = (model(**given).logits - logits).abs().amax(dim=2) > 1e-6
    # The second image of the first row: seen by its own placeholder and what follows it.
    assert changed.tolist() == [[False] * 4 + [True] * 3, [False] * 7]
    text = model.language_model(input_ids=IDS, attention_mask=MASK).logits
    assert not torch.allclose(text, logits)


def test_layers_equal_an_idefics_stack_written_out() -> None:
    """y ← block(y) before layers 0 and 2 of 3, then the layer as it is."""
    model: Any = made()
    given = batch()
    projector = model.input_projectors["image"]
    media = laid_out(projector(model.encode_images(given["pixel_values"])), IDS == IMAGE)
    before: list[Tensor] = []
    after: list[Tensor] = []
    for layer in model.language_model.model.layers:
        layer.register_forward_pre_hook(lambda _, args: before.append(args[0]), prepend=True)
        layer.register_forward_pre_hook(lambda _, args: after.append(args[0]))
    model(**given)
    torch.testing.assert_close(after[0], projector.blocks[0](before[0], media))
    torch.testing.assert_close(after[1], before[1])
    torch.testing.assert_close(after[2], projector.blocks[1](before[2], media))


@pytest.mark.parametrize("decoder", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("resampler", [True, False])
def test_generation_with_and_without_cache_agree(decoder: str, resampler: bool) -> None:
    model = made(DECODERS[decoder], **({} if resampler else {"resampler": None}))
    runs = [
        model.generate(
            **batch(), max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=use,
            suppress_tokens=NEVER, return_dict_in_generate=True, output_logits=True,
        )
        for use in (True, False)
    ]  # fmt: skip
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    for one, other in zip(runs[0].logits, runs[1].logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    # And each step's are those of one pass over the finished sequence.
    given = batch() | {"input_ids": runs[0].sequences}
    given["attention_mask"] = torch.cat([MASK, torch.ones(2, 6, dtype=torch.long)], dim=1)
    given["position_ids"] = (given["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    whole = model(**given).logits[:, IDS.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.stack(runs[0].logits, 1), whole, atol=1e-5, rtol=1e-5)


def test_beams_and_features_computed_before() -> None:
    model = made()
    given = batch()
    options = {
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "num_beams": 3,
        "do_sample": False,
        "suppress_tokens": NEVER,
    }
    cached = model.generate(**given, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**given, **options, use_cache=False))
    # The first row has two images: each of its beams must see both.
    alone = {"input_ids": IDS[:1], "pixel_values": given["pixel_values"][:2]}
    one = model.generate(**alone, **options)
    assert torch.equal(one, cached[:1])
    features = model.encode_images(given.pop("pixel_values"))
    assert torch.equal(cached, model.generate(**given, image_features=features, **options))


def test_a_cache_carries_the_media_when_its_rows_are_chosen_anew() -> None:
    model = made()
    given = batch()
    rows = torch.tensor([1, 0, 0])
    new = torch.tensor([[20, 21], [22, 23], [24, 25]])
    whole = model(
        input_ids=torch.cat([IDS[rows], new], dim=1),
        attention_mask=torch.cat([MASK[rows], torch.ones_like(new)], dim=1),
        pixel_values=given["pixel_values"][[2, 0, 1, 0, 1]],
    ).logits[:, -2:]
    cache: Any
    for method in ("reorder_cache", "batch_select_indices"):
        with torch.no_grad():
            cache = key_value_cache.given(model(**given, use_cache=True))
        if method == "reorder_cache":
            cache = copy.deepcopy(cache)
        getattr(cache, method)(rows)
        later = model(
            input_ids=new,
            attention_mask=torch.cat([MASK[rows], torch.ones_like(new)], dim=1),
            **{key_value_cache.NAME: cache},
        ).logits
        torch.testing.assert_close(later, whole, atol=1e-5, rtol=1e-5)
    cache = key_value_cache.given(model(**given, use_cache=True))
    cache.batch_repeat_interleave(2)
    media = gated_layers.remembered(cache, "image")
    assert media is not None
    assert media.seen.tolist() == [[1], [1], [0], [0]]


def test_a_later_turn_may_bring_another_image() -> None:
    model = made()
    given = batch()
    cache = DynamicCache()
    first = given["pixel_values"][:1]
    model(
        input_ids=IDS[:1, :4], pixel_values=first, use_cache=True, **{key_value_cache.NAME: cache}
    )
    later = model(
        input_ids=IDS[:1, 4:],
        pixel_values=given["pixel_values"][1:2],
        use_cache=True,
        **{key_value_cache.NAME: cache},
    ).logits
    whole = model(input_ids=IDS[:1], pixel_values=given["pixel_values"][:2]).logits
    torch.testing.assert_close(later, whole[:, 4:], atol=1e-5, rtol=1e-5)


def test_text_alone_is_a_row_without_media() -> None:
    model = made()
    ids = torch.tensor([[7, 8, 9], [10, IMAGE, 11]])
    both = model(input_ids=ids, pixel_values=batch()["pixel_values"][:1]).logits
    alone = model(input_ids=ids[:1]).logits
    torch.testing.assert_close(alone, both[:1])
    cached = model.generate(input_ids=ids[:1], max_new_tokens=4, do_sample=False)
    plain = model.generate(input_ids=ids[:1], max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


def test_gradients_reach_every_part_and_two_passes_keep_apart() -> None:
    model = made().train()
    given = batch()
    one = model(**given, labels=IDS).loss
    other = model(**given | {"pixel_values": given["pixel_values"] + 1.0}, labels=IDS).loss
    one.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    first = model.input_projectors["image"].blocks[0].cross_attn.k_proj.weight.grad.clone()
    model.zero_grad()
    other.backward()
    second = model.input_projectors["image"].blocks[0].cross_attn.k_proj.weight.grad
    assert not torch.allclose(first, second)


def test_checkpointed_layers_give_the_same_gradients() -> None:
    model = made().train()
    given = batch()
    grads = []
    for on in (False, True):
        if on:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        model.zero_grad()
        model(**given, labels=IDS, use_cache=False).loss.backward()
        grads.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_half_precision_and_autocast() -> None:
    model = made()
    given = batch()
    logits = model(**given).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**given, labels=IDS)
        mixed.loss.backward()
    torch.testing.assert_close(mixed.logits.float(), logits, atol=0.1, rtol=0.1)
    half = model.bfloat16()
    given["pixel_values"] = given["pixel_values"].bfloat16()
    torch.testing.assert_close(half(**given).logits.float(), logits, atol=0.1, rtol=0.1)


def test_a_copied_model_uses_its_own_blocks() -> None:
    model = made()
    given = batch()
    expected = model(**given).logits
    other = copy.deepcopy(model)
    for weight in model.input_projectors.parameters():
        nn.init.zeros_(weight)
    torch.testing.assert_close(other(**given).logits, expected)
    assert not torch.allclose(model(**given).logits, expected)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    model = made()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**batch()).logits, model(**batch()).logits)
    rows = {row.component: row.total for row in components.table(model)}
    assert rows["input_projector"] == sum(p.numel() for p in model.input_projectors.parameters())


def test_two_inputs_share_the_layers() -> None:
    torch.manual_seed(0)
    config = MMLLMConfig(
        encoders={"image": VIT, "video": VIT},
        input_projectors={"image": GATED, "video": {**GATED, "every": 1}},
        text_config=TEXT,
        token_ids={"image": IMAGE, "video": FRAME},
    )
    model = MMLLMForConditionalGeneration(config).eval()
    for name, weight in model.named_parameters():
        if ".alpha_" in name:
            nn.init.constant_(weight, 0.7)
    pixels = torch.randn(2, 3, 8, 8)
    given = {"input_ids": torch.tensor([[7, IMAGE, 8, FRAME, 9]]), "pixel_values": pixels[:1]}
    logits = model(**given, pixel_values_videos=pixels[1:]).logits
    other = model(**given, pixel_values_videos=pixels[1:] + 1.0).logits
    changed = ((logits - other).abs().amax(dim=2) > 1e-6).tolist()
    assert changed == [[False, False, False, True, True]]


def test_what_does_not_fit_is_refused() -> None:
    model = made()
    given = batch()
    with pytest.raises(ValueError, match="3 image tokens in the text, but 2 from the images"):
        model(**given | {"pixel_values": given["pixel_values"][:2]})
    with pytest.raises(ValueError, match="3 image tokens in the text, but no image"):
        model(input_ids=IDS)
    embeds = model.get_input_embeddings()(IDS)
    with pytest.raises(ValueError, match="pixel_values: media enter where input_ids"):
        model(inputs_embeds=embeds, pixel_values=given["pixel_values"])
    with pytest.raises(ValueError, match="every 4 of 3 layers"):
        made(every=4)
    with pytest.raises(ValueError, match="width 16 is no multiple of heads 3"):
        made(heads=3)
    block = GatedBlock(WIDTH, **BLOCK)
    media = Media(None, torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"got \(2, 6\) tokens, but media were laid out for \(2, 5\)"
    ):
        block(torch.randn(2, 6, WIDTH), media)
    layers = nn.ModuleList(nn.Identity() for _ in range(5))
    with pytest.raises(ValueError, match="5 layers have 3 places, but there are 2 gated blocks"):
        model.input_projectors["image"].attach(layers)
    text = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{**TEXT, "num_hidden_layers": 2})
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM has no list of 3 layers"):
        gated_layers.layers_of(text, 3)
