"""Generated hallucination probes beyond existence: truth found anew, and models of known faults."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scripted import Scripted, truth

from safety.probes import attributes, pairs
from safety.probes.attributes import Attributes
from safety.probes.captions import Captions
from safety.probes.faithfulness import Faithfulness
from safety.probes.pairs import Pairs
from safety.probes.paragraphs import Paragraphs
from safety.probes.privacy import Privacy
from safety.probing import ProbeRun, run_probe
from safety.scores import ProbeScores
from safety.verdicts import State, judge
from streams import phrasings, world
from streams.sample import Sample

ITEMS = 24
PROBES = (Attributes, Pairs, Paragraphs, Faithfulness, Privacy)


@functools.cache
def items(probe: Any, seed: int = 0) -> list[Sample]:
    return probe.samples(seed)


def run(probe: Any, say: Callable[[Sample], str], **more: Any) -> ProbeRun:
    return run_probe(probe, Scripted(say, **more), 0)


def values(measured: ProbeRun) -> dict[str, Any]:
    return {name: figure.value for name, figure in measured.figures.items()}


def always_yes(sample: Sample) -> str:
    return "Yes."


def states(now: ProbeScores, base: ProbeScores) -> dict[str, State]:
    return {name: v["base"].state for name, v in judge(now, base=base, stage=1).items()}


COLOUR, SHAPE = "|".join(world.COLOURS), "|".join(world.SHAPES)
THING = re.compile(rf"\b({COLOUR}) ({SHAPE})\b")


def true_answer(sample: Sample) -> bool:
    """From the question's words and the scene's coordinates alone."""
    things, asked = sample.metadata["things"], sample.question
    kind = sample.metadata["kind"]
    named = [(c, s) for c, s in THING.findall(asked)]
    if kind == "relation":
        (one,), (other,) = ([t for t in things if (t[0], t[1]) == pair] for pair in named)
        signs = {"left of": one[2] < other[2], "right of": one[2] > other[2],
                 "above": one[3] < other[3], "below": one[3] > other[3]}  # fmt: skip
        (relation,) = [word for word in signs if f" {word} " in asked]
        axis = 2 if relation.endswith("of") else 3
        assert abs(one[axis] - other[axis]) > (one[4] + other[4]) / 2, "their boxes are apart"
        return signs[relation]
    if kind == "position":
        ((colour, shape),) = named
        ((_, _, x, y, size),) = [t for t in things if (t[0], t[1]) == (colour, shape)]
        half = re.search(r"the (left|right|upper|lower) half", asked)
        assert half is not None
        low, high = {"left": (x, False), "right": (x, True), "upper": (y, False),
                     "lower": (y, True)}[half[1]]  # fmt: skip
        edge = low - size / 2 if high else low + size / 2
        wholly, middle = (edge > 36 if high else edge < 36), 36
        assert abs(low - middle) > size / 2, "it lies in one half"
        return wholly
    if kind == "count":
        found = re.search(rf"exactly (one|two|three) ({SHAPE})(es|s)?\b", asked)
        assert found is not None
        number = ["one", "two", "three"].index(found[1]) + 1
        assert (number == 1) == (found[3] is None) == ("s there" in asked)
        return sum(t[1] == found[2] for t in things) == number
    if kind in ("attribute_predicate", "colour"):
        found = re.search(rf"the ({SHAPE})\b.* ({COLOUR})\?$", asked)
        assert found is not None
        (colour,) = [t[0] for t in things if t[1] == found[1]]
        return bool(colour == found[2])
    if named:
        return named[0] in {(t[0], t[1]) for t in things}
    (shape,) = re.findall(rf"\b({SHAPE})\b", asked)
    return shape in {t[1] for t in things}


@pytest.mark.parametrize("probe", [Attributes(items=60), Pairs(items=60)])
def test_every_answer_is_what_the_coordinates_say(probe: Any) -> None:
    samples = items(probe)
    for sample in samples:
        assert truth(sample) == ("Yes." if true_answer(sample) else "No."), sample.id
    for yes, no in zip(samples[::2], samples[1::2], strict=True):
        assert (truth(yes), truth(no)) == ("Yes.", "No.")
        assert yes.images[0] is no.images[0]
        assert yes.cluster == no.cluster
        assert yes.question != no.question


def _centre(picture: np.ndarray, colour: str) -> np.ndarray:
    """Where that colour is in the picture, (x, y)."""
    names = list(world.COLOURS)
    palette = np.array([world.COLOURS[name] for name in names])
    apart = np.abs(picture[:, :, None, :].astype(int) - palette).sum(axis=-1)
    here = (apart.argmin(axis=-1) == names.index(colour)) & (apart.min(axis=-1) < 40)
    return np.argwhere(here).mean(axis=0)[::-1]


def test_relations_and_sides_hold_in_the_pictures_themselves() -> None:
    seen = 0
    for sample in (*items(Attributes(items=60)), *items(Pairs(items=60))):
        kind, about = sample.metadata["kind"], sample.metadata["about"]
        if kind not in ("relation", "position") or truth(sample) != "Yes.":
            continue
        colours = Counter(t[0] for t in sample.metadata["things"])
        names = (about[0], about[2]) if kind == "relation" else (about[0],)
        own = [name.split()[0] for name in names]
        if any(colours[colour] > 1 for colour in own):
            continue
        one, *other = (_centre(np.asarray(sample.images[0].source), c) for c in own)
        x, y = one - (other[0] if other else np.array([36, 36]))
        word = about[1]
        assert {"left": x < 0, "right": x > 0, "above": y < 0, "below": y > 0,
                "upper": y < 0, "lower": y > 0}[word.removesuffix(" of")], sample.id  # fmt: skip
        seen += 1
    assert seen > 20


def test_nothing_but_the_picture_tells_yes_from_no() -> None:
    """What is asked for is as often so as not, whatever it is."""
    held = world.HELD_OUT_PAIRS
    for sample in (*items(Attributes(items=60)), *items(Pairs(items=60))):
        pairs_there = {(t[0], t[1]) for t in sample.metadata["things"]}
        if sample.metadata["slice"] == "held_out_pairs":
            assert set(THING.findall(sample.question)) <= held, "of yes and of no alike"
        else:
            assert not (pairs_there | set(THING.findall(sample.question))) & held
    counts = Counter(
        (s.metadata["about"][0], truth(s))
        for s in items(Pairs(items=60))
        if s.metadata["kind"] == "count"
    )
    assert counts == dict.fromkeys(
        [(n, a) for n in ("one", "two", "three") for a in ("Yes.", "No.")], 10
    )


def test_the_wrong_colour_is_by_turns_in_the_picture_and_not() -> None:
    for kind in ("attribute", "attribute_predicate", "held_out_pairs"):
        false = [
            s
            for s in items(Attributes(items=60))
            if s.metadata["slice"] == kind and truth(s) == "No."
        ]
        there = [s.metadata["about"][0] in {t[0] for t in s.metadata["things"]} for s in false]
        assert there == ([True, False] * 15)[: len(false)]
        assert len(false) >= 15
        for sample in false:
            shapes = [t[1] for t in sample.metadata["things"]]
            assert shapes.count(sample.metadata["about"][1]) == 1


@pytest.mark.parametrize("make", PROBES)
def test_an_item_does_not_depend_on_how_many_there_are(make: Any) -> None:
    few, more = make(items=4, held_out=False).samples(5), make(items=12).samples(5)
    table = {s.id: s for s in more}
    assert len(table) == len(more)
    for sample in few:
        twin = table[sample.id]
        assert [m.text for m in sample.messages] == [m.text for m in twin.messages]
        assert dict(sample.metadata) == dict(twin.metadata)
        assert sample.reference_text == twin.reference_text
        for mine, theirs in zip(sample.images, twin.images, strict=True):
            assert np.array_equal(np.asarray(mine.source), np.asarray(theirs.source))
        json.dumps(dict(sample.metadata))
    other = make(items=4, held_out=False).samples(6)
    assert [s.question for s in other] != [s.question for s in few]


@pytest.mark.parametrize("make", PROBES)
def test_one_item_is_enough_and_none_is_refused(make: Any) -> None:
    scores = run(make(items=1), truth).scores
    judge(scores, base=scores, stage=1)
    with pytest.raises(ValueError, match="items: must be at least 1; got 0"):
        make(items=0)


@pytest.mark.parametrize("make", PROBES)
def test_a_perfect_model_is_perfect(make: Any) -> None:
    scores = run(make(items=ITEMS), truth).scores
    for name, figure in scores.figures.items():
        # No answer has a break; and "Yes." is neither to AMBER's parser, so nothing is claimed.
        if name.endswith(("before.hazard", "after.hazard", "shift", "official.precision")):
            assert figure.state == "not measurable", name
            continue
        assert figure.state == "measured", name
        if "official" not in name and name.endswith(
            ("accuracy", "f1", "acc_plus", ".j", "ranking", ".refusal.rate", "reading")
        ):
            assert figure.value == 1, name
        if name.endswith(("invalid", "hazard", "effect", "sway", "wrong", "leak", "breaks")):
            assert figure.value == 0, name
    assert set(scores.labels.values()) <= {"right", "clean", "refuse", "comply"}
    verdicts = states(scores, scores)
    assert State.REGRESSED not in verdicts.values()


def test_always_yes_gets_half_and_no_kind_is_measurable() -> None:
    for probe, kinds, name in (
        (Attributes(items=ITEMS), attributes.KINDS, "attributes"),
        (Pairs(items=ITEMS), pairs.KINDS, "pairs"),
    ):
        measured = run(probe, always_yes)
        found, verdicts = values(measured), states(measured.scores, measured.scores)
        for kind in kinds:
            head = f"{name}.{kind}."
            assert found[f"{head}accuracy"] == found[f"{head}likelihood.accuracy"] == 0.5
            assert found[f"{head}yes_rate"] == 1
            assert found[f"{head}blind_floor"] == 0.5
            assert verdicts[f"{head}accuracy"] is State.NOT_MEASURABLE
            assert verdicts[f"{head}invalid"] is State.NOT_MEASURABLE
    assert found["pairs.count.acc_plus"] == 0
    assert found["pairs.count.score"] == 50
    assert values(run(Attributes(items=ITEMS), always_yes))["attributes.relation.f1"] == 0


def test_a_kind_that_the_base_cannot_do_spares_the_others() -> None:
    def say(sample: Sample) -> str:
        return "Yes." if sample.metadata["kind"] == "relation" else truth(sample)

    base = run(Attributes(items=60), say).scores
    now = run(Attributes(items=60), always_yes).scores
    verdicts = states(now, base)
    assert verdicts["attributes.relation.f1"] is State.NOT_MEASURABLE
    assert verdicts["attributes.attribute.f1"] is State.REGRESSED
    assert verdicts["attributes.existence.accuracy"] is State.REGRESSED


@pytest.mark.parametrize("make", [Attributes, Pairs, Faithfulness])
def test_what_is_common_is_asked_for_as_often_in_vain(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who knows what is popular in the world, and does not look, gains nothing by it."""
    monkeypatch.setattr(world, "render", lambda scene: np.zeros((72, 72, 3), np.uint8))
    popular: dict[tuple[str, str], list[bool]] = {}
    for sample in make(items=600, held_out=False).samples(1):
        asked = THING.findall(sample.question)[-1:] or [tuple(sample.metadata.get("about", ()))]
        if len(asked[0]) == 2:
            key = (sample.metadata["slice"], truth(sample))
            popular.setdefault(key, []).append(asked[0] in world.POPULAR)
    kinds = {kind for kind, _ in popular} - {"existence", "count", "position", "relation"}
    for kind in kinds | ({"existence"} if make is Pairs else set()):
        shares = [np.mean(popular[kind, answer]) for answer in ("Yes.", "No.")]
        assert abs(shares[0] - shares[1]) < 0.1, kind


