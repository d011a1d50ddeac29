"""The zoo: all models are listed, filtered by formula, shown against what is published, written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clmm import cli, zoo
from clmm.recipe import Recipe, names
from streams.settings import SettingError


def run(*words: str) -> int:
    return cli.main(["zoo", *words])


def test_the_taxonomy_is_whole_and_every_recipe_is_in_it() -> None:
    models = [entry.name for entry in zoo.taxonomy()]
    assert len(models) == len({*models}) == 154
    assert {Recipe.read(name).model for name in names()} <= {*models}
    assert all(set(entry.values) == set(zoo.KEYS) for entry in zoo.taxonomy())


def test_every_recipe_has_a_whole_formula() -> None:
    for name in names():
        formula = zoo.formula_of(Recipe.read(name))
        assert all(formula[key] for key in ("input", "encoder", "projector", "llm", "output"))
        assert bool(formula["generator"]) == (formula["output"] != "T")


@pytest.mark.parametrize(
    ("words", "first", "last", "count", "made"),
    [
        (["input=image,audio", "output=I+V+A"], "HuggingGPT", "ControlLLM", None, "next-gpt"),
        (["encoder=imagebind", "projector=linear"], "PandaGPT", "MLLM-Tool", None, "modaverse"),
        (["projector=Q-Former", "llm=vicuna-13b"], "MiniGPT-4", "DetGPT", None, "minigpt-4"),
        (["io=I+V+A+T->T"], "X-LLM", "AnyMAL", None, None),
        (["generator=stable diffusion-1.5"], "GILL", "Emu", 2, "gill"),
        (["output_projector=tiny transformer"], "GILL", "MM-Interleaved", 4, "minigpt-5"),
        (["name=kosmos"], "Kosmos-1", "Kosmos-G", 4, None),
        (["design=tool", "input=V"], "MM-REACT", "MLLM-Tool", None, None),
    ],
)
def test_models_are_found_by_formula(
    words: list[str], first: str, last: str, count: int | None, made: str | None
) -> None:
    chosen = zoo.wanted(words)
    found = [entry.name for entry in zoo.models(chosen)]
    assert {first, last} <= {*found}
    assert 0 < len(found) < 154
    assert count is None or len(found) == count
    own = [recipe.name for recipe in zoo.recipes(chosen)]
    assert (made in own) if made else True
    for entry in zoo.models(chosen):
        assert zoo.matches(entry.values, chosen)


def test_a_filter_that_nothing_meets_finds_nothing() -> None:
    assert zoo.models(zoo.wanted(["encoder=nobody"])) == []
    assert zoo.recipes(zoo.wanted(["encoder=nobody"])) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encdr=clip"], r"--formula: there is no key 'encdr'; did you mean encoder\?"),
        (["clip"], r"--formula: give KEY=VALUE, such as encoder=clip; got 'clip'"),
        (["encoder="], r"--formula: give KEY=VALUE"),
        (["llm=a", "llm=b"], r"--formula: llm is given twice"),
    ],
)
def test_a_filter_that_cannot_be_read_says_why(words: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        zoo.wanted(words)


def test_the_listing_shows_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[0] for line in lines if line.strip()]
    assert {*names()} <= {*first}
    assert sum("202" in line[:60] for line in lines) >= 154
    assert f"{len(names())} of {len(names())} recipes, 154 of 154 models" in lines[-1]
    assert run("--formula", "llm=mobilellama", "--formula", "encoder=clip") == 0
    out = capsys.readouterr().out
    assert "2 of 31 recipes, 2 of 154 models" in out
    assert "llava-13b" not in out


def test_a_recipe_is_shown_against_what_is_published(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("gill") == 0
    out = capsys.readouterr().out
    for words in (
        "6,658,510,848",
        "stage 1: training (pretraining)",
        "published as trainable: 50,000,000; measured -1,214,848 (-2.43%), unexplained +96,384",
        "-1,311,232 retrieval heads: Linear 4096 to 256",
        "notes: CLIP's pooled feature",
    ):
        assert words in out
    assert run("llava-13b") == 0
    out = capsys.readouterr().out
    for words in ("difference    +324,302,336 (+2.49%)", "unexplained    +15,874,560 (+0.12%)"):
        assert " ".join(words.split()) in " ".join(out.split())


def test_a_model_without_a_recipe_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("kosmos-1") == 0
    out = capsys.readouterr().out
    assert "llm: MAGNETO 1.3B" in out
    assert "recipes: none" in out
    assert run("llava-1.5") == 0
    assert "recipes: llava-1.5-13b, llava-1.5-7b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llava-13"], "there is no 'llava-13' in the zoo; did you mean llava-13b?"),
        (["kosmos-22"], "did you mean Kosmos-2?"),
        (["zzz"], "there is no 'zzz' in the zoo; `clmm zoo` lists them"),
        (["llava-13b", "--formula", "llm=opt"], "llava-13b is one already; leave one of them out"),
        (["--out", "."], "--out: . is a folder; name a file"),
        (["llava-13b", "--out", "/dev/null/zoo.json"], "--out: cannot make /dev/null: File exists"),
        (["kosmos-1", "--out", "x.json"], "--out: Kosmos-1 has no recipe that could be measured"),
        (["--formula", "encoder=nobody"], "--formula: no recipe and no model is of encoder=nobody"),
        (["--formula", "name=kosmos", "--out", "x.json"], "no recipe is of name=kosmos"),
    ],
)
def test_what_is_not_there_is_an_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_a_model_s_recipes_are_measured_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "zoo.json"
    assert run("MobileVLM", "--out", str(file)) == 0
    assert "recipes: mobilevlm-1.7b, mobilevlm-3b" in capsys.readouterr().out
    written = json.loads(file.read_text("utf-8"))
    assert [one["name"] for one in written] == ["mobilevlm-1.7b", "mobilevlm-3b"]


def test_one_total_is_called_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("minigpt-v2") == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("measured")] == [
        ["measured", "7,748,530,176"]
    ]
    assert "all, and 33,554,432 of adapters and signal rows" in out
    assert run("gill") == 0
    assert "all but generators, and 32,768 of adapters and signal rows" in capsys.readouterr().out


def test_recipes_are_measured_into_a_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "zoo.json"
    assert run("--formula", "llm=vicuna-13b", "--out", str(file)) == 0
    written: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
    wanted = ["instructblip-13b", "llava-13b", "minigpt-4", "shikra-13b"]
    assert [one["name"] for one in written if one["name"] in wanted] == wanted
    for one in written:
        assert list(one) == [*zoo.WRITTEN]
        said, found = one["published_parameters"], one["measured_parameters"]
        if said is None:
            assert one["difference"] is None
            assert one["explanation"] == []
            continue
        assert one["difference"] == found - said
        left = zoo.unexplained(found, said, one["explanation"])
        assert abs(left) <= 0.01 * said
        for line in one["explanation"]:
            assert line["component"]
            assert isinstance(line["parameters"], int)


def test_a_record_adds_up() -> None:
    one = zoo.record(Recipe.read("minigpt-v2-chat"))
    assert one["measured_parameters"] == sum(one["components"].values())
    assert [stage["name"] for stage in one["stages"]][-1] == "multi-modal instruction tuning"
    for stage in one["stages"]:
        table = stage["frozen_and_trainable"]
        parts = table["components"].values()
        assert table["total"] == sum(part["frozen"] + part["trainable"] for part in parts)
        assert stage["measured_trainable"] == table["trainable"]


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys\nfrom clmm import cli\nassert cli.main(['zoo']) == 0\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
