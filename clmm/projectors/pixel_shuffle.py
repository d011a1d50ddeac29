"""Pixel shuffle: squares of features become channels; InternVL's and Idefics3's input projector."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from clmm.grids import side


@dataclass(frozen=True, kw_only=True)
class PixelShuffle:
    """Each `factor` × `factor` square of the grid is one token: [B, n, d] → [B, n/factor², D].

    InternVL (arXiv 2404.16821, section 3.1) follows with LayerNorm, Linear, GELU, Linear; Idefics3
    (arXiv 2408.12637, section 3) with one linear map that has no bias.
    """

    factor: int = 2
    """Side of a square; the grid's sides must be multiples of it."""
    mlp: bool = True
    """InternVL's LayerNorm and MLP; false is Idefics3's one linear map."""

    def num_tokens(self, features: int) -> int:
        edge = side(features, where="pixel_shuffle")
        if edge % self.factor:
            raise ValueError(
                f"pixel_shuffle: a grid of {edge} x {edge} features is no multiple of factor "
                f"{self.factor}"
            )
        return (edge // self.factor) ** 2

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        width = input_width * self.factor**2
        if not self.mlp:
            return nn.Sequential(_Shuffled(self), nn.Linear(width, output_width, bias=False))
        return nn.Sequential(
            _Shuffled(self),
            nn.LayerNorm(width),
            nn.Linear(width, output_width),
            nn.GELU(),
            nn.Linear(output_width, output_width),
        )


class _Shuffled(nn.Module):
    def __init__(self, settings: PixelShuffle) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, n/factor², factor² · d], a square read row by row."""
        rows, count, width = features.shape
        tokens, factor = self.settings.num_tokens(count), self.settings.factor
        edge = side(tokens, where="pixel_shuffle")
        grid = features.reshape(rows, edge, factor, edge, factor, width)
        return grid.transpose(2, 3).reshape(rows, tokens, factor**2 * width)
