"""Tiny settings of every component; a file in a component's folder without any fails a test."""

from __future__ import annotations

from typing import Any

import tiny_generators

Spec = dict[str, Any]

LLM: Spec = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
VIT: Spec = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "depth": 2, "heads": 2,
             "mlp": 24}  # fmt: skip
EYE: Spec = {"name": "vit", **VIT}
"""16 features of width 16."""
CLIP: Spec = {"name": "clip", **VIT}
SWIN: Spec = {"embed_dim": 8, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 2], "window": 2}
DINO: Spec = {"name": "dinov2", "image_size": 16, "position_size": 24, "patch_size": 4,
              "hidden_size": 16, "depth": 2, "heads": 2}  # fmt: skip
DETECTOR: Spec = {"name": "grounding_dino", "image_size": 64, **SWIN, "d_model": 32}
TAGGER: Spec = {
    "name": "ram_plus_plus", "image_size": 64, **SWIN, "token_width": 12, "tags": 7,
    "descriptions": 3, "tag_width": 16, "tag_heads": 2, "tag_mlp": 24, "best": 3,
}  # fmt: skip
SAM: Spec = {"name": "sam_hq", **VIT, "window": 3, "global_blocks": [1], "channels": 8}
NFNET: Spec = {"name": "nfnet", "image_size": 64, "depths": [1, 1, 1, 1],
               "channels": [16, 16, 16, 16], "stem_channels": 16, "group_size": 8}  # fmt: skip
VARY: Spec = {
    "name": "vary", "eye": {**CLIP, "patch_size": 8},
    "vocabulary": {**SAM, "image_size": 32, "window": 4}, "channels": [12, 20],
}  # fmt: skip
HUBERT: Spec = {"name": "hubert", "seconds": 0.1, "hidden_size": 32, "depth": 2, "heads": 2,
                "mlp": 16, "convolution": 8}  # fmt: skip
WHISPER: Spec = {"name": "whisper", "seconds": 1, "mel_bins": 8, "hidden_size": 16, "depth": 2,
                 "heads": 2, "mlp": 16}  # fmt: skip
CLAP: Spec = {
    "name": "clap", "seconds": 1, "mel_bins": 8, "spectrogram_size": 32, "window": 2,
    "hidden_size": 8, "depths": [2, 2], "heads": [2, 2], "embedding_size": 6,
}  # fmt: skip
BEATS: Spec = {
    "name": "beats", "seconds": 0.5, "mel_bins": 16, "patch_size": 8, "patch_width": 12,
    "hidden_size": 16, "depth": 2, "heads": 2, "mlp": 16, "buckets": 8, "furthest": 16,
    "kernel": 4, "groups": 2,
}  # fmt: skip
C_FORMER: Spec = {
    "name": "c_former", "seconds": 0.5, "mel_bins": 8, "tokens": 5, "acoustic_size": 16,
    "acoustic_depth": 1, "acoustic_heads": 2, "acoustic_mlp": 16, "acoustic_channels": 4,
    "hidden_size": 16, "depth": 1, "heads": 2, "mlp": 16,
}  # fmt: skip
POINTS: Spec = {"name": "point_bert", "points": 40, "groups": 6, "group_size": 5,
                "token_width": 12, "hidden_size": 16, "depth": 2, "heads": 2}  # fmt: skip
BIND: Spec = {
    "name": "imagebind", "image_size": 28, "clips": 2, "mel_bins": 26, "frames": 36, "samples": 40,
    "hidden_size": 8, "depth": 2, "heads": 2, "embedding_size": 6,
}  # fmt: skip
BINDS: dict[str, Spec] = {
    name: {**BIND, "modality": name, "image_size": 28 if name in ("image", "video") else 32}
    for name in ("image", "video", "audio", "depth", "thermal", "imu")
}
LYRICS: Spec = {"name": "joined", "encoders": [CLIP, {**DETECTOR, "image_size": 72}, SAM, TAGGER]}
"""16 features of CLIP's, then 119 of the detector's, 16 of the segmenter's, 4 of the tagger's."""

