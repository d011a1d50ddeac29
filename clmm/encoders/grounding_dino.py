"""Grounding DINO (Liu et al. 2023, arXiv 2303.05499): what an open-set detector sees, by scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clmm.preprocessing import IMAGENET_MEAN, IMAGENET_STD, square_images

STRIDES = (8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class GroundingDino:
    """Swin-T and the maps to the detector's width unless set otherwise: 30 million parameters.

    Features: the levels of section 3.1 as the feature enhancer receives them, before any text is
    mixed in: Swin's stages two to four, and its last map at half the size, each mapped to the
    detector's width with a group norm and read row by row, fine before coarse. Parameters are
    named as in transformers' GroundingDinoModel behind `input_proj_vision`. Pictures are resized to
    a square where the detector keeps their proportions.
    """

    image_size: int = 800
    """Height and width of the input, in pixels."""
    strides: tuple[int, ...] = STRIDES
    """Levels that are taken, by pixels a feature: 8, 16, 32 and 64; all are 13294 features."""
    embed_dim: int = 96
    """Channels of the backbone's first stage; each stage after it has twice as many."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each of the four stages."""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    window: int = 7
    """Side of the windows that the backbone attends in."""
    d_model: int = 256
    """The detector's width, a feature's; a multiple of the 32 groups of its norm."""

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        different = set(self.strides)
        if not different or different - set(STRIDES) or len(different) < len(self.strides):
            raise ValueError(
                f"grounding_dino: strides is {[*self.strides]}; choose of {STRIDES}, each once"
            )
        if len(self.depths) != 4 or len(self.heads) != 4:
            raise ValueError(
                f"grounding_dino: depths has {len(self.depths)} stages, heads {len(self.heads)}; "
                "give 4 of both"
            )
        if self.d_model % 32:
            raise ValueError(f"grounding_dino: d_model {self.d_model} is no multiple of 32")

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the built module's parameters that no feature depends on."""
        last = max(_stages(self.strides))
        stages = [f"backbone.swin.encoder.layers.{i}." for i in range(last, 4)]
        if last < 4:  # a stage's own map is taken before it is halved for the next
            stages.append(f"backbone.swin.encoder.layers.{last - 1}.downsample.")
        return ("backbone.swin.layernorm.", *stages)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return sum(-(-shape[-2] // s) * -(-shape[-1] // s) for s in self.strides)

    def build(self) -> nn.Module:
        from transformers import SwinBackbone, SwinConfig

        stages: dict[str, Any] = {"out_indices": list(_stages(self.strides))}
        config = SwinConfig(
            image_size=self.image_size,
            embed_dim=self.embed_dim,
            depths=list(self.depths),
            num_heads=list(self.heads),
            window_size=self.window,
            # A frozen encoder must say the same in training.
            drop_path_rate=0.0,
            **stages,
        )
        return _Levels(SwinBackbone(config), self.strides, self.d_model)

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=2)


def _stages(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Swin's stages that these levels come from, from 1: 64 is made of stage 4's map, like 32."""
    return tuple(sorted({min(STRIDES.index(stride) + 2, 4) for stride in strides}))


class _Levels(nn.Module):
    """[N, 3, H, W] → the levels' features joined, [N, n, d_model]."""

    def __init__(self, backbone: Any, strides: tuple[int, ...], d_model: int) -> None:
        super().__init__()
        self.backbone = backbone
        stages = _stages(strides)
        # The level's number in the detector, and which of the backbone's maps it is made of.
        levels = sorted(STRIDES.index(stride) for stride in strides)
        self.sources = {level: stages.index(min(level + 2, 4)) for level in levels}
        self.input_proj_vision = nn.ModuleDict(
            {
                str(level): nn.Sequential(
                    nn.Conv2d(backbone.channels[source], d_model, 3, stride=2, padding=1)
                    if level == len(STRIDES) - 1
                    else nn.Conv2d(backbone.channels[source], d_model, 1),
                    nn.GroupNorm(32, d_model),
                )
                for level, source in self.sources.items()
            }
        )

    def forward(self, values: Tensor) -> Tensor:
        maps = self.backbone(values).feature_maps
        levels = [
            self.input_proj_vision[str(level)](maps[source])
            for level, source in self.sources.items()
        ]
        return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
