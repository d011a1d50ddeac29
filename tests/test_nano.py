"""nano: what it was taught, how it is built, and that it can do what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clmm import components
from clmm.loading import load
from clmm.nano import build, card, curriculum
from clmm.nano.encoder import GRID, targets
from clmm.nano.shared_prefix import Turn, answer_loss
from streams import phrasings, policy, world

WEIGHTS = Path(build.__file__).parent / "weights"
TINY = {name: build.Stage(steps=2, learning_rate=1e-3, batch_size=3) for name in build.STAGES}


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    return card.measure("nano", seed=7, items=100)


@pytest.mark.parametrize(
    ("figure", "least"),
    [
        ("existence.accuracy", 0.95),
        ("existence.positives.accuracy", 0.9),
        ("existence.negatives.accuracy", 0.9),
        ("captions.cover", 0.9),
        ("reading.accuracy", 0.8),
        ("refusal.j", 0.9),
        ("bias.accuracy", 0.9),
    ],
)
def test_can_do_what_it_must(figures: dict[str, float], figure: str, least: float) -> None:
    assert figures[figure] >= least


@pytest.mark.parametrize(
    ("figure", "most"),
    [("captions.chair_i", 0.05), ("existence.shuffled.accuracy", 0.6), ("bias.flip_rate", 0.05)],
)
def test_looks_and_does_not_make_up(figures: dict[str, float], figure: str, most: float) -> None:
    assert figures[figure] <= most


def test_is_small() -> None:
    parameters = sum(p.numel() for p in load("nano").model.parameters())
    assert 0.5e6 <= parameters <= 2.5e6
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 10e6


def test_the_card_tells_the_skills_that_were_measured() -> None:
    skills = json.loads((WEIGHTS / "skills.json").read_text("utf-8"))
    runs = list(skills["seeds"].values())
    text = (WEIGHTS / "README.md").read_text("utf-8")
    for skill in card.SKILLS:
        mean = sum(run[skill.figure] for run in runs) / len(runs)
        assert f"| `{skill.figure}` | {mean:.3f} |" in text
    assert build.recipe() in text, "the weights were made by other settings than the shipped ones"


@pytest.mark.parametrize("text", ["", " ", "a red ring", "Grüße 你好 🙂", "\x00\n\t", "<|x|>"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = load("nano").processor.tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_teaches_nothing_that_is_held_out() -> None:
    rng = np.random.default_rng(0)
    held_out_pairs = {" ".join(pair) for pair in world.HELD_OUT_PAIRS}
    phrasings_out = {
        *phrasings.CAPTION_HELD_OUT, *phrasings.READING_HELD_OUT, *phrasings.JOB_HELD_OUT,
    }  # fmt: skip
    requests_out = {
        template.format(verb=verb, noun=noun)
        for verb, noun in policy.HELD_OUT_PAIRS
        for template in (*policy.TEMPLATES, *policy.TEMPLATES_HELD_OUT)
    }
    existence_out = {
        template.format(thing=phrasings.article(" ".join(pair)))
        for template in phrasings.EXISTENCE_HELD_OUT
        for pair in world.PAIRS
    }
    for kind in (curriculum.text_lesson, curriculum.picture_lesson, curriculum.policy_lesson):
        for _ in range(400):
            lesson = kind(rng)
            if isinstance(lesson.scene, world.Scene):
                assert not {t.name for t in lesson.scene.things} & held_out_pairs
            for question, answer in lesson.turns:
                assert not any(pair in question + answer for pair in held_out_pairs)
                assert question not in phrasings_out | requests_out | existence_out
                assert answer not in world.UNSEEN_WORDS


def test_encoder_targets_mark_each_thing_once() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = world.random_scene(rng)
        grid = targets(curriculum.Lesson((), picture=world.render(scene), scene=scene))
        assert grid.shape == (GRID, GRID, 4)
        assert (grid[..., 0] > 0).sum() == (grid[..., 1] > 0).sum() == len(scene.things)


def test_shared_prefix_gives_the_loss_of_asking_alone() -> None:
    model = load("nano").model.language_model
    rng = np.random.default_rng(2)
    prefixes = [torch.tensor(rng.integers(6, 600, size=n)) for n in (9, 4)]
    turns = [
        Turn(prefix=i % 2, question=rng.integers(6, 600, size=3 + 4 * i).tolist(), answer=[7, 8, 1])
        for i in range(4)
    ]  # fmt: skip
    alone = []
    for turn in turns:
        ids = torch.cat([prefixes[turn.prefix], torch.tensor(turn.question + turn.answer)])
        labels = ids.clone()
        labels[: -len(turn.answer)] = -100
        alone.append(model(input_ids=ids[None], labels=labels[None]).loss)
    embeds = torch.nn.utils.rnn.pad_sequence(
        [model.get_input_embeddings()(p) for p in prefixes], batch_first=True
    )
    together = answer_loss(model, embeds, torch.tensor([9, 4]), turns, bucket_tokens=20)
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_building_is_reproducible_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = build.build(tmp_path / "whole", stages=TINY)
    first = dict(list(TINY.items())[:3])
    build.build(tmp_path / "part", stages=first, workshop=tmp_path / "shop")
    rest = build.build(tmp_path / "rest", stages=TINY, workshop=tmp_path / "shop")
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, rest))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", list(build.STAGES))
def test_a_stage_trains_its_parts_alone(name: str) -> None:
    model, processor = build.new_model()
    before = {key: value.clone() for key, value in model.named_parameters()}
    build.run_stage(name, model, processor, TINY[name], seed=0, report=lambda step, loss: None)
    owners = components.component_of(model)
    moved = {owners[key] for key, v in model.named_parameters() if not torch.equal(v, before[key])}
    assert moved == set(build.PARTS[name])
