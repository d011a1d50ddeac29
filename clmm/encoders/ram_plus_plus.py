"""RAM++ (Huang et al. 2023, arXiv 2310.15200): an image tagger on Swin, by patches or by tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clmm import ram_plus_plus
from clmm.encoding import patches
from clmm.preprocessing import IMAGENET_MEAN, IMAGENET_STD, square_images


@dataclass(frozen=True, kw_only=True)
class RamPlusPlus:
    """Swin-L at 384 pixels unless set otherwise: 195 million parameters, and 15 million for tags.

    Swin-B: `embed_dim` 128, `heads` [4, 8, 16, 32], 87 million. `features` says what a language
    model gets. `patches`: the image tokens that the tag decoder attends to, without their mean; the
    decoder is not built. `tags`: the decoder's states of the tags that score highest, best first;
    scores choose them and take no gradient.
    """

    features: Literal["patches", "tags"] = "patches"
    """patches or tags."""
    best: int = 32
    """Tags that are kept, where features is tags."""
    image_size: int = 384
    """Height and width of the input, in pixels."""
    embed_dim: int = 192
    """Channels of the backbone's first stage; each stage after it has twice as many."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (6, 12, 24, 48)
    """Attention heads of each stage."""
    window: int = 12
    """Side of the windows that the backbone attends in."""
    token_width: int = 512
    """Width of an image token, CLIP's of a description too."""
    tags: int = 4585
    """Tags that are known."""
    descriptions: int = 51
    """Descriptions of each tag."""
    tag_width: int = 768
    """Width of the tag decoder."""
    tag_depth: int = 2
    """Layers of the tag decoder."""
    tag_heads: int = 4
    """Attention heads of the tag decoder."""
    tag_mlp: int = 3072
    """Width between the two maps of the tag decoder's MLP."""

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if self.features == "tags" and not 0 < self.best <= self.tags:
            raise ValueError(f"ram_plus_plus: best is {self.best}, but there are {self.tags} tags")
        if len(self.depths) != len(self.heads):
            raise ValueError(
                f"ram_plus_plus: depths has {len(self.depths)} stages, heads {len(self.heads)}"
            )

    @property
    def width(self) -> int:
        return self.token_width if self.features == "patches" else self.tag_width

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the built module's parameters that no feature depends on."""
        return () if self.features == "patches" else ("model.head.fc.",)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        if self.features == "tags":
            return self.best
        return patches(shape, 4 * 2 ** (len(self.depths) - 1), where="ram_plus_plus")

    def build(self) -> nn.Module:
        if self.features == "patches":
            return _Patches(self._image_tokens())
        return _Tags(self.network(), self.best)

    def network(self) -> ram_plus_plus.RamPlusPlus:
        """The whole tagger, for its logits and its losses."""
        head = ram_plus_plus.TagHead(
            tags=self.tags,
            descriptions=self.descriptions,
            width=self.token_width,
            hidden=self.tag_width,
            depth=self.tag_depth,
            heads=self.tag_heads,
            mlp=self.tag_mlp,
        )
        return ram_plus_plus.RamPlusPlus(self._image_tokens(), head)

    def _image_tokens(self) -> ram_plus_plus.ImageTokens:
        from transformers import SwinConfig, SwinModel

        config = SwinConfig(
            image_size=self.image_size,
            embed_dim=self.embed_dim,
            depths=list(self.depths),
            num_heads=list(self.heads),
            window_size=self.window,
            # A frozen encoder must say the same in training.
            drop_path_rate=0.0,
        )
        backbone = SwinModel(config, add_pooling_layer=False)
        return ram_plus_plus.ImageTokens(backbone, config.hidden_size, self.token_width)

    def preprocessor(self) -> Any:
        return square_images(self.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=2)


class _Patches(nn.Module):
    def __init__(self, model: ram_plus_plus.ImageTokens) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, n, token_width]."""
        tokens: Tensor = self.model(values)[:, 1:]
        return tokens


class _Tags(nn.Module):
    def __init__(self, model: ram_plus_plus.RamPlusPlus, best: int) -> None:
        super().__init__()
        self.model = model
        self.best = best

    def forward(self, values: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, best, tag_width]."""
        states = self.model.states(values)
        chosen = self.model.head.logits(states.detach()).topk(self.best).indices
        return torch.take_along_dim(states, chosen.unsqueeze(-1), dim=1)
