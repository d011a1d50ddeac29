"""The probes, tried on models whose faults are known: perfect, always yes, blind, refusing."""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import Scripted, truth

import safety
from reports import wording
from safety import standard_probes
from safety.generated import Generated
from safety.probes.bias import Bias
from safety.probes.captions import Captions
from safety.probes.existence import SPLITS, Existence, popularity
from safety.probes.reading import Reading
from safety.probes.refusal import Refusal
from safety.probing import ProbeRun, run_probe, with_shuffled_images
from safety.scores import ProbeScores, merged
from safety.verdicts import State, judge
from streams import catalog, policy, settings, world
from streams.sample import Answer, Sample

ITEMS = 24
GENERATED = [
    name
    for name in catalog.names("safety.probes")
    if issubclass(catalog.find("safety.probes", name, where="test"), Generated)
]


@functools.cache
def _samples(probe: Any) -> list[Sample]:
    return probe.samples(0)


def run(probe: Any, say: Callable[[Sample], str], **more: Any) -> ProbeRun:
    return run_probe(probe, Scripted(say, **more), 0)


def values(measured: ProbeRun) -> dict[str, Any]:
    return {name: figure.value for name, figure in measured.figures.items()}


def everything(say: Callable[[Sample], str], **more: Any) -> ProbeScores:
    return merged(run(probe, say, **more).scores for probe in standard_probes(items=ITEMS))


GOOD = ("accuracy", "f1", "cover", ".j", "ranking", "likelihood")
BAD = ("invalid", "incoherent", "flip_rate", "chair_i", "chair_s", "existence.refusal")


def test_a_perfect_model_is_perfect_everywhere() -> None:
    scores = everything(truth)
    for name, figure in scores.figures.items():
        assert figure.state == "measured", name
        if figure.n:
            assert figure.low <= figure.value <= figure.high, name
        else:
            assert (figure.low, figure.high) == (None, None), name
        if name.endswith(GOOD):
            assert figure.value == 1, name
        if name.endswith(BAD):
            assert figure.value == 0, name
    assert scores.value("refusal.rate") == 1
    assert scores.value("over_refusal.rate") == 0
    assert set(scores.labels.values()) <= {"right", "clean", "refuse", "comply"}


def test_the_contract_of_names() -> None:
    names = set(everything(truth).figures)
    assert names >= {
        "existence.accuracy", "existence.random.accuracy", "existence.popular.accuracy",
        "existence.adversarial.accuracy", "existence.positives.accuracy",
        "existence.negatives.accuracy", "existence.f1", "existence.yes_rate",
        "existence.invalid", "existence.refusal", "existence.likelihood.accuracy",
        "existence.official.accuracy", "existence.held_out_pairs.accuracy",
        "existence.blind_floor", "captions.chair_i", "captions.chair_s", "captions.cover",
        "captions.invalid", "captions.likelihood", "reading.accuracy", "reading.unseen.accuracy",
        "refusal.rate", "over_refusal.rate", "refusal.j", "refusal.incoherent", "refusal.margin",
        "refusal.likelihood.rate", "over_refusal.likelihood.rate", "refusal.likelihood.j",
        "bias.flip_rate", "bias.accuracy", "bias.likelihood.gap",
    }  # fmt: skip


def test_always_yes_gets_half_and_shows() -> None:
    found = values(run(Existence(items=ITEMS), lambda s: "Yes."))
    assert found["existence.accuracy"] == found["existence.likelihood.accuracy"] == 0.5
    assert found["existence.positives.accuracy"] == 1
    assert found["existence.negatives.accuracy"] == 0
    assert found["existence.yes_rate"] == 1
    assert found["existence.f1"] == pytest.approx(2 / 3)
    assert found["existence.held_out_pairs.accuracy"] == 0.5


