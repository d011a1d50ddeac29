"""BEiT-3's vision expert (Wang et al. 2023, arXiv 2208.10442): a ViT with sub-LN blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from clmm.beit3 import Beit3Vision
from clmm.encoding import patches
from clmm.preprocessing import square_images


@dataclass(frozen=True, kw_only=True)
class Beit3:
    """Giant, patches of 14, unless set otherwise: 1012 million parameters.

    Base: `patch_size` 16, `hidden_size` 768, `depth` 12, `heads` 12, `mlp` 3072, 86 million. Large:
    `patch_size` 16, `hidden_size` 1024, `depth` 24, `heads` 16, `mlp` 4096, 304 million. Features
    are the last layer's, after the final norm.
    """

    image_size: int = 224
    """Height and width of the input, in pixels."""
    patch_size: int = 14
    """Height and width of a patch."""
    hidden_size: int = 1408
    """Width of a feature."""
    depth: int = 40
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    mlp: int = 6144
    """Width between the two maps of a block's MLP."""
    class_token: bool = False
    """Keep the class token as a first feature."""

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"beit3: hidden_size {self.hidden_size} is no multiple of {self.heads} heads"
            )

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return patches(shape, self.patch_size, where="beit3") + self.class_token

    def build(self) -> nn.Module:
        model = Beit3Vision(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.hidden_size,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
        )
        return _Tokens(model, 0 if self.class_token else 1)

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)


class _Tokens(nn.Module):
    def __init__(self, model: nn.Module, drop: int) -> None:
        super().__init__()
        self.model = model
        self.drop = drop

    def forward(self, values: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, n, width]."""
        tokens: Tensor = self.model(values)[:, self.drop :]
        return tokens
