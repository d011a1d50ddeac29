"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545): a convolutional image encoder; nano's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from clmm.encoding import Selected, patches
from clmm.preprocessing import square_images


@dataclass(frozen=True, kw_only=True)
class Convnext:
    """Features: the last stage's map, row by row, without the final pooling and norm."""

    image_size: int = 224
    """Height and width of the input, in pixels."""
    patch_size: int = 4
    """Stride of the stem."""
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of each stage."""
    depths: tuple[int, ...] = (3, 3, 9, 3)
    """Blocks of each stage; every stage after the first halves the grid."""
    layer_scale: float = 1e-6
    """Initial scale of each block's output."""

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"convnext: hidden_sizes has {len(self.hidden_sizes)} stages, depths "
                f"{len(self.depths)}"
            )

    @property
    def width(self) -> int:
        return self.hidden_sizes[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the built module's parameters that no feature depends on: the pooler's."""
        return ("model.layernorm.",)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return patches(shape, self.patch_size * 2 ** (len(self.depths) - 1), where="convnext")

    def build(self) -> nn.Module:
        from transformers import ConvNextConfig, ConvNextModel

        config = ConvNextConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_stages=len(self.depths),
            hidden_sizes=list(self.hidden_sizes),
            depths=list(self.depths),
            layer_scale_init_value=self.layer_scale,
        )
        return Selected(ConvNextModel(config))

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=(0.5,) * 3, std=(0.5,) * 3, resample=2)
