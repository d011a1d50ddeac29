"""VCoder (Jain et al. 2024, arXiv 2312.14233): depth and segmentation maps seen by the same CLIP.

Each map is an input of its own, with an input projector of its own, such as `mlp`. VCoder trains
those alone, beside a frozen LLaVA-1.5, and puts the tokens before the image's: depth,
segmentation, image. Its second table of word embeddings is left out: the released program copies
the language model's into it at every pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from clmm.encoding import Encoder


@dataclass(frozen=True, kw_only=True)
class Vcoder:
    """A map drawn as a picture, [3, H, W], seen by another input's encoder; no weights here."""

    of: str = "image"
    """The input whose encoder it borrows."""

    modality: ClassVar[str] = "image"

    def over(self, encoder: Encoder) -> Encoder:
        if encoder.modality != "image":
            raise ValueError(
                f"a map is seen as a picture, but the encoder of {self.of} encodes "
                f"{encoder.modality}"
            )
        return encoder
