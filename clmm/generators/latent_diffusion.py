"""Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752): images from a condition."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from clmm.diffusion import (
    Diffusion,
    Frames,
    Prediction,
    TextCondition,
    blocks_of,
    check_heads,
    clip_text,
    folder_of,
    loaded,
    require,
    scheduler_of,
    vae_of,
)

STABLE_DIFFUSION_2: dict[str, Any] = {
    "image_size": 768,
    "condition_width": 1024,
    "heads": (5, 10, 20, 20),
    "linear_projection": True,
    "text_layers": 23,
    "text_heads": 16,
    "text_activation": "gelu",
    "prediction": "v_prediction",
}
"""Settings of Stable Diffusion 2 and 2.1 with 768 pixels, which predict v; the `base` ones, such as
MiniGPT-5's, have 512 pixels and predict epsilon."""


@dataclass(frozen=True, kw_only=True)
class LatentDiffusion:
    """Stable Diffusion 1.5 unless set otherwise: UNet 859.5 M, VAE 83.7 M, text encoder 123.1 M.

    `STABLE_DIFFUSION_2` in this file has the settings of 2.1: UNet 865.9 M, text 340.4 M.
    """

    folder: str | None = None
    """Where its weights are, as diffusers lays them out; relative to the model's own folder."""
    image_size: int = 512
    """Height and width of a picture, in pixels."""
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of the UNet's blocks; each after the first halves the map."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """Which blocks attend to the condition."""
    coordinates: bool = False
    """Whether the UNet is shown where each latent is, in two further channels."""
    layers: int = 2
    """Residual layers of a block."""
    heads: int | tuple[int, ...] = 8
    """Attention heads, of all blocks or of each."""
    linear_projection: bool = False
    """Linear maps around attention, as in version 2, instead of convolutions."""
    groups: int = 32
    """Groups of the group norms."""
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of the VAE's blocks; each after the first halves the picture."""
    vae_layers: int = 2
    """Residual layers of a VAE's block."""
    latent_channels: int = 4
    """Channels of a latent."""
    scaling: float = 0.18215
    """Factor that gives latents a variance of about 1."""
    condition_length: int = 77
    """L: tokens of the text encoder's output."""
    condition_width: int = 768
    """d_c: width of the condition; 5120 for Emu's, whose UNet reads the language model's width."""
    text_layers: int = 12
    """Layers of the text encoder; 0 for a generator that has none."""
    text_heads: int = 12
    """Attention heads of the text encoder."""
    text_activation: str = "quick_gelu"
    """OpenAI's weights want quick_gelu, OpenCLIP's gelu."""
    vocabulary: int = 49408
    """Tokens that the text encoder knows."""
    prediction: Prediction = "epsilon"
    """What the UNet says: the noise (epsilon), or v_prediction."""
    steps: int = 50
    """Steps of sampling."""
    guidance: float = 7.5
    """w of guidance without a classifier; 1 is none."""

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"latent_diffusion: channels has {len(self.channels)} blocks, attention "
                f"{len(self.attention)}"
            )
        check_heads(self.channels, self.heads, where="latent_diffusion")
        if self.image_size % self.shrink:
            raise ValueError(
                f"latent_diffusion: image_size {self.image_size} is no multiple of {self.shrink}"
            )

    @property
    def shrink(self) -> int:
        """Pixels of a picture's side that one latent stands for."""
        factor: int = 2 ** (len(self.vae_channels) - 1)
        return factor

    @property
    def condition_shape(self) -> tuple[int, int]:
        return (self.condition_length, self.condition_width)

    @property
    def any_length(self) -> bool:
        return True

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[c, h, w]."""
        side = self.image_size // self.shrink
        return (self.latent_channels, side, side)

    def build(self, tokenizer: Any = None) -> Diffusion:
        from diffusers import UNet2DConditionModel

        unet = UNet2DConditionModel(
            sample_size=self.latent_shape[-1],
            in_channels=self.latent_channels + 2 * self.coordinates,
            out_channels=self.latent_channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            attention_head_dim=self.heads,  # diffusers' name for the number of heads
            use_linear_projection=self.linear_projection,
            norm_num_groups=self.groups,
            cross_attention_dim=self.condition_width,
            **blocks_of(self.attention, "2D"),
        )
        vae = vae_of(
            self.vae_channels,
            layers=self.vae_layers,
            latent_channels=self.latent_channels,
            norm_num_groups=self.groups,
            sample_size=self.image_size,
            scaling_factor=self.scaling,
        )
        return self._joined(unet, vae, self._text(tokenizer), scheduler_of(self.prediction))

    def load(self, beside: Path | None = None) -> Diffusion:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        path = folder_of(self.folder, beside)
        classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
        parts = loaded(
            path, classes | ({"text_encoder": CLIPTextModel} if self.text_layers else {})
        )
        unet, scheduler = parts["unet"], parts["scheduler"]
        require(path, "condition_width", self.condition_width, unet.config.cross_attention_dim)
        require(path, "prediction", self.prediction, scheduler.config.prediction_type)
        channels = self.latent_channels + 2 * self.coordinates
        require(path, "latent_channels, with coordinates", channels, unet.config.in_channels)
        text = None
        if self.text_layers:
            text = TextCondition(parts["text_encoder"], parts["tokenizer"], self.condition_length)
        return self._joined(unet, parts["vae"], text, scheduler)

    def _text(self, tokenizer: Any) -> TextCondition | None:
        if not self.text_layers:
            return None
        return clip_text(
            tokenizer,
            length=self.condition_length,
            width=self.condition_width,
            layers=self.text_layers,
            heads=self.text_heads,
            activation=self.text_activation,
            vocabulary=self.vocabulary,
        )

    def _joined(self, unet: Any, vae: Any, text: Any, scheduler: Any) -> Diffusion:
        return Diffusion(
            unet=unet,
            codec=Frames(vae),
            text=text,
            scheduler=scheduler,
            condition_shape=self.condition_shape,
            latent_shape=self.latent_shape,
            coordinates=self.coordinates,
            steps=self.steps,
            guidance=self.guidance,
        )
