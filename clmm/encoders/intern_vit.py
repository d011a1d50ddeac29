"""InternViT (Chen et al. 2024, arXiv 2312.14238), the eye of InternVL: 6 billion parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from clmm.encoding import Selected, patches, unused_blocks
from clmm.preprocessing import IMAGENET_MEAN, IMAGENET_STD, square_images


@dataclass(frozen=True, kw_only=True)
class InternVit:
    """InternViT-6B unless set otherwise: 5903 million parameters; the last block's patch tokens.

    Layer scale throughout; there is no final norm. Version 1.5 has `depth` 45 and `image_size`
    448. InternViT-300M-448: `image_size` 448, `hidden_size` 1024, `depth` 24, `heads` 16, `mlp`
    4096, `norm` layer_norm, `qk_norm` false, `qkv_bias` true.
    """

    image_size: int = 224
    """Height and width of the input, in pixels."""
    patch_size: int = 14
    """Height and width of a patch."""
    hidden_size: int = 3200
    """Width of one layer's feature."""
    depth: int = 48
    """Transformer blocks."""
    heads: int = 25
    """Attention heads."""
    mlp: int = 12800
    """Width between the two maps of a block's MLP."""
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm"
    """The norms before attention and MLP."""
    qk_norm: bool = True
    """RMSNorm of queries and of keys, over all heads at once."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias."""
    layers: tuple[int, ...] = (-1,)
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
        return unused_blocks(self.layers, self.depth, blocks="model.encoder.layer", ends=[])

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return patches(shape, self.patch_size, where="intern_vit") + self.class_token

    def build(self) -> nn.Module:
        from transformers import InternVLVisionConfig, InternVLVisionModel

        config = InternVLVisionConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp,
            norm_type=self.norm,
            use_qk_norm=self.qk_norm,
            attention_bias=self.qkv_bias,
        )
        drop = 0 if self.class_token else 1
        return Selected(InternVLVisionModel(config), layers=self.layers, drop=drop)

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
