"""Several encoders of one picture, their features one behind another: Lyrics's (2312.05278)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clmm.encoding import Encoder, unused_of
from clmm.grids import made_small
from streams import settings


@dataclass(frozen=True, kw_only=True)
class Joined:
    """[N, 3, H, W] → [N, n₁ + n₂ + …, width], the first encoder's features first.

    A picture comes as large as the largest of them sees it; each other gets it made small, and all
    get it by their own mean and deviation. Features of another width pass a linear map of their
    own. Lyrics's are CLIP and, as its visual refiner, Grounding DINO, SAM-HQ and RAM++; the
    projector `mq_former` tells the first from the others by `image_features`. The paper does not
    say how unequal widths meet: the linear maps are ours.
    """

    encoders: tuple[dict[str, Any], ...]
    """Name and settings of each in `clmm/encoders`."""
    feature_size: int | None = None
    """Width of a feature; the first encoder's when left out."""

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        for made, spec in zip(self.parts, self.encoders, strict=True):
            if made.modality != "image" or len(made.shape) != 3:
                raise ValueError(f"joined: {spec['name']} encodes {made.modality}, not one image")
        if len(self.encoders) < 2:
            raise ValueError(f"joined: {len(self.encoders)} encoders; give two or more")

    @property
    def parts(self) -> tuple[Encoder, ...]:
        """The encoders, as their settings."""
        return tuple(
            settings.from_spec("clmm.encoders", spec, where=f"joined.encoders[{i}]")
            for i, spec in enumerate(self.encoders)
        )

    @property
    def width(self) -> int:
        return self.feature_size or self.parts[0].width

    @property
    def shape(self) -> tuple[int, ...]:
        return max((made.shape for made in self.parts), key=lambda shape: shape[-1])

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of the built module's parameters that no feature depends on."""
        return tuple(
            f"parts.{i}.{prefix}" for i, made in enumerate(self.parts) for prefix in unused_of(made)
        )

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return sum(made.num_tokens(made.shape) for made in self.parts)

    def build(self) -> nn.Module:
        return _Joined(self)

    def preprocessor(self) -> Any:
        made = self.parts[0].preprocessor()
        _, height, width = self.shape
        made.size = type(made.size)(**{"height": height, "width": width})
        return made


class _Joined(nn.Module):
    def __init__(self, settings: Joined) -> None:
        super().__init__()
        made = settings.parts
        self.sizes = [one.shape[1:] for one in made]
        used = [one.preprocessor() for one in made]
        self.norms = [(tuple(one.image_mean), tuple(one.image_std)) for one in used]
        self.parts = nn.ModuleList(one.build() for one in made)
        width = settings.width
        self.maps = nn.ModuleList(
            nn.Identity() if one.width == width else nn.Linear(one.width, width) for one in made
        )

    def forward(self, values: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, n₁ + n₂ + …, width]."""
        first, features = self.norms[0], []
        for part, linear, size, norm in zip(
            self.parts, self.maps, self.sizes, self.norms, strict=True
        ):
            seen = values if values.shape[2:] == size else made_small(values, size)
            if norm != first:
                (mean, std), (own_mean, own_std) = (
                    map(values.new_tensor, n) for n in (first, norm)
                )
                moved = seen.movedim(1, -1) * std + mean
                seen = ((moved - own_mean) / own_std).movedim(-1, 1)
            features.append(linear(part(seen)))
        return torch.cat(features, dim=1)