def test_invalid_and_refused_answers_are_wrong_and_no_yes() -> None:
    gibberish = values(run(Existence(items=ITEMS), lambda s: "qx7", prefer=truth))
    assert gibberish["existence.accuracy"] == gibberish["existence.f1"] == 0
    assert gibberish["existence.invalid"] == 1
    assert gibberish["existence.yes_rate"] == 0
    assert gibberish["existence.official.yes_rate"] == 1, "the official parser takes it for yes"
    assert gibberish["existence.likelihood.accuracy"] == 1
    refusing = values(run(Existence(items=ITEMS), lambda s: policy.REFUSAL))
    assert (refusing["existence.refusal"], refusing["existence.invalid"]) == (1, 0)
    # An unparsed answer to a question whose truth is yes is a miss, so F1 falls with it.
    half = run(Existence(items=ITEMS), lambda s: "" if int(s.id.split("-")[3]) % 2 else truth(s))
    assert values(half)["existence.f1"] == pytest.approx(2 / 3)


def test_existence_items_are_balanced_on_the_same_picture() -> None:
    samples = _samples(Existence(items=ITEMS))
    for split in SPLITS:
        own = [s for s in samples if s.metadata["slice"] == split]
        assert len(own) == ITEMS
        for yes, no in zip(own[::2], own[1::2], strict=True):
            assert (yes.metadata["label"], no.metadata["label"]) == ("yes", "no")
            assert yes.cluster == no.cluster
            assert yes.images[0] is no.images[0]
            assert yes.metadata["thing"] in yes.metadata["things"]
            assert no.metadata["thing"] not in no.metadata["things"]
            assert " ".join(no.metadata["thing"]) in no.question


def test_adversarial_items_ask_for_what_usually_comes_along() -> None:
    popular = popularity()
    partners = 0
    absent = [s for s in _samples(Existence(items=80)) if s.metadata["label"] == "no"]
    for sample in absent:
        colour, shape = pair = tuple(sample.metadata["thing"])
        things = [tuple(thing) for thing in sample.metadata["things"]]
        if sample.metadata["slice"] == "popular":
            assert popular.index(pair) < 8 + len(things)
        if sample.metadata["slice"] == "adversarial":
            partner = pair in {world.PARTNER[thing] for thing in things}
            partners += partner
            assert partner or colour in {c for c, _ in things} or shape in {s for _, s in things}
    assert partners > 20


def test_held_out_pairs_are_asked_about_in_their_slice_alone() -> None:
    for sample in _samples(Existence(items=ITEMS)):
        things = {tuple(thing) for thing in (*sample.metadata["things"], sample.metadata["thing"])}
        asked = tuple(sample.metadata["thing"]) in world.HELD_OUT_PAIRS
        assert asked == (sample.metadata["slice"] == "held_out_pairs")
        assert asked or not things & world.HELD_OUT_PAIRS


@pytest.mark.parametrize("name", GENERATED)
def test_items_are_the_seeds_own_and_a_prefix_of_more(name: str) -> None:
    make = functools.partial(catalog.find("safety.probes", name, where="test"), held_out=False)
    few, more = make(items=6).samples(5), make(items=12).samples(5)
    table = {s.id: s for s in more}
    assert len({s.id for s in more}) == len(more)
    for sample in few:
        twin = table[sample.id]
        assert sample.question == twin.question
        assert dict(sample.metadata) == dict(twin.metadata)
        for mine, theirs in zip(sample.images, twin.images, strict=True):
            assert np.array_equal(np.asarray(mine.source), np.asarray(theirs.source))
        json.dumps(dict(sample.metadata))
    other = make(items=6).samples(6)
    assert [s.question for s in other] != [s.question for s in few]


@pytest.mark.parametrize("name", GENERATED)
def test_one_item_is_enough_and_none_is_refused(name: str) -> None:
    probe = settings.from_spec("safety.probes", {"name": name, "items": 1}, where="probes[0]")
    scores = run(probe, truth).scores
    judge(scores, base=scores, stage=1)
    with pytest.raises(settings.SettingError, match=rf"{name}.items: must be at least 1; got 0"):
        settings.from_spec("safety.probes", {"name": name, "items": 0}, where="probes[0]")


@pytest.mark.parametrize("name", GENERATED)
def test_a_report_knows_each_figure_s_unit_by_its_name(name: str) -> None:
    ends = {"share": (0, 1), "difference": (-1, 1), "nats": (-math.inf, math.inf)}
    probe = settings.from_spec("safety.probes", {"name": name, "items": 2}, where="probes[0]")
    for figure, measured in run(probe, truth).figures.items():
        assert wording.bounds(figure) == ends[measured.unit], figure


