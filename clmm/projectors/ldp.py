"""LDP, MobileVLM's lightweight downsample projector (arXiv 2312.16886, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from clmm.grids import as_grid, as_sequence, side


@dataclass(frozen=True, kw_only=True)
class Ldp:
    """An MLP and two depth-wise blocks, the second of stride 2: [B, n, d] → [B, m, D].

    A block is MobileNetV3's (arXiv 1905.02244) without expansion and with layer norms: depth-wise
    3 × 3, norm, hard-swish, squeeze and excitation, point-wise, norm; the first has a residual.
    """

    squeeze: int = 4
    """Channels over those between the two maps of squeeze and excitation."""

    def num_tokens(self, features: int) -> int:
        return ((side(features, where="ldp") + 1) // 2) ** 2

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        squeezed = _multiple_of_8(output_width // self.squeeze)
        return _Ldp(input_width, output_width, squeezed)


class _Ldp(nn.Module):
    def __init__(self, input_width: int, width: int, squeezed: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(input_width, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.Sequential(
            _Block(width, squeezed, stride=1), _Block(width, squeezed, stride=2)
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, ⌈side/2⌉², D]."""
        return as_sequence(self.blocks(as_grid(self.mlp(features), where="ldp")))


class _Block(nn.Module):
    def __init__(self, width: int, squeezed: int, *, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.depthwise = nn.Conv2d(
            width, width, 3, stride=stride, padding=1, groups=width, bias=False
        )
        self.depthwise_norm = _ChannelNorm(width)
        self.activation = nn.Hardswish()
        self.excitation = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, width, 1),
            nn.Hardsigmoid(),
        )
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.pointwise_norm = _ChannelNorm(width)

    def forward(self, grid: Tensor) -> Tensor:
        """[B, D, h, w] → [B, D, h', w']."""
        hidden = self.activation(self.depthwise_norm(self.depthwise(grid)))
        hidden = hidden * self.excitation(hidden)
        hidden = self.pointwise_norm(self.pointwise(hidden))
        return hidden + grid if self.residual else hidden


class _ChannelNorm(nn.LayerNorm):
    def forward(self, grid: Tensor) -> Tensor:
        """Layer norm over the channels of [B, D, h, w]."""
        return super().forward(grid.movedim(1, -1)).movedim(-1, 1)


def _multiple_of_8(channels: int) -> int:
    """MobileNet's rounding: to the nearest multiple of 8, and never down by a tenth or more."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
