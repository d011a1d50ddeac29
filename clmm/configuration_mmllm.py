"""The configuration of an any-to-any multimodal LLM: five components, each by name and settings.

Knows what the components are and how many tokens an image becomes (`num_image_tokens`, which the
processor and the model both ask). Builds nothing.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


class MMLLMConfig(PretrainedConfig):
    """Encoder F_X → input projector P_X → language model → output projector H_X → generator.

    `vision_config` is any transformers vision configuration, `text_config` any causal language
    model's. `input_projector` is a name in `clmm.projectors` with its settings. The two slots on
    the output side are empty for now: they hold `None`, and text is what comes out.
    """

    model_type = "mmllm"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        vision_config: dict[str, Any] | PretrainedConfig | None = None,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        input_projector: dict[str, Any] | None = None,
        output_projector: dict[str, Any] | None = None,
        generator: dict[str, Any] | None = None,
        image_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _config(vision_config, default="convnext")
        self.text_config = _config(text_config, default="llama")
        self.input_projector = input_projector or {"name": "mlp"}
        for slot, value in (("output_projector", output_projector), ("generator", generator)):
            if value is not None:
                raise ValueError(f"config.{slot}: this version's output is text; leave it empty")
        self.output_projector = output_projector
        self.generator = generator
        self.image_token_id = image_token_id
        super().__init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        """How many visual tokens one image gives the language model."""
        vision = self.vision_config
        stride = vision.patch_size
        if hasattr(vision, "depths"):  # hierarchical: every later stage halves the grid
            stride *= 2 ** (len(vision.depths) - 1)
        return int(vision.image_size // stride) ** 2


def _config(value: dict[str, Any] | PretrainedConfig | None, *, default: str) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    settings = dict(value or {})
    return CONFIG_MAPPING[settings.pop("model_type", default)](**settings)


AutoConfig.register(MMLLMConfig.model_type, MMLLMConfig)
