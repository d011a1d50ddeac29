"""DINOv2 (Oquab et al. 2024, arXiv 2304.07193): a self-distilled ViT, with or without registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from clmm.encoding import Selected, patches, unused_blocks
from clmm.preprocessing import IMAGENET_MEAN, IMAGENET_STD, square_images


@dataclass(frozen=True, kw_only=True)
class Dinov2:
    """ViT-L/14 unless set otherwise: 304 million parameters; patch tokens of the last layer.

    ViT-g/14: `hidden_size` 1536, `depth` 40, `heads` 24, `swiglu` true, 1136 million. Registers
    (Darcet et al. 2024, arXiv 2309.16588) are extra tokens that take up what is of the whole
    picture; the published networks have four. They and the class token are left out.
    """

    image_size: int = 224
    """Height and width of the input, in pixels."""
    position_size: int = 518
    """Side in pixels of the picture that the position table was learnt for; it is interpolated to
    image_size."""
    patch_size: int = 14
    """Height and width of a patch."""
    hidden_size: int = 1024
    """Width of one layer's feature."""
    depth: int = 24
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    mlp_ratio: int = 4
    """Width between the two maps of a block's MLP, over hidden_size."""
    swiglu: bool = False
    """A gated MLP, of two thirds of that width."""
    registers: int = 0
    """Register tokens."""
    layers: tuple[int, ...] | None = None
    """Hidden states that are taken, 0 the embeddings and -1 the last, joined; left out, the last
    one after the final norm."""

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
        blocks, ends = "model.encoder.layer", ["model.layernorm."]
        left = unused_blocks(self.layers, self.depth, blocks=blocks, ends=ends)
        return (*left, "model.embeddings.mask_token")

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return patches(shape, self.patch_size, where="dinov2")

    def build(self) -> nn.Module:
        from transformers import (
            Dinov2Config,
            Dinov2Model,
            Dinov2WithRegistersConfig,
            Dinov2WithRegistersModel,
        )

        settings: dict[str, Any] = {
            "image_size": self.position_size,
            "patch_size": self.patch_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "use_swiglu_ffn": self.swiglu,
        }
        model: nn.Module
        if self.registers:
            config = Dinov2WithRegistersConfig(**settings, num_register_tokens=self.registers)
            model = Dinov2WithRegistersModel(config)
        else:
            model = Dinov2Model(Dinov2Config(**settings))
        return Selected(model, layers=self.layers, drop=1 + self.registers)

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
