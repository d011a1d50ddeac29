"""Builds nano, the embedded model organism, in the survey's order, from nothing.

encoder and language model apart → PT of the projector alone → IT → alignment. Every stage is a
number of steps on freshly drawn lessons, all from one seed, so the same command gives the same
weights on the same kind of processor. Finished stages are kept and not repeated. What nano then
can do is measured by `clmm.nano.card`.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clmm import components
from clmm.configuration_mmllm import MMLLMConfig
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from clmm.nano import encoder as encoder_stage
from clmm.nano.curriculum import (
    Lesson,
    copying_lesson,
    corpus,
    picture_lesson,
    policy_lesson,
    text_lesson,
)
from clmm.nano.shared_prefix import Turn, answer_loss
from clmm.processing_mmllm import IMAGE, MMLLMProcessor, byte_tokenizer
from streams.world import SIZE

VOCABULARY = 704


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How long and how fast one stage learns."""

    steps: int
    learning_rate: float
    batch_size: int
    """Lessons (pictures or texts) a step; each brings several questions."""


STAGES: dict[str, Stage] = {
    "encoder": Stage(steps=2200, learning_rate=2e-3, batch_size=64),
    "language": Stage(steps=800, learning_rate=3e-3, batch_size=64),
    "projector": Stage(steps=200, learning_rate=3e-3, batch_size=32),
    "instruction": Stage(steps=2000, learning_rate=2e-3, batch_size=32),
    "alignment": Stage(steps=500, learning_rate=8e-4, batch_size=32),
}

PARTS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder",),
    "language": ("language_model",),
    "projector": ("input_projector",),
    "instruction": ("input_projector", "language_model"),
    "alignment": ("input_projector", "language_model"),
}
"""Which components each stage trains; the others are frozen."""


def new_model() -> tuple[MMLLMForConditionalGeneration, MMLLMProcessor]:
    """nano's architecture, untrained: ConvNeXt encoder, MLP projector, Llama language model."""
    tokenizer = byte_tokenizer(corpus(), vocabulary=VOCABULARY)
    config = MMLLMConfig(
        encoders={
            "image": {
                "name": "convnext",
                "image_size": SIZE,
                "patch_size": 6,
                "hidden_sizes": [64, 128],
                "depths": [1, 3],
                "layer_scale": 1.0,
            }
        },
        input_projectors={"image": {"name": "mlp", "hidden": 256, "norm": True}},
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        token_ids={"image": tokenizer.vocab[IMAGE]},
    )
    model = MMLLMForConditionalGeneration._from_config(config, attn_implementation="eager")
    images = config.encoder("image").preprocessor()
    processor = MMLLMProcessor(images, tokenizer, {"image": config.num_tokens("image")})
    return model, processor


