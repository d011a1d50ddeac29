"""How well the painter paints what nano is asked for, measured and written down as its card.

Every wish has a pair of colour and shape that neither nano nor the painter was taught. Every number
is printed by `clmm build painter`; nothing is typed by hand. Knows no training.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmm.loading import load
from clmm.modeling_outputs import conditions
from clmm.nano import drawing
from clmm.nano.curriculum import text_lesson
from clmm.nano.drawing import Wish
from clmm.nano.scene_classifier import FILE, SceneClassifier, accuracy, reads_right
from clmm.signal_tokens import mark
from safety.statistics import wilson
from streams.world import HELD_OUT_PAIRS, SIZE

AT_ONCE = 50
ITEMS = 200
REAL_SCENES = 1000
SHOWN = 12


@dataclass(frozen=True)
class Skill:
    """One line of the card."""

    figure: str
    wanted: str
    says: str


SKILLS = (
    Skill("asked.right", "≥ .80", "nano is asked; the judge sees exactly the things asked for"),
    Skill("asked.one.right", "", "… one thing"),
    Skill("asked.two.right", "", "… two things"),
    Skill("asked.relation.right", "", "… and they stand as asked, where a relation is said"),
    Skill("text.right", "", "the painter reads the words itself, without nano"),
    Skill("text.relation.right", "", "… and they stand as asked, where a relation is said"),
    Skill("retrieval", "≥ .90", "nano's condition is nearest to its own words' among all"),
    Skill("drawn", "", "Requests that nano answers with a picture"),
    Skill("drawn.unasked", "", "Other questions that it answers with a picture"),
    Skill("judge.right", "", "The judge, of real scenes of one or two held-out pairs"),
)


def measure(
    folder: Path, *, items: int = ITEMS, seed: int = 1, steps: int | None = None
) -> dict[str, tuple[float, int]]:
    """Figure → share and number of trials; also saves `drawn.png`, the first pictures."""
    loaded: Any = load(folder, device="cpu")
    model, processor = loaded.model, loaded.processor
    judge = SceneClassifier.load(folder / FILE)
    rng = np.random.default_rng([seed, 3])
    wishes = drawing.untaught(rng, items)
    texts = [wish.text for wish in wishes]
    figures: dict[str, tuple[float, int]] = {}

    made = [
        one
        for start in range(0, items, AT_ONCE)
        for one in _ask(model, processor, texts[start : start + AT_ONCE], steps, seed + start)
    ]
    figures["drawn"] = _share([picture is not None for picture in made])
    figures |= _right("asked", judge, made, wishes)
    _show(folder / "drawn.png", made, texts)

    generator = model.generator("image")
    wanted = generator.condition([wish.canonical.text for wish in wishes])
    own = [
        picture
        for start in range(0, items, AT_ONCE)
        for picture in generator.generate(
            wanted[start : start + AT_ONCE], steps=steps, seed=seed + start
        )
    ]
    figures |= _right("text", judge, own, wishes)

    said = _conditions(model, processor, texts)
    apart = torch.cdist(said.flatten(1), wanted.flatten(1))
    figures["retrieval"] = _share((apart.argmin(1) == torch.arange(items)).tolist())

    lessons = [text_lesson(rng) for _ in range(items)]
    questions = [lesson.text + lesson.turns[0][0] for lesson in lessons]
    marks = torch.tensor(model.config.signal_ids["image"])
    answers = _answers(model, processor, questions, 4)
    figures["drawn.unasked"] = _share(torch.isin(answers, marks).any(1).tolist())

    held = sorted(HELD_OUT_PAIRS)
    real = [drawing.random_scene(rng, held, most=2) for _ in range(REAL_SCENES)]
    figures["judge.right"] = (accuracy(judge, real), REAL_SCENES)
    return figures


def _ask(
    model: Any, processor: Any, texts: Sequence[str], steps: int | None, seed: int
) -> list[Tensor | None]:
    """`Draw a red ring`, and the picture that comes, if one does: [3, 72, 72]."""
    prompts = [f"<|user|>Draw {text}<|assistant|>" for text in texts]
    batch = processor(text=prompts, padding=True, padding_side="left", return_tensors="pt")
    length = len(model.config.signal_ids["image"]) + 1
    made = model.generate_media(
        **batch, max_new_tokens=length, do_sample=False, steps=steps, seed=seed
    )
    return [row[0].media if row else None for row in made.media]


def _answers(model: Any, processor: Any, questions: Sequence[str], length: int) -> Tensor:
    prompts = [f"<|user|>{question}<|assistant|>" for question in questions]
    batch = processor(text=prompts, padding=True, padding_side="left", return_tensors="pt")
    sequences: Tensor = model.generate(**batch, max_new_tokens=length, do_sample=False)
    return sequences[:, batch["input_ids"].shape[1] :]


@torch.no_grad()
def _conditions(model: Any, processor: Any, texts: Sequence[str]) -> Tensor:
    """H_X of what nano says to each request: [N, L, d_c]."""
    prompts = [f"<|user|>Draw {text}<|assistant|>{mark('image')}" for text in texts]
    batch = processor(text=prompts, padding=True, return_tensors="pt")
    states = model(**batch, output_hidden_states=True).hidden_states[-1]
    return conditions(model, batch["input_ids"], states)["image"][1]


def _right(
    name: str, judge: SceneClassifier, made: Sequence[Tensor | None], wishes: Sequence[Wish]
) -> dict[str, tuple[float, int]]:
    """What is not drawn is not right."""
    nothing = torch.zeros(3, SIZE, SIZE)
    seen = judge.read(torch.stack([nothing if one is None else one for one in made]))
    right = [reads_right(one, wish) for one, wish in zip(seen, wishes, strict=True)]
    pairs = [things for things, _ in right]
    count = [len(wish.pairs) for wish in wishes]
    return {
        f"{name}.right": _share(pairs),
        f"{name}.one.right": _share([p for p, n in zip(pairs, count, strict=True) if n == 1]),
        f"{name}.two.right": _share([p for p, n in zip(pairs, count, strict=True) if n == 2]),
        f"{name}.relation.right": _share(
            [stands for (_, stands), w in zip(right, wishes, strict=True) if w.relation]
        ),
    }


def _share(hits: Sequence[bool]) -> tuple[float, int]:
    return float(np.mean(hits)) if hits else 0.0, len(hits)


def _show(path: Path, made: Sequence[Tensor | None], texts: Sequence[str]) -> None:
    """The first pictures with what was asked for, whatever came of it."""
    from matplotlib.figure import Figure

    # One in so many, so that all kinds of wishes are among them.
    chosen = [*range(0, len(texts), max(1, len(texts) // SHOWN))][:SHOWN]
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    for place, index in enumerate(chosen):
        axes = figure.add_subplot(3, -(-SHOWN // 3), place + 1)
        axes.set_axis_off()
        axes.set_title(textwrap.fill(texts[index], 18))
        picture = made[index]
        if picture is not None:
            axes.imshow(picture.permute(1, 2, 0).numpy())
    figure.savefig(path, dpi=80)


def table(figures: Mapping[str, tuple[float, int]]) -> str:
    """The skills as a Markdown table, with Wilson's 95 % intervals."""
    lines = ["| figure | measured | 95 % interval | n | wanted | |", "|---|--:|--:|--:|--:|---|"]
    for skill in SKILLS:
        share, n = figures[skill.figure]
        low, high = wilson(share * n, n) if n else (0.0, 1.0)
        lines.append(
            f"| `{skill.figure}` | {share:.3f} | {low:.3f} to {high:.3f} | {n} | {skill.wanted} | "
            f"{skill.says} |"
        )
    return "\n".join(lines)


