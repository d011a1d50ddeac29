"""AudioLDM (Liu et al. 2023, arXiv 2301.12503): sounds from one CLAP embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from clmm.diffusion import (
    Diffusion,
    Prediction,
    TextCondition,
    blocks_of,
    check_heads,
    folder_of,
    loaded,
    require,
    scheduler_of,
    vae_of,
)


@dataclass(frozen=True, kw_only=True)
class AudioDiffusion:
    """AudioLDM-s unless set otherwise: UNet 185.0 M, VAE 55.4 M, HiFi-GAN 55.3 M, text 125.3 M.

    With `channels` (192, 384, 576, 960) it is -m, 416.0 M; with (256, 512, 768, 1280) -l, 739.1 M.
    The condition is no sequence: it enters as class labels, joined to the time's embedding.
    """

    folder: str | None = None
    """Where its weights are, as diffusers lays them out; relative to the model's own folder."""
    seconds: float = 5.12
    """Length of a sound."""
    channels: tuple[int, ...] = (128, 256, 384, 640)
    """Channels of the UNet's blocks; each after the first halves the map."""
    attention: tuple[bool, ...] = (False, True, True, True)
    """Which blocks attend, here to themselves."""
    layers: int = 2
    """Residual layers of a block."""
    heads: int = 8
    """Attention heads."""
    groups: int = 32
    """Groups of the group norms."""
    vae_channels: tuple[int, ...] = (128, 256, 512)
    """Channels of the VAE's blocks; each after the first halves the spectrogram."""
    vae_layers: int = 2
    """Residual layers of a VAE's block."""
    latent_channels: int = 8
    """Channels of a latent."""
    scaling: float = 0.9227914214134216
    """Factor that gives latents a variance of about 1; a folder brings its own."""
    condition_width: int = 512
    """d_c: width of CLAP's embedding."""
    text_length: int = 77
    """Tokens that the text encoder reads."""
    text_width: int = 768
    """Width of the text encoder."""
    text_layers: int = 12
    """Layers of the text encoder."""
    text_heads: int = 12
    """Attention heads of the text encoder."""
    vocabulary: int = 50265
    """Tokens that the text encoder knows."""
    sampling_rate: int = 16000
    """Samples a second."""
    bins: int = 64
    """Mel bins of the spectrogram."""
    vocoder_channels: int = 1024
    """Channels at the vocoder's beginning; each step halves them."""
    vocoder_rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    """How many times longer each step of the vocoder makes the sound."""
    vocoder_kernels: tuple[int, ...] = (16, 16, 8, 4, 4)
    """Kernel of each step of the vocoder."""
    prediction: Prediction = "epsilon"
    """What the UNet says: the noise (epsilon), or v_prediction."""
    steps: int = 200
    """Steps of sampling."""
    guidance: float = 2.5
    """w of guidance without a classifier; 1 is none."""

    modality: ClassVar[str] = "audio"

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"audio_diffusion: channels has {len(self.channels)} blocks, attention "
                f"{len(self.attention)}"
            )
        check_heads(self.channels, self.heads, where="audio_diffusion")
        for name, size in (("frames", self.frames), ("bins", self.bins)):
            if size % self.shrink:
                raise ValueError(f"audio_diffusion: {size} {name} are no multiple of {self.shrink}")

    @property
    def frames(self) -> int:
        """Columns of the spectrogram."""
        return round(self.seconds * self.sampling_rate / math.prod(self.vocoder_rates))

    @property
    def shrink(self) -> int:
        """Cells of the spectrogram's side that one latent stands for."""
        factor: int = 2 ** (len(self.vae_channels) - 1)
        return factor

    @property
    def condition_shape(self) -> tuple[int, int]:
        return (1, self.condition_width)

    @property
    def any_length(self) -> bool:
        return False

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[c, frames / k, bins / k]."""
        return (self.latent_channels, self.frames // self.shrink, self.bins // self.shrink)

    def build(self, tokenizer: Any = None) -> Diffusion:
        from diffusers import UNet2DConditionModel
        from transformers import (
            ClapTextConfig,
            ClapTextModelWithProjection,
            SpeechT5HifiGan,
            SpeechT5HifiGanConfig,
        )

        unet = UNet2DConditionModel(
            sample_size=self.latent_shape[1],
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            attention_head_dim=self.heads,  # diffusers' name for the number of heads
            norm_num_groups=self.groups,
            cross_attention_dim=self.channels,  # asked without states, a block attends to itself
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=self.condition_width,
            class_embeddings_concat=True,
            **blocks_of(self.attention, "2D"),
        )
        vae = vae_of(
            self.vae_channels,
            layers=self.vae_layers,
            in_channels=1,
            out_channels=1,
            latent_channels=self.latent_channels,
            norm_num_groups=self.groups,
            scaling_factor=self.scaling,
        )
        vocoder = SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=self.bins,
                sampling_rate=self.sampling_rate,
                upsample_initial_channel=self.vocoder_channels,
                upsample_rates=list(self.vocoder_rates),
                upsample_kernel_sizes=list(self.vocoder_kernels),
                normalize_before=False,
            )
        )
        pad = 1 if tokenizer is None else tokenizer.pad_token_id
        encoder = ClapTextModelWithProjection(
            ClapTextConfig(
                vocab_size=self.vocabulary,
                hidden_size=self.text_width,
                intermediate_size=4 * self.text_width,
                num_hidden_layers=self.text_layers,
                num_attention_heads=self.text_heads,
                projection_dim=self.condition_width,
                pad_token_id=pad,
            )
        )
        text = TextCondition(encoder, tokenizer, self.text_length, pooled=True)
        return self._joined(unet, vae, vocoder, text, scheduler_of(self.prediction))

    def load(self, beside: Path | None = None) -> Diffusion:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import ClapTextModelWithProjection, SpeechT5HifiGan

        path = folder_of(self.folder, beside)
        parts = loaded(
            path,
            {
                "unet": UNet2DConditionModel,
                "vae": AutoencoderKL,
                "text_encoder": ClapTextModelWithProjection,
                "vocoder": SpeechT5HifiGan,
            },
        )
        unet, scheduler = parts["unet"], parts["scheduler"]
        width = unet.config.projection_class_embeddings_input_dim
        require(path, "condition_width", self.condition_width, width)
        require(path, "prediction", self.prediction, scheduler.config.prediction_type)
        require(path, "bins", self.bins, parts["vocoder"].config.model_in_dim)
        text = TextCondition(
            parts["text_encoder"], parts["tokenizer"], self.text_length, pooled=True
        )
        return self._joined(unet, parts["vae"], parts["vocoder"], text, scheduler)

    def _joined(
        self, unet: Any, vae: Any, vocoder: Any, text: TextCondition, scheduler: Any
    ) -> Diffusion:
        from clmm.spectrograms import Spectrograms

        return Diffusion(
            unet=unet,
            codec=Spectrograms(vae, vocoder),
            text=text,
            scheduler=scheduler,
            condition_shape=self.condition_shape,
            latent_shape=self.latent_shape,
            labels=True,
            steps=self.steps,
            guidance=self.guidance,
        )
