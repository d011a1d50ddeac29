"""Builds the painter: a small latent diffusion model of the generated world, and nano's way to it.

VAE → text encoder and UNet, which know nothing of nano → signal tokens and output projector on
the frozen nano, by the survey's (2), (4) and (5). Every stage draws fresh scenes from one seed;
finished stages are kept. How well it paints is judged by nano's own eyes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clmm import modeling_outputs, signal_tokens
from clmm.diffusion import Diffusion
from clmm.generators.latent_diffusion import LatentDiffusion
from clmm.loading import load
from clmm.nano.build import Stage, fit
from clmm.nano.curriculum import absent_pair, caption
from clmm.processing_mmllm import MMLLMProcessor
from streams import phrasings
from streams.world import SIZE, TRAIN_PAIRS, Scene, random_scene, render

SIGNALS = 4
THINGS = 2
"""Most things in a scene."""
DRAWING = ("Draw {}", "Paint {}", "Show me {}", "Make a picture of {}", "Give me an image of {}")
KL_WEIGHT = 1e-5

STAGES: dict[str, Stage] = {
    "vae": Stage(steps=3000, learning_rate=1e-3, batch_size=32),
    "unet": Stage(steps=8000, learning_rate=5e-4, batch_size=32),
    "projector": Stage(steps=1000, learning_rate=1e-3, batch_size=32),
}


def settings_of(vocabulary: int) -> LatentDiffusion:
    """The painter's sizes: latents of 8 × 9 × 9 from pictures of 72 × 72."""
    return LatentDiffusion(
        image_size=SIZE,
        channels=(64, 128),
        attention=(True, True),
        layers=1,
        heads=4,
        groups=8,
        vae_channels=(16, 32, 48, 64),
        vae_layers=1,
        latent_channels=8,
        condition_length=16,
        condition_width=64,
        text_layers=2,
        text_heads=4,
        vocabulary=vocabulary,
        guidance=3.0,
    )


PROJECTOR: dict[str, Any] = {
    "name": "tiny_transformer", "hidden": 128, "heads": 4, "encoder_layers": 2,
    "decoder_layers": 2, "mlp": 512, "queries": 16,
}  # fmt: skip


def scenes(rng: np.random.Generator, count: int) -> tuple[list[Scene], list[str], Tensor]:
    """Scenes of taught pairs, their captions, and their pixels [count, 3, 72, 72] in [0, 1]."""
    drawn = [
        random_scene(rng, pairs=TRAIN_PAIRS, count=int(rng.integers(1, THINGS + 1)))
        for _ in range(count)
    ]
    said = [caption([thing.pair for thing in scene.reading_order]) for scene in drawn]
    pixels = torch.from_numpy(np.stack([render(scene) for scene in drawn]))
    return drawn, said, pixels.permute(0, 3, 1, 2).float() / 255


def vae_loss(vae: Any, pixels: Tensor) -> Tensor:
    """Mean absolute error of a picture put together again, and a little of the latents' KL."""
    wanted = pixels * 2 - 1
    latent = vae.encode(wanted).latent_dist
    again = vae.decode(latent.sample()).sample
    divergence = latent.kl().sum() / latent.mean.numel()
    return (again.float() - wanted).abs().mean() + KL_WEIGHT * divergence


def set_scaling(painter: Diffusion, pixels: Tensor) -> None:
    """Latents times `scaling_factor` have a variance of 1, as the noise has."""
    vae = painter.codec.vae
    with torch.no_grad():
        spread = vae.encode(pixels * 2 - 1).latent_dist.sample().std()
    vae.register_to_config(scaling_factor=float(1 / spread))


def paint(
    tokenizer: Any, stages: dict[str, Stage], *, seed: int, workshop: Path | None
) -> Diffusion:
    """VAE, then text encoder and UNet; what `workshop` holds is not trained again."""
    settings = settings_of(len(tokenizer))
    painter = settings.build(tokenizer)
    for number, name in enumerate(("vae", "unet")):
        stage = stages[name]
        kept = workshop / f"painter-{name}-{seed}" if workshop else None
        if kept and (kept / "unet").is_dir():
            painter = dataclasses.replace(settings, folder=str(kept)).load()
            print(f"{name}: found {kept}")
            continue
        painter.requires_grad_(False)
        trained: list[nn.Module] = [painter.codec.vae]
        if name == "unet":
            assert painter.text is not None
            trained = [painter.unet, painter.text]

        def loss(
            step: int, number: int = number, stage: Stage = stage, painter: Diffusion = painter
        ) -> Tensor:
            _, said, pixels = scenes(np.random.default_rng([seed, number, step]), stage.batch_size)
            if number == 0:
                return vae_loss(painter.codec.vae, pixels)
            return painter.loss(painter.condition(said), media=pixels, drop=0.1)

        for part in trained:
            part.requires_grad_().train()
        parameters = [p for part in trained for p in part.parameters()]
        fit(parameters, loss, stage, reporter(name, stage))
        if name == "vae":
            set_scaling(painter, scenes(np.random.default_rng([seed, 9]), 64)[2])
        if kept:
            painter.save(kept)
    return painter.requires_grad_(False).eval()


def reporter(name: str, stage: Stage) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        if step % 50 == 0 or step == stage.steps:
            print(f"{name:<12} step {step:>5}/{stage.steps}  loss {loss:6.3f}", flush=True)

    return report


