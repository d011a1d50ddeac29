"""Perceiver resampler: Flamingo's (arXiv 2204.14198) and IDEFICS's bridge from vision to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Resampler:
    """Learned latents attend to features and themselves: [B, n, d] → [B, latents, D].

    Appendix A.1.1 of the paper. Unless set otherwise it is IDEFICS-9B's, 126 million parameters at
    a width of 1280. It works in the encoder's width; a linear map stands in front of it where
    `width` is another and behind it where the language model's is.
    """

    latents: int = 64
    """Learned latents: the tokens of one image or clip."""
    depth: int = 6
    """Blocks of attention and MLP."""
    heads: int = 16
    """Attention heads."""
    head_width: int = 96
    """Width of a head."""
    width: int | None = None
    """Width inside; the encoder's when left out. Flamingo's is 1536."""
    mlp: int | None = None
    """Width between the two maps of an MLP; four times the width inside when left out."""
    activation: Literal["relu", "squared_relu", "gelu"] = "relu"
    """relu is IDEFICS's, squared_relu Flamingo's."""
    qk_norm: bool = True
    """Layer norms on the queries and keys of each head: IDEFICS-9B's, not Flamingo's."""
    frames: int | None = None
    """Frames of a clip, each with a learned time embedding; left out, none is learned."""

    def num_tokens(self, features: int) -> int:
        if self.frames and features % self.frames:
            raise ValueError(
                f"resampler: {features} features are no multiple of frames {self.frames}"
            )
        return self.latents

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        from clmm.perceiver import PerceiverResampler

        width = self.width or input_width
        resampler = PerceiverResampler(
            width,
            latents=self.latents,
            depth=self.depth,
            heads=self.heads,
            head_width=self.head_width,
            mlp=self.mlp or 4 * width,
            activation=self.activation,
            qk_norm=self.qk_norm,
            frames=self.frames,
        )
        layers: list[nn.Module] = [resampler]
        if width != input_width:
            layers.insert(0, nn.Linear(input_width, width))
        if width != output_width:
            layers.append(nn.Linear(width, output_width))
        return resampler if len(layers) == 1 else nn.Sequential(*layers)
