"""What media a processor takes, under which keywords, and what stands for them in a prompt.

Goes by the conventions of Hugging Face processors and of our compositions, whose `num_tokens` says
how many placeholders one medium of each input becomes. Knows no model and no tensors' meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as Pillow
from torch import Tensor

from streams.audio import open_audio
from streams.media import open_image
from streams.points import open_points
from streams.sample import Audio, Kind, Points, Sample, Video
from streams.video import open_video

KEYWORDS: dict[Kind, str] = {
    "image": "images",
    "video": "videos",
    "audio": "audio",
    "points": "points",
}
_PARTS: dict[Kind, tuple[str, ...]] = {
    "image": ("image_processor",),
    "video": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
}
"""By which part one tells that a processor of transformers takes a kind."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The media inputs of one processor; make it with `Inputs.of`."""

    processor: Any
    kinds: tuple[Kind, ...]
    """What it takes."""
    tokens: Mapping[Kind, str]
    """Kind → what stands for one medium in a text that the processor is given, where it has one."""
    ids: Mapping[Kind, int]
    """Kind → its placeholder's token."""
    num_tokens: Mapping[str, int]
    """Input of a composition → placeholders of one medium; empty for other processors."""

    @classmethod
    def of(cls, processor: Any) -> Inputs:
        counts = getattr(processor, "num_tokens", None)
        counts = counts if isinstance(counts, Mapping) else {}
        kinds = tuple(
            kind
            for kind in KEYWORDS
            if kind in counts
            or (not counts and any(getattr(processor, p, None) for p in _PARTS.get(kind, ())))
        )
        tokens = placeholders(processor)
        tokenizer = processor.tokenizer
        named = {kind: getattr(processor, f"{kind}_token_id", None) for kind in KEYWORDS}
        ids = {kind: tokenizer.convert_tokens_to_ids(token) for kind, token in tokens.items()}
        ids |= {kind: token_id for kind, token_id in named.items() if token_id is not None}
        return cls(
            processor=processor,
            kinds=kinds,
            tokens=tokens,
            ids={kind: int(token_id) for kind, token_id in ids.items() if token_id is not None},
            num_tokens=dict(counts),
        )

    def keywords(self, sample: Sample) -> dict[str, Any]:
        """The sample's media, opened, as the processor's keywords; ValueError for one it refuses.

        Flat lists in reading order; images are a list for the one text, as all processors take.
        """
        for medium in sample.media:
            if medium.kind not in self.kinds:
                known = ", ".join(self.kinds) or "text alone"
                raise ValueError(
                    f"it holds a medium of kind {medium.kind}, which the model does not take; its "
                    f"inputs: {known}"
                )
        given: dict[str, Any] = {}
        if sample.images:
            # As pictures, not arrays: processors take an array of three rows for three channels.
            given["images"] = [[Pillow.fromarray(open_image(image)) for image in sample.images]]
        if videos := [_video(one) for one in sample.media if isinstance(one, Video)]:
            given["videos"] = videos
        if heard := [open_audio(one) for one in sample.media if isinstance(one, Audio)]:
            rates = sorted({rate for _, rate in heard})
            if len(rates) > 1:
                found = " and ".join(map(str, rates))
                raise ValueError(f"its recordings have {found} Hz; a processor takes one rate")
            given["audio"] = [wave for wave, _ in heard]
            given["sampling_rate"] = rates[0]
        if clouds := [open_points(one) for one in sample.media if isinstance(one, Points)]:
            given["points"] = clouds
        return given

    def require_plain(self, text: str) -> None:
        """ValueError for a text that contains a placeholder."""
        for kind, token in self.tokens.items():
            if token in text:
                raise ValueError(f"its text contains {token!r}, which stands for {_NAMED[kind]}")

    def check(self, sample: Sample, ids: np.ndarray, made: Mapping[str, Tensor]) -> None:
        """Placeholders must be there for every medium, and as many as its tensors say.

        `ids` [L] are the prompt's tokens and `made` the media tensors. Raises ValueError.
        """
        media = {kind: sum(one.kind == kind for one in sample.media) for kind in self.ids}
        found = {kind: int((ids == token).sum()) for kind, token in self.ids.items()}
        if media.get("video") and not found["video"] and found.get("image") and not self.num_tokens:
            # Some write a video as so many images, with their placeholders.
            media["image"] = media.get("image", 0) + media.pop("video")
        for kind, count in media.items():
            there = found[kind]
            if (there > 0) != (count > 0) or there < count:
                raise ValueError(
                    f"{_counted(count, kind)} but {there} {kind} placeholders in its prompt"
                )
            features = self._features(kind, count, made)
            if features not in (None, there):
                raise ValueError(f"{features} {kind} features but {there} {kind} placeholders")

    def _features(self, kind: Kind, count: int, made: Mapping[str, Tensor]) -> int | None:
        """How many features the media become, where that can be told."""
        if kind in self.num_tokens:
            return count * self.num_tokens[kind]
        grid = made.get(f"{kind}_grid_thw")
        if grid is None:
            return None
        part = getattr(self.processor, f"{kind}_processor")
        return int(grid.prod(dim=1).sum()) // part.merge_size**2

    def all_shown(self, sample: Sample) -> bool:
        """Whether the sample reaches every encoder: one of transformers sees images and videos."""
        shown = {medium.kind for medium in sample.media}
        if self.num_tokens:
            return shown >= set(self.num_tokens)
        if "audio" in self.kinds and "audio" not in shown:
            return False
        return bool(shown & {"image", "video"}) or not {"image", "video"} & set(self.kinds)


_NAMED: dict[Kind, str] = {
    "image": "an image",
    "video": "a video",
    "audio": "a recording",
    "points": "a point cloud",
}


def placeholders(processor: Any) -> dict[Kind, str]:
    """Kind → what stands for a medium: `image_token` and the like, or <NAME> of a composition."""
    found: dict[Kind, str] = {}
    counts = getattr(processor, "num_tokens", None)
    for kind in KEYWORDS:
        token = getattr(processor, f"{kind}_token", None)
        if not token and isinstance(counts, Mapping) and kind in counts:
            token = f"<{kind}>"
        if token:
            found[kind] = str(token)
    return found


def _video(video: Video) -> np.ndarray:
    frames = open_video(video)
    if frames.shape[1] in (1, 3):
        raise ValueError(
            f"its video has frames of {frames.shape[1]} rows, which processors take for channels"
        )
    return frames


def _counted(count: int, kind: Kind) -> str:
    plural = {"image": "images", "video": "videos", "audio": "recordings", "points": "clouds"}
    return f"{count} {plural[kind]}"