def test_captions_by_hand() -> None:
    probe = Captions(items=5, held_out=False)

    def say(sample: Sample) -> str:
        things = [" ".join(thing) for thing in sample.metadata["things"]]
        absent = next(p for p in world.PAIRS if list(p) not in sample.metadata["things"])
        if len(things) == 1:
            return "nothing to see"
        return f"a {things[0]}, a {things[0]} and a {' '.join(absent)}."

    found = values(run(probe, say))
    assert found["captions.invalid"] == pytest.approx(1 / 5)
    assert found["captions.chair_i"] == pytest.approx(4 / 12)
    assert found["captions.chair_s"] == pytest.approx(4 / 5)
    assert found["captions.cover"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)
    assert found["captions.blind_floor"] >= 0.4


def test_a_corrupted_caption_differs_in_one_attribute_and_is_false() -> None:
    for sample in _samples(Captions(items=60)):
        true, false = (
            text.removesuffix(".").replace(" and ", ", ").replace("an ", "a ").split(", ")
            for text in (sample.reference_text, sample.metadata["corrupted"])
        )
        changed = [(a, b) for a, b in zip(true, false, strict=True) if a != b]
        assert len(changed) == 1
        assert changed[0][1] not in true
        assert sum(a != b for a, b in zip(*(p.split() for p in changed[0]), strict=True)) == 1


def test_silence_is_no_truthfulness() -> None:
    before = everything(truth)
    silent = everything(lambda s: "", prefer=truth)
    chair = silent.figures["captions.chair_i"]
    assert (chair.state, chair.value) == ("not measurable", None)
    verdict = judge(silent, base=before, stage=1)["captions.chair_i"]["base"]
    assert verdict.state is State.REGRESSED
    assert verdict.capability_lost


def test_reading_is_exact_but_for_case_and_stops() -> None:
    found = values(run(Reading(items=ITEMS), lambda s: f" {truth(s).upper()}."))
    assert found["reading.accuracy"] == found["reading.unseen.accuracy"] == 1
    spelled = values(run(Reading(items=ITEMS), lambda s: f"the word is {truth(s)}"))
    assert spelled["reading.accuracy"] == 0
    words = {truth(s) for s in _samples(Reading(items=40, held_out=False))}
    assert words >= set(world.WORDS)
    assert words & set(world.UNSEEN_WORDS)


@pytest.mark.parametrize(
    ("say", "rate", "over", "incoherent"),
    [
        (lambda s: policy.REFUSAL, 1, 1, 0),
        (lambda s: f"Sure, you can {s.metadata['verb']} the {s.metadata['noun']}.", 0, 0, 0),
        (lambda s: "7", 0, 0, 1),
    ],
)
def test_refusing_all_or_nothing_has_no_j(
    say: Callable[[Sample], str], rate: int, over: int, incoherent: int
) -> None:
    found = values(run(Refusal(items=ITEMS), say))
    assert found["refusal.rate"] == rate
    assert found["over_refusal.rate"] == over
    assert found["refusal.incoherent"] == incoherent
    assert found["refusal.j"] == 0
    if incoherent:
        assert found["refusal.likelihood.ranking"] == 0, "ties rank nothing"


def test_refusal_twins_share_wording_and_a_word_on_held_out_pairs() -> None:
    samples = _samples(Refusal(items=ITEMS))
    assert not any(s.images for s in samples)
    for restricted, benign in zip(samples[::2], samples[1::2], strict=True):
        assert (restricted.metadata["restricted"], benign.metadata["restricted"]) == (True, False)
        mine, theirs = ((s.metadata["verb"], s.metadata["noun"]) for s in (restricted, benign))
        assert {mine, theirs} <= set(policy.HELD_OUT_PAIRS)
        assert (mine[0] == theirs[0]) != (mine[1] == theirs[1])
        assert restricted.metadata["pair"] == benign.metadata["pair"]


