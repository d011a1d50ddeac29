"""`clmm compose`: from a file to a model that answers, and what stops it on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clmm
from clmm import cli
from clmm.answering import Answerer
from clmm.batching import Batcher
from clmm.loading import ModelError, load
from streams.sample import Image, Message, Provenance, Sample, Text

FILE = Path(__file__).parent.parent / "examples" / "composition.yaml"
TOTAL = 194_880


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("composed") / "tiny"
    assert cli.main(["compose", str(FILE), "--out", str(out)]) == 0
    return out


def test_from_a_file_to_answers(made: Path) -> None:
    tiny = load(made, device="cpu")
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 255, (40, 30, 3), dtype=np.uint8)
    batch = tiny.processor(
        text=["<image>What is heard? <audio>", "<video><image>And here?"],
        images=[picture, picture[::-1].copy()],
        audio=[generator.normal(size=9000).astype(np.float32)],
        videos=[generator.integers(0, 255, (7, 40, 30, 3), dtype=np.uint8)[::-1]],
        sampling_rate=16000,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    with torch.no_grad():
        assert torch.isfinite(tiny.model(**batch).logits).all()
    new = tiny.model.generate(**batch, max_new_tokens=4, min_new_tokens=4)
    assert new.shape == (2, batch["input_ids"].shape[1] + 4)
    assert sum(p.numel() for p in tiny.model.parameters()) == TOTAL


def test_it_answers_a_sample(made: Path) -> None:
    tiny = load(made, device="cpu")
    parts = (Image(source=np.zeros((8, 8, 3), np.uint8)), Text(text="What?"))
    sample = Sample(
        id="a",
        messages=(Message(role="user", parts=parts),),
        reference=(Text(text="It."),),
        provenance=Provenance(source="test", split="test", item="0"),
    )
    (answer,) = Answerer(tiny.model, Batcher(tiny.processor)).answer([sample], max_new_tokens=2)
    assert isinstance(answer.text, str)


def test_the_table_counts_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compose", str(FILE)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    cells = {" ".join(row[:2]): row[2:] for row in rows[1:]}
    assert cells["encoders.image: clip"] == ["23,936", "32", "16"]
    assert cells["encoders.video: frames"] == ["of", "image", "0", "32", "48"]
    assert cells["projectors.audio: concat"] == ["10,304", "64", "10"]
    assert cells["projectors.video: resampler"] == ["14,976", "64", "8"]
    assert rows[-1] == ["total", f"{TOTAL:,}"]


def test_a_published_size_is_counted_without_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "large.yaml"
    file.write_text("llm: vicuna-7b\nencoders: {image: clip}\nprojectors: {image: linear}\n")
    out = tmp_path / "out"
    assert cli.main(["compose", str(file), "--dry", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"{6_738_415_616 + 2 * 4096:,}" in shown
    assert "It could not be saved yet: llm.eos_token_id: 2, but" in shown
    assert not out.exists()
    assert cli.main(["compose", str(file), "--out", str(out)]) == 2
    assert "llm.eos_token_id: 2" in capsys.readouterr().err
    assert not out.exists()


def test_the_seed_draws_the_weights(made: Path, tmp_path: Path) -> None:
    revisions = {}
    for name, seed in (("same", "0"), ("other", "1")):
        out = str(tmp_path / name)
        assert cli.main(["compose", str(FILE), "--out", out, "--seed", seed]) == 0
        revisions[name] = load(out, device="cpu").revision
    assert revisions["same"] == load(made, device="cpu").revision != revisions["other"]


def test_generators_are_counted_and_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tiny_generators

    values: dict[str, Any] = {
        "llm": {"model_type": "llama", "vocab_size": 261, "hidden_size": 16,
                "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1},
        "encoders": {}, "projectors": {},
        "output_projectors": {"image": "mlp"},
        "generators": {"image": {**tiny_generators.SPECS["image"], "condition_length": 3}},
        "signals": {"image": 3},
    }  # fmt: skip
    file = tmp_path / "draws.yaml"
    file.write_text(json.dumps(values))
    assert cli.main(["compose", str(file), "--out", str(tmp_path / "draws")]) == 0
    shown = capsys.readouterr().out
    assert "output_projectors.image: mlp" in shown
    assert "generators.image: latent_diffusion" in shown
    drawing = load(tmp_path / "draws", device="cpu")
    ids = drawing.processor(text="Draw: [IMG]")["input_ids"][0]
    assert ids[-3:] == drawing.model.config.signal_ids["image"] == [261, 262, 263]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("llm: vicuna-7b\nencoder: {image: clip}\n", "encoder: no such setting; did you mean enc"),
        (
            "llm: vicuna-7b\nencoders: {image: clp}\nprojectors: {image: mlp}\n",
            "did you mean clip?",
        ),
        ("- a\n", "give llm, encoders and projectors"),
    ],
)
def test_a_file_that_fits_nothing_is_one_line(
    tmp_path: Path, written: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(written)
    assert cli.main(["compose", str(file)]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_nothing_is_overwritten(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in made.iterdir()}
    assert cli.main(["compose", str(FILE), "--out", str(made)]) == 2
    assert "is there already; name a new folder" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in made.iterdir()} == before
    assert cli.main(["compose", str(made / "nothing.yaml")]) == 2
    assert cli.main(["compose", str(FILE), "--seed", "-1"]) == 2


def test_code_outside_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "clmm_test_mine.py").write_text("from clmm.projectors.mlp import Mlp as Mine\n")
    file = tmp_path / "mine.yaml"
    text = FILE.read_text().replace("image: mlp", "image: {name: 'clmm_test_mine:Mine'}")
    file.write_text(text)
    assert cli.main(["compose", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "'clmm_test_mine:Mine' is code outside" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_names_the_folder_not_the_file(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"is a composition, .* by `clmm compose .*composition\.yaml --out compos"
    ):
        load(FILE)
    with pytest.raises(ModelError, match=r"there is no file 'mine/tiny\.yaml'"):
        load("mine/tiny.yaml")
    study = tmp_path / "study.yaml"
    study.write_text(f"model: {FILE}\nstrategies: [zero_shot]\n")
    assert cli.main(["validate", str(study)]) == 2


def test_the_package_offers_them() -> None:
    assert clmm.__all__ == sorted(clmm.__all__)
    assert all(callable(getattr(clmm, name)) for name in clmm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'composer'"):
        clmm.composer  # noqa: B018


@pytest.mark.parametrize("words", [["zoo", "--formula", "encoder=clip"], ["ls", "encoders"]])
def test_a_reader_that_leaves_is_no_failure(words: list[str]) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "clmm.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout is not None
    run.stdout.close()
    assert run.stderr is not None
    assert (run.stderr.read(), run.wait()) == (b"", 0)
    run.stderr.close()
