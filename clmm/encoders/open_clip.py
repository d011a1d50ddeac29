"""OpenCLIP's ViT (Ilharco et al. 2021; Cherti et al. 2023, arXiv 2212.07143): CLIP's on LAION."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from clmm.encoding import Selected, patches, unused_blocks
from clmm.preprocessing import CLIP_MEAN, CLIP_STD, square_images


@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """ViT-H/14 unless set otherwise: 631 million parameters; IDEFICS' eye.

    bigG/14, Qwen-VL's: `hidden_size` 1664, `depth` 48, `mlp` 8192, 1843 million; Qwen-VL sees at
    `image_size` 448 with the table of 224, interpolated. Features are the last block's, without
    the final norm.
    """

    image_size: int = 224
    """Height and width of the input, in pixels."""
    position_size: int | None = None
    """Side in pixels of the picture that the position table was learnt for, such as 224; it is
    interpolated to image_size at each pass. Left out, the table is image_size's own."""
    patch_size: int = 14
    """Height and width of a patch."""
    hidden_size: int = 1280
    """Width of one layer's feature."""
    depth: int = 32
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    mlp: int = 5120
    """Width between the two maps of a block's MLP."""
    activation: str = "gelu"
    """Between the two maps."""
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
        blocks, ends = "model.encoder.layers", ["model.post_layernorm."]
        return unused_blocks(self.layers, self.depth, blocks=blocks, ends=ends)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return patches(shape, self.patch_size, where="open_clip") + self.class_token

    def build(self) -> nn.Module:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(
            image_size=self.position_size or self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp,
            hidden_act=self.activation,
        )
        return Selected(
            CLIPVisionModel(config),
            layers=self.layers,
            drop=0 if self.class_token else 1,
            interpolate=self.position_size is not None,
        )

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=CLIP_MEAN, std=CLIP_STD)
