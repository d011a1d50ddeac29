"""C-Former (X-LLM, Chen et al. 2023, arXiv 2305.04160): speech as a row of word-like tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clmm import audio_preprocessing as audio
from clmm.integrate_and_fire import Fired, IntegrateAndFire


@dataclass(frozen=True, kw_only=True)
class CFormer:
    """Conformer → continuous integrate-and-fire → BERT, 165 million parameters, 85 of them BERT's.

    X-LLM's speech becomes as many tokens as its transcript has. A composition must know the number
    beforehand: here every recording becomes `tokens`, by the scaling that integrate-and-fire uses
    in training. `speak(values)` of the network leaves the number free, and `speak(values, lengths)`
    with `clmm.integrate_and_fire.quantity_loss` trains it on transcripts.

    X-LLM does not give the sizes of its acoustic encoder, only its 512 channels: twelve blocks are
    ours. BERT reads embeddings, so it has no words and no pooler.
    """

    seconds: float = 10.0
    """Length of a recording; shorter ones are filled with silence, longer ones cut."""
    mel_bins: int = 80
    """Bins of the filter banks."""
    tokens: int = 32
    """Tokens of a recording."""
    acoustic_size: int = 512
    """Width of the acoustic encoder and of integrate-and-fire."""
    acoustic_depth: int = 12
    """Conformer blocks."""
    acoustic_heads: int = 8
    """Attention heads of the acoustic encoder."""
    acoustic_mlp: int = 2048
    """Width between the two maps of its blocks' MLPs."""
    acoustic_channels: int = 256
    """Channels of the two convolutions that make one feature of four frames."""
    hidden_size: int = 768
    """BERT's width, and a feature's."""
    depth: int = 12
    """BERT's layers."""
    heads: int = 12
    """BERT's attention heads."""
    mlp: int = 3072
    """Width between the two maps of BERT's MLPs."""

    modality: ClassVar[str] = "audio"

    def __post_init__(self) -> None:
        if self.tokens > 512:
            raise ValueError(f"c_former: {self.tokens} tokens are more than BERT's 512 positions")

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def shape(self) -> tuple[int, ...]:
        return (audio.frames(self.seconds), self.mel_bins)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return self.tokens

    def build(self) -> nn.Module:
        return _Network(self)

    def preprocessor(self) -> Any:
        return audio.FilterBanks(self.mel_bins, frames=self.shape[0], window_name="povey")


class _Network(nn.Module):
    def __init__(self, settings: CFormer):
        from transformers import BertConfig, BertModel, ParakeetEncoder, ParakeetEncoderConfig

        super().__init__()
        self.tokens = settings.tokens
        acoustic = ParakeetEncoderConfig(
            num_mel_bins=settings.mel_bins,
            hidden_size=settings.acoustic_size,
            num_hidden_layers=settings.acoustic_depth,
            num_attention_heads=settings.acoustic_heads,
            intermediate_size=settings.acoustic_mlp,
            subsampling_conv_channels=settings.acoustic_channels,
            subsampling_factor=4,
            dropout=0.0,
            layerdrop=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
        )
        adaptor = BertConfig(
            vocab_size=1,
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.depth,
            num_attention_heads=settings.heads,
            intermediate_size=settings.mlp,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.acoustic = ParakeetEncoder(acoustic)
        self.fire = IntegrateAndFire(settings.acoustic_size)
        self.project = nn.Linear(settings.acoustic_size, settings.hidden_size)
        self.adaptor = BertModel(adaptor, add_pooling_layer=False)
        self.adaptor.embeddings.word_embeddings = None  # type: ignore[assignment]

    def speak(self, values: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Fired]:
        """[N, frames, bins] → tokens [N, most, width], and what fired."""
        fired = self.fire(self.acoustic(values).last_hidden_state, lengths)
        own = torch.arange(fired.tokens.shape[1], device=values.device) < fired.lengths[:, None]
        embeds = self.project(fired.tokens).relu()
        made = self.adaptor(inputs_embeds=embeds, attention_mask=own.long())
        return made.last_hidden_state, fired

    def forward(self, values: Tensor) -> Tensor:
        """[N, frames, bins] → [N, tokens, width]."""
        lengths = torch.full((len(values),), self.tokens, device=values.device)
        tokens, _ = self.speak(values, lengths)
        return tokens
