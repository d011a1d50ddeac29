"""ViP-LLaVA (arXiv 2312.00784): LLaVA on five layers of CLIP, normalised together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from clmm import source_config
from clmm.configuration_mmllm import MMLLMConfig
from clmm.conversion.llava import COUNTED, LANGUAGE_MODEL, VISION, Llava, clip
from clmm.processing_mmllm import MMLLMProcessor


@dataclass(frozen=True, kw_only=True)
class VipLlava:
    """Unused layers of CLIP are kept."""

    model_type: ClassVar[str] = "vipllava"
    rules: ClassVar[tuple[tuple[str, str], ...]] = (
        VISION,
        (r"^(?:model\.)?multi_modal_projector\.projector_layernorm\.", "input_projectors.image.0."),
        (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "input_projectors.image.1."),
        (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "input_projectors.image.3."),
        *LANGUAGE_MODEL,
    )
    left_out: ClassVar[tuple[str, ...]] = COUNTED
    departures: ClassVar[tuple[str, ...]] = ()

    def composition(self, source: Any) -> MMLLMConfig:
        """Raises SettingError for what the composition cannot be, with the setting's name."""
        source_config.require(
            source, "config", projector_hidden_act="gelu", projector_layernorm_eps=1e-5
        )
        return MMLLMConfig(
            encoders={"image": clip(source)},
            input_projectors={"image": {"name": "mlp", "norm": True}},
            text_config=source_config.language_model(source),
            token_ids={"image": source_config.token(source, "image_token_id")},
        )

    def processor(self, source: Any, config: MMLLMConfig) -> MMLLMProcessor:
        """The same image processor, tokenizer and chat template."""
        return Llava().processor(source, config)
