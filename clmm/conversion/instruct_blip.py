"""InstructBLIP (arXiv 2305.06500): BLIP-2 whose Q-Former reads the instruction too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from clmm import source_config
from clmm.configuration_mmllm import MMLLMConfig
from clmm.conversion.blip_2 import COUNTED, RULES, eva_clip, q_former
from clmm.processing_mmllm import MMLLMProcessor
from clmm.source_processor import template_of

TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}<image>{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}"
    "{{ part['text'] }}"
    "{%- endfor -%}{{ ' ' if not loop.last else '' }}"
    "{%- endfor -%}"
)
"""Words as they are; checkpoints come without a template."""


@dataclass(frozen=True, kw_only=True)
class InstructBlip:
    """Vicuna or Flan-T5."""

    model_type: ClassVar[str] = "instructblip"
    rules: ClassVar[tuple[tuple[str, str], ...]] = RULES
    left_out: ClassVar[tuple[str, ...]] = COUNTED
    departures: ClassVar[tuple[str, ...]] = ()

    def composition(self, source: Any) -> MMLLMConfig:
        """Raises SettingError for what the composition cannot be, with the setting's name."""
        former = source.qformer_config
        projector = {
            "name": "instruct_q_former",
            **q_former(source),
            "vocabulary": former.vocab_size,
            "text_length": former.max_position_embeddings,
        }
        return MMLLMConfig(
            encoders={"image": eva_clip(source.vision_config)},
            input_projectors={"image": projector},
            text_config=source.text_config,
            token_ids={"image": source_config.token(source, "image_token_id")},
        )

    def processor(self, source: Any, config: MMLLMConfig) -> MMLLMProcessor:
        """The same image processor and both tokenizers."""
        return MMLLMProcessor(
            source.image_processor,
            source.tokenizer,
            {"image": config.num_tokens("image")},
            chat_template=template_of(source, otherwise=TEMPLATE),
            images_first=True,
            qformer_tokenizer=source.qformer_tokenizer,
        )
