"""Waves ↔ latents of a VAE over log mel spectrograms, as AudioLDM has them (arXiv 2301.12503).

Knows sound; knows no condition and no diffusion.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from clmm.diffusion import check_range

WINDOW = 1024
FLOOR = 1e-5


@functools.lru_cache(maxsize=8)
def _filters(bins: int, sampling_rate: int) -> Any:
    """Slaney's mel filters from 0 Hz to half the sampling rate: [513, bins]."""
    return mel_filter_bank(
        num_frequency_bins=WINDOW // 2 + 1,
        num_mel_filters=bins,
        min_frequency=0.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )


def log_mel(waves: Tensor, *, bins: int, hop: int, sampling_rate: int) -> Tensor:
    """Natural log of mel magnitudes, windows of 1024 samples: [B, samples] → [B, frames, bins].

    As many frames as whole hops; what is softer than 1e-5 counts as that.
    """
    window = torch.hann_window(WINDOW, device=waves.device)
    spectrum = torch.stft(
        waves.float(), WINDOW, hop, window=window, center=True, return_complex=True
    )
    magnitude = spectrum.abs()[..., : waves.shape[-1] // hop].transpose(1, 2)
    filters = torch.as_tensor(_filters(bins, sampling_rate), dtype=torch.float32)
    return (magnitude @ filters.to(waves.device)).clamp(min=FLOOR).log()


class Spectrograms(nn.Module):
    """Waves [B, samples] in [−1, 1] ↔ latents [B, c, frames / k, bins / k], through a vocoder."""

    def __init__(self, vae: Any, vocoder: Any) -> None:
        super().__init__()
        self.vae = vae
        self.vocoder = vocoder

    def check(self, media: Tensor, latent_shape: tuple[int, ...]) -> None:
        """ValueError for waves of other than so many frames, or outside of [−1, 1]."""
        frames = latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1)
        if media.dim() != 2 or media.shape[1] // self.hop != frames:
            raise ValueError(
                f"media are {tuple(media.shape[1:])}, and {frames} × {self.hop} samples are made"
            )
        check_range(media, -1, 1)

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        return math.prod(self.vocoder.config.upsample_rates)

    def encode(self, media: Tensor, rng: torch.Generator | None = None) -> Tensor:
        vocoder = self.vocoder.config
        mel = log_mel(
            media, bins=vocoder.model_in_dim, hop=self.hop, sampling_rate=vocoder.sampling_rate
        )
        sampled = self.vae.encode(mel.to(media.dtype).unsqueeze(1)).latent_dist.sample(rng)
        latents: Tensor = sampled * self.vae.config.scaling_factor
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        mel = self.vae.decode(latents / self.vae.config.scaling_factor).sample.squeeze(1)
        waves: Tensor = self.vocoder(mel)
        return waves.clamp(-1, 1)
