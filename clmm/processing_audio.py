"""The processor of a composition that hears: recordings and text. Knows no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoProcessor, BatchFeature, ProcessorMixin

AUDIO = "<audio>"


class AudioProcessor(ProcessorMixin):
    """Recordings, each as long as the encoder hears, and text with one `audio_token` for each."""

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        num_tokens: dict[str, int] | None = None,
        chat_template: str | None = None,
        audio_token: str = AUDIO,
        **kwargs: Any,
    ) -> None:
        self.num_tokens = dict(num_tokens or {"audio": 1})
        self.audio_token = audio_token
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """`audio` is a list of arrays [samples] at the extractor's rate, in reading order.

        ValueError when they are not as many as their tokens, or of another `sampling_rate`.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        recordings = [] if audio is None else list(audio)
        placeholders = sum(one.count(self.audio_token) for one in texts)
        if placeholders != len(recordings):
            raise ValueError(
                f"{placeholders} {self.audio_token} placeholders in the text, {len(recordings)} "
                "recordings"
            )
        many = self.audio_token * self.num_tokens["audio"]
        side = {} if padding_side is None else {"padding_side": padding_side}
        data = dict(
            self.tokenizer(
                [one.replace(self.audio_token, many) for one in texts],
                padding=padding,
                return_tensors=return_tensors,
                add_special_tokens=add_special_tokens,
                return_token_type_ids=False,
                **side,
            )
        )
        if recordings:
            made = self.feature_extractor(
                recordings,
                sampling_rate=sampling_rate or self.feature_extractor.sampling_rate,
                padding="max_length",
                return_tensors=return_tensors or "pt",
            )
            data["input_features"] = made["input_features"]
        return BatchFeature(data)


# AutoProcessor finds by its name what is registered for anything.
AutoProcessor.register(AudioProcessor, AudioProcessor)
