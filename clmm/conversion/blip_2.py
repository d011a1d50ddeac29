"""BLIP-2 (arXiv 2301.12597): EVA-CLIP, a Q-Former, OPT or Flan-T5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from clmm import source_config
from clmm.configuration_mmllm import MMLLMConfig
from clmm.processing_mmllm import MMLLMProcessor
from clmm.source_processor import template_of

RULES = (
    (r"^vision_model\.", "encoders.image.model."),
    (r"^(query_tokens$|qformer\.|language_projection\.)", r"input_projectors.image.\1"),
    (r"^language_model\.", "language_model."),
)
COUNTED = (
    r"\.position_ids$",
    # Flan-T5 has it and never asks it.
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
)
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}<image>{%- endfor -%}"
    "{{ {'user': 'Question: ', 'assistant': 'Answer: '}.get(message['role'], '') }}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}"
    "{{ part['text'] }}"
    "{%- endfor -%}{{ ' ' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}Answer:{%- endif -%}"
)
"""The form of the paper's section 4.1, `Question: … Answer:`; checkpoints come without one."""


@dataclass(frozen=True, kw_only=True)
class Blip2:
    """Both kinds of language model."""

    model_type: ClassVar[str] = "blip-2"
    rules: ClassVar[tuple[tuple[str, str], ...]] = RULES
    left_out: ClassVar[tuple[str, ...]] = COUNTED
    departures: ClassVar[tuple[str, ...]] = ()

    def composition(self, source: Any) -> MMLLMConfig:
        """Raises SettingError for what the composition cannot be, with the setting's name."""
        source_config.require(source.qformer_config, "qformer_config", use_qformer_text_input=False)
        return MMLLMConfig(
            encoders={"image": eva_clip(source.vision_config)},
            input_projectors={"image": {"name": "q_former", **q_former(source)}},
            text_config=source.text_config,
            token_ids={"image": source_config.token(source, "image_token_id")},
        )

    def processor(self, source: Any, config: MMLLMConfig) -> MMLLMProcessor:
        """The same image processor and tokenizer; an image's tokens stand before the first one."""
        return MMLLMProcessor(
            source.image_processor,
            source.tokenizer,
            {"image": config.num_tokens("image")},
            chat_template=template_of(source, otherwise=TEMPLATE),
            images_first=True,
        )


def eva_clip(vision: Any) -> dict[str, Any]:
    """EVA-CLIP's settings."""
    source_config.require(
        vision,
        "vision_config",
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        qkv_bias=True,
        attention_dropout=0.0,
    )
    return {
        "name": "eva_clip",
        "image_size": source_config.side(vision.image_size, "vision_config.image_size"),
        "patch_size": source_config.side(vision.patch_size, "vision_config.patch_size"),
        "hidden_size": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "mlp": vision.intermediate_size,
    }


def q_former(source: Any) -> dict[str, Any]:
    """The Q-Former's settings, with or without an instruction."""
    former = source.qformer_config
    source_config.require(
        former,
        "qformer_config",
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        attention_probs_dropout_prob=former.hidden_dropout_prob,
    )
    return {
        "queries": source.num_query_tokens,
        "hidden_size": former.hidden_size,
        "depth": former.num_hidden_layers,
        "heads": former.num_attention_heads,
        "mlp": former.intermediate_size,
        "cross_every": former.cross_attention_frequency,
        "dropout": former.hidden_dropout_prob,
    }
