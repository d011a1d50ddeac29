"""Latent diffusion: a condition and noise become a medium, and the loss that teaches it.

Knows latents, schedules and guidance; which networks they are, and how large, each file in
`clmm/generators` says. Works on the building blocks of diffusers, not on its pipelines.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clmm.generation_losses import denoising

Prediction = Literal["epsilon", "v_prediction"]


class TextCondition(nn.Module):
    """τ_X: texts → [B, L, d_c] by a text encoder of transformers, cut or padded to L tokens.

    `pooled` takes the projected sentence instead, of norm 1: [B, 1, d_c], as CLAP's.
    """

    def __init__(self, encoder: Any, tokenizer: Any, length: int, *, pooled: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.length = length
        self.pooled = pooled

    def forward(self, texts: list[str]) -> Tensor:
        if self.tokenizer is None:
            raise ValueError("the text encoder was built without a tokenizer; give build one")
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        ids = tokens["input_ids"].to(self.encoder.device)
        if self.pooled:
            mask = tokens["attention_mask"].to(ids.device)
            sentence = self.encoder(ids, attention_mask=mask).text_embeds
            return nn.functional.normalize(sentence, dim=-1).unsqueeze(1)
        # Stable Diffusion reads the padding too: it was trained so.
        states: Tensor = self.encoder(ids).last_hidden_state
        return states


def check_range(media: Tensor, least: float, most: float) -> None:
    """ValueError for media that are no floats in the range; not a number is in none."""
    low, high = (float(one) for one in torch.aminmax(media)) if media.numel() else (least, most)
    if not (media.is_floating_point() and least <= low and high <= most):
        raise ValueError(f"media are {media.dtype} from {low:g} to {high:g}, not floats in "
                         f"[{least:g}, {most:g}]")  # fmt: skip


class Frames(nn.Module):
    """Pictures or videos ↔ latents, frame by frame; pixels in [0, 1].

    [B, 3, H, W] ↔ [B, c, h, w]; [B, F, 3, H, W] ↔ [B, c, F, h, w].
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def check(self, media: Tensor, latent_shape: tuple[int, ...]) -> None:
        """ValueError for media that no such latents are of: another size, or outside of [0, 1]."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        _, *time, height, width = latent_shape
        wanted = (*time, self.vae.config.in_channels, height * factor, width * factor)
        if tuple(media.shape[1:]) != wanted:
            raise ValueError(f"media are {tuple(media.shape[1:])}, and {wanted} is made")
        check_range(media, 0, 1)

    def encode(self, media: Tensor, rng: torch.Generator | None = None) -> Tensor:
        flat = media.flatten(0, -4) * 2 - 1
        latents = self.vae.encode(flat).latent_dist.sample(rng) * self.vae.config.scaling_factor
        latents = latents.unflatten(0, media.shape[:-3])
        return latents.transpose(1, 2) if media.dim() == 5 else latents

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents.transpose(1, 2) if latents.dim() == 5 else latents
        flat = frames.flatten(0, -4) / self.vae.config.scaling_factor
        pixels = self.vae.decode(flat).sample.unflatten(0, frames.shape[:-3])
        return (pixels / 2 + 0.5).clamp(0, 1)


class Diffusion(nn.Module):
    """A conditioned latent diffusion model: loss (5) and sampling.

    `unet` is asked with H_X by cross-attention, or as class labels [B, d_c] where `labels`; with
    `coordinates` it gets two further channels, for latents of two axes.
    `codec` maps media to latents and back, `text` texts to conditions; it may be left out.
    """

    def __init__(
        self,
        *,
        unet: Any,
        codec: Any,
        text: TextCondition | None,
        scheduler: Any,
        condition_shape: tuple[int, int],
        latent_shape: tuple[int, ...],
        labels: bool = False,
        coordinates: bool = False,
        steps: int = 50,
        guidance: float = 7.5,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.codec = codec
        self.text = text
        self.scheduler = scheduler
        self.condition_shape = condition_shape
        self.latent_shape = latent_shape
        self.labels = labels
        self.coordinates = coordinates
        self.steps = steps
        self.guidance = guidance

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def condition(self, texts: list[str]) -> Tensor:
        """τ_X(t): [B, L, d_c]."""
        if self.text is None:
            raise ValueError("this generator has no text encoder, so no text is a condition")
        condition: Tensor = self.text(texts)
        return condition

    def empty(self, length: int) -> Tensor:
        """The condition that says nothing, [1, length, d_c]: τ_X of no text.

        Zeros where there is no text encoder, or H_X has another length than its conditions.
        """
        if self.text is not None and length == self.condition_shape[0]:
            return self.condition([""])
        return torch.zeros(1, length, self.condition_shape[1], device=self.device, dtype=self.dtype)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """ε_X(z_t, t, H_X), or v by the scheduler's prediction type; as large as `latents`."""
        if self.labels:
            if condition.shape[1] != 1:
                raise ValueError(
                    f"class labels are one token; the condition has {condition.shape[1]}"
                )
            asked = {"encoder_hidden_states": None, "class_labels": condition[:, 0]}
        else:
            asked = {"encoder_hidden_states": condition}
        if self.coordinates:
            latents = torch.cat([latents, coordinates(latents)], dim=1)
        prediction: Tensor = self.unet(latents, timesteps, **asked).sample
        return prediction

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` should say: ε, or v = √ᾱ·ε − √(1 − ᾱ)·z for a model that predicts v."""
        if self.scheduler.config.prediction_type == "v_prediction":
            velocity: Tensor = self.scheduler.get_velocity(latents, noise, timesteps)
            return velocity
        return noise

    def loss(
        self,
        condition: Tensor,
        *,
        media: Tensor | None = None,
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        drop: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """L_X-gen, the survey's equation (5): one value; ValueError for media of another size.

        `condition` [B, L, d_c] keeps its gradient. Give `media` or their `latents` (scaled). Noise
        and timesteps are drawn with `rng` unless given. With probability `drop` a condition is
        replaced by the empty one, so that guidance has something to start from.
        """
        if (media is None) == (latents is None):
            raise ValueError("give media or latents, one of them")
        condition = condition.to(self.device, self.dtype)
        if latents is None:
            assert media is not None
            self.codec.check(media, self.latent_shape)
            with torch.no_grad():
                latents = self.codec.encode(media.to(self.device, self.dtype), rng)
        latents = latents.to(self.device, self.dtype)
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"latents are {tuple(latents.shape[1:])}, and {self.latent_shape} is made"
            )
        if len(latents) != len(condition):
            raise ValueError(f"{len(condition)} conditions, but {len(latents)} media")
        if noise is None:
            noise = torch.randn(latents.shape, generator=rng)
        if timesteps is None:
            most = self.scheduler.config.num_train_timesteps
            timesteps = torch.randint(most, (len(latents),), generator=rng)
        noise, timesteps = noise.to(latents), timesteps.to(self.device)
        if drop:
            dropped = (torch.rand(len(latents), generator=rng) < drop).to(self.device)
            empty = self.empty(condition.shape[1]).to(condition)
            condition = torch.where(dropped[:, None, None], empty, condition)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        prediction = self.predict(noisy, timesteps, condition)
        return denoising(prediction, self.target(latents, noise, timesteps))

    @torch.no_grad()
    def generate(
        self,
        condition: Tensor,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Media from conditions [B, L, d_c], in as many steps of the scheduler.

        Guidance w: ε(∅) + w · (ε(H) − ε(∅)); 1 asks once and costs half. A row's noise is
        the same whatever the other rows are.
        """
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        most = self.scheduler.config.num_train_timesteps
        if not 1 <= steps < most:
            raise ValueError(f"steps: {steps} is not between 1 and {most - 1}")
        condition = condition.to(self.device, self.dtype)
        rng = torch.Generator().manual_seed(seed)
        noise = [torch.randn(self.latent_shape, generator=rng) for _ in condition]
        scheduler = copy.deepcopy(self.scheduler)  # it counts its steps
        scheduler.set_timesteps(steps, device=self.device)
        latents = torch.stack(noise).to(condition) * scheduler.init_noise_sigma
        guided = guidance != 1
        if guided:
            empty = self.empty(condition.shape[1]).to(condition).expand_as(condition)
            condition = torch.cat([empty, condition])
        for timestep in scheduler.timesteps:
            asked = scheduler.scale_model_input(latents, timestep)
            if guided:
                blind, seeing = self.predict(torch.cat([asked, asked]), timestep, condition).chunk(
                    2
                )
                prediction = blind + guidance * (seeing - blind)
            else:
                prediction = self.predict(asked, timestep, condition)
            latents = scheduler.step(prediction, timestep, latents).prev_sample
        media: Tensor = self.codec.decode(latents)
        return media.float()

    def save(self, folder: Path) -> Path:
        """Every part into a folder of its own, as diffusers lays them out; safetensors only."""
        for name, part in self.parts().items():
            part.save_pretrained(folder / name)
        return folder

    def parts(self) -> dict[str, Any]:
        """Folder's name → what is saved there."""
        found = {"unet": self.unet, "scheduler": self.scheduler, "vae": self.codec.vae}
        if self.text is not None:
            found |= {"text_encoder": self.text.encoder, "tokenizer": self.text.tokenizer}
        vocoder = getattr(self.codec, "vocoder", None)
        return found if vocoder is None else {**found, "vocoder": vocoder}


def coordinates(latents: Tensor) -> Tensor:
    """Height and width of each place in [−1, 1]: [B, 2, h, w] (CoordConv, arXiv 1807.03247).

    Without them a UNet sees its borders alone, and learns late which side is which.
    """
    height, width = latents.shape[-2:]
    grid = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack(grid).to(latents).expand(len(latents), 2, height, width)


def vae_of(channels: tuple[int, ...], *, layers: int, **more: Any) -> Any:
    """diffusers' AutoencoderKL, which halves the picture between two of its blocks."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=layers,
        **more,
    )


def scheduler_of(prediction: Prediction) -> Any:
    """DDIM (arXiv 2010.02502) over Stable Diffusion's 1000 steps of noise."""
    from diffusers import DDIMScheduler

    with torch.device("cpu"):  # its tables are no weights, and stay where numbers are
        return DDIMScheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction,
        )


def check_heads(channels: tuple[int, ...], heads: int | tuple[int, ...], *, where: str) -> None:
    """ValueError where a block's channels do not divide among its heads."""
    each = (heads,) * len(channels) if isinstance(heads, int) else heads
    if len(each) != len(channels):
        raise ValueError(f"{where}: channels has {len(channels)} blocks, heads {len(each)}")
    for width, count in zip(channels, each, strict=True):
        if width % count:
            raise ValueError(f"{where}: channels {width} are no multiple of heads {count}")


def blocks_of(attention: tuple[bool, ...], kind: str) -> dict[str, tuple[str, ...]]:
    """Names of a UNet's blocks on the way down and up: which of them attend to the condition."""
    down = tuple(f"{'CrossAttnDown' if a else 'Down'}Block{kind}" for a in attention)
    up = tuple(f"{'CrossAttnUp' if a else 'Up'}Block{kind}" for a in reversed(attention))
    return {"down_block_types": down, "up_block_types": up}


def clip_text(
    tokenizer: Any,
    *,
    length: int,
    width: int,
    layers: int,
    heads: int,
    activation: str,
    vocabulary: int,
) -> TextCondition:
    """CLIP's text encoder, untrained, as τ."""
    from transformers import CLIPTextConfig, CLIPTextModel

    # Left out they are those of the published vocabulary.
    marks = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {} if tokenizer is None else {mark: getattr(tokenizer, mark) for mark in marks}
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        hidden_act=activation,
        projection_dim=width,
        **ids,
    )
    return TextCondition(CLIPTextModel(config), tokenizer, length)


def folder_of(folder: str | None, beside: Path | None) -> Path:
    """Where the generator's parts lie; ValueError when none is named or it is not there."""
    if folder is None:
        raise ValueError("no folder to load it from; set folder, or attach a built generator")
    path = Path(folder).expanduser()
    if not path.is_absolute() and beside is not None and (beside / path).is_dir():
        path = beside / path
    if not (path / "unet").is_dir():
        raise ValueError(f"{path} has no folder unet; give one that diffusers or we saved")
    return path


def loaded(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Folder's name → that part, from safetensors; the scheduler becomes DDIM of its settings."""
    from diffusers import DDIMScheduler
    from transformers import AutoTokenizer

    found = {
        name: cls.from_pretrained(path / name, use_safetensors=True, local_files_only=True)
        for name, cls in parts.items()
    }
    found["scheduler"] = DDIMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
    if "text_encoder" in parts:
        found["tokenizer"] = AutoTokenizer.from_pretrained(
            path / "tokenizer", local_files_only=True, trust_remote_code=False
        )
    return found


def require(path: Path, name: str, wanted: Any, found: Any) -> None:
    """ValueError where what lies in a folder is not what the settings say."""
    if wanted != found:
        raise ValueError(f"{path}: {name} is {found} there, but {wanted} in the settings")
