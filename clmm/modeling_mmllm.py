"""The multimodal LLM: encoders → input projectors → language model, in Hugging Face conventions.

Training, answering and strategies speak only those conventions, so any other Hugging Face
vision-language model can take this one's place. Knows no data and no strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from clmm.configuration_mmllm import MMLLMConfig

FEATURES = "_features"
VALUES = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_features"}


def values_key(name: str) -> str:
    """The keyword under which an input's preprocessed media come, as transformers names them."""
    return VALUES.get(name, f"{name}_values")


class MMLLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Five slots (survey, figure 2): encoders and input projectors by input, one language model;
    the output side is empty for now."""

    config_class = MMLLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    def __init__(self, config: MMLLMConfig) -> None:
        super().__init__(config)
        self.input_modalities: Any = (*config.inputs, "text")
        self.encoders = nn.ModuleDict(
            {name: config.encoder(name).build() for name in config.inputs}
        )
        self.input_projectors = nn.ModuleDict(
            {
                name: config.input_projector(name).build(
                    input_width=config.encoder(name).width,
                    output_width=config.text_config.hidden_size,
                )
                for name in config.inputs
            }
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def encode(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """F_X = ME_X(I_X), the survey's equation (1): [media, *shape] → [media, n, d_X]."""
        features: torch.Tensor = self.encoders[name](values)
        return features

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[images, 3, H, W] → [images, n, d_X]."""
        return self.encode("image", pixel_values)

    def project(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """P_X = Θ(F_X): [media, n, d_X] → [media, tokens, D]."""
        projector = self.input_projectors[name]
        weight = next(projector.parameters())
        projected: torch.Tensor = projector(features.to(weight.dtype))
        return projected

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[images, tokens, D] from pixels or from features computed before."""
        if image_features is None:
            if pixel_values is None:
                raise ValueError("give pixel_values or image_features")
            image_features = self.encode_images(pixel_values)
        return self.project("image", image_features)

    def _embed(
        self, input_ids: torch.Tensor, media: Mapping[str, torch.Tensor | None]
    ) -> torch.Tensor:
        """Text embeddings with each medium's tokens in its placeholders' places: [B, L, D]."""
        embeds = self.get_input_embeddings()(input_ids)
        for name in self.config.inputs:
            here = input_ids == self.config.token_ids[name]
            features = media.get(name + FEATURES)
            values = media.get(values_key(name))
            if features is None and values is not None:
                features = self.encode(name, values)
            if features is None:
                if bool(here.any()):
                    raise ValueError(f"{int(here.sum())} {name} tokens in the text, but no {name}")
                continue
            tokens = self.project(name, features).flatten(0, 1)
            if int(here.sum()) != len(tokens):
                raise ValueError(
                    f"{int(here.sum())} {name} tokens in the text, but {len(tokens)} from the "
                    f"{name}s"
                )
            embeds = embeds.masked_scatter(here.unsqueeze(-1), tokens.to(embeds.dtype))
        return embeds

    @property
    def _media_keys(self) -> tuple[str, ...]:
        names = self.config.inputs
        return (*map(values_key, names), *(name + FEATURES for name in names))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass: t = LLM(P_X, F_T), the survey's equations (2) and (3).

        `input_ids` [B, L] with one placeholder per token of a medium; media in reading order, as
        `values_key` names them (`pixel_values` [images, 3, H, W]) or as features computed before
        (`image_features` [images, n, d_X]); `labels` [B, L], −100 is ignored. A key–value cache is
        among `kwargs`, under the name that transformers gives it.
        """
        media = {key: kwargs.pop(key, None) for key in self._media_keys}
        media |= {"pixel_values": pixel_values, "image_features": image_features}
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self._embed(input_ids, media)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        *args: Any,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Media enter the first pass only; later passes find them in the key–value cache."""
        media = {key: kwargs.pop(key, None) for key in self._media_keys}
        parent: Any = super()
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(
            input_ids, *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= media
        return inputs


AutoModelForImageTextToText.register(MMLLMConfig, MMLLMForConditionalGeneration)