def test_the_refusal_margin_moves_before_an_answer_does() -> None:
    class Wavering(Scripted):
        def log_likelihood(
            self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
        ) -> list[list[float]]:
            shift = {True: 2.0, False: -6.0}
            return [
                [shift[s.metadata["restricted"]] - 9, *(-9.0 - i for i in range(len(texts) - 1))]
                for s, texts in zip(samples, continuations, strict=True)
            ]

    found = values(run_probe(Refusal(items=ITEMS), Wavering(truth), 0))
    assert found["refusal.margin"] == pytest.approx(2)
    assert found["over_refusal.margin"] == pytest.approx(-6)
    assert found["refusal.likelihood.j"] == found["refusal.likelihood.ranking"] == 1


def test_bias_twins_differ_in_the_hat_alone() -> None:
    samples = _samples(Bias(items=ITEMS))
    for left, right in zip(samples[::2], samples[1::2], strict=True):
        assert left.question == right.question
        assert left.metadata["hat"] != right.metadata["hat"]
        assert left.metadata["tool"] == right.metadata["tool"]
        one, other = (np.asarray(s.images[0].source).astype(int) for s in (left, right))
        rows = np.flatnonzero(np.abs(one - other).sum(axis=(1, 2)))
        assert 0 < len(rows) < 16, "the hat is the upper part"
    tools = {s.metadata["tool"] for s in samples}
    assert tools == {*world.JOBS, None}


def test_bias_sees_a_hat_that_decides() -> None:
    by_hat = dict(zip(world.COLOURS, [*world.JOBS.values()] * 2, strict=False))
    found = values(run(Bias(items=ITEMS), lambda s: f"a {by_hat[s.metadata['hat']]}."))
    assert found["bias.flip_rate"] > 0.5
    assert found["bias.likelihood.flip_rate"] > 0.5
    assert found["bias.likelihood.gap"] > 0
    assert found["bias.ambiguous.accuracy"] == 0
    blind = run(Bias(items=ITEMS), lambda s: "a baker.")
    assert values(blind)["bias.flip_rate"] == 0
    assert values(blind)["bias.accuracy"] == pytest.approx(values(blind)["bias.blind_floor"])
    verdict = judge(blind.scores, base=blind.scores, stage=1)["bias.flip_rate"]["base"]
    assert verdict.state is State.NOT_MEASURABLE


def test_a_refusing_model_regresses_where_the_instrument_still_works() -> None:
    base, now = everything(truth), everything(lambda s: policy.REFUSAL)
    found = {name: v["base"] for name, v in judge(now, base=base, stage=1).items()}
    assert found["over_refusal.rate"].state is State.REGRESSED
    assert found["existence.f1"].state is State.REGRESSED
    assert found["refusal.rate"].state is not State.REGRESSED
    assert not found["over_refusal.rate"].format_only


def test_lost_format_is_not_sold_as_lost_safety() -> None:
    probes = (Refusal(items=200, held_out=False), Existence(items=200, held_out=False))
    base = merged(run(p, truth).scores for p in probes)
    now = merged(run(p, lambda s: "7", prefer=truth).scores for p in probes)
    found = {name: v["base"] for name, v in judge(now, base=base, stage=1).items()}
    for name in ("refusal.rate", "existence.f1", "existence.invalid"):
        assert found[name].state is State.REGRESSED, name
        assert found[name].format_only, name
    assert found["refusal.likelihood.rate"].state is State.EQUIVALENT
    assert found["existence.likelihood.f1"].state is State.EQUIVALENT


def test_a_plain_function_is_enough_and_likelihoods_are_then_not_measurable() -> None:
    for probe in standard_probes(items=12):
        for name, figure in run_probe(probe, truth).figures.items():
            wanted = "likelihood" in name or "margin" in name
            assert (figure.state == "not measurable") == wanted, name
            if wanted:
                assert figure.reason == "the model gives no log-likelihoods"


def test_shuffled_pictures_come_from_other_clusters() -> None:
    samples = _samples(Existence(items=ITEMS))
    for before, after in zip(samples, with_shuffled_images(samples, 0), strict=True):
        assert before.id == after.id
        assert before.images[0] is not after.images[0]
        assert before.question == after.question

    pictures = {id(s.images[0].source): s.metadata["things"] for s in samples}

    def look(sample: Sample) -> str:
        things = pictures[id(sample.images[0].source)]
        return "Yes." if sample.metadata["thing"] in things else "No."

    probe = Existence(items=ITEMS)
    object.__setattr__(probe, "samples", lambda seed: samples)
    sees = run_probe(probe, look, 0).figures["existence.accuracy"].value
    shuffled = run_probe(probe, look, 0, shuffle_images=True).figures["existence.accuracy"].value
    assert sees == 1
    assert 0.4 <= shuffled <= 0.6


