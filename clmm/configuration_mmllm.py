"""The configuration of an any-to-any multimodal LLM: five components, each by name and settings.

Knows which components there are, and that their widths and token counts fit. Builds no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from clmm.encoding import Encoder, InputProjector
from streams import settings
from streams.catalog import nearest
from streams.settings import SettingError

Spec = dict[str, Any]


class MMLLMConfig(PretrainedConfig):
    """Encoders F_X → input projectors P_X → language model → output projectors H_X → generators.

    `encoders` maps an input's name (image, video, audio, …) to a name in `clmm.encoders` with its
    settings; `input_projectors` has the same keys and names in `clmm.projectors`. `text_config` is
    any language model's of transformers. `token_ids` maps each input to its placeholder's id. The
    slots on the output side are empty for now, and text is what comes out.

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
        **kwargs: Any,
    ) -> None:
        self.encoders = {name: dict(spec) for name, spec in (encoders or {}).items()}
        self.input_projectors = {name: dict(s) for name, s in (input_projectors or {}).items()}
        self.token_ids = dict(token_ids or {})
        if not isinstance(text_config, PretrainedConfig):
            values = dict(text_config or {})
            text_config = CONFIG_MAPPING[values.pop("model_type", "llama")](**values)
        self.text_config = text_config
        self._check()
        super().__init__(**kwargs)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs beside text, in order."""
        return tuple(self.encoders)

    @property
    def image_token_id(self) -> int | None:
        """The placeholder of images, by the name that transformers' tools look for."""
        return self.token_ids.get("image")

    def encoder(self, name: str) -> Encoder:
        """The encoder of an input, as its settings."""
        made: Encoder = settings.from_spec(
            "clmm.encoders", self.encoders[name], where=f"encoders.{name}"
        )
        return made

    def input_projector(self, name: str) -> InputProjector:
        """The input projector of an input, as its settings."""
        made: InputProjector = settings.from_spec(
            "clmm.projectors", self.input_projectors[name], where=f"input_projectors.{name}"
        )
        return made

    def num_tokens(self, name: str) -> int:
        """Placeholders that one medium of an input becomes; processor and model both ask."""
        encoder = self.encoder(name)
        features = encoder.num_tokens(encoder.shape)
        try:
            return self.input_projector(name).num_tokens(features)
        except ValueError as error:
            raise SettingError(
                f"input_projectors.{name}: {self.input_projectors[name]['name']} cannot take the "
                f"{features} features of {self.encoders[name]['name']}: {error}"
            ) from None

    def _check(self) -> None:
        for here, there in (("input_projectors", "encoders"), ("encoders", "input_projectors")):
            mine, others = getattr(self, here), getattr(self, there)
            for name in mine:
                if name not in others:
                    near = nearest(name, [*others]) if others else ""
                    raise SettingError(f"{here}.{name}: there is no {there}.{name}{near}")
        for name in self.inputs:
            self.num_tokens(name)


AutoConfig.register(MMLLMConfig.model_type, MMLLMConfig)