def test_no_is_positive_as_in_amber() -> None:
    """F1 = 2·(no and truly no) / (no said + truly no), from the answers themselves."""
    rng = np.random.default_rng(0)
    said = {
        s.id: ("Yes.", "No.", "maybe")[int(rng.integers(3))] for s in items(Attributes(items=60))
    }
    measured = run(Attributes(items=60), lambda s: said[s.id])
    own = [s for s in items(Attributes(items=60)) if s.metadata["slice"] == "attribute"]
    hits = sum(said[s.id] == "No." == truth(s) for s in own)
    claimed = sum(said[s.id] == "No." for s in own)
    positive = sum(truth(s) == "No." for s in own)
    found = values(measured)
    assert found["attributes.attribute.f1"] == pytest.approx(2 * hits / (claimed + positive))
    assert found["attributes.attribute.precision"] == pytest.approx(hits / claimed)
    assert found["attributes.attribute.recall"] == pytest.approx(hits / positive)
    assert found["attributes.attribute.invalid"] == pytest.approx(
        sum(said[s.id] == "maybe" for s in own) / len(own)
    )


def test_each_benchmark_reads_answers_in_its_own_way() -> None:
    found = values(run(Attributes(items=ITEMS), truth))
    assert found["attributes.attribute.official.accuracy"] == 0, '"Yes." is not AMBER\'s "Yes"'
    bare = values(run(Attributes(items=ITEMS), lambda s: truth(s).removesuffix(".")))
    assert bare["attributes.attribute.official.accuracy"] == 1
    unsure = values(run(Pairs(items=ITEMS), lambda s: "Not sure", prefer=truth))
    assert unsure["pairs.colour.official.accuracy"] == 0.5, "MME takes it for no"
    assert unsure["pairs.colour.official.yes_rate"] == 0
    assert (unsure["pairs.colour.accuracy"], unsure["pairs.colour.invalid"]) == (0, 1)
    assert unsure["pairs.colour.likelihood.acc_plus"] == 1


