"""ImageBind (Girdhar et al. 2023, arXiv 2305.05665): image, video, audio, depth, heat or motion."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from clmm.imagebind import HUGE, Tower, TowerSize


@dataclass(frozen=True, kw_only=True)
class ImageBind:
    """One tower of ImageBind-huge, which `modality` chooses; image's has 632 million parameters.

    As `embedding`, the one vector in the space that all modalities share, with the scale of its
    modality, the mean over a medium's clips; as `tokens`, what the transformer makes of the class
    token and every patch, clip after clip. A composition with several modalities names this
    encoder once for each.
    """

    modality: Literal["image", "video", "audio", "depth", "thermal", "imu"] = "image"
    """What is read. Image and video share a tower's kind, but not its weights here."""
    features: Literal["embedding", "tokens"] = "embedding"
    """One feature of a medium, or all."""
    image_size: int = 224
    """Height and width of images, frames, depth and thermal maps, in pixels."""
    clips: int | None = None
    """Clips of a medium: of 2 frames in a video, of 2 seconds in a recording; left out, 5 and 3."""
    mel_bins: int = 128
    """Bins of a recording's filter banks."""
    frames: int = 204
    """Frames of the filter banks of a clip."""
    samples: int = 2000
    """Readings of motion, from six channels."""
    hidden_size: int | None = None
    """Width of the transformer; left out, the published one of the modality."""
    depth: int | None = None
    """Transformer blocks; left out, the published number of the modality."""
    heads: int | None = None
    """Attention heads; left out, the published number of the modality."""
    embedding_size: int = 1024
    """Width of the shared space."""

    def __post_init__(self) -> None:
        size = self._size
        for side in size.input[1:] if self._name != "vision" else size.input[2:]:
            if self._name != "audio" and side % size.stride:
                raise ValueError(
                    f"imagebind: the {side} places of {self.modality} are no multiple of "
                    f"{size.stride}"
                )
            if side < size.patch:
                raise ValueError(f"imagebind: {side} is less than a patch's {size.patch}")

    @property
    def _name(self) -> str:
        return "vision" if self.modality in ("image", "video") else self.modality

    @property
    def _clips(self) -> int:
        """Clips of a medium; 0 for modalities that have none."""
        usual = {"video": 5, "audio": 3}.get(self.modality, 0)
        return self.clips or usual if usual else 0

    @property
    def _size(self) -> TowerSize:
        usual = HUGE[self._name]
        square = (self.image_size, self.image_size)
        return dataclasses.replace(
            usual,
            width=self.hidden_size or usual.width,
            depth=self.depth or usual.depth,
            heads=self.heads or usual.heads,
            input={
                "vision": (3, 2, *square),
                "audio": (1, self.mel_bins, self.frames),
                "imu": (6, self.samples),
            }.get(self._name, (1, *square)),
        )

    @property
    def width(self) -> int:
        return self.embedding_size if self.features == "embedding" else self._size.width

    @property
    def shape(self) -> tuple[int, ...]:
        return {
            "image": (3, self.image_size, self.image_size),
            "video": (self._clips, 3, 2, self.image_size, self.image_size),
            "audio": (self._clips, self.frames, self.mel_bins),
            "imu": (6, self.samples),
        }.get(self.modality, (1, self.image_size, self.image_size))

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        if self.features == "embedding":
            return 1
        size = self._size
        sides = size.input[-1:] if self._name == "imu" else size.input[-2:]
        patches = math.prod((side - size.patch) // size.stride + 1 for side in sides)
        return max(self._clips, 1) * (1 + patches)

    def build(self) -> nn.Module:
        out_width = self.embedding_size if self.features == "embedding" else None
        tower = Tower(self._name, self._size, out_width=out_width)
        return _Clips(tower, clips=self._clips, transpose=self._name == "audio")

    def preprocessor(self) -> Any:
        from clmm import audio_preprocessing as audio
        from clmm import sensor_preprocessing as sensors
        from clmm.preprocessing import CLIP_MEAN, CLIP_STD, square_images

        if self.modality == "image":
            return square_images(self.image_size, mean=CLIP_MEAN, std=CLIP_STD)
        if self.modality == "video":
            return sensors.FramePairs(clips=self._clips, size=self.image_size)
        if self.modality == "audio":
            return audio.FilterBanks(
                self.mel_bins,
                padding_value=0.0,
                frames=self.frames,
                mean=-4.268,
                std=9.138 / 2,
                clips=self._clips,
            )
        if self.modality == "imu":
            return sensors.Motion(samples=self.samples)
        # Depth comes as disparity; these are its mean and deviation in SUN RGB-D.
        mean, std = (0.0418, 0.0295) if self.modality == "depth" else (0.0, 1.0)
        return sensors.Maps(name=self.modality, size=self.image_size, mean=mean, std=std)


class _Clips(nn.Module):
    """A tower for media of several clips: embeddings are averaged, tokens joined."""

    def __init__(self, tower: Tower, *, clips: int, transpose: bool):
        super().__init__()
        self.tower = tower
        self.clips = clips
        self.transpose = transpose

    def forward(self, values: Tensor) -> Tensor:
        """[N, *shape] → [N, n, width]."""
        media = len(values)
        if self.clips:
            values = values.flatten(0, 1)
        if self.transpose:  # the tower reads one channel of [bins, frames]
            values = values.transpose(1, 2)[:, None]
        if self.tower.head is None:
            tokens = self.tower.tokens(values)
            return tokens.unflatten(0, (media, -1)).flatten(1, 2)
        return self.tower(values).unflatten(0, (media, -1)).mean(1, keepdim=True)
