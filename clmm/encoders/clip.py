"""CLIP's ViT (Radford et al. 2021, arXiv 2103.00020), the eye of LLaVA and its kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from clmm.encoding import Selected, patches, unused_blocks
from clmm.preprocessing import CLIP_MEAN, CLIP_STD, square_images


@dataclass(frozen=True, kw_only=True)
class Clip:
    """ViT-L/14 unless set otherwise: 303 million parameters; features of the last layer but one.

    LLaVA's rule: `layers` [-2], the class token left out. VipLlava joins several layers.
    """

    image_size: int = 224
    """Height and width of the input, in pixels."""
    patch_size: int = 14
    """Height and width of a patch."""
    hidden_size: int = 1024
    """Width of one layer's feature."""
    depth: int = 24
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    mlp: int = 4096
    """Width between the two maps of a block's MLP."""
    activation: str = "quick_gelu"
    """OpenAI's weights want quick_gelu, OpenCLIP's gelu."""
    layers: tuple[int, ...] = (-2,)
    """Hidden states that are taken, 0 the embeddings and -1 the last; several are joined."""
    class_token: bool = False
    """Keep the class token as a first feature."""

    modality: ClassVar[str] = "image"

    @property
    def width(self) -> int:
        return self.hidden_size * len(self.layers)

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the built module's parameters that no feature depends on."""
        blocks, ends = "model.encoder.layers", ["model.post_layernorm."]
        return unused_blocks(self.layers, self.depth, blocks=blocks, ends=ends)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return patches(shape, self.patch_size, where="clip") + self.class_token

    def build(self) -> nn.Module:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp,
            hidden_act=self.activation,
        )
        drop = 0 if self.class_token else 1
        return Selected(CLIPVisionModel(config), layers=self.layers, drop=drop)

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=CLIP_MEAN, std=CLIP_STD)
