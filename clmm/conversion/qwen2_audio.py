"""Qwen2-Audio (arXiv 2407.10759): Whisper's encoder, pooled by two, a linear map, Qwen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from clmm import source_config
from clmm.configuration_mmllm import MMLLMConfig
from clmm.conversion.llava import COUNTED, LANGUAGE_MODEL
from clmm.processing_mmllm import MMLLMProcessor
from clmm.source_processor import template_of
from streams.settings import SettingError

FRAMES_PER_SECOND = 50


@dataclass(frozen=True, kw_only=True)
class Qwen2Audio:
    """A recording is always as long as the encoder hears: thirty seconds are 750 tokens."""

    model_type: ClassVar[str] = "qwen2_audio"
    rules: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(?:model\.)?audio_tower\.", "encoders.audio.model."),
        (r"^(?:model\.)?multi_modal_projector\.linear\.", "input_projectors.audio."),
        *LANGUAGE_MODEL,
    )
    left_out: ClassVar[tuple[str, ...]] = COUNTED
    departures: ClassVar[tuple[str, ...]] = (
        "a shorter recording is heard with the silence behind it, which the published model masks",
    )

    def composition(self, source: Any) -> MMLLMConfig:
        """Raises SettingError for what the composition cannot be, with the setting's name."""
        audio = source.audio_config
        source_config.require(
            audio,
            "audio_config",
            activation_function="gelu",
            scale_embedding=False,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            encoder_layerdrop=0.0,
        )
        if audio.max_source_positions % FRAMES_PER_SECOND:
            raise SettingError(
                f"audio_config.max_source_positions: {audio.max_source_positions} are not whole "
                f"seconds of {FRAMES_PER_SECOND}"
            )
        encoder = {
            "name": "whisper",
            "seconds": audio.max_source_positions // FRAMES_PER_SECOND,
            "mel_bins": audio.num_mel_bins,
            "hidden_size": audio.d_model,
            "depth": audio.encoder_layers,
            "heads": audio.encoder_attention_heads,
            "mlp": audio.encoder_ffn_dim,
            "pool": 2,
        }
        text = source_config.language_model(source)
        text.tie_word_embeddings = False  # its class ties none, whatever the config says
        return MMLLMConfig(
            encoders={"audio": encoder},
            input_projectors={"audio": {"name": "linear"}},
            text_config=text,
            token_ids={"audio": source_config.token(source, "audio_token_id")},
        )

    def processor(self, source: Any, config: MMLLMConfig) -> MMLLMProcessor:
        """The same feature extractor, tokenizer and chat template."""
        return MMLLMProcessor(
            tokenizer=source.tokenizer,
            preprocessors={"audio": source.feature_extractor},
            num_tokens={"audio": config.num_tokens("audio")},
            chat_template=template_of(source),
            placeholders={"audio": source.audio_token},
        )
