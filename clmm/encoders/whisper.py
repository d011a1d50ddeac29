"""Whisper's encoder (Radford et al. 2022, arXiv 2212.04356), the ear of Qwen-Audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from clmm.encoding import Selected


@dataclass(frozen=True, kw_only=True)
class Whisper:
    """Large-v2 unless set otherwise: 637 million parameters, a feature every 20 ms.

    With `pool` 2, as in Qwen-Audio (arXiv 2311.07919) and Qwen2-Audio, a feature every 40 ms: the
    mean of neighbours is taken before the final norm.
    """

    seconds: int = 30
    """Length of a recording; shorter ones are filled with silence, longer ones cut."""
    mel_bins: int = 80
    """Bins of the mel spectrogram; large-v3 has 128."""
    hidden_size: int = 1280
    """Width of a feature."""
    depth: int = 32
    """Transformer blocks."""
    heads: int = 20
    """Attention heads."""
    mlp: int = 5120
    """Width between the two maps of a block's MLP."""
    pool: int = 1
    """Neighbouring features that become one, by their mean."""

    modality: ClassVar[str] = "audio"

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.mel_bins, 100 * self.seconds)

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the built module's parameters that no stage trains: its sines are fixed."""
        return ("model.embed_positions.",)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        positions = shape[-1] // 2
        if positions % self.pool:
            raise ValueError(f"whisper: {positions} features cannot be pooled by {self.pool}")
        return positions // self.pool

    def build(self) -> nn.Module:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        config = WhisperConfig(
            num_mel_bins=self.mel_bins,
            d_model=self.hidden_size,
            encoder_layers=self.depth,
            encoder_attention_heads=self.heads,
            encoder_ffn_dim=self.mlp,
            max_source_positions=50 * self.seconds,
        )
        model = WhisperEncoder(config)
        if self.pool > 1:
            model.layer_norm = _PooledNorm(self.hidden_size, pool=self.pool)
        return Selected(model)

    def preprocessor(self) -> Any:
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=self.mel_bins, chunk_length=self.seconds)


class _PooledNorm(nn.LayerNorm):
    """The mean of `pool` neighbours, then the norm, under the norm's own names."""

    def __init__(self, width: int, *, pool: int):
        super().__init__(width)
        self.pool = pool

    def forward(self, states: Tensor) -> Tensor:
        """[N, n, width] → [N, n / pool, width]."""
        pooled = nn.functional.avg_pool1d(states.transpose(1, 2), self.pool)
        return super().forward(pooled.transpose(1, 2))
