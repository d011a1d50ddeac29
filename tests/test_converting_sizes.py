"""Conversions at the published sizes, without memory: counts, and a place for every tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from clmm.converting import conversion_of, renamed
from clmm.modeling_mmllm import MMLLMForConditionalGeneration

T5_XL = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 2048, "d_ff": 5120, "d_kv": 64,
    "num_heads": 32, "num_layers": 24, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}  # fmt: skip
OPT_2_7B = {
    "model_type": "opt", "vocab_size": 50304, "hidden_size": 2560, "ffn_dim": 10240,
    "num_hidden_layers": 32, "num_attention_heads": 32, "word_embed_proj_dim": 2560,
}  # fmt: skip
IDEFICS_9B = {
    "additional_vocab_size": 2, "cross_layer_interval": 4, "qk_layer_norms": True,
    "use_resampler": True,
    "vision_config": {
        "embed_dim": 1280, "image_size": 224, "intermediate_size": 5120, "patch_size": 14,
        "num_hidden_layers": 32, "num_attention_heads": 16,
    },
    "perceiver_config": {"use_resampler": True, "qk_layer_norms_perceiver": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "millions", "tokens"),
    [
        ("Llava", {}, 7062.9, 576),
        ("VipLlava", {}, 7079.7, 576),
        ("Blip2", {"text_config": OPT_2_7B, "image_token_index": 50265}, 3744.8, 32),
        ("Blip2", {"text_config": T5_XL, "image_token_index": 32100}, 3876.6, 32),
        (
            "InstructBlip",
            {
                "text_config": {"model_type": "llama", "vocab_size": 32001},
                "qformer_config": {"vocab_size": 30523},
                "image_token_index": 32000,
            },
            7913.2,
            32,
        ),
        ("Idefics", IDEFICS_9B, 8929.7, 1),
        ("InternVL", {}, 11765.0, 256),
        ("Qwen2Audio", {}, 12692.1, 750),
    ],
)
def test_at_their_real_sizes(
    kind: str, settings: dict[str, Any], millions: float, tokens: int
) -> None:
    """Without memory: as many parameters as the published class has, every tensor with a place."""
    source = getattr(transformers, f"{kind}Config")(**settings)
    ends = "VisionText2Text" if kind == "Idefics" else "ConditionalGeneration"
    conversion = conversion_of(source.model_type)
    config = conversion.composition(source)
    with torch.device("meta"):
        theirs = getattr(transformers, f"{kind}For{ends}")(source)
        ours = MMLLMForConditionalGeneration(config)
    total = sum(p.numel() for p in ours.parameters())
    assert total == sum(p.numel() for p in theirs.parameters())
    assert total / 1e6 == pytest.approx(millions, abs=0.06)
    assert config.num_tokens(config.inputs[0]) == tokens
    found = {target and target[0] for name in theirs.state_dict()
             for target in [renamed(name, conversion.rules)]}  # fmt: skip
    assert found == set(ours.state_dict())
