"""NFNet (Brock et al. 2021, arXiv 2102.06171): a ResNet without norms; F6 is Flamingo's eye."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from clmm.preprocessing import IMAGENET_MEAN, IMAGENET_STD, square_images


@dataclass(frozen=True, kw_only=True)
class Nfnet:
    """F6 unless set otherwise: 435 million parameters, 196 features at 448 pixels.

    Features: the map behind the last convolution and its activation, row by row. The network is
    timm's `dm_nfnet`, so this encoder needs timm. The paper trains it with adaptive gradient
    clipping, `clmm.gradient_clipping.clip_adaptively`.
    """

    image_size: int = 448
    """Height and width of the input, in pixels."""
    depths: tuple[int, ...] = (7, 14, 42, 21)
    """Blocks of each of the four stages; F0 is (1, 2, 6, 3) and Fn is n + 1 times that."""
    channels: tuple[int, ...] = (256, 512, 1536, 1536)
    """Channels of each stage; features are twice as wide as the last."""
    stem_channels: int = 128
    """Channels of the stem's last convolution."""
    group_size: int = 128
    """Channels of a group in grouped convolutions."""

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or len(self.channels) != 4:
            raise ValueError(
                f"nfnet: depths has {len(self.depths)} stages, channels {len(self.channels)}; "
                "give 4 of both"
            )

    @property
    def width(self) -> int:
        return 2 * self.channels[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return -(-shape[-2] // 32) * -(-shape[-1] // 32)

    def build(self) -> nn.Module:
        try:
            from timm import create_model
        except ImportError:
            raise ImportError("nfnet: its network comes from timm; pip install timm") from None
        model = create_model(
            "dm_nfnet_f6",
            pretrained=False,
            num_classes=0,
            depths=self.depths,
            channels=self.channels,
            stem_chs=self.stem_channels,
            group_size=self.group_size,
            num_features=self.width,
        )
        return _Map(model)

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)


class _Map(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, n, width]."""
        features: Tensor = self.model.forward_features(values).flatten(2).transpose(1, 2)
        return features
