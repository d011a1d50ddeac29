"""Two eyes side by side: CLIP's and one for dense text, Vary's (arXiv 2312.06109)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clmm.encoding import Encoder, unused_of
from clmm.grids import made_small, side
from clmm.preprocessing import CLIP_MEAN, CLIP_STD, square_images
from streams import settings

SAM_BASE: dict[str, Any] = {
    "name": "sam_hq",
    "hidden_size": 768,
    "depth": 12,
    "heads": 12,
    "mlp": 3072,
    "global_blocks": (2, 5, 8, 11),
}
"""SAM's ViT-B, which Vary trains on documents first."""


@dataclass(frozen=True, kw_only=True)
class Vary:
    """[N, 3, 1024, 1024] → [N, 256, 1024 + 1024]: the eye's features, then the vocabulary's.

    The eye sees the picture made small. The vocabulary's map is halved by each of two convolutions,
    so that both have as many features. 399 million parameters.
    """

    eye: dict[str, Any] = field(default_factory=lambda: {"name": "clip"})
    """Name and settings of the encoder that sees the whole."""
    vocabulary: dict[str, Any] = field(default_factory=lambda: dict(SAM_BASE))
    """Name and settings of the encoder that reads; its features are a square map."""
    channels: tuple[int, ...] = (512, 1024)
    """Channels behind each convolution."""

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        eye, reader = self._eyes
        seen, read = (one.num_tokens(one.shape) for one in (eye, reader))
        edge = side(read, where="vary.vocabulary")
        for _ in self.channels:
            edge = (edge + 1) // 2
        if seen != edge**2:
            raise ValueError(
                f"vary: {self.eye['name']} makes {seen} features, {self.vocabulary['name']} and "
                f"{len(self.channels)} convolutions {edge**2}"
            )

    @property
    def _eyes(self) -> tuple[Encoder, Encoder]:
        names = ("eye", "vocabulary")
        eye, reader = (
            settings.from_spec("clmm.encoders", getattr(self, name), where=f"vary.{name}")
            for name in names
        )
        for made, spec in ((eye, self.eye), (reader, self.vocabulary)):
            if made.modality != "image" or len(made.shape) != 3:
                raise ValueError(f"vary: {spec['name']} encodes {made.modality}, not one image")
        return eye, reader

    @property
    def width(self) -> int:
        return self._eyes[0].width + self.channels[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._eyes[1].shape

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the built module's parameters that no feature depends on."""
        parts = zip(("eye", "vocabulary"), self._eyes, strict=True)
        return tuple(f"{part}.{prefix}" for part, made in parts for prefix in unused_of(made))

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        eye = self._eyes[0]
        return eye.num_tokens(eye.shape)

    def build(self) -> nn.Module:
        eye, reader = self._eyes
        widths = (reader.width, *self.channels)
        halving = nn.Sequential(
            *(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
                for before, after in zip(widths, self.channels, strict=False)
            )
        )
        return _Vary(eye.build(), eye.shape[-1], reader.build(), halving)

    def preprocessor(self) -> Any:
        return square_images(self.shape[-1], mean=CLIP_MEAN, std=CLIP_STD)


class _Vary(nn.Module):
    def __init__(
        self, eye: nn.Module, eye_size: int, vocabulary: nn.Module, halving: nn.Module
    ) -> None:
        super().__init__()
        self.eye = eye
        self.eye_size = eye_size
        self.vocabulary = vocabulary
        self.halving = halving

    def forward(self, values: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, n, width]."""
        small = made_small(values, (self.eye_size, self.eye_size))
        read = self.vocabulary(values)
        edge = side(read.shape[1], where="vary.vocabulary")
        grid = read.transpose(1, 2).unflatten(2, (edge, edge))
        halved = self.halving(grid).flatten(2).transpose(1, 2)
        return torch.cat([self.eye(small), halved], dim=-1)