ENCODERS: dict[str, dict[str, Spec]] = {
    # What `compose` takes; the last is meant.
    "vit": {"image": EYE},
    "vit, layers": {"image": {**EYE, "layers": [0, -2]}},
    "convnext": {
        "image": {"name": "convnext", "image_size": 16, "patch_size": 2, "hidden_sizes": [8, 16],
                  "depths": [1, 1], "layer_scale": 0.1}
    },
    "clip": {"image": CLIP},
    "clip, joined": {"image": {**CLIP, "layers": [0, -2], "class_token": True}},
    "open_clip": {"image": {"name": "open_clip", **VIT}},
    "open_clip, interpolated": {"image": {"name": "open_clip", **VIT, "position_size": 8}},
    "open_clip, joined": {"image": {"name": "open_clip", **VIT, "layers": [0, -2]}},
    "eva_clip": {"image": {"name": "eva_clip", **VIT}},
    "eva_clip, interpolated": {
        "image": {"name": "eva_clip", **VIT, "position_size": 8, "class_token": False,
                  "layers": [-2]}
    },
    "beit3": {"image": {"name": "beit3", **VIT}},
    "beit3, class": {"image": {"name": "beit3", **VIT, "class_token": True}},
    "dinov2": {"image": DINO},
    "dinov2, registers": {"image": {**DINO, "registers": 4, "layers": [-2]}},
    "dinov2, giant": {"image": {**DINO, "swiglu": True}},
    "sam_hq": {"image": SAM},
    "grounding_dino": {"image": {**DETECTOR, "image_size": 72}},
    "grounding_dino, coarse": {"image": {**DETECTOR, "image_size": 128, "strides": [64, 16]}},
    "grounding_dino, fine": {"image": {**DETECTOR, "strides": [8]}},
    "intern_vit": {"image": {"name": "intern_vit", **VIT}},
    "intern_vit, 300M": {
        "image": {"name": "intern_vit", **VIT, "norm": "layer_norm", "qk_norm": False,
                  "qkv_bias": True, "class_token": True, "layers": [1]}
    },
    "ram_plus_plus": {"image": TAGGER},
    "ram_plus_plus, tags": {"image": {**TAGGER, "features": "tags"}},
    "nfnet": {"image": NFNET},
    "vary": {"image": VARY},
    "joined": {"image": LYRICS},
    "joined, narrow": {"image": {**LYRICS, "encoders": [SAM, CLIP], "feature_size": 12}},
    "tiles": {"image": {"name": "tiles", "encoder": {**CLIP, "image_size": 8}}},
    "frames": {"image": EYE, "video": {"name": "frames", "frames": 2}},
    "vcoder": {"image": EYE, "segmentation": {"name": "vcoder"}},
    "whisper": {"audio": WHISPER},
    "whisper, pooled": {"audio": {**WHISPER, "pool": 2}},
    "hubert": {"audio": HUBERT},
    "hubert, layers": {"audio": {**HUBERT, "layers": [0, 1]}},
    "hubert, large": {"audio": {**HUBERT, "pre_norm": True}},
    "hubert, large, layers": {"audio": {**HUBERT, "pre_norm": True, "layers": [-2]}},
    "clap": {"audio": CLAP},
    "clap, embedding": {"audio": {**CLAP, "features": "embedding"}},
    "beats": {"audio": BEATS},
    "c_former": {"audio": C_FORMER},
    "point_bert": {"points": POINTS},
    "point_bert, tokens": {"points": {**POINTS, "features": "tokens"}},
    "point_bert, colours": {"points": {**POINTS, "channels": 6}},
    **{f"imagebind, {name}": {name: spec} for name, spec in BINDS.items()},
    **{
        f"imagebind, {name} tokens": {name: {**spec, "features": "tokens"}}
        for name, spec in BINDS.items()
    },
}  # fmt: skip

