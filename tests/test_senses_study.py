"""Sound, motion and 3D from a composition's file through training and probes to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from clmm import compose_file, processor_of
from clmm.experiment import Experiment
from clmm.loading import load

EXAMPLE = Path(__file__).parent.parent / "examples" / "composition.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's composition, and points."""
    place = tmp_path_factory.mktemp("composed")
    values = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    values["encoders"]["points"] = {
        "name": "point_bert", "points": 512, "channels": 3, "groups": 8, "group_size": 8,
        "hidden_size": 32, "depth": 1, "heads": 2, "token_width": 32,
    }  # fmt: skip
    values["projectors"]["points"] = "linear"
    (place / "all.yaml").write_text(yaml.safe_dump(values), "utf-8")
    torch.manual_seed(0)
    composed = compose_file(place / "all.yaml")
    composed.save_pretrained(place / "model")
    processor_of(composed).save_pretrained(place / "model")
    return place / "model"


def test_a_study_hears_watches_and_walks_around(model: Path, tmp_path: Path) -> None:
    assert {*load(model).model.config.inputs} == {"image", "audio", "video", "points"}
    study = Experiment(
        model=str(model),
        stream={"name": "senses", "train_items": 8, "test_items": 4},
        strategies=["sequential_lora", {"name": "replay", "budget": 0.5}],
        probes=[{"name": "refusal", "items": 4}],
        train={"steps": 2, "batch_size": 4},
    )
    result = study.run(tmp_path / "run")
    page = result.report(tmp_path / "report.html").read_text("utf-8")
    for task in ("tones", "motions", "solids"):
        assert task in page
    scores = json.loads(next((tmp_path / "run").rglob("stages/03/scores.json")).read_text("utf-8"))
    assert scores["figures"]
    assert [*(tmp_path / "run" / "media").iterdir()], "waves, frames and clouds are drawn"
