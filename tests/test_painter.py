"""The painter is built, saved with nano and asked again; in few steps here, so it paints noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clmm.loading import load
from clmm.nano import painter
from clmm.nano.build import Stage
from streams.world import HELD_OUT_PAIRS, TRAIN_PAIRS

TINY = {name: Stage(steps=2, learning_rate=1e-3, batch_size=2) for name in painter.STAGES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("painter")
    return painter.build(place / "model", stages=TINY, workshop=place / "workshop")


def test_scenes_are_of_taught_pairs_and_said_in_words() -> None:
    drawn, said, pixels = painter.scenes(np.random.default_rng(0), 6)
    assert pixels.shape == (6, 3, 72, 72)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    pairs = {thing.pair for scene in drawn for thing in scene.things}
    assert pairs <= {*TRAIN_PAIRS}
    assert not pairs & HELD_OUT_PAIRS
    for scene, text in zip(drawn, said, strict=True):
        assert all(thing.name in text for thing in scene.things)


def test_latents_are_scaled_to_the_noise() -> None:
    torch.manual_seed(0)
    made = painter.settings_of(704).build()
    pixels = painter.scenes(np.random.default_rng(0), 4)[2]
    painter.set_scaling(made, pixels)
    with torch.no_grad():
        assert made.codec.encode(pixels).std() == pytest.approx(1, abs=0.1)


def test_built_saved_and_asked(folder: Path) -> None:
    model: Any = load(folder, device="cpu").model
    nano: Any = load("nano", device="cpu").model
    assert model.config.outputs == ("image",)
    kept, old = model.state_dict(), nano.state_dict()
    moved = {
        name for name, value in old.items() if not torch.equal(value, kept[name][: len(value)])
    }
    assert not moved, "nano itself stays as it is"
    assert {name.split(".")[0] for name in kept if name not in old} == {"output_projectors"}
    figures = painter.measure(folder, items=2, steps=2)
    assert 0 <= figures["drawn"] <= 1
    prompt = load(folder).processor(
        text="<|user|>Draw a red ring.<|assistant|>", return_tensors="pt"
    )
    media = model.generate_media(**prompt, max_new_tokens=2, wanted="image", steps=1).media
    assert media[0][0].media.shape == (3, 72, 72)
    assert model.config.media_generator("image").folder == "painter"


def test_only_answers_are_labelled(folder: Path) -> None:
    loaded: Any = load(folder, device="cpu")
    batch = painter.asked(
        loaded.processor, np.random.default_rng(0), ["a red ring.", "a blue star and a red ring."]
    )
    ids = loaded.model.config.signal_ids["image"]
    for row in batch["labels"].tolist():
        assert [i for i in row if i != -100] == [*ids, loaded.processor.tokenizer.eos_token_id]


def test_finished_stages_are_not_repeated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painter.build(tmp_path, stages=TINY, workshop=folder.parent / "workshop")
    said = capsys.readouterr().out
    assert "vae: found" in said
    assert "unet: found" in said
