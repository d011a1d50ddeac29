"""LLaVA (arXiv 2304.08485, 2310.03744): CLIP, linear maps with a GELU between, a language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from clmm import source_config
from clmm.configuration_mmllm import MMLLMConfig
from clmm.processing_mmllm import MMLLMProcessor
from clmm.source_processor import template_of
from streams.settings import SettingError

VISION = (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "encoders.image.model.")
LANGUAGE_MODEL = (
    (r"^(?:model\.language_model|language_model\.model)\.", "language_model.model."),
    (r"^(?:language_model\.)?lm_head\.", "language_model.lm_head."),
)
"""As transformers calls them in memory, since version 5, and as it does in files."""
COUNTED = (r"\.position_ids$", r"\.rotary_emb\.inv_freq$")
"""Buffers of early checkpoints that hold nothing learnt."""


@dataclass(frozen=True, kw_only=True)
class Llava:
    """LLaVA-1.5 and what has its class. Its last vision layer, which no feature uses, is kept."""

    model_type: ClassVar[str] = "llava"
    rules: ClassVar[tuple[tuple[str, str], ...]] = (
        VISION,
        (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "input_projectors.image.0."),
        (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "input_projectors.image.2."),
        *LANGUAGE_MODEL,
    )
    left_out: ClassVar[tuple[str, ...]] = COUNTED
    departures: ClassVar[tuple[str, ...]] = ()

    def composition(self, source: Any) -> MMLLMConfig:
        """Raises SettingError for what the composition cannot be, with the setting's name."""
        source_config.require(
            source, "config", projector_hidden_act="gelu", multimodal_projector_bias=True
        )
        whole = source.vision_feature_select_strategy == "full"
        return MMLLMConfig(
            encoders={"image": clip(source) | {"class_token": whole}},
            input_projectors={"image": {"name": "mlp"}},
            text_config=source_config.language_model(source),
            token_ids={"image": source_config.token(source, "image_token_id")},
        )

    def processor(self, source: Any, config: MMLLMConfig) -> MMLLMProcessor:
        """The same image processor, tokenizer and chat template."""
        return MMLLMProcessor(
            source.image_processor,
            source.tokenizer,
            {"image": config.num_tokens("image")},
            chat_template=template_of(source),
            placeholders={"image": source.image_token},
        )


def clip(source: Any) -> dict[str, Any]:
    """CLIP's settings of a LLaVA-like config; SettingError for another encoder."""
    vision = source.vision_config
    if vision.model_type != "clip_vision_model":
        raise SettingError(
            f"vision_config.model_type: {vision.model_type!r}; the composition has "
            "'clip_vision_model' alone"
        )
    source_config.require(
        vision, "vision_config", layer_norm_eps=1e-5, attention_dropout=0.0, num_channels=3
    )
    return {
        "name": "clip",
        "image_size": source_config.side(vision.image_size, "vision_config.image_size"),
        "patch_size": source_config.side(vision.patch_size, "vision_config.patch_size"),
        "hidden_size": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "mlp": vision.intermediate_size,
        "activation": vision.hidden_act,
        "layers": source_config.layers(
            source.vision_feature_layer, vision.num_hidden_layers, "vision_feature_layer"
        ),
    }
