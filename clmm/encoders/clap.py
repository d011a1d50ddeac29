"""CLAP's audio side (Wu et al. 2023, arXiv 2211.06687): HTS-AT, a Swin over a spectrogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from clmm.encoding import Selected


@dataclass(frozen=True, kw_only=True)
class Clap:
    """The unfused HTS-AT unless set otherwise: 28 million parameters.

    As `map`, the last stage's map after its norm, 2 bands of 32 places read band by band; as
    `embedding`, the one vector that CLAP compares with text, before it is normalised.
    """

    seconds: int = 10
    """Length of a recording; shorter ones are repeated, of longer ones the start is taken."""
    mel_bins: int = 64
    """Bins of the mel spectrogram."""
    spectrogram_size: int = 256
    """Height and width of the square that the spectrogram is folded into."""
    window: int = 8
    """Height and width of an attention window, in patches."""
    hidden_size: int = 96
    """Channels of the first stage; each next one doubles them."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage; every stage after the first halves the grid."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    features: Literal["map", "embedding"] = "map"
    """The last map, place by place, or one projected vector."""
    embedding_size: int = 512
    """Width of the embedding."""

    modality: ClassVar[str] = "audio"

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads):
            raise ValueError(f"clap: depths has {len(self.depths)} stages, heads {len(self.heads)}")
        room = self.spectrogram_size**2 // self.mel_bins
        if self.shape[1] > room:
            raise ValueError(
                f"clap: {self.shape[1]} frames do not fit into the {room} of a square of "
                f"{self.spectrogram_size}"
            )

    @property
    def _channels(self) -> int:
        return self.hidden_size * 2 ** (len(self.depths) - 1)

    @property
    def width(self) -> int:
        return self._channels if self.features == "map" else self.embedding_size

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 100 * self.seconds + 1, self.mel_bins)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        side = self.spectrogram_size // 4 // 2 ** (len(self.depths) - 1)
        return side**2 if self.features == "map" else 1

    def build(self) -> nn.Module:
        from transformers import ClapAudioConfig
        from transformers.models.clap.modeling_clap import (
            ClapAudioModel,
            ClapAudioModelWithProjection,
        )

        config = ClapAudioConfig(
            window_size=self.window,
            num_mel_bins=self.mel_bins,
            spec_size=self.spectrogram_size,
            patch_embeds_hidden_size=self.hidden_size,
            hidden_size=self._channels,
            depths=list(self.depths),
            num_attention_heads=list(self.heads),
            num_hidden_layers=len(self.depths),
            projection_dim=self.embedding_size,
            hidden_dropout_prob=0.0,
        )
        if self.features == "map":
            return Selected(ClapAudioModel(config))
        return _Embedding(ClapAudioModelWithProjection(config))

    def preprocessor(self) -> Any:
        from clmm.audio_preprocessing import ClapBanks

        return ClapBanks(
            feature_size=self.mel_bins,
            max_length_s=self.seconds,
            truncation="rand_trunc",
            padding="repeatpad",
        )


class _Embedding(nn.Module):
    """The projected vector as a sequence of one."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, values: Tensor) -> Tensor:
        """[N, 1, frames, bins] → [N, 1, width]."""
        embedding: Tensor = self.model(values).audio_embeds
        return embedding[:, None]
