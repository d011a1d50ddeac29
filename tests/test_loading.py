"""What may be loaded, what is refused and why, and that a round trip changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from test_batching import MIXED
from transformers import LlamaConfig, LlamaForCausalLM

from clmm import loading
from clmm.answering import Answerer
from clmm.batching import Batcher
from clmm.loading import ModelError, load


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def copy(llava: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llava, tmp_path / "copy"))


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_save_and_load_change_no_answer(family: str, tmp_path: Path) -> None:
    first = load(tiny_models.FAMILIES[family](tmp_path / "first"), device="cpu")
    first.model.save_pretrained(tmp_path / "second")
    first.processor.save_pretrained(tmp_path / "second")
    second = load(str(tmp_path / "second"), device="cpu")
    assert not second.model.training
    batch, again = (Batcher(x.processor).training(MIXED) for x in (first, second))
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    answers = [
        Answerer(x.model, Batcher(x.processor)).answer(MIXED, max_new_tokens=4)
        for x in (first, second)
    ]
    assert answers[0] == answers[1]


def test_what_was_loaded_is_recorded(llava: Path, copy: Path) -> None:
    first, second = load(llava, device="cpu"), load(str(copy), device="cpu", precision="bf16")
    assert first.revision == second.revision
    assert first.revision.startswith("sha256:")
    assert list(first.weights) == ["model.safetensors"]
    assert (second.name, second.path) == (str(copy), copy.resolve())
    assert (first.model.dtype, second.model.dtype) == (torch.float32, torch.bfloat16)
    with torch.no_grad():
        next(first.model.parameters()).add_(1)
    first.model.save_pretrained(copy)
    assert load(copy, device="cpu").revision != first.revision


def test_a_large_file_is_known_by_its_header(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_HASHED_WHOLE_BYTES", 10)
    assert load(llava, device="cpu").weights["model.safetensors"].startswith("sha256-header:")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nanoo", "there is no 'nanoo'; did you mean nano?"),
        ("{models}/lava", "did you mean llava?"),
        ("{models}/llava/config.json", "is a file; give the folder"),
        ("{models}", "has no config.json"),
        ("../../etc/passwd/x/y", "there is no"),
    ],
)
def test_a_name_that_nothing_bears(llava: Path, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match="model: ") as caught:
        load(spec.format(models=llava.parent))
    assert message in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(
    llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def offline(repo: str, **settings: Any) -> str:
        asked.append((repo, settings["revision"], settings["allow_patterns"]))
        raise LocalEntryNotFoundError("no connection\nand much more")

    monkeypatch.setattr(loading, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"'owner/nano@abc' .*the hub: no connection[^\n]*$"):
        load("owner/nano@abc")
    [(repo, revision, patterns)] = asked
    assert (repo, revision) == ("owner/nano", "abc")
    assert not any(pattern.endswith(("bin", "pt", "py")) for pattern in patterns)
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: str(llava))
    assert load("owner/llava", device="cpu").revision == "llava"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickles_are_refused_and_never_opened(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(ModelError, match=rf"{name} is a pickle, which can run any code .* save"):
        load(copy)


def test_a_pickle_beside_safetensors_is_left_alone(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load(copy, device="cpu").model.config.model_type == "llava"


def test_no_weights_no_processor_no_precision(copy: Path) -> None:
    with pytest.raises(ModelError, match="did you mean bf16"):
        load(copy, precision="bf61")  # type: ignore[arg-type]
    for name in ("processor_config.json", "preprocessor_config.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="processor"):
        load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load(copy)


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model_type 'llama' does not take images and text"):
        load(tmp_path)


def test_code_that_comes_with_a_model_is_never_run(copy: Path) -> None:
    ran = copy / "ran"
    (copy / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\n")
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "unheard_of"
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.C"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="code that comes with a model is never run"):
        load(copy)
    assert not ran.exists()


def test_weights_that_are_missing_are_not_made_up(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"9 weights are missing .*layers\.2"):
        load(copy)
    config["text_config"]["num_hidden_layers"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="9 weights have no place"):
        load(copy, device="cpu")
