"""LDPv2, MobileVLM V2's downsample projector (arXiv 2402.03766, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from clmm.grids import as_grid, as_sequence, side


@dataclass(frozen=True, kw_only=True)
class LdpV2:
    """An MLP, average pooling to a smaller grid, positions by a convolution: [B, n, d] → [B, m, D].

    x = pool(MLP(F_X)); P_X = x + PEG(x), where PEG is a depth-wise 3 × 3 convolution with a bias.
    """

    grid: int = 12
    """Side of the grid that is pooled to; 144 tokens."""

    def num_tokens(self, features: int) -> int:
        edge = side(features, where="ldp_v2")
        if edge < self.grid:
            raise ValueError(f"ldp_v2: a grid of {edge} x {edge} features is less than {self.grid}")
        return self.grid**2

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        return _LdpV2(self, input_width, output_width)


class _LdpV2(nn.Module):
    def __init__(self, settings: LdpV2, input_width: int, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.mlp = nn.Sequential(nn.Linear(input_width, width), nn.GELU(), nn.Linear(width, width))
        self.pool = nn.AdaptiveAvgPool2d(settings.grid)
        self.positions = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, grid², D]."""
        self.settings.num_tokens(features.shape[1])
        grid = self.pool(as_grid(self.mlp(features), where="ldp_v2"))
        return as_sequence(grid + self.positions(grid))