def asked(
    processor: MMLLMProcessor, rng: np.random.Generator, said: Sequence[str]
) -> dict[str, Tensor]:
    """Requests to draw and answers of signal tokens; only answers are labelled."""
    requests = [
        f"<|user|>{DRAWING[int(rng.integers(len(DRAWING)))].format(text)}<|assistant|>"
        for text in said
    ]
    end = processor.tokenizer.eos_token
    answer = signal_tokens.expand(signal_tokens.mark("image"), {"image": SIGNALS}) + end
    batch = dict(
        processor(text=[text + answer for text in requests], padding=True, return_tensors="pt")
    )
    lengths = torch.tensor([len(processor.tokenizer(text).input_ids) for text in requests])
    place = torch.arange(batch["input_ids"].shape[1])
    hidden = (place < lengths[:, None]) | (batch["attention_mask"] == 0)
    return batch | {"labels": batch["input_ids"].masked_fill(hidden, -100)}


def teach(
    model: Any, processor: MMLLMProcessor, painter: Diffusion, stage: Stage, *, seed: int
) -> None:
    """Output projector and signal rows on a frozen language model."""
    shape = painter.condition_shape
    spec = dataclasses.asdict(settings_of(len(painter.text.tokenizer if painter.text else ())))
    modeling_outputs.add_outputs(
        model,
        processor.tokenizer,
        generators={"image": {"name": "latent_diffusion", **spec, "folder": "painter"}},
        output_projectors={"image": {**PROJECTOR, "queries": shape[0]}},
        signals={"image": SIGNALS},
    )
    processor.signals = {"image": SIGNALS}
    model.attach_generator("image", painter)
    trained = modeling_outputs.train_outputs(model.train())

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 2, step])
        _, said, pixels = scenes(rng, stage.batch_size)
        with torch.no_grad():
            wanted = painter.condition(said)
        batch = asked(processor, rng, said)
        output = model(**batch, target_image=pixels, target_image_condition=wanted)
        value: Tensor = output.loss
        return value

    fit(trained, loss, stage, reporter("projector", stage))
    signal_tokens.keep_rows(model.language_model)
    model.requires_grad_(True).eval()


def build(
    folder: Path,
    *,
    model: str | Path = "nano",
    seed: int = 0,
    stages: dict[str, Stage] = STAGES,
    workshop: Path | None = None,
) -> Path:
    """Trains every stage; saves model and processor into `folder`, the painter inside of it."""
    torch.manual_seed(seed)
    loaded: Any = load(model, device="cpu")
    # The painter reads with a copy: nano's signal tokens are none of its words.
    painter = paint(load(model).processor.tokenizer, stages, seed=seed, workshop=workshop)
    teach(loaded.model, loaded.processor, painter, stages["projector"], seed=seed)
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    painter.save(folder / "painter")
    return folder


def measure(
    folder: Path, *, items: int = 64, seed: int = 1, steps: int | None = None
) -> dict[str, float]:
    """What the model draws when asked, judged by the same model's eyes.

    `drawn`: share of answers with a picture. `present`: share of the things asked for that it sees
    in its picture; `absent`: share of near misses that it sees there too.
    """
    loaded: Any = load(folder, device="cpu")
    model, processor = loaded.model, loaded.processor
    rng = np.random.default_rng([seed, 3])
    drawn, said, _ = scenes(rng, items)
    requests = [f"<|user|>{DRAWING[0].format(text)}<|assistant|>" for text in said]
    batch = processor(text=requests, padding=True, padding_side="left", return_tensors="pt")
    made = model.generate_media(
        **batch, max_new_tokens=SIGNALS + 1, do_sample=False, steps=steps, seed=seed
    )
    seen: dict[str, list[float]] = {"present": [], "absent": []}
    for scene, row in zip(drawn, made.media, strict=True):
        if not row:
            continue
        picture = (row[0].media.permute(1, 2, 0) * 255).round().byte().numpy()
        pairs = [thing.pair for thing in scene.things]
        for kind, pair in (*(("present", p) for p in pairs), ("absent", absent_pair(pairs, rng))):
            question = phrasings.existence_question(" ".join(pair), rng)
            text = f"<|user|><image>{question}<|assistant|>"
            inputs = processor(text=[text], images=[picture], return_tensors="pt")
            answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
            start = inputs["input_ids"].shape[1]
            words = processor.tokenizer.decode(answer[0, start:], skip_special_tokens=True)
            seen[kind].append(float(words.startswith("Yes")))
    figures = {kind: float(np.mean(values)) for kind, values in seen.items() if values}
    return {"drawn": float(np.mean([bool(row) for row in made.media])), **figures}


def main(arguments: Sequence[str] = ()) -> int:
    """`clmm build painter [--out DIR] [--model NAME] [--seed N] [--workshop DIR]`."""
    parser = argparse.ArgumentParser(prog="clmm build painter", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("painter"), metavar="DIR")
    parser.add_argument("--model", default="nano", metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--workshop", type=Path, metavar="DIR", help="keeps finished stages and reuses them"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so tiny a model is slower on more
    build(options.out, model=options.model, seed=options.seed, workshop=options.workshop)
    figures = measure(options.out)
    (options.out / "painting.json").write_text(json.dumps(figures, indent=1), "utf-8")
    print(figures)
    print(f"model, processor and painter are in {options.out}")
    return 0
