"""Builds the painter: a small latent diffusion model of the generated world, and nano's way to it.

VAE → text encoder and UNet, which know nothing of nano → signal tokens and output projector on
the frozen nano, by the survey's (2) and (4). All stages draw what they learn from, which is of
taught pairs alone, from one seed; finished ones but the last are kept. How well it paints is judged
by a classifier of real scenes (`clmm/nano/painter_card.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmm import modeling_outputs, signal_tokens
from clmm.diffusion import Diffusion
from clmm.generators.latent_diffusion import LatentDiffusion
from clmm.loading import load
from clmm.nano import drawing, painter_card, scene_classifier
from clmm.nano.build import Stage, fit, reporter
from clmm.nano.curriculum import picture_lesson, text_lesson
from clmm.processing_mmllm import MMLLMProcessor, byte_tokenizer
from streams.world import SIZE, TRAIN_PAIRS

SIGNALS = 16
KL_WEIGHT = 1e-5
DETAIL = 32
"""Pixels of a side of the pieces that the VAE learns from first."""
DETAILED = 0.8
"""Share of its steps in which it does."""
GALLERY = 16000
"""Pictures that the UNet learns from."""
AT_ONCE = 100
"""Of them encoded together."""
EMPTIED = 0.1
"""Share of wishes that the UNet is not told: guidance starts from that."""
ORDINARY = 0.4
"""Share of a step's rows in which nothing is asked to be drawn, and nothing should be."""

STAGES: dict[str, Stage] = {
    "scene_classifier": Stage(steps=1500, learning_rate=3e-3, batch_size=64),
    "vae": Stage(steps=2000, learning_rate=2e-3, batch_size=32),
    "unet": Stage(steps=4000, learning_rate=1e-3, batch_size=32),
    "projector": Stage(steps=3500, learning_rate=2e-3, batch_size=32),
}


def settings_of(vocabulary: int) -> LatentDiffusion:
    """The painter's sizes: latents of 8 × 9 × 9 from pictures of 72 × 72."""
    return LatentDiffusion(
        image_size=SIZE,
        channels=(64, 96),
        attention=(True, True),
        coordinates=True,
        layers=1,
        heads=4,
        groups=8,
        vae_channels=(16, 32, 48, 64),
        vae_layers=1,
        latent_channels=8,
        condition_length=10,
        condition_width=64,
        text_layers=2,
        text_heads=4,
        vocabulary=vocabulary,
        prediction="v_prediction",
        steps=25,
        guidance=2.0,
    )


PROJECTOR: dict[str, Any] = {
    "name": "tiny_transformer", "hidden": 128, "heads": 4, "encoder_layers": 2,
    "decoder_layers": 2, "mlp": 512, "queries": 10,
}  # fmt: skip


def words() -> Any:
    """The painter's own tokenizer: nano's signal tokens are none of its words."""
    return byte_tokenizer(drawing.corpus(), vocabulary=420)


def vae_loss(vae: Any, pixels: Tensor) -> Tensor:
    """Mean squared error of a picture put together again, and a little of the latents' KL.

    The absolute error has its least at the median, which is the background, and stays there.
    """
    wanted = pixels * 2 - 1
    latent = vae.encode(wanted).latent_dist
    again = vae.decode(latent.sample()).sample
    divergence = latent.kl().sum() / latent.mean.numel()
    return (again.float() - wanted).square().mean() + KL_WEIGHT * divergence


def scenes(rng: np.random.Generator, count: int) -> Tensor:
    """Whole pictures of up to five things: [count, 3, 72, 72]."""
    return drawing.pixels([drawing.random_scene(rng, TRAIN_PAIRS, most=5) for _ in range(count)])


