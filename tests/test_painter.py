"""The painter: what it is asked for, who judges it, and that the shipped weights draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clmm.generators.latent_diffusion import LatentDiffusion
from clmm.loading import load
from clmm.nano import drawing, painter, painter_card, scene_classifier
from clmm.nano.build import Stage
from clmm.nano.drawing import Wish
from clmm.nano.scene_classifier import SceneClassifier, reads_right
from streams.world import HELD_OUT_PAIRS, PAIRS, TRAIN_PAIRS, Scene, Thing

TINY = {name: Stage(steps=2, learning_rate=1e-3, batch_size=4) for name in painter.STAGES}
RING, SQUARE = ("red", "ring"), ("blue", "square")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in two steps a stage: it paints noise, but it is all there."""
    place = tmp_path_factory.mktemp("painter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painter, "GALLERY", painter.AT_ONCE)
        return painter.build(place / "model", stages=TINY, workshop=place / "workshop")


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load("painter", device="cpu")


def thing(pair: tuple[str, str], x: int, y: int) -> Thing:
    return Thing(shape=pair[1], colour=pair[0], size=20, x=x, y=y)


@pytest.mark.parametrize("relation", [*drawing.RELATIONS, None])
def test_a_posed_picture_is_what_the_wish_says(relation: str | None) -> None:
    stands = {"above": (1, -1), "below": (1, 1), "left of": (0, -1), "right of": (0, 1)}
    axis, sign = stands[relation or "left of"]
    for seed in range(100):
        scene = drawing.posed(Wish((RING, SQUARE), relation), np.random.default_rng(seed))
        ring, square = scene.things
        assert (ring.pair, square.pair) == (RING, SQUARE)
        apart = ((ring.x, ring.y)[axis] - (square.x, square.y)[axis]) * sign
        assert apart > (ring.size + square.size) / 2, "and they do not overlap"
        for one in scene.things:
            assert one.size / 2 <= min(one.x, one.y) <= max(one.x, one.y) <= 72 - one.size / 2


def test_taught_wishes_and_untaught_ones_have_nothing_in_common() -> None:
    taught = drawing.wishes(np.random.default_rng(0), 300)
    assert {pair for wish in taught for pair in wish.pairs} == {*TRAIN_PAIRS}
    asked = drawing.untaught(np.random.default_rng(0), 120)
    assert len({wish.text for wish in asked}) == 120
    assert all(HELD_OUT_PAIRS & {*wish.pairs} for wish in asked)
    assert {pair for wish in asked for pair in wish.pairs} >= HELD_OUT_PAIRS


def test_each_word_of_a_wish_is_one_token_and_every_wish_fits() -> None:
    tokenizer = painter.words()
    length = painter.settings_of(len(tokenizer)).condition_length
    for one in PAIRS:
        for other in PAIRS[:12]:
            wish = Wish((one, other), "right of")
            tokens = tokenizer(wish.text).input_ids
            assert len(tokens) == len(wish.text.split()) <= length


def test_the_judge_counts_pairs_and_places() -> None:
    seen = {RING: (20.0, 12.0), SQUARE: (28.0, 52.0)}
    assert reads_right(seen, Wish((RING, SQUARE), "above")) == (True, True)
    assert reads_right(seen, Wish((SQUARE, RING), "below")) == (True, True)
    assert reads_right(seen, Wish((RING, SQUARE), "left of")) == (True, True)
    assert reads_right(seen, Wish((RING, SQUARE), "below")) == (True, False)
    assert reads_right(seen, Wish((RING, SQUARE))) == (True, True)
    assert reads_right(seen, Wish((RING,))) == (False, False), "more than was asked for"
    assert reads_right({}, Wish((RING,))) == (False, False)


def test_the_shipped_judge_reads_real_scenes(shipped: Any) -> None:
    judge = SceneClassifier.load(shipped.path / scene_classifier.FILE)
    rng = np.random.default_rng(11)
    drawn = [drawing.random_scene(rng, PAIRS, most=3) for _ in range(200)]
    assert scene_classifier.accuracy(judge, drawn) >= 0.98
    scene = Scene(things=(thing(RING, 20, 15), thing(SQUARE, 50, 50)), background=(9, 9, 9))
    seen = judge.read(drawing.pixels([scene]))[0]
    assert {*seen} == {RING, SQUARE}
    for pair, (x, y) in ((RING, (20, 15)), (SQUARE, (50, 50))):
        assert abs(seen[pair][0] - x) <= 10
        assert abs(seen[pair][1] - y) <= 10
    empty = Scene(things=(), background=(30, 30, 30))
    assert judge.read(drawing.pixels([empty])) == [{}]


def test_details_are_pieces_of_pictures_with_a_thing_in_them() -> None:
    pieces = painter.details(np.random.default_rng(3), 16)
    assert pieces.shape == (16, 3, painter.DETAIL, painter.DETAIL)
    bright = pieces.amax(dim=(1, 2, 3))
    assert bool((bright > 0.55).all()), "no background is as bright as the dullest colour"


def test_latents_are_scaled_to_the_noise() -> None:
    torch.manual_seed(0)
    made = LatentDiffusion(
        **(vars(painter.settings_of(340)) | {"text_layers": 0, "channels": (8, 8)})
    ).build()
    pixels = painter.scenes(np.random.default_rng(0), 8)
    painter.set_scaling(made.codec.vae, pixels)
    with torch.no_grad():
        assert made.codec.encode(pixels).std() == pytest.approx(1, abs=0.1)


def test_a_unet_with_coordinates_is_shown_where_each_latent_is(tmp_path: Path) -> None:
    sizes = vars(painter.settings_of(340)) | {"text_layers": 0, "channels": (8, 8)}
    made = LatentDiffusion(**sizes).build()
    seen: list[torch.Tensor] = []
    made.unet.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    latents, nothing = torch.randn(2, 8, 9, 9), torch.zeros(2, 10, 64)
    assert made.predict(latents, torch.tensor(3), nothing).shape == latents.shape
    assert torch.equal(seen[0][:, :8], latents)
    steps = torch.linspace(-1, 1, 9)
    assert torch.equal(seen[0][1, 8], steps[:, None].expand(9, 9)), "height"
    assert torch.equal(seen[0][1, 9], steps.expand(9, 9)), "width"
    made.save(tmp_path)
    blind = LatentDiffusion(**(sizes | {"coordinates": False, "folder": str(tmp_path)}))
    with pytest.raises(ValueError, match="with coordinates is 10 there, but 8 in the settings"):
        blind.load()


def test_built_saved_and_asked(folder: Path) -> None:
    model: Any = load(folder, device="cpu").model
    nano: Any = load("nano", device="cpu").model
    assert model.config.outputs == ("image",)
    kept, old = model.state_dict(), nano.state_dict()
    moved = {
        name
        for name, value in old.items()
        if not torch.equal(value.half().float(), kept[name][: len(value)])
    }
    assert not moved, "nano itself stays as it is, but for half precision"
    assert {name.split(".")[0] for name in kept if name not in old} == {"output_projectors"}
    figures = painter_card.measure(folder, items=6, steps=2)
    assert {skill.figure for skill in painter_card.SKILLS} <= {*figures}
    assert all(0 <= share <= 1 for share, _ in figures.values())
    with Image.open(folder / "drawn.png") as picture:
        assert picture.width > 300
    assert model.config.media_generator("image").folder == "painter"


def test_only_answers_are_labelled(folder: Path) -> None:
    loaded: Any = load(folder, device="cpu")
    said = ["a red ring", "a blue star and a red ring"]
    batch = painter.batch_of(loaded.processor, np.random.default_rng(0), said, ordinary=6)
    ids = loaded.model.config.signal_ids["image"]
    rows = [[i for i in row if i != -100] for row in batch["labels"].tolist()]
    end = loaded.processor.tokenizer.eos_token_id
    assert rows[:2] == [[*ids, end]] * 2
    assert all(row[-1] == end and not {*row} & {*ids} and len(row) > 1 for row in rows[2:])


def test_finished_stages_are_not_repeated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painter.build(tmp_path, stages=TINY, workshop=folder.parent / "workshop")
    said = capsys.readouterr().out
    for stage in ("scene_classifier", "vae", "unet"):
        assert f"{stage}: found" in said
    for file in ("model.safetensors", "painter/unet/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_shipped_weights_are_small(shipped: Any) -> None:
    files = [file for file in shipped.path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 15e6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_the_card_prints_what_was_measured(shipped: Any) -> None:
    figures = json.loads((shipped.path / "skills.json").read_text("utf-8"))
    card = (shipped.path / "README.md").read_text("utf-8")
    assert painter_card.table(figures) in card
    assert painter.recipe(0) in card


def test_shipped_painter_draws_what_nobody_taught_it(shipped: Any) -> None:
    """A few wishes with held-out pairs; how often it is right in 200, the card says."""
    wishes = drawing.untaught(np.random.default_rng(21), 24)
    judge = SceneClassifier.load(shipped.path / scene_classifier.FILE)
    prompts = [f"<|user|>Draw {wish.text}<|assistant|>" for wish in wishes]
    batch = shipped.processor(text=prompts, padding=True, padding_side="left", return_tensors="pt")
    made = shipped.model.generate(
        **batch, generation_mode="image", max_new_tokens=20, do_sample=False, seed=5
    )
    seen = judge.read(made)
    right = [reads_right(one, wish)[0] for one, wish in zip(seen, wishes, strict=True)]
    assert np.mean(right) >= 0.6  # far from what chance or noise would give; the card has the rate


def test_a_real_picture_of_a_wish_reads_right(shipped: Any) -> None:
    """So what reads wrong is the painter's fault."""
    judge = SceneClassifier.load(shipped.path / scene_classifier.FILE)
    rng = np.random.default_rng(2)
    wishes = drawing.untaught(rng, 100)
    seen = judge.read(drawing.pixels([drawing.posed(wish, rng) for wish in wishes]))
    assert all(reads_right(one, wish)[1] for one, wish in zip(seen, wishes, strict=True))