BERT: Spec = {"hidden_size": 16, "depth": 2, "heads": 2, "mlp": 24, "dropout": 0.0}
RESAMPLER: Spec = {"name": "resampler", "latents": 5, "depth": 2, "heads": 2, "head_width": 6}
GATED: Spec = {"name": "gated_cross_attention", "every": 2, "heads": 2, "mlp": 20,
               "resampler": RESAMPLER}  # fmt: skip
TEXT: Spec = {"vocabulary": 30, "text_length": 9}
SETS: Spec = {"name": "mq_former", "image_features": 10, "image_queries": 3,
              "grounding_queries": 4}  # fmt: skip
PROJECTORS: dict[str, Spec] = {
    "linear": {"name": "linear"},
    "mlp": {"name": "mlp"},
    "mlp, norm": {"name": "mlp", "hidden": 20, "norm": True},
    "concat": {"name": "concat"},
    "pixel_shuffle": {"name": "pixel_shuffle"},
    "pixel_shuffle, linear": {"name": "pixel_shuffle", "mlp": False},
    "ldp": {"name": "ldp"},
    "ldp_v2": {"name": "ldp_v2", "grid": 3},
    "cross_attention": {"name": "cross_attention", "queries": 9, "heads": 2},
    "cross_attention, alone": {"name": "cross_attention", "queries": 9, "heads": 2,
                               "project": False},
    "resampler": RESAMPLER,
    "resampler, Flamingo": {**RESAMPLER, "qk_norm": False, "activation": "squared_relu",
                            "frames": 4, "width": 20},
    "q_former": {"name": "q_former", "queries": 4, **BERT},
    "p_former": {"name": "p_former", "queries": 4, **BERT},
    "instruct_q_former": {"name": "instruct_q_former", "queries": 4, **TEXT, **BERT},
    "mq_former": {**SETS, **TEXT, **BERT},
    "mq_former, without text": {**SETS, "vocabulary": 0, **BERT},
    "tiles": {"name": "tiles", "tiles": 4, "projector": RESAMPLER},
    "causal_former": {"name": "causal_former", "queries": 3, "hidden_size": 8, "depth": 2,
                      "heads": 2, "head_width": 4, "mlp": 16, "dropout": 0.0},
    "chain": {"name": "chain", "projectors": [{"name": "concat", "group": 2}, {"name": "linear"}],
              "widths": [10]},
    "expand": {"name": "expand", "tokens": 3},
    "split": {"name": "split"},
    "gated_cross_attention": GATED,
    "gated_cross_attention, bare": {**GATED, "resampler": None, "gated_mlp": False,
                                    "activation": "squared_relu", "norm": "layer",
                                    "qk_norm": False, "gate": "vector"},
}  # fmt: skip

MAPPER: Spec = {"name": "tiny_transformer", "hidden": 16, "heads": 2, "encoder_layers": 1,
                "decoder_layers": 1, "mlp": 24, "queries": 24}  # fmt: skip
OUTPUT_PROJECTORS: dict[str, tuple[Spec, int]] = {
    # Settings, and how many signals ask for a condition of 24 tokens.
    "tiny_transformer": (MAPPER, 2),
    "tiny_transformer, MLP first": ({**MAPPER, "entry": "mlp", "exit": False}, 2),
    "mlp": ({"name": "mlp"}, 24),
    "mlp, one map": ({"name": "mlp", "layers": 1, "add_embedding": True}, 24),
    "mlp, wide": ({"name": "mlp", "hidden": 5, "layers": 3}, 24),
}
GENERATORS: dict[str, tuple[str, Spec]] = {
    # Output's name, and settings.
    "latent_diffusion": ("image", tiny_generators.SPECS["image"]),
    "latent_diffusion, v": ("image", {**tiny_generators.SPECS["image"],
                                      "prediction": "v_prediction"}),
    "video_diffusion": ("video", tiny_generators.SPECS["video"]),
    "audio_diffusion": ("audio", tiny_generators.SPECS["audio"]),
    "text_relay": ("image", {"name": "text_relay",
                             "generator": tiny_generators.SPECS["image"]}),
}  # fmt: skip
