"""The multimodal LLM: encoders → input projectors → language model, in Hugging Face conventions.

Training, answering and strategies speak only those conventions, so any other Hugging Face
vision-language model can take this one's place. Knows no data and no strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast, Seq2SeqLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from clmm import (
    gated_layers,
    key_value_cache,
    llm,
    media_rows,
    modeling_outputs,
    modeling_seq2seq,
)
from clmm.configuration_mmllm import MMLLMConfig
from clmm.encoding import joined
from clmm.language_prefix import add_prefix

FEATURES = "_features"
INSTRUCTION = ("qformer_input_ids", "qformer_attention_mask")
VALUES = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_features"}


def values_key(name: str) -> str:
    """The keyword under which an input's preprocessed media come, as transformers names them."""
    return VALUES.get(name, f"{name}_values")


class MMLLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Five slots (survey, figure 2): encoders and input projectors by input, one language model,
    output projectors and generators by output."""

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
        self.output_modalities: Any = (*config.outputs, "text")
        # An input that borrows another's encoder has no module here: shared weights exist once.
        self._owners = {name: config.encoder_owner(name) for name in config.inputs}
        made = {name: config.encoder(name) for name in config.inputs}
        self._shapes = {name: one.shape for name, one in made.items()}
        self._features = {n: (one.num_tokens(one.shape), one.width) for n, one in made.items()}
        self.encoders = nn.ModuleDict(
            {name: made[name].build() for name, owner in self._owners.items() if name == owner}
        )
        # Adapters draw their first weights in the order in which modules are registered here.
        self.language_model = llm.built(config.text_config)
        self.input_projectors = nn.ModuleDict(
            {name: self._projector(name) for name in config.inputs}
        )
        self.output_projectors = modeling_outputs.projectors(config)
        self.generators = modeling_outputs.Generators()
        for name in filter(self._enters_layers, config.inputs):
            depth = config.text_config.num_hidden_layers
            layers = gated_layers.layers_of(self.language_model, depth)
            self._gated(name).attach(layers)
        if config.prefix_tokens:
            add_prefix(self, config.prefix_tokens)
        self.post_init()

    def _projector(self, name: str) -> nn.Module:
        projector: Any = self.config.input_projector(name)
        text = self.config.text_config
        # One that works inside the language model must know how many layers there are.
        more = {"depth": text.num_hidden_layers} if getattr(projector, "in_layers", False) else {}
        width = self.config.encoder(name).width
        module: nn.Module = projector.build(
            input_width=width, output_width=text.hidden_size, **more
        )
        return module

    def _enters_layers(self, name: str) -> bool:
        """Whether an input's media enter inside the language model, not among its inputs."""
        return getattr(self.input_projectors[name], "in_layers", False)

    def _gated(self, name: str) -> Any:
        return self.input_projectors[name]

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

    def get_encoder(self, modality: str | None = None) -> Any:
        """What `generate` runs first where the language model has an encoder."""
        if modality is None and self.config.is_encoder_decoder:
            return modeling_seq2seq.MediaEncoder(self)
        return super().get_encoder(modality)

    def encode(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """F_X = ME_X(I_X), the survey's equation (1): [media, *shape] → [media, n, d_X]."""
        media_rows.check_shape(values, self._shapes[name], values_key(name))
        owner = self._owners[name]
        encoder = self.encoders[owner]
        if encoder.training and not any(p.requires_grad for p in encoder.parameters()):
            # Batch norms would go on learning, and features depend on their company.
            encoder.eval()
        values = values.to(next(encoder.parameters()).dtype)
        return joined(encoder, values, len(self._shapes[owner]))

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[images, 3, H, W] → [images, n, d_X]."""
        return self.encode("image", pixel_values)

    def project(
        self, name: str, features: torch.Tensor, **instruction: torch.Tensor | None
    ) -> torch.Tensor:
        """P_X = Θ(F_X): [media, n, d_X] → [media, tokens, D]; some read an instruction too."""
        projector = self.input_projectors[name]
        weight = next(projector.parameters())
        projected: torch.Tensor = projector(features.to(weight.dtype), **instruction)
        return projected

    def _reads(self, name: str) -> bool:
        """Whether an input's projector reads an instruction."""
        return getattr(self.input_projectors[name], "reads_instruction", False)

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[images, tokens, D] from pixels or from features computed before."""
        if image_features is None:
            if pixel_values is None:
                raise ValueError("give pixel_values or image_features")
            image_features = self.encode_images(pixel_values)
        return self.project("image", image_features)

    def embed(
        self, input_ids: torch.Tensor | None, media: Mapping[str, torch.Tensor | None]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Text embeddings with each medium's tokens in its placeholders' places, [B, L, D]; and of
        each input that enters layers instead, [media, m, d], by its name."""
        if input_ids is None or not input_ids.numel():
            raise ValueError("there is no token: give input_ids or inputs_embeds")
        words = {key: value for key in INSTRUCTION if (value := media.get(key)) is not None}
        if words and not any(map(self._reads, self.config.inputs)):
            raise ValueError(f"{', '.join(words)}: no input projector reads an instruction")
        embeds = self.get_input_embeddings()(input_ids)
        inside = {}
        for name in self.config.inputs:
            here = input_ids == self.config.token_ids[name]
            features, values = (
                media_rows.some(media, key) for key in (name + FEATURES, values_key(name))
            )
            if features is not None and values is not None:
                raise ValueError(f"give {values_key(name)} or {name + FEATURES}, one of them")
            if features is not None:
                media_rows.check_shape(features, self._features[name], name + FEATURES)
            elif values is not None:
                features = self.encode(name, values)
            else:
                if bool(here.any()):
                    raise ValueError(f"{int(here.sum())} {name} tokens in the text, but no {name}")
                continue
            read = media_rows.instruction(words, here, len(features)) if self._reads(name) else {}
            projected = self.project(name, features, **read)
            layered = self._enters_layers(name)
            tokens = projected if layered else projected.flatten(0, 1)
            if int(here.sum()) != len(tokens):
                raise ValueError(
                    f"{int(here.sum())} {name} tokens in the text, but {len(tokens)} from the "
                    f"{name}s"
                )
            media_rows.check(here, 1 if layered else projected.shape[1], name)
            if layered:
                inside[name] = projected
            else:
                embeds = embeds.masked_scatter(here.unsqueeze(-1), tokens.to(embeds.dtype))
        return embeds, inside

    def _laid_out(
        self,
        input_ids: torch.Tensor | None,
        inside: Mapping[str, torch.Tensor],
        embeds: Any,
        past: Any,
    ) -> dict[str, gated_layers.Media]:
        """What each input that enters layers shows to this pass, after what the cache has seen."""
        made = {}
        for name in filter(self._enters_layers, self.config.inputs):
            here = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            if input_ids is not None:
                here = input_ids == self.config.token_ids[name]
            before = gated_layers.remembered(past, name)
            made[name] = gated_layers.laid_out(inside.get(name), here, before)
        return made

    @property
    def _media_keys(self) -> tuple[str, ...]:
        names = self.config.inputs
        return (*map(values_key, names), *(name + FEATURES for name in names), *INSTRUCTION)

    def refuse_unheard(self, given: Mapping[str, Any]) -> None:
        """Raises ValueError for media and targets of what the model has no part for.

        `given` are a pass's keywords without those that the model takes.
        """
        for key, value in given.items():
            medium = key in VALUES.values() or key.endswith(("_values", FEATURES))
            cache = key in key_value_cache.NAMES
            if value is not None and (key.startswith("target_") or (medium and not cache)):
                raise ValueError(
                    f"{key}: the model has no such input or output; inputs: "
                    f"{[*self.config.inputs]}, outputs: {[*self.config.outputs]}"
                )

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
    ) -> CausalLMOutputWithPast | Seq2SeqLMOutput:
        """One pass: t = LLM(P_X, F_T), the survey's equations (2) and (3).

        `input_ids` [B, L] with one placeholder per token of a medium; media in reading order, as
        `values_key` names them (`pixel_values` [images, 3, H, W]) or as features computed before
        (`image_features` [images, n, d_X]); `labels` [B, L], −100 is ignored. A key–value cache is
        among `kwargs`, under the name that transformers gives it; so are `qformer_input_ids` and
        `qformer_attention_mask` [B, T] for a projector that reads the instruction.

        Where the language model is an encoder and a decoder, `input_ids` are the encoder's,
        `labels` [B, T] the decoder's, and `kwargs` may hold what `modeling_seq2seq.KEYS` names.

        Targets of an output add (4) and (5) to the loss, and the output is an `MMLLMOutput`:
        `target_image_condition` τ(t) [spans, L, d_c], and `target_image` (pixels in [0, 1]) or
        `target_image_latents`, in reading order of the spans of signal tokens.
        """
        targets = modeling_outputs.taken_targets(self.config, kwargs)
        labels = modeling_outputs.learnt_labels(self.config, labels)
        if targets:
            kwargs["output_hidden_states"] = True
        media = {key: kwargs.pop(key, None) for key in self._media_keys}
        own = {"pixel_values": pixel_values, "image_features": image_features}
        self.refuse_unheard(kwargs | ({} if "image" in self.config.inputs else own))
        media |= own
        inside: dict[str, torch.Tensor] = {}
        if inputs_embeds is None and kwargs.get("encoder_outputs") is None:
            inputs_embeds, inside = self.embed(input_ids, media)
        else:
            media_rows.refuse_heard(media)
        if self.config.is_encoder_decoder:
            return modeling_seq2seq.run(
                self.language_model,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        shown = self._laid_out(input_ids, inside, inputs_embeds, key_value_cache.given(kwargs))
        with ExitStack() as stack:
            for name, one in shown.items():
                stack.enter_context(self._gated(name).showing(one))
            output: CausalLMOutputWithPast = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        past = key_value_cache.given(output)
        if past is not None:
            for name, one in shown.items():
                gated_layers.remember(past, name, one)
        if targets:
            return modeling_outputs.with_losses(self, output, input_ids, targets)
        return output

    def generator(self, name: str) -> Any:
        """An output's generator, loaded when first asked; `.to` moves it, the model's does not."""
        return modeling_outputs.generator(self, name)

    def attach_generator(self, name: str, generator: nn.Module) -> None:
        """Gives an output a built generator, which is frozen and no part of `state_dict`."""
        shape = self.config.media_generator(name).condition_shape
        self.generators.attach(name, generator, shape)

    def generate(self, *args: Any, generation_mode: str | None = None, **kwargs: Any) -> Any:
        """Token ids: no placeholders, whole sequences of signal tokens or none. Or, with
        `generation_mode` image, video or audio, that medium, one a row: so the `any-to-any`
        pipeline asks."""
        if generation_mode not in (None, "text"):
            return modeling_outputs.one_each(self, generation_mode, **kwargs)
        forced = modeling_outputs.forcing(self.config, kwargs.get("logits_processor"))
        kwargs["logits_processor"] = forced
        parent: Any = super()
        return parent.generate(*args, **kwargs)

    def generate_media(self, **inputs: Any) -> modeling_outputs.MadeMedia:
        """Answers and the media they ask for; options as `modeling_outputs.generate_media`'s."""
        return modeling_outputs.generate_media(self, **inputs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """`generate` knows arguments by `forward`'s signature, which names the image's alone."""
        parent: Any = super()
        own = (
            *self._media_keys,
            *(modeling_seq2seq.KEYS if self.config.is_encoder_decoder else ()),
        )
        known = {key: value for key, value in model_kwargs.items() if key not in own}
        parent._validate_model_kwargs(known)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Rows repeated for beams, and each row's media as one, not one by one."""
        media = {}
        if is_encoder_decoder:
            # `input_ids` are the decoder's, and the encoder has heard the media.
            kwargs = {key: value for key, value in kwargs.items() if key not in self._media_keys}
        elif expand_size > 1 and input_ids is not None:
            for name in self.config.inputs:
                here = input_ids == self.config.token_ids[name]
                for key in (values_key(name), name + FEATURES):
                    if (value := kwargs.pop(key, None)) is not None:
                        media[key] = media_rows.repeated(value, here, expand_size)
        parent: Any = super()
        ids, kwargs = parent._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **kwargs,
        )
        return ids, kwargs | media

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
        heard = self.config.is_encoder_decoder
        if not heard and (is_first_iteration or not kwargs.get("use_cache", True)):
            inputs |= media
        return inputs


AutoModelForImageTextToText.register(MMLLMConfig, MMLLMForConditionalGeneration)
AutoModelForMultimodalLM.register(MMLLMConfig, MMLLMForConditionalGeneration)
# The pipeline looks here for the classes that it supports, and sees no registered one.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[MMLLMConfig.model_type] = (
    MMLLMForConditionalGeneration.__name__
)
