"""SAM-HQ (Ke et al. 2023, arXiv 2306.01567): the image encoder of a segmenter, a ViT by windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from clmm.encoding import Selected, patches
from clmm.preprocessing import IMAGENET_MEAN, IMAGENET_STD, square_images


@dataclass(frozen=True, kw_only=True)
class SamHq:
    """MAE's ViT-H/16 unless set otherwise: 637 million parameters, 4096 features at 1024 pixels.

    Features: the neck's map [256, 64, 64], row by row; what SAM's mask decoder takes. SAM-HQ's own
    token and its fusion with early features belong to that decoder. Pictures are resized to a
    square where SAM would pad them.
    """

    image_size: int = 1024
    """Height and width of the input, in pixels."""
    patch_size: int = 16
    """Height and width of a patch."""
    hidden_size: int = 1280
    """Width inside the ViT."""
    depth: int = 32
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    mlp: int = 5120
    """Width between the two maps of a block's MLP."""
    window: int = 14
    """Side of the windows that blocks attend in, in patches."""
    global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    """Blocks that attend everywhere, from 0."""
    channels: int = 256
    """Width of a feature, behind the neck."""

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        beyond = [block for block in self.global_blocks if not 0 <= block < self.depth]
        if beyond:
            raise ValueError(f"sam_hq: global_blocks has {beyond[0]}, but depth is {self.depth}")

    @property
    def width(self) -> int:
        return self.channels

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return patches(shape, self.patch_size, where="sam_hq")

    def build(self) -> nn.Module:
        from transformers import SamHQVisionConfig, SamHQVisionModel

        config = SamHQVisionConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            mlp_dim=self.mlp,
            window_size=self.window,
            global_attn_indexes=list(self.global_blocks),
            output_channels=self.channels,
            # The class's own 1e-10 is meant for weights that are loaded; random ones must see.
            initializer_range=0.02,
        )
        return Selected(SamHQVisionModel(config))

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=2)
