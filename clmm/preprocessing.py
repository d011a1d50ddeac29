"""Image processors that encoders share: resized to a square, scaled, normalised.

Knows pixels; knows no encoder.
"""

from __future__ import annotations

from transformers import ViTImageProcessor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def square_images(
    size: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    resample: int = 3,
) -> ViTImageProcessor:
    """Resized to `size` × `size` (3: bicubic, 2: bilinear), to [0, 1], minus mean, over std."""
    return ViTImageProcessor(
        size={"height": size, "width": size},
        resample=resample,
        image_mean=list(mean),
        image_std=list(std),
    )
