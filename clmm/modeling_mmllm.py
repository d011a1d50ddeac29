"""The multimodal LLM: encoder → input projector → language model, in Hugging Face conventions.

Training, answering and strategies speak only those conventions, so any other Hugging Face
vision-language model can take this one's place. Knows no data and no strategy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from clmm.configuration_mmllm import MMLLMConfig
from streams import settings


class MMLLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Five slots (survey, figure 2): three are filled, the output side is `None` for now."""

    config_class = MMLLMConfig
    base_model_prefix = ""
    input_modalities: Any = ("image", "text")
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    def __init__(self, config: MMLLMConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.vision_config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        vision = config.vision_config
        projector = settings.from_spec(
            "clmm.projectors", config.input_projector, where="config.input_projector"
        )
        self.input_projector: nn.Module = projector.build(
            input_width=vision.hidden_sizes[-1]
            if hasattr(vision, "hidden_sizes")
            else vision.hidden_size,
            output_width=config.text_config.hidden_size,
        )
        self.output_projector = None
        self.generator = None
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

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """F_X = ME_X(I_X), the survey's equation (1): [images, 3, H, W] → [images, n, d_X].

        A class token, where the encoder has one, is dropped; a feature map is read row by row.
        """
        hidden = self.encoder(pixel_values).last_hidden_state
        if hidden.dim() == 4:
            return hidden.flatten(2).transpose(1, 2)
        return hidden[:, -self.config.num_image_tokens :]

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """P_X = Θ(F_X): [images, n, D], from pixels or from features computed before."""
        if image_features is None:
            if pixel_values is None:
                raise ValueError("give pixel_values or image_features")
            image_features = self.encode_images(pixel_values)
        weight = next(self.input_projector.parameters())
        return self.input_projector(image_features.to(weight.dtype))

    def _embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
    ) -> torch.Tensor:
        """Text embeddings with the visual tokens in the placeholders' places: [B, L, D]."""
        embeds = self.get_input_embeddings()(input_ids)
        here = input_ids == self.config.image_token_id
        if pixel_values is None and image_features is None:
            if bool(here.any()):
                raise ValueError(f"{int(here.sum())} image tokens in the text, but no image")
            return embeds
        visual = self.get_image_features(pixel_values, image_features).flatten(0, 1)
        if int(here.sum()) != len(visual):
            raise ValueError(
                f"{int(here.sum())} image tokens in the text, but {len(visual)} from the images"
            )
        return embeds.masked_scatter(here.unsqueeze(-1), visual.to(embeds.dtype))

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

        `input_ids` [B, L] with one placeholder per visual token; `pixel_values` [images, 3, H, W]
        or `image_features` [images, n, d_X] in reading order; `labels` [B, L], −100 is ignored.
        A key–value cache is among `kwargs`, under the name that transformers gives it.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self._embed(input_ids, pixel_values, image_features)
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
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Media enter the first pass only; later passes find them in the key–value cache."""
        parent: Any = super()
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(
            input_ids, *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {"pixel_values": pixel_values, "image_features": image_features}
        return inputs


AutoModelForImageTextToText.register(MMLLMConfig, MMLLMForConditionalGeneration)