class Classroom:
    """Turns lessons into the loss of the multimodal model: prefix once, questions after it."""

    def __init__(self, model: MMLLMForConditionalGeneration, processor: MMLLMProcessor) -> None:
        self.model = model
        tokenizer = processor.tokenizer
        self._encode = functools.lru_cache(1 << 18)(lambda text: tuple(tokenizer(text).input_ids))
        self._user, self._assistant = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
        self._end = tokenizer.eos_token_id

    def loss(self, lessons: list[Lesson]) -> Tensor:
        seen = [lesson.picture for lesson in lessons if lesson.picture is not None]
        visual = iter(())
        if seen:
            with torch.no_grad():
                features = self.model.encode_images(encoder_stage.pixels(seen))
            visual = iter(self.model.get_image_features(image_features=features.float()))
        embed = self.model.get_input_embeddings()
        prefixes, turns = [], []
        for index, lesson in enumerate(lessons):
            prefix = embed(torch.tensor([self._user, *self._encode(lesson.text)]))
            if lesson.picture is not None:
                prefix = torch.cat([prefix[:1], next(visual).to(prefix.dtype), prefix[1:]])
            prefixes.append(prefix)
            turns += [
                Turn(
                    prefix=index,
                    question=[*self._encode(question), self._assistant],
                    answer=[*self._encode(answer), self._end],
                )
                for question, answer in lesson.turns
            ]
        lengths = torch.tensor([len(prefix) for prefix in prefixes])
        padded = nn.utils.rnn.pad_sequence(prefixes, batch_first=True)
        return answer_loss(self.model.language_model, padded, lengths, turns)


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], Tensor],
    stage: Stage,
    report: Callable[[int, float], None],
) -> None:
    """AdamW in bfloat16 autocast, warm-up then cosine to a twentieth, gradient norm 1."""
    trained = list(parameters)
    optimiser = torch.optim.AdamW(
        trained, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    warmup = max(1, min(100, stage.steps // 10))
    for step in range(stage.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        rate = min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * cosine)
        for group in optimiser.param_groups:
            group["lr"] = stage.learning_rate * rate
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        report(step + 1, float(value.detach()))


def reporter(name: str, stage: Stage) -> Callable[[int, float], None]:
    """Prints every fiftieth step: its loss, the time since now, and the time left."""
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 50 == 0 or step == stage.steps:
            seconds = time.monotonic() - started
            left = seconds / step * (stage.steps - step)
            print(
                f"{name:<12} step {step:>5}/{stage.steps}  loss {loss:6.3f}  "
                f"{seconds:6.0f} s, {left:5.0f} s left",
                flush=True,
            )

    return report


def next_lesson(name: str, rng: np.random.Generator) -> Lesson:
    """Which kind of lesson a stage draws next."""
    draw = rng.random()
    if name == "projector":
        return picture_lesson(rng, questions=4)
    if name == "alignment" and draw < 0.40:
        return policy_lesson(rng)
    if name == "alignment" and draw < 0.52:
        return copying_lesson(rng)
    if draw < 0.90:
        return picture_lesson(rng)
    return text_lesson(rng)


def run_stage(
    name: str,
    model: MMLLMForConditionalGeneration,
    processor: MMLLMProcessor,
    stage: Stage,
    *,
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """One stage of the build, in place."""
    components.train_only(model.train(), PARTS[name])
    if name == "encoder":
        convnext: Any = model.encoders["image"].model
        dense = encoder_stage.Dense(convnext, model.config.encoder("image").width)
        loss = encoder_stage.lessons(dense, batch_size=stage.batch_size, seed=seed)
        fit(dense.parameters(), loss, stage, report)
        return
    classroom = Classroom(model, processor)
    number = list(STAGES).index(name) + 1
    draw = text_lesson if name == "language" else functools.partial(next_lesson, name)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, number, step])
        return classroom.loss([draw(rng) for _ in range(stage.batch_size)])

    fit((p for p in model.parameters() if p.requires_grad), loss_of, stage, report)


def build(
    folder: Path, *, seed: int = 0, stages: dict[str, Stage] = STAGES, workshop: Path | None = None
) -> Path:
    """Trains every stage and saves model and processor into `folder`.

    `workshop` keeps the weights after each finished stage; stages found there are not repeated.
    """
    torch.manual_seed(seed)
    model, processor = new_model()
    for name, stage in stages.items():
        kept = workshop / f"{name}-{seed}.safetensors" if workshop else None
        if kept and kept.exists():
            unknown = model.load_state_dict(load_file(kept), strict=False).unexpected_keys
            if unknown:
                raise ValueError(f"{kept}: this architecture has no {unknown[0]}")
            print(f"{name}: found {kept}")
            continue
        run_stage(name, model, processor, stage, seed=seed, report=reporter(name, stage))
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            owners = components.component_of(model)  # of tied weights only the first name
            state = {k: v for k, v in model.state_dict().items() if owners.get(k) in PARTS[name]}
            save_file({k: v.contiguous() for k, v in state.items()}, kept)
    model.requires_grad_(True).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def recipe(stages: dict[str, Stage] = STAGES, seed: int = 0) -> str:
    """The stages as a Markdown table."""
    lines = ["| stage | trains | steps | lessons a step | learning rate |", "|---|---|--:|--:|--:|"]
    lines += [
        f"| {name} | {', '.join(PARTS[name])} | {stage.steps} | {stage.batch_size} | "
        f"{stage.learning_rate:g} |"
        for name, stage in stages.items()
    ]
    return "\n".join([*lines, "", f"Seed {seed}."])


def main(arguments: Sequence[str] = ()) -> int:
    """`clmm build nano [--out DIR] [--seed N] [--workshop DIR]`."""
    parser = argparse.ArgumentParser(prog="clmm build nano", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("nano"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--workshop", type=Path, metavar="DIR", help="keeps finished stages and reuses them"
    )
    parser.add_argument("--card-only", action="store_true", help="measure the weights in DIR again")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so tiny a model is slower on more
    if not options.card_only:
        build(options.out, seed=options.seed, workshop=options.workshop)
    from clmm.nano import card

    print(card.write(options.out, recipe=recipe(seed=options.seed)))
    print(f"model, processor and card are in {options.out}")
    return 0
