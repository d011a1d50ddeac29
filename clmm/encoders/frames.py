"""Video as a few frames, each seen by the image's encoder; their features follow one another.

The rule of the survey's section on encoders: five frames, uniformly sampled, and the images' own
preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature, FeatureExtractionMixin

from clmm.encoding import Encoder, joined


@dataclass(frozen=True, kw_only=True)
class Frames:
    """[frames, *one image] → frames · n features of the image's encoder; no weights here."""

    of: str = "image"
    """The input whose encoder it borrows."""
    frames: int = 5
    """Frames of a video that are seen."""

    modality: ClassVar[str] = "video"

    def over(self, encoder: Encoder) -> Encoder:
        if encoder.modality != "image":
            raise ValueError(
                f"frames are images, but the encoder of {self.of} encodes {encoder.modality}"
            )
        return _FramesOf(encoder=encoder, frames=self.frames)


def uniform_frames(available: int, frames: int) -> list[int]:
    """round(linspace(0, N − 1, frames)): first and last are in it; a short video repeats frames.

    One frame is the first. Raises ValueError for a video without frames.
    """
    if available < 1:
        raise ValueError("the video has no frames")
    return [int(i) for i in np.linspace(0, available - 1, frames).round()]


class FrameProcessor(FeatureExtractionMixin):
    """Videos → `pixel_values_videos` [videos, frames, *one image], by the images' processor."""

    def __init__(self, image_processor: Any, frames: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_processor = image_processor
        self.frames = frames

    def __call__(
        self, videos: Sequence[Any], *, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Each video a sequence of pictures, or uint8 [N, height, width, 3]."""
        seen = []
        for video in videos:
            chosen = [video[i] for i in uniform_frames(len(video), self.frames)]
            seen.append(self.image_processor(chosen, return_tensors="pt")["pixel_values"])
        made = torch.stack(seen)
        return BatchFeature(
            {"pixel_values_videos": made if return_tensors == "pt" else made.numpy()}
        )

    def to_dict(self) -> dict[str, Any]:
        """With the images' processor as its own settings."""
        kept = {"image_processor": self.image_processor.to_dict(), "frames": self.frames}
        return {**kept, "feature_extractor_type": type(self).__name__}


@dataclass(frozen=True, kw_only=True)
class _FramesOf:
    """Frames, now that the image's encoder is known."""

    encoder: Encoder
    frames: int

    modality: ClassVar[str] = "video"

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.frames, *self.encoder.shape)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        return shape[0] * self.encoder.num_tokens(shape[1:])

    def build(self) -> nn.Module:
        """With an image encoder of its own; a composition uses the owner's and builds none."""
        return _Joined(self.encoder.build(), len(self.encoder.shape))

    def preprocessor(self) -> FrameProcessor:
        return FrameProcessor(self.encoder.preprocessor(), self.frames)


class _Joined(nn.Module):
    def __init__(self, model: nn.Module, axes: int) -> None:
        super().__init__()
        self.model = model
        self.axes = axes

    def forward(self, values: Tensor) -> Tensor:
        return joined(self.model, values, self.axes)