def details(rng: np.random.Generator, count: int) -> Tensor:
    """Pieces of pictures around a thing, [count, 3, 32, 32]: cheaper, and less of them is empty."""
    drawn = [drawing.random_scene(rng, TRAIN_PAIRS, most=5) for _ in range(count)]
    cut = []
    for scene, picture in zip(drawn, drawing.pixels(drawn), strict=True):
        thing = scene.things[int(rng.integers(len(scene.things)))]
        middle = np.array([thing.y, thing.x]) + rng.integers(-10, 11, size=2)
        top, left = np.clip(middle - DETAIL // 2, 0, SIZE - DETAIL)
        cut.append(picture[:, top : top + DETAIL, left : left + DETAIL])
    return torch.stack(cut)


def set_scaling(vae: Any, pixels: Tensor) -> None:
    """Latents times `scaling_factor` have a variance of 1, as the noise has."""
    with torch.no_grad():
        spread = vae.encode(pixels * 2 - 1).latent_dist.sample().std()
    vae.register_to_config(scaling_factor=float(1 / spread))


def paint(stages: dict[str, Stage], *, seed: int, workshop: Path | None) -> Diffusion:
    """VAE, then text encoder and UNet; what `workshop` holds is not trained again."""
    tokenizer = words()
    settings = settings_of(len(tokenizer))
    torch.manual_seed(seed)
    painter = settings.build(tokenizer)
    for name, train, taught in (
        ("vae", _train_vae, ("vae",)),
        ("unet", _train_unet, ("unet", "text_encoder")),
    ):
        kept = workshop / f"painter-{name}-{seed}" if workshop else None
        parts = {part: painter.parts()[part] for part in taught}
        if kept and all((kept / part).is_dir() for part in parts):
            for part, made in parts.items():
                found = type(made).from_pretrained(kept / part, use_safetensors=True)
                made.load_state_dict(found.state_dict())
                if part == "vae":
                    made.register_to_config(scaling_factor=found.config.scaling_factor)
            print(f"{name}: found {kept}")
            continue
        painter.requires_grad_(False)
        train(painter, stages[name], seed=seed)
        if kept:
            for part, made in parts.items():
                made.save_pretrained(kept / part)
    return painter.requires_grad_(False).eval()


def _train_vae(painter: Diffusion, stage: Stage, *, seed: int) -> None:
    """On details, and at the end on whole pictures, whose group norms are others."""
    vae = painter.codec.vae.requires_grad_().train()

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 0, step])
        detailed = step < DETAILED * stage.steps
        pictures = (
            details(rng, stage.batch_size) if detailed else scenes(rng, stage.batch_size // 2)
        )
        with torch.autocast("cpu", enabled=False):
            return vae_loss(vae, pictures)

    fit(vae.parameters(), loss, stage, reporter("vae", stage))
    set_scaling(vae.eval(), scenes(np.random.default_rng([seed, 9]), 64))


def _train_unet(painter: Diffusion, stage: Stage, *, seed: int) -> None:
    """With the text encoder, on pictures of wishes that are encoded once."""
    said: list[str] = []
    latents = []
    for number in range(-(-GALLERY // AT_ONCE)):
        rng = np.random.default_rng([seed, 4, number])
        wishes = drawing.wishes(rng, AT_ONCE)
        said += [wish.canonical.text for wish in wishes]
        pictures = drawing.pixels([drawing.posed(wish, rng) for wish in wishes])
        with torch.no_grad():
            latents.append(painter.codec.encode(pictures))
    encoded = torch.cat(latents)
    noisiest = painter.scheduler.config.num_train_timesteps
    trained = [*painter.unet.parameters(), *painter.text.parameters()]  # type: ignore[union-attr]

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 1, step])
        chosen = rng.integers(len(said), size=stage.batch_size)
        # What is there is decided at middle noise (logit-normal, arXiv 2403.03206).
        times = torch.from_numpy(rng.normal(size=stage.batch_size)).sigmoid() * noisiest
        with torch.autocast("cpu", enabled=False):
            return painter.loss(
                painter.condition([said[i] for i in chosen]),
                latents=encoded[chosen],
                timesteps=times.long(),
                drop=EMPTIED,
            )

    for parameter in trained:
        parameter.requires_grad_()
    fit(trained, loss, stage, reporter("unet", stage))


def turns(
    rng: np.random.Generator, texts: Sequence[str], ordinary: int
) -> tuple[list[str], list[str], list[np.ndarray]]:
    """A request for each text, then other questions; what is answered; pictures of the latter."""
    asked = [drawing.request(text, rng) for text in texts]
    answers = [signal_tokens.mark("image")] * len(texts)
    pictures = []
    for _ in range(ordinary):
        lesson = picture_lesson(rng) if rng.random() < 0.5 else text_lesson(rng)
        question, answer = lesson.turns[int(rng.integers(len(lesson.turns)))]
        image = "" if lesson.picture is None else "<image>"
        if lesson.picture is not None:
            pictures.append(lesson.picture)
        asked.append(f"{image}{lesson.text}{question}")
        answers.append(answer)
    return asked, answers, pictures


def batch_of(
    processor: MMLLMProcessor, rng: np.random.Generator, texts: Sequence[str], ordinary: int
) -> dict[str, Tensor]:
    """Requests and answers of signal tokens, and ordinary ones; only answers are labelled."""
    asked, answers, pictures = turns(rng, texts, ordinary)
    prompts = [f"<|user|>{text}<|assistant|>" for text in asked]
    end = processor.tokenizer.eos_token
    whole = [prompt + answer + end for prompt, answer in zip(prompts, answers, strict=True)]
    images = pictures or None
    batch = dict(processor(text=whole, images=images, padding=True, return_tensors="pt"))
    alone = processor(text=prompts, images=images)["input_ids"]
    lengths = torch.tensor([len(ids) for ids in alone])
    place = torch.arange(batch["input_ids"].shape[1])
    hidden = (place < lengths[:, None]) | (batch["attention_mask"] == 0)
    return batch | {"labels": batch["input_ids"].masked_fill(hidden, -100)}


def teach(
    model: Any, processor: MMLLMProcessor, painter: Diffusion, stage: Stage, *, seed: int
) -> None:
    """Output projector and signal rows on a frozen language model, by (2) and (4)."""
    settings = settings_of(len(painter.text.tokenizer))  # type: ignore[union-attr]  # has one
    torch.manual_seed(seed)
    modeling_outputs.add_outputs(
        model,
        processor.tokenizer,
        generators={
            "image": {
                "name": "latent_diffusion",
                **dataclasses.asdict(settings),
                "folder": "painter",
            }
        },
        output_projectors={"image": PROJECTOR},
        signals={"image": SIGNALS},
    )
    processor.signals = {"image": SIGNALS}
    model.attach_generator("image", painter)
    trained = modeling_outputs.train_outputs(model.train())
    ordinary = round(ORDINARY * stage.batch_size)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 2, step])
        # Wishes cost no picture here: what they should become is a condition.
        wishes = drawing.wishes(rng, stage.batch_size - ordinary)
        with torch.no_grad():
            wanted = painter.condition([wish.canonical.text for wish in wishes])
        batch = batch_of(processor, rng, [wish.text for wish in wishes], ordinary)
        value: Tensor = model(**batch, target_image_condition=wanted).loss
        return value

    fit(trained, loss, stage, reporter("projector", stage))
    signal_tokens.keep_rows(model.language_model)
    model.requires_grad_(True).eval()