def write(folder: Path, *, recipe: str, items: int = ITEMS) -> str:
    """Measures the model in `folder`, writes README.md and skills.json there, returns the table."""
    figures = measure(folder, items=items)
    (folder / "skills.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    files = [file for file in folder.rglob("*") if file.suffix == ".safetensors"]
    size = sum(file.stat().st_size for file in files)
    generator = load(folder, device="cpu").model.generator("image")  # type: ignore[operator]
    parts = ", ".join(
        f"{name} {sum(p.numel() for p in part.parameters()):,}"
        for name, part in generator.parts().items()
        if hasattr(part, "parameters")
    )
    text = f"""---
license: mit
---
# painter: nano draws

nano with sixteen signal tokens, an output projector, and a latent diffusion model of the generated
world. Parameters of the generator: {parts}. All weights together: {size / 1e6:.1f} MB.

![what was asked for, and what was drawn](drawn.png)

## Skills

{items} wishes, each with a pair of colour and shape that neither nano nor the painter was taught,
asked for as "Draw …", greedy. The judge is a classifier trained on real scenes alone.

{table(figures)}

## How it was made

`clmm build painter`: VAE, then text encoder and UNet, on posed pictures of taught pairs, which are
said from top to bottom or left to right; then signal tokens and output projector on the frozen
nano, by the survey's (2) and (4), for whatever order is asked for. It knows one or two things of
the generated world, and nothing else.

{recipe}
"""
    (folder / "README.md").write_text(text, "utf-8")
    return table(figures)