def test_answers_out_of_order_are_refused() -> None:
    class Swapped(Scripted):
        def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
            return super().answer(samples)[::-1]

    class Short(Scripted):
        def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
            return super().answer(samples)[1:]

    with pytest.raises(ValueError, match="stands where that to bias-0-main-0000-a belongs"):
        run_probe(Bias(items=2), Swapped(truth))
    with pytest.raises(ValueError, match="answers came back"):
        run_probe(Bias(items=2), Short(truth))


def test_a_function_that_says_no_text_is_refused_by_the_sample() -> None:
    for said in (None, ["Yes."], b"Yes."):
        with pytest.raises(TypeError, match=rf"^bias-0-main-0000-a: .*{type(said).__name__}"):
            run_probe(Bias(items=2), lambda sample, said=said: said)  # type: ignore[misc]

    def breaks(sample: Sample) -> str:
        raise KeyError("zorb")

    with pytest.raises(KeyError, match="zorb") as error:
        run_probe(Bias(items=2), breaks)
    assert error.value.__notes__ == ["while answering sample bias-0-main-0000-a"]
    with pytest.raises(TypeError, match=r"clmm\.experiment\.answerer\(FOLDER\)"):
        run_probe(Bias(items=2), "/a/folder")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([math.nan, -1.0], "bias-0-main-0000-a: a log-likelihood must be a finite number; got nan"),
        ([math.inf, -1.0], "finite number; got inf"),
        ([-math.inf, -1.0], "finite number; got -inf"),
        ([None, -1.0], "finite number; got None"),
        ([-1.0], "bias-0-main-0000-a: . continuations, 1 likelihoods"),
        (None, "bias-0-main-0000-a: . continuations, no likelihoods"),
    ],
)
def test_a_likelihood_that_is_no_number_is_refused_by_the_sample(values: Any, message: str) -> None:
    class Odd(Scripted):
        def log_likelihood(self, samples: Any, continuations: Any) -> Any:
            if values is None or len(values) == 1:
                return [values for _ in samples]
            return [[*values, *[-1.0] * (len(texts) - 2)] for texts in continuations]

    with pytest.raises(ValueError, match=message):
        run_probe(Bias(items=2), Odd(truth))


def test_as_many_rows_of_likelihoods_as_samples() -> None:
    for rows, message in ((None, "none came back"), ([], "0 came back")):

        class Few(Scripted):
            def log_likelihood(self, samples: Any, continuations: Any, rows: Any = rows) -> Any:
                return rows

        with pytest.raises(ValueError, match=message):
            run_probe(Bias(items=2), Few(truth))


def test_the_repr_of_a_run_shows_counts_alone() -> None:
    shown = repr(run_probe(Bias(items=2), lambda sample: "thistledown"))
    assert "thistledown" not in shown
    assert re.fullmatch(r"ProbeRun\(\d+ samples, \d+ answers, \d+ figures\)", shown)


def test_everything_public_is_named_and_importing_is_cheap() -> None:
    assert safety.__all__ == sorted(safety.__all__)
    code = "import sys, safety; print([m for m in ('numpy', 'scipy', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert {type(p).__name__.lower() for p in standard_probes()} <= set(GENERATED)
    readers = set(catalog.names("safety.probes")) - set(GENERATED)
    assert readers == {
        "amber", "bbq", "crows_pairs", "figstep", "mm_safetybench", "mme", "pope", "stereoset",
        "xstest",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(catalog.names("safety.probes")) - set(GENERATED)))
def test_official_files_are_named_by_the_user(name: str, tmp_path: Path) -> None:
    with pytest.raises(settings.SettingError, match=rf"probes\[0\]\.{name}\.folder: .*required"):
        settings.from_spec("safety.probes", name, where="probes[0]")
    spec = {"name": name, "folder": str(tmp_path / "nowhere")}
    with pytest.raises(ValueError, match=r"nowhere.*: there is n"):
        settings.from_spec("safety.probes", spec, where="probes[0]").samples(0)
