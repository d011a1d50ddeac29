"""Gated cross-attention inside the language model: Flamingo's and IDEFICS's (arXiv 2204.14198)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from clmm.encoding import InputProjector
from streams import settings


@dataclass(frozen=True, kw_only=True)
class GatedCrossAttention:
    """GATED XATTN-DENSE blocks before every k-th layer of the language model (section 2.2).

    y ← y + tanh(α) · attention(norm(y), media), y ← y + tanh(β) · MLP(norm(y)), α = β = 0 at first,
    so the language model begins as it was. A medium has one placeholder, which stays a word; that
    word and those behind it, up to the next medium's, attend to this medium alone. Unless set
    otherwise IDEFICS-9B's; Flamingo's is gated_mlp false, activation squared_relu, norm layer,
    qk_norm false.
    """

    every: int = 4
    """A block stands before the language model's layers 0, every, 2 · every …"""
    heads: int = 32
    """Attention heads."""
    mlp: int | None = 11008
    """Width inside a block's MLP; four times the language model's width when left out."""
    gated_mlp: bool = True
    """LLaMA's MLP of three maps; false is one of two."""
    activation: Literal["silu", "gelu", "relu", "squared_relu"] = "silu"
    """Between an MLP's maps."""
    norm: Literal["rms", "layer"] = "rms"
    """Norms of a block."""
    qk_norm: bool = True
    """Normalise the queries and keys of each head."""
    gate: Literal["float", "vector"] = "float"
    """Whether α and β are numbers or vectors of the language model's width."""
    eps: float = 1e-6
    """What the norms add to the variance."""
    resampler: dict[str, Any] | None = field(default_factory=lambda: {"name": "resampler"})
    """Name and settings of a projector that makes a medium's features fewer; null for none."""
    media_width: int | None = None
    """Width of what the resampler makes and the blocks attend to; the encoder's when left out.
    Flamingo's is 1536."""

    in_layers: ClassVar[bool] = True
    """Media enter inside the language model, not in their placeholders' places."""

    @property
    def front(self) -> InputProjector | None:
        """The resampler, when there is one."""
        if self.resampler is None:
            return None
        made: InputProjector = settings.from_spec(
            "clmm.projectors", self.resampler, where="gated_cross_attention.resampler"
        )
        return made

    def num_tokens(self, features: int) -> int:
        if self.front is not None:
            self.front.num_tokens(features)
        return 1

    def build(self, *, input_width: int, output_width: int, depth: int) -> nn.Module:
        """Its forward is the resampler, [N, n, d] → [N, m, d]; `attach` puts the blocks in place.

        `depth` is the number of the language model's layers.
        """
        from clmm.gated_layers import GatedLayers

        if not 1 <= self.every <= depth:
            raise ValueError(f"gated_cross_attention: every {self.every} of {depth} layers")
        if output_width % self.heads:
            raise ValueError(
                f"gated_cross_attention: width {output_width} is no multiple of heads {self.heads}"
            )
        front, media_width = self.front, self.media_width or input_width
        if front is None and media_width != input_width:
            raise ValueError(
                f"gated_cross_attention: media_width {media_width} without a resampler, but "
                f"features are {input_width} wide"
            )
        return GatedLayers(
            nn.Identity()
            if front is None
            else front.build(input_width=input_width, output_width=media_width),
            blocks=-(-depth // self.every),
            every=self.every,
            width=output_width,
            media_width=media_width,
            heads=self.heads,
            mlp=self.mlp or 4 * output_width,
            gated_mlp=self.gated_mlp,
            activation=self.activation,
            norm=self.norm,
            qk_norm=self.qk_norm,
            gate=self.gate,
            eps=self.eps,
        )
