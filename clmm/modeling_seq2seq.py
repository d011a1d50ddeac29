"""An encoder and a decoder as the language model: media enter the encoder, answers the decoder.

Knows how such a language model of transformers is called, by a composition's `forward` and by
`generate`; nothing of encoders of media and of projectors.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import Seq2SeqLMOutput

from clmm import media_rows

KEYS = ("encoder_outputs", "decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds")
"""What `forward` takes besides, under the names of transformers' encoder–decoders."""
DECODED = ("input_ids", "inputs_embeds")


class MediaEncoder:
    """What `generate` runs once before it decodes: the text's encoder, with media among its inputs.

    It holds the whole model, so it is no module of it.
    """

    main_input_name = "input_ids"

    def __init__(self, model: Any) -> None:
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """[B, L] and media as `forward` of the model names them → encoder outputs [B, L, D]."""
        media = {key: kwargs.pop(key, None) for key in self.model._media_keys}
        self.model.refuse_unheard(kwargs)
        if inputs_embeds is None:
            inputs_embeds, _ = self.model.embed(input_ids, media)
        else:
            media_rows.refuse_heard(media)
        encoder = self.model.language_model.get_encoder()
        return encoder(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    __call__ = forward


def run(
    language_model: Any,
    *,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    use_cache: bool | None,
    logits_to_keep: int | torch.Tensor,
    **kwargs: Any,
) -> Seq2SeqLMOutput:
    """`inputs_embeds` [B, L, D] into the encoder, labels [B, T] into the decoder, moved by one.

    With `encoder_outputs` among `kwargs` the encoder is not run again.
    """
    if labels is None and all(kwargs.get(f"decoder_{key}") is None for key in DECODED):
        raise ValueError("the decoder has nothing to read: give labels or decoder_input_ids")
    output: Seq2SeqLMOutput = language_model(
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        labels=labels,
        use_cache=use_cache,
        **kwargs,
    )
    keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    if output.logits is not None:
        output.logits = output.logits[:, keep]
    return output
