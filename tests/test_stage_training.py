"""Stages are trained one after another: the same seed, the same weights, killed or not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from clmm import cli, objective, stage_training, stages, train_command
from clmm.benchmark import Examples
from clmm.composition import compose
from clmm.loading import load
from clmm.processing_mmllm import MMLLMProcessor, byte_tokenizer
from clmm.q_former_losses import similarities
from clmm.stage_training import Lesson, prepare, train_stages
from streams.sample import Image, Message, Provenance, Sample, Text
from streams.settings import SettingError
from streams.stream import Stream, Task

MINE = Path(__file__).parent.parent / "examples" / "my_data"
KINDS = ("ring", "star", "moon", "cross", "square", "circle", "arrow", "heart")
FIRST = {"name": "q_former", "vocabulary": 330, "text_length": 16, "contrast_width": 12}
COURSE: list[dict[str, Any]] = [
    {"name": "alignment", "kind": "pretraining", "train": ["input_projector"], "steps": 2,
     "stream": {"name": "pairs", "folder": str(MINE)}, "learning_rate": 1e-3, "batch_size": 4},
    {"name": "instructions", "kind": "instruction", "train": ["language_model.norms"], "steps": 2,
     "lora": {"rank": 2, "dropout": 0.1}, "stream": str(MINE), "learning_rate": 1e-2,
     "batch_size": 4},
    {"name": "what is liked", "kind": "preference", "lora": {"rank": 2}, "steps": 1,
     "stream": {"name": "preferences", "of": str(MINE)}, "batch_size": 4},
]  # fmt: skip


def pairs() -> Stream:
    """Eight kinds of pictures and what they are called; the test has them with other noise."""
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 256, (8, 16, 16, 3))
    samples = []
    for number in range(16):
        noisy = np.clip(looks[number % 8] + rng.normal(0, 8, looks[0].shape), 0, 255)
        picture = Image(source=noisy.astype(np.uint8))
        samples.append(
            Sample(
                id=str(number),
                messages=(Message(role="user", parts=(picture,)),),
                reference=(Text(text=KINDS[number % 8]),),
                provenance=Provenance(source="drawn", split="train", item=str(number)),
                plain=True,
            )
        )
    return Stream(name="pairs", tasks=(Task(name="pairs", train=samples[:8], test=samples[8:]),))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP-2 with a processor. Its weights are drawn for its widths, so that it learns."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(KINDS * 4, vocabulary=330)  # a kind is a token
    model = compose(
        llm={"model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 16,
             "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 2},
        encoders={"image": {"name": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 16,
                            "depth": 1, "heads": 2, "mlp": 16}},
        projectors={"image": {"name": "q_former", "queries": 4, "hidden_size": 32, "depth": 2,
                              "heads": 4, "mlp": 48, "dropout": 0.0}},
        token_ids={"image": tokenizer.convert_tokens_to_ids("<image>")},
    )  # fmt: skip
    widened(model)
    folder = tmp_path_factory.mktemp("blip")
    images = model.config.encoder("image").preprocessor()
    model.save_pretrained(folder)
    MMLLMProcessor(images, tokenizer, {"image": 4}).save_pretrained(folder)
    return folder


def widened(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)


def lessons(*changes: dict[str, Any]) -> list[Lesson]:
    return [
        Lesson.read(one | change, where=f"stages[{i}]")
        for i, (one, change) in enumerate(zip(COURSE, changes or [{}] * 3, strict=False))
    ]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_three_stages_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "course.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({"model": "nano", "stages": COURSE}), "utf-8")
    assert cli.main(["train", str(file), "--dry-run"]) == 0
    foretold = capsys.readouterr().out
    assert cli.main(["train", str(file), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    names = ["stage-01-alignment", "stage-02-instructions", "stage-03-what-is-liked"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, *(f"{n}.json" for n in names)])
    for line in filter(None, foretold.splitlines()):
        assert line in shown
    assert shown.rstrip().endswith(str(out / names[-1]))
    base: Any = load("nano", device="cpu").model
    for name, spec in zip(names, COURSE, strict=True):
        record = json.loads((out / f"{name}.json").read_text())
        loaded: Any = load(out / name, device="cpu").model
        before, after = base.state_dict(), loaded.state_dict()
        assert list(after) == list(before)
        moved = {n for n in after if not torch.equal(after[n], before[n])}
        assert moved
        parts = {n.split(".")[0] for n in moved}
        assert parts == {"input_projectors" if name == names[0] else "language_model"}
        assert record["trained"]["stage"]["name"] == spec["name"]
        assert record["cost"]["samples"] in (spec["steps"] * 4, spec["steps"] * 8)
        tuned = sum(part["trainable"] for part in record["components"].values())
        assert record["trainable"] == tuned == sum(record["patterns"].values())
        base = loaded
    # Of two equal models nothing is preferred yet.
    assert record["cost"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert cli.main(["train", str(file), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("was done already") == 3


def test_the_example_is_pre_training_instructions_and_preferences() -> None:
    course = train_command.read(MINE.parent / "stages.yaml")
    read = [Lesson.read(one, where="stages") for one in course.stages]
    assert [one.stage.kind for one in read] == ["pretraining", "instruction", "preference"]
    assert read[0].stage.train == ("input_projector",)  # as the recipe says
    model = load(course.model, device="cpu").model
    assert all(stages.table(model, one.stage).trainable for one in read)
    for values, said in (
        ({"model": "nano", "stages": []}, r"stages: name at least one"),
        ({"model": "nano", "stage": []}, r"\.stage: no such setting; did you mean stages"),
    ):
        with pytest.raises(SettingError, match=said):
            train_command.course(values, Path("x.yaml"))


def test_preferences_are_learnt(tmp_path: Path) -> None:
    values = COURSE[2] | {"steps": 20, "batch_size": 8, "learning_rate": 2e-3}
    lesson = Lesson.read(values | {"lora": {"rank": 16, "alpha": 32}}, where="x")
    end = train_stages("nano", [lesson], tmp_path)
    record = json.loads(end.with_name(end.name + ".json").read_text())
    assert record["cost"]["loss"] < 0.3  # log 2 is chance


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_stages(blip, lessons(), tmp_path / "whole", seed=3)
    real, trained = stage_training._save, []

    def killed(loaded: Any, folder: Path) -> None:
        trained.append(folder.name)
        if len(trained) == 2:
            raise KeyboardInterrupt  # in the second stage, with a half-written folder
        real(loaded, folder)

    monkeypatch.setattr(stage_training, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        train_stages(blip, lessons(), tmp_path / "cut", seed=3)
    monkeypatch.setattr(stage_training, "_save", real)
    assert not (tmp_path / "cut" / "stage-02-instructions.json").exists()
    (tmp_path / "cut" / "stage-02-instructions").mkdir()
    again = train_stages(blip, lessons(), tmp_path / "cut", seed=3)
    assert weights(again) == weights(whole)
    other = train_stages(blip, lessons()[:2], tmp_path / "other", seed=4)
    assert weights(other) != weights(whole.with_name("stage-02-instructions"))
    with pytest.raises(
        SettingError, match=r"stage-01-alignment.json: .* another seed: 3 before, 4"
    ):
        train_stages(blip, lessons(), tmp_path / "cut", seed=4)
    changed = lessons({}, {"learning_rate": 0.5}, {})
    with pytest.raises(
        SettingError, match=r"stage-02-\S+json: the stage was trained with another t"
    ):
        train_stages(blip, changed, tmp_path / "cut", seed=3)


def test_a_q_formers_first_stage_learns_pairs_and_the_next_goes_on(
    blip: Path, tmp_path: Path
) -> None:
    """Chance is 1 in 8, of contrast, of captions and of matching."""
    values = {
        "name": "representation learning", "recipe": "blip-2-flan-t5-xxl", "objective": FIRST,
        "stream": pairs(), "steps": 90, "batch_size": 8, "learning_rate": 3e-3,
    }  # fmt: skip
    lesson = Lesson.read(values, where="stages[0]")
    one = prepare(1, lesson, tmp_path, {})
    loaded = load(blip, device="cpu")
    model: Any = loaded.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = stage_training.begin(model, one, 0)
    projector = model.input_projectors["image"]
    widened(projector.first_stage)  # which widens the layers that it shares, too
    cost = stage_training.train_stage(model, loaded.processor, one, 0, lambda event: None)
    assert cost["samples"] == 720
    assert table.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    moved = {
        n for n, value in model.state_dict().items() if not torch.equal(value, before.get(n, value))
    }
    assert {n.rsplit("image.", 1)[0] for n in moved} == {"input_projectors."}
    assert not [n for n in moved if "language_projection" in n]

    network = one.objectives[0].network(model, loaded.processor, autocast=None).eval()
    batcher = stage_training._batcher(model, loaded.processor, lesson.train)
    samples = list(one.stream.tasks[0].test)
    examples, first = Examples(samples, batcher), projector.first_stage.eval()
    with torch.no_grad():
        assert network(examples).shape == (3,)
        ids, mask = network.texts(samples)
        assert ids[:, 0].unique().tolist() == [328]  # the tokenizer has no [CLS]: a token more
        features = (
            model.encode("image", examples.tensors["pixel_values"])
            if ("pixel_values" in examples.tensors)
            else examples.tensors["image_features"]
        )
        image, text = first.embeddings(features, ids, mask)
        found = similarities(image, text).argmax(dim=1)
        assert (found == torch.arange(8)).float().mean() >= 0.9
        said = first.word_logits(features, ids, mask)[:, 0].argmax(dim=1)
        assert (said == ids[:, 1]).float().mean() >= 0.9
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        logits = first.match(
            features[rows.flatten()], ids[columns.flatten()], mask[columns.flatten()]
        )
        matched = logits.mean(dim=1).argmax(dim=1).reshape(8, 8).bool()
        assert matched.diagonal().float().mean() >= 0.9
        assert matched.float().mean() <= 0.25
        queries = projector(features)
        stages.finish(model)
        assert {*model.state_dict()} == {*before}
        torch.testing.assert_close(projector(features), queries)


def test_a_first_stage_comes_before_others_in_a_folder(blip: Path, tmp_path: Path) -> None:
    first = {"name": "representation learning", "recipe": "blip-2-flan-t5-xxl", "steps": 2,
             "objective": FIRST, "stream": pairs(), "batch_size": 8}  # fmt: skip
    second = first | {"name": "generative learning", "objective": "sft"}
    course = [Lesson.read(one, where="x") for one in (first, second)]
    end = train_stages(blip, course, tmp_path / "out")
    base: Any = load(blip, device="cpu").model
    parts = []
    for folder in (end.with_name("stage-01-representation-learning"), end):
        loaded: Any = load(folder, device="cpu").model
        was = base.state_dict()
        assert loaded.state_dict().keys() == was.keys()
        moved = {n for n, value in loaded.state_dict().items() if not torch.equal(value, was[n])}
        assert {n.split(".")[0] for n in moved} == {"input_projectors"}
        parts.append({n.split(".")[2] for n in moved})
        base = loaded
    assert parts == [
        {"query_tokens", "qformer"}, {"query_tokens", "qformer", "language_projection"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "instruction"}, r"stages\[0\]\.kind: instruction, but task .* by dpo; .* as sft"),
        ({"objective": "sft"}, r"kind: preference, but task colours is learnt by sft; .* as dpo"),
        ({"objective": FIRST, "kind": "pretraining"}, r"q_former needs an image and its text, pl"),
        ({"stream": None}, r"stages\[0\]\.stream: this setting is required"),
        ({"lerning_rate": 1}, r"stages\[0\]\.lerning_rate: no such setting; did you mean learning"),
        ({"steps": -1}, r"stages\[0\]\.steps: must be above 0; got -1"),
        ({"steps": "two"}, r"stages\[0\]\.steps: give a whole number; got 'two'"),
        (
            {"recipe": "llava-13b", "name": "tuning"},
            r"\.name: the recipe llava-13b has no stage 'tu",
        ),
        ({"train": ["nothing"]}, r"stage what is liked: train: 'nothing' matches no parameter"),
        ({"lora": None, "train": ["encoder"], "max_length": 3}, r"max_length is 3"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    blip: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        train_stages(blip, [Lesson.read(COURSE[2] | change, where="stages[0]")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_in_half_precision_are_not_trained(blip: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"stage alignment: \S+ trains in torch\.bfloat16"):
        train_stages(blip, lessons()[:1], tmp_path / "no", precision="bf16")
    # Adapters are fp32 on whatever they adapt, and add up to less than it rounds here.
    assert train_stages(blip, lessons()[2:], tmp_path / "yes", precision="bf16").is_dir()


def test_a_study_refuses_an_objective_that_needs_a_stage() -> None:
    with pytest.raises(
        SettingError, match=r"task digits: 'q_former' trains parts that the model ha"
    ):
        objective.of("q_former", where="task digits")
    assert objective.of("q_former", where="x", staged=True)


def test_a_vocabulary_that_is_too_small_says_what_to_give(blip: Path, tmp_path: Path) -> None:
    values = {"name": "S1", "kind": "pretraining", "train": ["input_projectors.image.qformer"],
              "objective": {**FIRST, "vocabulary": 200}, "stream": pairs(), "steps": 1}  # fmt: skip
    with pytest.raises(
        SettingError, match=r"vocabulary: 200, but the tokenizer has \d+ tokens; gi"
    ):
        train_stages(blip, [Lesson.read(values, where="x")], tmp_path / "out")
    long = values | {"objective": {**FIRST, "text_length": 2}, "batch_size": 4}
    with pytest.raises(
        ValueError, match=r"sample \d+: its text has \d tokens, and q_former.text_le"
    ):
        train_stages(blip, [Lesson.read(long, where="x")], tmp_path / "out")
