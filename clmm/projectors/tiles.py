"""A projector for each window of an image: Monkey's shared resampler (arXiv 2311.06607)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from clmm.encoding import InputProjector
from streams import settings


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """One shared projector takes each tile's features: [B, tiles · n, d] → [B, tiles · m, D].

    The other half is the encoder of the same name: windows are cut from pixels, so an encoder must;
    and a resampler that is shared among windows must see each alone, which only a projector can.
    """

    tiles: int = 7
    """Tiles of one image: Monkey's six windows of 448 pixels, and the whole image made small."""
    projector: dict[str, Any] = field(default_factory=lambda: {"name": "cross_attention"})
    """Name and settings of the projector in `clmm/projectors` that takes one tile's features."""

    @property
    def inner(self) -> InputProjector:
        """The projector of one tile."""
        made: InputProjector = settings.from_spec(
            "clmm.projectors", self.projector, where="tiles.projector"
        )
        if getattr(made, "in_layers", False):
            raise ValueError(
                f"tiles: {self.projector['name']} makes no tokens that could be joined"
            )
        return made

    def num_tokens(self, features: int) -> int:
        return self.tiles * self.inner.num_tokens(self.of_one(features))

    def of_one(self, features: int) -> int:
        """Features of one tile; ValueError when the tiles would differ."""
        if features % self.tiles:
            raise ValueError(f"tiles: {features} features are no multiple of tiles {self.tiles}")
        return features // self.tiles

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        return _Tiles(self, self.inner.build(input_width=input_width, output_width=output_width))


class _Tiles(nn.Module):
    def __init__(self, settings: Tiles, projector: nn.Module) -> None:
        super().__init__()
        self.settings = settings
        self.projector = projector

    def forward(self, features: Tensor) -> Tensor:
        """[B, tiles · n, d] → [B, tiles · m, D]."""
        rows, count, width = features.shape
        one = self.settings.of_one(count)
        tokens: Tensor = self.projector(features.reshape(-1, one, width))
        return tokens.reshape(rows, -1, tokens.shape[-1])
