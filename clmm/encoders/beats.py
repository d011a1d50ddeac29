"""BEATs (Chen et al. 2022, arXiv 2212.09058): any sound, as patches of its filter banks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from clmm import audio_preprocessing as audio
from clmm.beats import BeatsNetwork


@dataclass(frozen=True, kw_only=True)
class Beats:
    """The published base model unless set otherwise: 90 million parameters; of 10 seconds 496
    features, 62 places of 8 bands each."""

    seconds: float = 10.0
    """Length of a recording; shorter ones are filled with silence, longer ones cut."""
    mel_bins: int = 128
    """Bins of the filter banks."""
    patch_size: int = 16
    """Frames and bins of a patch."""
    patch_width: int = 512
    """Width of a patch's embedding before it is projected."""
    hidden_size: int = 768
    """Width of a feature."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads."""
    mlp: int = 3072
    """Width between the two maps of a block's MLP."""
    buckets: int = 320
    """Distances that the relative bias tells apart."""
    furthest: int = 1280
    """Distance in patches from which on all are one."""
    kernel: int = 128
    """Patches that the position convolution sees."""
    groups: int = 16
    """Groups of channels of the position convolution."""

    modality: ClassVar[str] = "audio"

    def __post_init__(self) -> None:
        if self.mel_bins % self.patch_size:
            raise ValueError(f"beats: mel_bins {self.mel_bins} is no multiple of {self.patch_size}")
        # Of the buckets of one direction half are a distance each, and the others grow to furthest.
        if self.buckets < 4 or self.furthest <= self.buckets // 4:
            raise ValueError(
                f"beats: furthest {self.furthest} is not beyond the {self.buckets // 4} distances "
                f"that buckets {self.buckets} tell apart; give 4 buckets or more"
            )

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def shape(self) -> tuple[int, ...]:
        return (audio.frames(self.seconds), self.mel_bins)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        if shape[0] < self.patch_size:
            raise ValueError(f"beats: {shape[0]} frames are fewer than a patch's {self.patch_size}")
        return (shape[0] // self.patch_size) * (shape[1] // self.patch_size)

    def build(self) -> nn.Module:
        return BeatsNetwork(
            patch=self.patch_size,
            patch_width=self.patch_width,
            width=self.hidden_size,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            buckets=self.buckets,
            furthest=self.furthest,
            kernel=self.kernel,
            groups=self.groups,
        )

    def preprocessor(self) -> Any:
        return audio.FilterBanks(
            self.mel_bins,
            frames=self.shape[0],
            mean=15.41663,
            std=6.55582,
            scale=2.0**15,
            window_name="povey",
        )
