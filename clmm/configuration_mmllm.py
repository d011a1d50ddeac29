"""The configuration of an any-to-any multimodal LLM: five components, each by name and settings.

Knows which components there are, and that their widths and token counts fit. Builds no weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from clmm.encoding import Encoder, InputProjector, check_settings
from clmm.generating import Generator, OutputProjector
from clmm.generation_losses import GenerationLoss
from streams import settings
from streams.catalog import nearest
from streams.settings import SettingError

Spec = dict[str, Any]


class MMLLMConfig(PretrainedConfig):
    """Encoders F_X → input projectors P_X → language model → output projectors H_X → generators.

    `encoders` maps an input's name (image, video, audio, …) to a name in `clmm.encoders` with its
    settings; one that is `of` another input borrows that one's weights. `input_projectors` has the
    same keys and names in `clmm.projectors`. `text_config` is any language model's of transformers.
    `token_ids` maps each input to its placeholder's id.

    `generators` maps an output's name (image, video, audio) to a name in `clmm.generators` with its
    settings, `output_projectors` to one in `clmm.output_projectors`, `signal_ids` to the ids of its
    signal tokens; `generation_loss` weighs what they are taught by. Without them text is all that
    comes out. `prefix_tokens` is the length of a prefix in the decoder's layers, where it has one.

    Raises SettingError for components that do not fit, with both names and both numbers.
    """

    model_type = "mmllm"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        encoders: Mapping[str, Spec] | None = None,
        input_projectors: Mapping[str, Spec] | None = None,
        text_config: Spec | PretrainedConfig | None = None,
        token_ids: Mapping[str, int] | None = None,
        output_projectors: Mapping[str, Spec] | None = None,
        generators: Mapping[str, Spec] | None = None,
        signal_ids: Mapping[str, Sequence[int]] | None = None,
        generation_loss: Spec | None = None,
        prefix_tokens: int = 0,
        **kwargs: Any,
    ) -> None:
        self.encoders = {name: dict(spec) for name, spec in (encoders or {}).items()}
        self.input_projectors = {name: dict(s) for name, s in (input_projectors or {}).items()}
        self.token_ids = dict(token_ids or {})
        self.output_projectors = {name: dict(s) for name, s in (output_projectors or {}).items()}
        self.generators = {name: dict(spec) for name, spec in (generators or {}).items()}
        self.signal_ids = {name: [*ids] for name, ids in (signal_ids or {}).items()}
        self.generation_loss = dict(generation_loss or {})
        self.prefix_tokens = prefix_tokens
        if not isinstance(text_config, PretrainedConfig):
            values = dict(text_config or {})
            text_config = CONFIG_MAPPING[values.pop("model_type", "llama")](**values)
        self.text_config = text_config
        start = getattr(text_config, "decoder_start_token_id", None)
        if text_config.is_encoder_decoder and start is None:
            # T5's, which leaves it unsaid: the decoder begins with padding.
            text_config.decoder_start_token_id = text_config.pad_token_id
        self._check()
        super().__init__(**(kwargs | {"is_encoder_decoder": text_config.is_encoder_decoder}))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The language model's; with `decoder`, of an encoder and a decoder the latter's layers."""
        config = super().get_text_config(decoder=decoder, encoder=encoder)
        if not (config.is_encoder_decoder and decoder and not encoder):
            return config
        # transformers lays out a cache by it; T5 and BART have names of their own for that number.
        names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")
        found = (getattr(config, name, None) for name in names)
        layers = next(value for value in found if value is not None)
        config = copy.deepcopy(config)
        config.num_hidden_layers = layers
        return config

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs beside text, in order."""
        return tuple(self.encoders)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs beside text, in order."""
        return tuple(self.generators)

    @property
    def loss(self) -> GenerationLoss:
        """What the output side is taught by, as its settings."""
        return settings.build(GenerationLoss, self.generation_loss, where="generation_loss")

    @property
    def image_token_id(self) -> int | None:
        """The placeholder of images, by the name that transformers' tools look for."""
        return self.token_ids.get("image")

    def encoder(self, name: str) -> Encoder:
        """The encoder of an input, as its settings."""
        made = self._encoder(name)
        owner = self.encoder_owner(name)
        if owner == name:
            return made
        try:
            return made.over(self.encoder(owner))
        except ValueError as error:
            raise SettingError(f"encoders.{name}: {error}") from None

    def encoder_owner(self, name: str) -> str:
        """The input whose encoder sees for `name`: itself, or what its encoder is `of`.

        Raises SettingError when that input is not there or only borrows an encoder itself.
        """
        owner: str | None = getattr(self._encoder(name), "of", None)
        if owner is None:
            return name
        owners = [other for other in self.encoders if not hasattr(self._encoder(other), "of")]
        if owner not in owners:
            near = nearest(owner, owners) if owners else ""
            raise SettingError(f"encoders.{name}.of: {owner!r} has no encoder of its own{near}")
        return owner

    def _encoder(self, name: str) -> Any:
        return _built("clmm.encoders", self.encoders[name], where=f"encoders.{name}")

    def input_projector(self, name: str) -> InputProjector:
        """The input projector of an input, as its settings."""
        made: InputProjector = _built(
            "clmm.projectors", self.input_projectors[name], where=f"input_projectors.{name}"
        )
        return made

    def num_tokens(self, name: str) -> int:
        """Placeholders that one medium of an input becomes; processor and model both ask."""
        encoder = self.encoder(name)
        try:
            features = encoder.num_tokens(encoder.shape)
        except ValueError as error:
            raise SettingError(f"encoders.{name}: {error}") from None
        try:
            return self.input_projector(name).num_tokens(features)
        except ValueError as error:
            raise SettingError(
                f"input_projectors.{name}: {self.input_projectors[name]['name']} cannot take the "
                f"{features} features of {self.encoders[name]['name']}: {error}"
            ) from None

    def output_projector(self, name: str) -> OutputProjector:
        """The output projector of an output, as its settings."""
        made: OutputProjector = _built(
            "clmm.output_projectors",
            self.output_projectors[name],
            where=f"output_projectors.{name}",
        )
        return made

    def media_generator(self, name: str) -> Generator:
        """The generator of an output, as its settings."""
        made: Generator = _built(
            "clmm.generators", self.generators[name], where=f"generators.{name}"
        )
        return made

    def _check_outputs(self) -> None:
        """Every output has what its generator needs: signals, and conditions of its shape."""
        for slot in ("output_projectors", "signal_ids"):
            for name in getattr(self, slot):
                if name not in self.generators:
                    near = nearest(name, [*self.generators]) if self.generators else ""
                    raise SettingError(f"{slot}.{name}: there is no generators.{name}{near}")
        ids = [i for one in self.signal_ids.values() for i in one]
        if len({*ids}) < len(ids):
            raise SettingError(f"signal_ids: {len(ids)} tokens have {len({*ids})} ids")
        if self.outputs and getattr(self.text_config, "is_encoder_decoder", False):
            kind = self.text_config.model_type
            raise SettingError(
                f"generators: {kind} is an encoder and a decoder, and outputs need a decoder alone"
            )
        for name in self.outputs:
            self._check_output(name)
        _ = self.loss

    def _check_output(self, name: str) -> None:
        generator, kind = self.media_generator(name), self.generators[name]["name"]
        shape = generator.condition_shape
        for slot in ("output_projectors", "signal_ids"):
            if shape is None and name in getattr(self, slot):
                raise SettingError(f"{slot}.{name}: {kind} is asked in words; leave it out")
            if shape is not None and not getattr(self, slot).get(name):
                raise SettingError(f"generators.{name}: {kind} needs {slot}.{name}")
        if shape is None:
            return
        signals, projector = self.signal_ids[name], self.output_projectors[name]["name"]
        where = f"output_projectors.{name}: {projector}"
        try:
            length = self.output_projector(name).num_tokens(len(signals))
        except ValueError as error:
            raise SettingError(f"{where} cannot take {len(signals)} signals: {error}") from None
        aligned = self.loss.alignment_weight > 0
        if length != shape[0] and (aligned or not generator.any_length):
            why = f"alignment with {kind}" if generator.any_length else kind
            raise SettingError(f"{where} makes {length} tokens, but {why} wants {shape[0]}")

    def _check_placeholders(self) -> None:
        """No two inputs, and no input and output, share a token."""
        owners = {i: f"signal_ids.{name}" for name, ids in self.signal_ids.items() for i in ids}
        for name, token in self.token_ids.items():
            if token in owners:
                raise SettingError(f"token_ids.{name}: {token} is {owners[token]}'s already")
            owners[token] = f"token_ids.{name}"

    def _check(self) -> None:
        if self.prefix_tokens and self.text_config.is_encoder_decoder:
            kind = self.text_config.model_type
            raise SettingError(
                f"prefix_tokens: {kind} is an encoder and a decoder, and a prefix needs a decoder "
                "alone"
            )
        self._check_outputs()
        self._check_placeholders()
        for here, there in (("input_projectors", "encoders"), ("encoders", "input_projectors")):
            mine, others = getattr(self, here), getattr(self, there)
            for name in mine:
                if name not in others:
                    near = nearest(name, [*others]) if others else ""
                    raise SettingError(f"{here}.{name}: there is no {there}.{name}{near}")
        for name in self.inputs:
            self.num_tokens(name)
            # Media stand among an encoder's inputs; in its decoder nothing says where they belong.
            if self.text_config.is_encoder_decoder and getattr(
                self.input_projector(name), "in_layers", False
            ):
                kind, text = self.input_projectors[name]["name"], self.text_config.model_type
                raise SettingError(
                    f"input_projectors.{name}: {kind} works inside a decoder alone; {text} is an "
                    "encoder and a decoder"
                )


def _built(package: str, spec: Spec, *, where: str) -> Any:
    try:
        # Before, since a component divides by its numbers; and behind, with those left out.
        check_settings(spec, where=where)
        made = settings.from_spec(package, spec, where=where)
        check_settings(made, where=where)
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(str(error)) from None
    return made


AutoConfig.register(MMLLMConfig.model_type, MMLLMConfig)
