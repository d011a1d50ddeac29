"""ViT (Dosovitskiy et al. 2021, arXiv 2010.11929): patches, a class token, pre-norm blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from clmm.encoding import Selected, patches, unused_blocks
from clmm.preprocessing import square_images


@dataclass(frozen=True, kw_only=True)
class Vit:
    """ViT-L/16 unless set otherwise: 303 million parameters and, at 224 pixels, 196 features."""

    image_size: int = 224
    """Height and width of the input, in pixels."""
    patch_size: int = 16
    """Height and width of a patch."""
    hidden_size: int = 1024
    """Width of a feature."""
    depth: int = 24
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    mlp: int = 4096
    """Width between the two maps of a block's MLP."""
    layers: tuple[int, ...] | None = None
    """Hidden states that are taken, 0 the embeddings and -1 the last, joined; left out, the last
    one after the final norm."""
    class_token: bool = False
    """Keep the class token as a first feature."""

    modality: ClassVar[str] = "image"

    @property
    def width(self) -> int:
        return self.hidden_size * len(self.layers or (-1,))

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the built module's parameters that no feature depends on."""
        return unused_blocks(
            self.layers, self.depth, blocks="model.layers", ends=["model.layernorm."]
        )

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return patches(shape, self.patch_size, where="vit") + self.class_token

    def build(self) -> nn.Module:
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp,
        )
        model = ViTModel(config, add_pooling_layer=False)
        return Selected(model, layers=self.layers, drop=0 if self.class_token else 1)

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=(0.5,) * 3, std=(0.5,) * 3, resample=2)