def judge(stage: Stage, *, seed: int, workshop: Path | None) -> scene_classifier.SceneClassifier:
    """The classifier of real scenes; one that `workshop` holds is not trained again."""
    kept = workshop / f"scene_classifier-{seed}.safetensors" if workshop else None
    if kept and kept.is_file():
        print(f"scene_classifier: found {kept}")
        return scene_classifier.SceneClassifier.load(kept)
    made = scene_classifier.train(stage, reporter("scene_classifier", stage), seed=seed)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        made.save(kept)
    return made


def build(
    folder: Path,
    *,
    model: str | Path = "nano",
    seed: int = 0,
    stages: dict[str, Stage] = STAGES,
    workshop: Path | None = None,
) -> Path:
    """Trains every stage; saves model and processor into `folder`, painter and judge inside it."""
    loaded: Any = load(model, device="cpu")
    painter = paint(stages, seed=seed, workshop=workshop)
    # As it is saved, in half precision, so that nothing is learnt of what nobody gets.
    painter = painter.half().float()
    teach(loaded.model, loaded.processor, painter, stages["projector"], seed=seed)
    loaded.model.half().save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    painter.half().save(folder / "painter")
    judge(stages["scene_classifier"], seed=seed, workshop=workshop).save(
        folder / scene_classifier.FILE
    )
    return folder


def recipe(seed: int) -> str:
    """The stages as a Markdown table."""
    lines = ["| stage | steps | batch size | learning rate |", "|---|--:|--:|--:|"]
    lines += [
        f"| {name} | {stage.steps} | {stage.batch_size} | {stage.learning_rate:g} |"
        for name, stage in STAGES.items()
    ]
    return "\n".join([*lines, "", f"Seed {seed}."])


def main(arguments: Sequence[str] = ()) -> int:
    """`clmm build painter [--out DIR] [--model NAME] [--seed N] [--workshop DIR]`."""
    parser = argparse.ArgumentParser(prog="clmm build painter", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("painter"), metavar="DIR", help="default: painter"
    )
    parser.add_argument("--model", default="nano", metavar="NAME", help="who asks; default: nano")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--workshop", type=Path, metavar="DIR", help="keeps finished stages and reuses them"
    )
    parser.add_argument("--card-only", action="store_true", help="measure the weights in DIR again")
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)  # pictures are large enough for two, unlike nano's tokens
    if not options.card_only:
        build(options.out, model=options.model, seed=options.seed, workshop=options.workshop)
    print(painter_card.write(options.out, recipe=recipe(options.seed)))
    print(f"model, processor, painter and judge are in {options.out}")
    return 0
