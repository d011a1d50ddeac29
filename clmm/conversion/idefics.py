"""IDEFICS (2023, an open Flamingo): OpenCLIP, a resampler, gated cross-attention inside LLaMA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import LlamaConfig

from clmm import source_config
from clmm.configuration_mmllm import MMLLMConfig
from clmm.preprocessing import square_images
from clmm.processing_mmllm import MMLLMProcessor
from clmm.source_processor import template_of
from streams.settings import SettingError

AROUND = "<fake_token_around_image>"
IMAGE_PLACE = 1
"""The image is the second of the additional tokens; config.json does not name it."""
END = "<end_of_utterance>"
TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{{ message['role'].capitalize() + ':' }}"
    "{{ ' ' if message['content'][0]['type'] == 'text' else '' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{{ 'END\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}Assistant:{%- endif -%}"
)
"""The dialogues of the instructed checkpoints; those come without a template."""


@dataclass(frozen=True, kw_only=True)
class Idefics:
    """Its additional vocabulary becomes the last rows of the embeddings and of the head."""

    model_type: ClassVar[str] = "idefics"
    rules: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^model\.vision_model\.", "encoders.image.model."),
        (r"^model\.perceiver_resampler\.", "input_projectors.image.resampler."),
        (r"^model\.gated_cross_attn_layers\.", "input_projectors.image.blocks."),
        (r"^model\.embed_tokens\.weight$", "language_model.model.embed_tokens.weight#0"),
        (
            r"^model\.embed_tokens\.additional_embedding\.weight$",
            "language_model.model.embed_tokens.weight#1",
        ),
        (r"^lm_head\.weight$", "language_model.lm_head.weight#0"),
        (r"^lm_head\.additional_fc\.weight$", "language_model.lm_head.weight#1"),
        (r"^model\.(layers|norm)\.", r"language_model.model.\1."),
    )
    left_out: ClassVar[tuple[str, ...]] = (r"\.position_ids$", r"\.rotary_emb\.inv_freq$")
    departures: ClassVar[tuple[str, ...]] = ()

    def composition(self, source: Any) -> MMLLMConfig:
        """Raises SettingError for what the composition cannot be, with the setting's name."""
        source_config.require(source, "config", dropout=0.0)
        if source.additional_vocab_size <= IMAGE_PLACE:
            raise SettingError(
                f"config.additional_vocab_size: {source.additional_vocab_size}, so no token stands "
                "for an image"
            )
        depth, every = source.num_hidden_layers, source.cross_layer_interval
        if depth % every:
            raise SettingError(f"config.cross_layer_interval: {every} does not divide {depth}")
        projector = {
            "name": "gated_cross_attention",
            "every": every,
            "heads": source.num_attention_heads,
            "mlp": source.intermediate_size,
            "activation": source.hidden_act,
            "qk_norm": source.qk_layer_norms,
            "gate": source.alpha_type,
            "eps": source.rms_norm_eps,
            "resampler": _resampler(source),
        }
        vocabulary = source.vocab_size + source.additional_vocab_size
        text = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=source.hidden_size,
            intermediate_size=source.intermediate_size,
            num_hidden_layers=depth,
            num_attention_heads=source.num_attention_heads,
            num_key_value_heads=source.num_attention_heads,
            hidden_act=source.hidden_act,
            max_position_embeddings=source.max_position_embeddings,
            rms_norm_eps=source.rms_norm_eps,
            rope_parameters=source.rope_parameters,
            tie_word_embeddings=source.tie_word_embeddings,
            pad_token_id=source.pad_token_id,
            bos_token_id=source.bos_token_id,
            eos_token_id=source.eos_token_id,
        )
        return MMLLMConfig(
            encoders={"image": _open_clip(source.vision_config)},
            input_projectors={"image": projector},
            text_config=text,
            token_ids={"image": source.vocab_size + IMAGE_PLACE},
        )

    def processor(self, source: Any, config: MMLLMConfig) -> MMLLMProcessor:
        """The same tokenizer; images become one square each, by the same mean and deviation."""
        images, end = source.image_processor, ""
        if END in source.tokenizer.get_vocab():
            end = END
        return MMLLMProcessor(
            square_images(
                config.encoder("image").shape[-1],
                mean=tuple(images.image_mean),
                std=tuple(images.image_std),
            ),
            source.tokenizer,
            {"image": config.num_tokens("image")},
            chat_template=template_of(source, otherwise=TEMPLATE.replace("END", end)),
            image_start=AROUND,
            image_end=AROUND,
        )


def _resampler(source: Any) -> dict[str, Any] | None:
    if not source.use_resampler:
        return None
    perceiver = source.perceiver_config
    return {
        "name": "resampler",
        "latents": perceiver.resampler_n_latents,
        "depth": perceiver.resampler_depth,
        "heads": perceiver.resampler_n_heads,
        "head_width": perceiver.resampler_head_dim,
        "qk_norm": perceiver.qk_layer_norms_perceiver,
    }


def _open_clip(vision: Any) -> dict[str, Any]:
    source_config.require(
        vision, "vision_config", layer_norm_eps=1e-5, attention_dropout=0.0, num_channels=3
    )
    return {
        "name": "open_clip",
        "image_size": source_config.side(vision.image_size, "vision_config.image_size"),
        "patch_size": source_config.side(vision.patch_size, "vision_config.patch_size"),
        "hidden_size": vision.embed_dim,
        "depth": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "mlp": vision.intermediate_size,
        "activation": vision.hidden_act,
        "class_token": True,
    }
