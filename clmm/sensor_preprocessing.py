"""Extractors of fixed size for media that transformers has no processor for.

Knows arrays of points, depth, heat, motion and frames; knows no encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin

from clmm.preprocessing import CLIP_MEAN, CLIP_STD, square_images


def _many(media: Any, rank: int) -> list[np.ndarray]:
    """One medium of `rank` axes, or several, as a list of float arrays."""
    if isinstance(media, (list, tuple)) and np.ndim(media[0]) >= rank:
        return [np.asarray(medium, np.float32) for medium in media]
    array = np.asarray(media, np.float32)
    return [array] if array.ndim == rank else list(array)


class PointClouds(FeatureExtractionMixin):
    """Clouds [any, 3 or 6] → `points_values` [N, points, channels].

    Coordinates are centred and scaled into the unit sphere; colours stay as they are, in [0, 1].
    Of a larger cloud the same random points are taken every time; a smaller one is repeated.
    """

    def __init__(self, *, points: int = 8192, channels: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.points = points
        self.channels = channels

    def __call__(
        self, clouds: Any, *, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Raises ValueError for a cloud of other channels, with both numbers."""
        made = [self._one(cloud) for cloud in _many(clouds, 2)]
        return BatchFeature({"points_values": made}, tensor_type=return_tensors)

    def _one(self, cloud: np.ndarray) -> np.ndarray:
        if cloud.shape[-1] != self.channels:
            raise ValueError(
                f"a cloud has {cloud.shape[-1]} channels, and the encoder takes {self.channels}; "
                "give x, y, z, and colours only to an encoder that sees them"
            )
        order = np.random.default_rng(0).permutation(len(cloud))
        cloud = cloud[np.resize(order, self.points)]
        centred = cloud[:, :3] - cloud[:, :3].mean(0)
        size = max(float(np.linalg.norm(centred, axis=1).max()), 1e-8)
        return np.concatenate([centred / size, cloud[:, 3:]], axis=1)


class Maps(FeatureExtractionMixin):
    """Maps of one channel [H, W] → `{name}_values` [N, 1, size, size]: (x − mean) / std.

    `name` is depth or thermal.
    """

    def __init__(
        self,
        *,
        name: str = "depth",
        size: int = 224,
        mean: float = 0.0,
        std: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.size = size
        self.mean = mean
        self.std = std

    def __call__(
        self, maps: Any, *, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        made = [self._one(one.squeeze()) for one in _many(maps, 2)]
        return BatchFeature({f"{self.name}_values": made}, tensor_type=return_tensors)

    def _one(self, values: np.ndarray) -> np.ndarray:
        sized = nn.functional.interpolate(
            torch.from_numpy(values)[None, None],
            size=(self.size, self.size),
            mode="bilinear",
            antialias=True,
        )
        made: np.ndarray = ((sized[0] - self.mean) / self.std).numpy()
        return made


class Motion(FeatureExtractionMixin):
    """Readings of an inertial unit [6, any] → `imu_values` [N, 6, samples], cut or zero-filled."""

    def __init__(self, *, samples: int = 2000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.samples = samples

    def __call__(
        self, readings: Any, *, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        cut = [one[:, : self.samples] for one in _many(readings, 2)]
        made = [np.pad(one, ((0, 0), (0, self.samples - one.shape[1]))) for one in cut]
        return BatchFeature({"imu_values": made}, tensor_type=return_tensors)


class FramePairs(FeatureExtractionMixin):
    """Videos [frames, H, W, 3] → `pixel_values_videos` [N, clips, 3, 2, size, size].

    2 · clips frames at even distances; two neighbours are a clip. Pixels as CLIP's.
    """

    def __init__(self, *, clips: int = 5, size: int = 224, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clips = clips
        self.size = size

    def __call__(
        self, videos: Any, *, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        if not isinstance(videos, (list, tuple)):
            videos = [videos] if np.ndim(videos) == 4 else list(videos)
        made = [self._one(video) for video in videos]
        return BatchFeature({"pixel_values_videos": made}, tensor_type=return_tensors)

    def _one(self, video: Sequence[Any]) -> np.ndarray:
        picked = np.linspace(0, len(video) - 1, 2 * self.clips).round().astype(int)
        images = square_images(self.size, mean=CLIP_MEAN, std=CLIP_STD)
        pixels = images([video[i] for i in picked], return_tensors="np")["pixel_values"]
        pairs = pixels.reshape(self.clips, 2, 3, self.size, self.size)
        return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3, 4))
