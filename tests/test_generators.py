"""Generators: published sizes, the right target, sampling by the schedule's formula, folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_generators
import torch
from tiny_generators import SETTINGS, SHAPES, built
from torch import Tensor, nn

from clmm import generation_losses
from clmm.generation_losses import GenerationLoss
from clmm.generators.audio_diffusion import AudioDiffusion
from clmm.generators.latent_diffusion import STABLE_DIFFUSION_2, LatentDiffusion
from clmm.generators.text_relay import Relay, TextRelay, request, requests
from clmm.generators.video_diffusion import VideoDiffusion
from clmm.spectrograms import log_mel
from streams import settings
from streams.settings import SettingError

KINDS = ("image", "video", "audio")


def media_of(name: str, count: int = 2) -> Tensor:
    torch.manual_seed(3)
    media = torch.rand(count, *SHAPES[name])
    return media * 2 - 1 if name == "audio" else media


def millions(module: nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("made", "sizes"),
    [
        (LatentDiffusion(), {"unet": 859.52, "codec.vae": 83.65, "text": 123.06}),
        (
            LatentDiffusion(**STABLE_DIFFUSION_2),
            {"unet": 865.91, "codec.vae": 83.65, "text": 340.39},
        ),
        (VideoDiffusion(), {"unet": 1411.23, "codec.vae": 83.65, "text": 340.39}),
        (
            AudioDiffusion(),
            {"unet": 185.04, "codec.vae": 55.38, "codec.vocoder": 55.26, "text": 125.30},
        ),
        (AudioDiffusion(channels=(192, 384, 576, 960)), {"unet": 415.96}),
        (AudioDiffusion(channels=(256, 512, 768, 1280)), {"unet": 739.14}),
    ],
)
def test_published_sizes(made: Any, sizes: dict[str, float]) -> None:
    with torch.device("meta"):
        generator = made.build()
    for part, size in sizes.items():
        assert millions(generator.get_submodule(part)) == pytest.approx(size, abs=0.011), part


def test_shapes_of_the_published_ones() -> None:
    assert LatentDiffusion().condition_shape == (77, 768)
    assert LatentDiffusion(**STABLE_DIFFUSION_2).condition_shape == (77, 1024)
    assert VideoDiffusion().condition_shape == (77, 1024)
    assert AudioDiffusion().condition_shape == (1, 512)
    assert LatentDiffusion().latent_shape == (4, 64, 64)
    assert VideoDiffusion().latent_shape == (4, 24, 40, 72)
    assert AudioDiffusion().latent_shape == (8, 128, 16)


@pytest.mark.parametrize("name", KINDS)
def test_loss_reaches_the_condition_and_nothing_frozen(name: str) -> None:
    torch.manual_seed(0)
    generator = built(name).requires_grad_(False)
    condition = generator.condition(["a red ring", "a star"])
    assert condition.shape[1:] == SETTINGS[name].condition_shape == generator.condition_shape
    asked = condition.clone().requires_grad_()
    generator.loss(asked, media=media_of(name)).backward()
    assert asked.grad is not None
    assert bool((asked.grad.flatten(1).abs().sum(1) > 0).all())
    assert all(p.grad is None for p in generator.parameters())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_is_its_formula(name: str, prediction: str) -> None:
    torch.manual_seed(0)
    generator = built(name, prediction=prediction)
    condition = generator.condition(["a red ring", "a star"])
    latents = torch.randn(2, *generator.latent_shape)
    noise, timesteps = torch.randn(latents.shape), torch.tensor([7, 900])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = (1 - betas).cumprod(0)[timesteps].view(2, *[1] * (latents.dim() - 1))
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    target = noise
    if prediction == "v_prediction":
        target = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        velocity = generator.scheduler.get_velocity(latents, noise, timesteps)
        torch.testing.assert_close(target, velocity, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        said = generator.predict(noisy, timesteps, condition)
        loss = generator.loss(condition, latents=latents, noise=noise, timesteps=timesteps)
    torch.testing.assert_close(loss, (said - target).square().mean(), rtol=1e-4, atol=1e-5)


def test_a_dropped_condition_is_the_empty_one() -> None:
    torch.manual_seed(0)
    generator = built("image")
    latents = torch.randn(4, *generator.latent_shape)
    fixed = {"latents": latents, "noise": torch.randn(latents.shape), "timesteps": torch.arange(4)}
    words, nothing = generator.condition(["a red ring"] * 4), generator.condition([""] * 4)
    with torch.no_grad():
        torch.testing.assert_close(
            generator.loss(words, **fixed, drop=0.9999), generator.loss(nothing, **fixed)
        )
        assert not torch.equal(generator.loss(words, **fixed), generator.loss(nothing, **fixed))
        assert bool((generator.empty(5) == 0).all()), "of another length it is zeros"


@pytest.mark.parametrize("name", KINDS)
def test_the_same_seed_gives_the_same_media(name: str) -> None:
    torch.manual_seed(0)
    generator = built(name)
    condition = generator.condition(["a red ring", "a star"])
    media = generator.generate(condition, seed=5)
    assert media.shape == (2, *SHAPES[name])
    assert media.abs().max() <= 1
    assert torch.equal(media, generator.generate(condition, seed=5))
    assert not torch.equal(media, generator.generate(condition, seed=6))
    alone = generator.generate(condition[:1], seed=5)
    torch.testing.assert_close(alone, media[:1], rtol=1e-3, atol=1e-5)


def test_sampling_is_ddim_with_guidance() -> None:
    torch.manual_seed(0)
    generator = built("image", prediction="epsilon")
    condition, empty = generator.condition(["a red ring"]), generator.condition([""])
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(generator.latent_shape, generator=rng)[None]
    kept = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)
    with torch.no_grad():
        for step in (667, 334, 1):
            blind = generator.predict(latents, torch.tensor(step), empty)
            seeing = generator.predict(latents, torch.tensor(step), condition)
            noise = blind + 3.0 * (seeing - blind)
            before = kept[step - 333] if step > 333 else kept[0]
            clean = (latents - (1 - kept[step]).sqrt() * noise) / kept[step].sqrt()
            latents = before.sqrt() * clean + (1 - before).sqrt() * noise
        expected = generator.codec.decode(latents)
    media = generator.generate(condition, steps=3, guidance=3.0, seed=1)
    torch.testing.assert_close(media, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = built(name)
    generator.save(tmp_path / "generator")
    assert not [*tmp_path.rglob("*.bin")]
    made = dataclasses.replace(SETTINGS[name], folder="generator")
    again = made.load(beside=tmp_path).eval()
    condition = generator.condition(["a red ring"])
    torch.testing.assert_close(again.condition(["a red ring"]), condition)
    torch.testing.assert_close(again.generate(condition), generator.generate(condition))
    wider = dataclasses.replace(made, condition_width=48, folder=str(tmp_path / "generator"))
    with pytest.raises(ValueError, match="condition_width is 16 there, but 48 in the settings"):
        wider.load()
    other = dataclasses.replace(made, prediction="v_prediction")
    with pytest.raises(ValueError, match="prediction is epsilon there, but v_prediction"):
        other.load(beside=tmp_path)


def test_frames_and_pictures_keep_their_places() -> None:
    torch.manual_seed(0)
    codec: Any = built("image").codec
    pictures, latents = torch.rand(2, 3, 3, 8, 16), torch.randn(2, 4, 3, 4, 8)
    coded = codec.encode(pictures, torch.Generator().manual_seed(0))
    assert coded.shape == latents.shape
    means = codec.vae.encode(pictures[1] * 2 - 1).latent_dist.mean * codec.vae.config.scaling_factor
    spread = codec.vae.encode(pictures[1] * 2 - 1).latent_dist.std.max() * 0.18215
    assert (coded[1].transpose(0, 1) - means).abs().max() < 6 * spread
    decoded = codec.decode(latents)
    assert decoded.shape == pictures.shape
    torch.testing.assert_close(decoded[1, 2], codec.decode(latents[1, :, 2][None])[0])


def test_log_mel_of_a_tone_is_loud_where_the_tone_is() -> None:
    rate, hop = 16000, 160
    waves = torch.sin(2 * torch.pi * 1000 * torch.arange(rate) / rate)[None] * 0.5
    mel = log_mel(waves, bins=64, hop=hop, sampling_rate=rate)
    assert mel.shape == (1, rate // hop, 64)
    # Slaney's scale is linear to 1000 Hz, 15 mel, and logarithmic above, to 45.2 mel at 8000 Hz.
    top = 15 + np.log(8) / (np.log(6.4) / 27)
    centres = np.linspace(0, top, 66)[1:-1]
    assert mel[0, 50].argmax() == np.abs(centres - 15).argmin()
    silence = log_mel(torch.zeros(1, rate), bins=64, hop=hop, sampling_rate=rate)
    torch.testing.assert_close(silence, torch.full_like(silence, np.log(1e-5)))


def test_what_cannot_be_asked() -> None:
    torch.manual_seed(0)
    generator = built("audio")
    latents = torch.randn(2, *generator.latent_shape)
    with pytest.raises(ValueError, match="class labels are one token; the condition has 3"):
        generator.loss(torch.zeros(2, 3, 16), latents=latents)
    with pytest.raises(ValueError, match="give media or latents"):
        generator.loss(torch.zeros(2, 1, 16))
    with pytest.raises(ValueError, match="3 conditions, but 2 media"):
        generator.loss(torch.zeros(3, 1, 16), latents=latents)
    with pytest.raises(ValueError, match="steps: 0 is not between 1 and 999"):
        generator.generate(torch.zeros(1, 1, 16), steps=0)
    with pytest.raises(ValueError, match="has no text encoder"):
        built("image", text_layers=0).condition(["red"])
    with pytest.raises(ValueError, match="built without a tokenizer"):
        SETTINGS["image"].build().condition(["red"])
    with pytest.raises(ValueError, match="no folder to load it from"):
        SETTINGS["image"].load()
    with pytest.raises(ValueError, match="channels has 4 blocks, attention 2"):
        LatentDiffusion(attention=(True, False))
    with pytest.raises(ValueError, match="image_size 500 is no multiple of 8"):
        LatentDiffusion(image_size=500)
    with pytest.raises(ValueError, match="width 575 is no multiple of 8"):
        VideoDiffusion(width=575)
    with pytest.raises(ValueError, match="513 frames are no multiple of 4"):
        AudioDiffusion(seconds=5.13)


def test_requests_in_words() -> None:
    answer = f"Here. {request('image', 'a red ring')}\n{request('audio', 'rain: on a roof')}"
    assert answer.startswith("Here. Modality: [IMAGE] Prompt: a red ring")
    assert requests(answer) == [("image", "a red ring"), ("audio", "rain: on a roof")]
    assert requests("Modality: IMAGE. Prompt: x") == []


def test_relay_asks_the_other_generator_with_its_own_words() -> None:
    torch.manual_seed(0)
    relay = TextRelay(generator=tiny_generators.SPECS["image"])
    assert relay.condition_shape is None
    made = relay.build(built("image").text.tokenizer).eval()
    assert isinstance(made, Relay)
    inner = made.generator
    torch.testing.assert_close(
        made.generate(["a red ring"], seed=2),
        inner.generate(inner.condition(["a red ring"]), seed=2),
    )


def test_alignment_is_its_formulas() -> None:
    torch.manual_seed(0)
    ours, target = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    difference = ours - target
    cosine = (ours * target).sum(-1) / (ours.square().sum(-1) * target.square().sum(-1)).sqrt()
    expected = {
        "mse": difference.pow(2).sum() / 30,
        "l2norm": difference.pow(2).sum(-1).sqrt().sum() / 6,
        "cosine": 1 - cosine.sum() / 6,
    }
    for distance, value in expected.items():
        torch.testing.assert_close(
            generation_losses.alignment(ours, target, distance),
            value,  # type: ignore[arg-type]
        )
    same = target.clone().requires_grad_()
    generation_losses.alignment(same, target, "l2norm").backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()
    with pytest.raises(ValueError, match=r"H_X is \[2, 3, 5\], but its target \[2, 1, 5\]"):
        generation_losses.alignment(ours, target[:, :1])


def test_language_is_its_formula() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 4, 6), torch.tensor([[2, 5, -100, 1]])
    log = logits.log_softmax(-1)
    expected = -(log[0, 0, 5] + log[0, 2, 1]) / 2
    torch.testing.assert_close(generation_losses.language(logits, labels), expected)


def test_the_total_is_weighted() -> None:
    loss = GenerationLoss(language_weight=0.01, alignment_weight=0.1, denoising_weight=2.0)
    parts = [torch.tensor(x) for x in (3.0, 5.0, 7.0)]
    torch.testing.assert_close(loss.total(*parts), torch.tensor(0.03 + 0.5 + 14.0))
    torch.testing.assert_close(loss.total(None, parts[1], None), torch.tensor(0.5))
    with pytest.raises(ValueError, match="give labels, a target condition or a target medium"):
        loss.total(None, None, None)
    with pytest.raises(ValueError, match=r"drop: 1\.0 is no share"):
        GenerationLoss(drop=1.0)
    with pytest.raises(SettingError, match=r"generation_loss\.alignment"):
        settings.build(GenerationLoss, {"alignment": "l3"}, where="generation_loss")
