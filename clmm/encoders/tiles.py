"""Windows of a large image, each through one shared encoder: Monkey's (arXiv 2311.06607)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clmm.encoding import Encoder, unused_of
from clmm.grids import made_small
from streams import settings


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """rows × columns windows of the encoder's size, and the whole image made that small.

    Section 3.1 of the paper: 896 × 1344 pixels are six windows of 448. Features come window by
    window, row by row, and the whole image's last, as the projector of the same name takes them.
    Monkey's low-rank adapters of single windows are not part of this.
    """

    encoder: dict[str, Any] = field(default_factory=lambda: {"name": "clip", "image_size": 448})
    """Name and settings of the image encoder in `clmm/encoders` that every window goes through."""
    rows: int = 2
    """Windows from top to bottom."""
    columns: int = 3
    """Windows from left to right."""
    whole: bool = True
    """Encode the whole image, made as small as a window, too."""

    modality: ClassVar[str] = "image"

    @property
    def inner(self) -> Encoder:
        """The encoder of one window."""
        made: Encoder = settings.from_spec("clmm.encoders", self.encoder, where="tiles.encoder")
        if made.modality != "image" or len(made.shape) != 3:
            raise ValueError(
                f"tiles: {self.encoder['name']} encodes {made.modality}, not one image"
            )
        return made

    @property
    def tiles(self) -> int:
        """Windows, and the whole image where it is encoded."""
        return self.rows * self.columns + self.whole

    @property
    def width(self) -> int:
        return self.inner.width

    @property
    def shape(self) -> tuple[int, ...]:
        channels, height, width = self.inner.shape
        return (channels, self.rows * height, self.columns * width)

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the built module's parameters that no feature depends on."""
        return tuple(f"encoder.{prefix}" for prefix in unused_of(self.inner))

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        if tuple(shape) != self.shape:
            raise ValueError(
                f"tiles: an image is {tuple(shape)}, but the windows fill {self.shape}"
            )
        inner = self.inner
        return self.tiles * inner.num_tokens(inner.shape)

    def build(self) -> nn.Module:
        return _Tiles(self, self.inner.build())

    def preprocessor(self) -> Any:
        made = self.inner.preprocessor()
        _, height, width = self.shape
        made.size = type(made.size)(**{"height": height, "width": width})
        return made


class _Tiles(nn.Module):
    def __init__(self, settings: Tiles, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.window = settings.inner.shape[1:]
        self.whole = settings.whole

    def forward(self, values: Tensor) -> Tensor:
        """[N, 3, rows · h, columns · w] → [N, tiles · n, width]."""
        height, width = self.window
        grid = values.unfold(2, height, height).unfold(3, width, width)
        tiles = grid.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        if self.whole:
            small = made_small(values, self.window)
            tiles = torch.cat([tiles, small.unsqueeze(1)], dim=1)
        features: Tensor = self.encoder(tiles.flatten(0, 1))
        return features.reshape(len(values), -1, features.shape[-1])