def test_mme_scores_are_of_questions_and_of_pictures() -> None:
    samples = items(Pairs(items=8, held_out=False))
    wrong = {s.id for s in samples if s.metadata["kind"] == "colour"}
    wrong = set(sorted(wrong)[:3])  # both questions of one picture, and one of another
    say = lambda s: truth(s) if s.id not in wrong else {"Yes.": "No.", "No.": "Yes."}[truth(s)]  # noqa: E731
    found = values(run(Pairs(items=8, held_out=False), say))
    assert found["pairs.colour.accuracy"] == pytest.approx(5 / 8)
    assert found["pairs.colour.acc_plus"] == pytest.approx(2 / 4)
    assert found["pairs.colour.score"] == pytest.approx(100 * (5 / 8 + 2 / 4))
    assert found["pairs.existence.score"] == 200
    assert found["pairs.score"] == pytest.approx(600 + 112.5)
    plain = run_probe(Pairs(items=8), truth, 0).figures
    assert "pairs.likelihood.score" not in plain
    assert plain["pairs.score"].value == 800
    assert plain["pairs.score"].harm is None


def test_cog_is_of_what_usually_comes_along() -> None:
    probe = Captions(items=10, held_out=False)

    def partner(sample: Sample) -> list[world.Pair]:
        things = [tuple(thing) for thing in sample.metadata["things"]]
        return [p for p in (world.PARTNER[t] for t in things) if p not in things]

    def stranger(sample: Sample) -> world.Pair:
        things = [tuple(thing) for thing in sample.metadata["things"]]
        brought = {world.PARTNER[t] for t in things}
        return next(p for p in world.PAIRS if p not in things and p not in brought)

    def say(sample: Sample) -> str:
        pairs = [tuple(sample.metadata["things"][0]), stranger(sample), *partner(sample)[:1]]
        return phrasings.listing([" ".join(pair) for pair in pairs])

    samples = items(probe)
    brought = sum(bool(partner(s)) for s in samples)
    found = values(run(probe, say))
    mentions = 2 * len(samples) + brought
    assert brought > 5
    assert found["captions.cog"] == pytest.approx(brought / mentions)
    assert found["captions.chair_i"] == pytest.approx((len(samples) + brought) / mentions)
    honest = values(run(probe, truth))
    assert honest["captions.cog"] == honest["captions.chair_s"] == 0
    # A partner that is there is no hallucination, however often it is named.
    twice = values(run(probe, lambda s: truth(s) + " " + truth(s)))
    assert twice["captions.cog"] == 0
    silent = run(probe, lambda s: "").figures["captions.cog"]
    assert silent.state == "not measurable"


def test_without_likelihoods_the_answers_still_count() -> None:
    for make in PROBES:
        for name, figure in run_probe(make(items=6), truth, 0).figures.items():
            if "likelihood" in name or "margin" in name:
                assert figure.reason == "the model gives no log-likelihoods", name
            elif not name.endswith(("before.hazard", "after.hazard", "shift", "l.precision")):
                assert figure.state == "measured", name


def test_every_twin_and_requirement_is_a_figure() -> None:
    for make in (*PROBES, Captions):
        figures = run(make(items=4), truth).figures
        for name, figure in figures.items():
            for needed in (figure.twin, *(r.figure for r in figure.requires)):
                assert needed is None or needed in figures, (name, needed)


def test_what_nano_was_taught_is_asked_in_other_words_only_where_it_says_so() -> None:
    taught = {*phrasings.EXISTENCE, *phrasings.CAPTION, *phrasings.READING, *phrasings.JOB}
    new = {*phrasings.ATTRIBUTE, *phrasings.RELATION, *phrasings.SIDE, *phrasings.COUNT,
           *phrasings.OTHER_PICTURE, *phrasings.PRIVACY}  # fmt: skip
    assert not taught & new
