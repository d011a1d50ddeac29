"""InternVL (arXiv 2404.16821, 2504.10479): InternViT, pixel shuffle with an MLP, Qwen2 or LLaMA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from clmm import source_config
from clmm.configuration_mmllm import MMLLMConfig
from clmm.conversion.llava import COUNTED, LANGUAGE_MODEL
from clmm.processing_mmllm import MMLLMProcessor
from clmm.source_processor import template_of
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class InternVl:
    """The checkpoints whose names end in -hf."""

    model_type: ClassVar[str] = "internvl"
    rules: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(?:model\.)?vision_tower\.", "encoders.image.model."),
        (r"^(?:model\.)?multi_modal_projector\.layer_norm\.", "input_projectors.image.1."),
        (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "input_projectors.image.2."),
        (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "input_projectors.image.4."),
        *LANGUAGE_MODEL,
    )
    left_out: ClassVar[tuple[str, ...]] = COUNTED
    departures: ClassVar[tuple[str, ...]] = (
        "an image is one square tile; the published processor cuts large ones into several",
        "videos are no input",
    )

    def composition(self, source: Any) -> MMLLMConfig:
        """Raises SettingError for what the composition cannot be, with the setting's name."""
        vision = source.vision_config
        source_config.require(source, "config", projector_hidden_act="gelu")
        source_config.require(
            vision,
            "vision_config",
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            attention_dropout=0.0,
            hidden_dropout_prob=0.0,
            projection_dropout=0.0,
            use_mask_token=False,
            use_absolute_position_embeddings=True,
            use_mean_pooling=True,
            num_channels=3,
        )
        factor = round(1 / source.downsample_ratio)
        if source.downsample_ratio * factor != 1:
            raise SettingError(
                f"config.downsample_ratio: {source.downsample_ratio} is not one over a whole number"
            )
        encoder = {
            "name": "intern_vit",
            "image_size": source_config.side(vision.image_size, "vision_config.image_size"),
            "patch_size": source_config.side(vision.patch_size, "vision_config.patch_size"),
            "hidden_size": vision.hidden_size,
            "depth": vision.num_hidden_layers,
            "heads": vision.num_attention_heads,
            "mlp": vision.intermediate_size,
            "norm": vision.norm_type,
            "qk_norm": vision.use_qk_norm,
            "qkv_bias": vision.attention_bias,
            "layers": source_config.layers(
                source.vision_feature_layer, vision.num_hidden_layers, "vision_feature_layer"
            ),
            "class_token": source.vision_feature_select_strategy != "default",
        }
        return MMLLMConfig(
            encoders={"image": encoder},
            input_projectors={"image": {"name": "pixel_shuffle", "factor": factor}},
            text_config=source_config.language_model(source),
            token_ids={"image": source_config.token(source, "image_token_id")},
        )

    def processor(self, source: Any, config: MMLLMConfig) -> MMLLMProcessor:
        """The same tokenizer and template; the image processor no longer cuts patches out."""
        images = source.image_processor
        images.crop_to_patches = False
        return MMLLMProcessor(
            images,
            source.tokenizer,
            {"image": config.num_tokens("image")},
            chat_template=template_of(source),
            placeholders={"image": source.image_token},
            image_start=source.start_image_token,
            image_end=source.end_image_token,
        )
