"""Zeroscope v2 576w, ModelScope's text-to-video model (arXiv 2308.06571): videos by a 3-D UNet."""

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
    clip_text,
    folder_of,
    loaded,
    require,
    scheduler_of,
    vae_of,
)


@dataclass(frozen=True, kw_only=True)
class VideoDiffusion:
    """Zeroscope unless set otherwise: UNet 1411.2 M, VAE 83.7 M, text encoder 340.4 M.

    Videos are [B, frames, 3, height, width]; the VAE sees one frame at a time.
    """

    folder: str | None = None
    """Where its weights are, as diffusers lays them out; relative to the model's own folder."""
    frames: int = 24
    """Frames of a video."""
    height: int = 320
    """Height of a frame, in pixels."""
    width: int = 576
    """Width of a frame, in pixels."""
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of the UNet's blocks; each after the first halves the map, not the time."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """Which blocks attend to the condition."""
    layers: int = 2
    """Residual layers of a block."""
    head_width: int = 64
    """Width of an attention head."""
    groups: int = 32
    """Groups of the group norms."""
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of the VAE's blocks; each after the first halves the frame."""
    vae_layers: int = 2
    """Residual layers of a VAE's block."""
    latent_channels: int = 4
    """Channels of a latent."""
    scaling: float = 0.18215
    """Factor that gives latents a variance of about 1."""
    condition_length: int = 77
    """L: tokens of the text encoder's output."""
    condition_width: int = 1024
    """d_c: width of the condition."""
    text_layers: int = 23
    """Layers of the text encoder."""
    text_heads: int = 16
    """Attention heads of the text encoder."""
    text_activation: str = "gelu"
    """OpenCLIP's weights want gelu, OpenAI's quick_gelu."""
    vocabulary: int = 49408
    """Tokens that the text encoder knows."""
    prediction: Prediction = "epsilon"
    """What the UNet says: the noise (epsilon), or v_prediction."""
    steps: int = 50
    """Steps of sampling."""
    guidance: float = 9.0
    """w of guidance without a classifier; 1 is none."""

    modality: ClassVar[str] = "video"

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"video_diffusion: channels has {len(self.channels)} blocks, attention "
                f"{len(self.attention)}"
            )
        for name in ("height", "width"):
            if (pixels := getattr(self, name)) % self.shrink:
                raise ValueError(
                    f"video_diffusion: {name} {pixels} is no multiple of {self.shrink}"
                )

    @property
    def shrink(self) -> int:
        """Pixels of a frame's side that one latent stands for."""
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
        """[c, frames, h, w]."""
        sides = (self.height // self.shrink, self.width // self.shrink)
        return (self.latent_channels, self.frames, *sides)

    def build(self, tokenizer: Any = None) -> Diffusion:
        from diffusers import UNet3DConditionModel

        unet = UNet3DConditionModel(
            sample_size=self.latent_shape[-1],
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            attention_head_dim=self.head_width,
            norm_num_groups=self.groups,
            cross_attention_dim=self.condition_width,
            **blocks_of(self.attention, "3D"),
        )
        vae = vae_of(
            self.vae_channels,
            layers=self.vae_layers,
            latent_channels=self.latent_channels,
            norm_num_groups=self.groups,
            scaling_factor=self.scaling,
        )
        text = clip_text(
            tokenizer,
            length=self.condition_length,
            width=self.condition_width,
            layers=self.text_layers,
            heads=self.text_heads,
            activation=self.text_activation,
            vocabulary=self.vocabulary,
        )
        return self._joined(unet, vae, text, scheduler_of(self.prediction))

    def load(self, beside: Path | None = None) -> Diffusion:
        from diffusers import AutoencoderKL, UNet3DConditionModel
        from transformers import CLIPTextModel

        path = folder_of(self.folder, beside)
        parts = loaded(
            path,
            {"unet": UNet3DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel},
        )
        unet, scheduler = parts["unet"], parts["scheduler"]
        require(path, "condition_width", self.condition_width, unet.config.cross_attention_dim)
        require(path, "prediction", self.prediction, scheduler.config.prediction_type)
        text = TextCondition(parts["text_encoder"], parts["tokenizer"], self.condition_length)
        return self._joined(unet, parts["vae"], text, scheduler)

    def _joined(self, unet: Any, vae: Any, text: TextCondition, scheduler: Any) -> Diffusion:
        return Diffusion(
            unet=unet,
            codec=Frames(vae),
            text=text,
            scheduler=scheduler,
            condition_shape=self.condition_shape,
            latent_shape=self.latent_shape,
            steps=self.steps,
            guidance=self.guidance,
        )
