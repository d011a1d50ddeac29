"""Point-BERT (Yu et al. 2022, arXiv 2111.14819), the 3D side of ULIP-2: point clouds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clmm.point_bert import PointBertNetwork


@dataclass(frozen=True, kw_only=True)
class PointBert:
    """Points without colours unless set otherwise: 22 million parameters.

    ULIP-2's (arXiv 2305.08275) with colours is channels 6 and depth 18, 32 million. As `pooled`,
    the class token beside the maximum of the groups, one feature of twice the width, as ULIP takes
    it; as `tokens`, the class token and every group, as PointLLM does.
    """

    points: int = 8192
    """Points of a cloud."""
    channels: int = 3
    """3 for coordinates, 6 with red, green and blue."""
    groups: int = 512
    """Groups, each a token."""
    group_size: int = 32
    """Points of a group, its centre and the nearest to it."""
    token_width: int = 256
    """Width of a group's token before it is projected."""
    hidden_size: int = 384
    """Width of the transformer."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 6
    """Attention heads."""
    features: Literal["pooled", "tokens"] = "pooled"
    """One feature of a cloud, or all."""

    modality: ClassVar[str] = "points"

    def __post_init__(self) -> None:
        if self.points < max(self.groups, self.group_size):
            raise ValueError(
                f"point_bert: {self.points} points are too few for {self.groups} groups of "
                f"{self.group_size}"
            )

    @property
    def width(self) -> int:
        return self.hidden_size * (2 if self.features == "pooled" else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.points, self.channels)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return 1 if self.features == "pooled" else 1 + self.groups

    def build(self) -> nn.Module:
        network = PointBertNetwork(
            channels=self.channels,
            groups=self.groups,
            group_size=self.group_size,
            token_width=self.token_width,
            width=self.hidden_size,
            depth=self.depth,
            heads=self.heads,
        )
        return _Pooled(network) if self.features == "pooled" else network

    def preprocessor(self) -> Any:
        from clmm.sensor_preprocessing import PointClouds

        return PointClouds(points=self.points, channels=self.channels)


class _Pooled(nn.Module):
    """The class token and the maximum over the groups, side by side."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, values: Tensor) -> Tensor:
        """[N, points, channels] → [N, 1, 2 · width]."""
        states = self.model(values)
        return torch.cat([states[:, :1], states[:, 1:].amax(1, keepdim=True)], dim=-1)
