"""Tiny generators of each kind, with random weights and a tokenizer of bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

from clmm.generators.audio_diffusion import AudioDiffusion
from clmm.generators.latent_diffusion import LatentDiffusion
from clmm.generators.video_diffusion import VideoDiffusion
from clmm.processing_mmllm import byte_tokenizer

_UNET: dict[str, Any] = {
    "channels": (16, 32), "layers": 1, "groups": 4, "vae_channels": (8, 16), "vae_layers": 1,
    "text_layers": 1, "text_heads": 2, "vocabulary": 262, "condition_width": 16, "steps": 3,
}  # fmt: skip
IMAGE: dict[str, Any] = {
    **_UNET, "image_size": 16, "attention": (True, False), "heads": 2, "condition_length": 24,
}  # fmt: skip
VIDEO: dict[str, Any] = {
    **_UNET, "frames": 2, "height": 8, "width": 16, "attention": (True, False), "head_width": 8,
    "condition_length": 24,
}  # fmt: skip
AUDIO: dict[str, Any] = {
    **_UNET, "seconds": 0.64, "attention": (False, True), "heads": 2, "latent_channels": 2,
    "text_width": 16, "text_length": 24, "sampling_rate": 1000, "bins": 8, "vocoder_channels": 8,
    "vocoder_rates": (2, 2), "vocoder_kernels": (4, 4),
}  # fmt: skip
SPECS: dict[str, dict[str, Any]] = {
    "image": {"name": "latent_diffusion", **IMAGE},
    "video": {"name": "video_diffusion", **VIDEO},
    "audio": {"name": "audio_diffusion", **AUDIO},
}
SETTINGS: dict[str, Any] = {
    "image": LatentDiffusion(**IMAGE),
    "video": VideoDiffusion(**VIDEO),
    "audio": AudioDiffusion(**AUDIO),
}
SHAPES = {"image": (3, 16, 16), "video": (2, 3, 8, 16), "audio": (640,)}


def built(name: str, **more: Any) -> Any:
    """A generator in evaluation mode; the seed is the caller's."""
    return dataclasses.replace(SETTINGS[name], **more).build(byte_tokenizer()).eval()
