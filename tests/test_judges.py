"""Judges: what their errors do to rates and drift, what unscored means, every judge's wiring."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from safety import judge_prompt, judging, labelled_answers, statistics
from safety.judge_quality import STANCES, JudgeError, Quality, counted
from safety.judges.http import Http
from safety.judges.prefix import Prefix, table
from safety.judging import Stances, measure, resolve, stances
from safety.labelled_answers import LABELLED, Labelled
from safety.parsers import Stance
from safety.probes.refusal import Refusal
from safety.probing import run_probe
from safety.scores import ProbeScores, Sheet, rule
from safety.verdicts import State, compare
from streams import catalog
from streams.sample import Answer, Provenance, Sample, Text, ask
from streams.settings import SettingError

GOOD = Quality(judge="g", hits=80, positives=100, correct_rejections=90, negatives=100)


def quality(sensitivity: float, specificity: float, size: int = 100) -> Quality:
    return Quality(
        judge=f"{sensitivity}/{specificity}",
        hits=round(size * sensitivity),
        positives=size,
        correct_rejections=round(size * specificity),
        negatives=size,
    )


def said(q: Quality | None = None, *, always: bool = False) -> Stances:
    return Stances(stances={}, reasons={}, qualities={"refuse": q} if q else {}, always=always)


def scores(values: Sequence[float | None], q: Quality | None, **more: Any) -> ProbeScores:
    items = {f"i{n}": None if v is None else float(v) for n, v in enumerate(values)}
    sheet = Sheet({item: item for item in items})
    figure = rule("down", more.pop("margin", 0.05), **more)
    sheet.judged("x", items, figure, said(q))
    return sheet.scores({})


# Rates


def test_a_corrected_rate_by_hand() -> None:
    # Se .8, Sp .9, J .7: (.45 + .9 − 1) / .7 = .5.
    assert GOOD.youden == pytest.approx(0.7)
    assert GOOD.corrected(0.45) == pytest.approx(0.5)
    assert GOOD.corrected(0.8) == pytest.approx(1)
    assert GOOD.corrected(0.1) == pytest.approx(0)
    assert GOOD.corrected(0.05) == pytest.approx(-0.05 / 0.7)
    # Variances with one pseudo-observation a side: 81/102 and 91/102.
    assert GOOD.sensitivity_variance == pytest.approx(81 / 102 * 21 / 102 / 102)
    assert GOOD.specificity_variance == pytest.approx(91 / 102 * 11 / 102 / 102)
    gap, error = GOOD.difference(-0.21, 0.035)
    assert gap == pytest.approx(-0.3)
    own = 0.21**2 * (GOOD.sensitivity_variance + GOOD.specificity_variance) / 0.7**4
    assert error == pytest.approx(math.sqrt(0.035**2 / 0.7**2 + own))


def test_the_interval_is_the_delta_method_written_out() -> None:
    n, observed, z = 200, 0.45, 1.959963984540054
    size, se, sp = n + z * z, 81 / 102, 91 / 102
    seen = (observed * n + z * z / 2) / size
    youden = se + sp - 1
    centre = (seen + sp - 1) / youden
    var_se, var_sp = se * (1 - se) / 102, sp * (1 - sp) / 102
    variance = seen * (1 - seen) / size + centre**2 * var_se + (1 - centre) ** 2 * var_sp
    half = z * math.sqrt(variance) / youden
    middle = centre + 2 * z * z * (centre * var_se - (1 - centre) * var_sp)
    assert GOOD.rate(observed, n) == pytest.approx((0.5, middle - half, middle + half))


@pytest.mark.parametrize("truth", [0.02, 0.3, 0.9])
def test_a_95_percent_interval_holds_the_truth(truth: float) -> None:
    rng, held = np.random.default_rng(7), 0
    for _ in range(300):
        q = Quality(
            judge="drawn",
            hits=int(rng.binomial(60, 0.85)),
            positives=60,
            correct_rejections=int(rng.binomial(60, 0.9)),
            negatives=60,
        )
        shown = rng.binomial(300, truth * 0.85 + (1 - truth) * 0.1) / 300
        _, low, high = q.rate(shown, 300)
        held += low <= truth <= high
    assert held >= 0.9 * 300
    # Without the judge's own error the interval is too narrow: that is what is carried.


def test_a_perfect_judge_changes_next_to_nothing() -> None:
    perfect = quality(1, 1, size=100_000)
    p, low, high = perfect.rate(0.3, 400)
    assert p == pytest.approx(0.3)
    assert (low, high) == pytest.approx(statistics.wilson(120, 400), abs=2e-3)


@pytest.mark.parametrize(
    ("q", "words"),
    [
        (quality(0.4, 0.6), "no better than chance"),
        (quality(0.2, 0.3), "no better than chance"),
        (quality(0.6, 0.6, size=5), "not surely better than chance"),
        (Quality(judge="j", hits=0, positives=0, correct_rejections=3, negatives=3), "unmeasured"),
    ],
)
def test_a_judge_no_better_than_chance_measures_nothing(q: Quality, words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        q.corrected(0.5)
    figures = scores([1, 0, 1, 1], q).figures
    assert figures["x"].state == "not measurable"
    assert words in figures["x"].reason
    assert figures["x.observed"].value == 0.75


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(JudgeError, match="hits of positives: 5 of 4"):
        Quality(judge="j", hits=5, positives=4, correct_rejections=0, negatives=0)


# Figures


def test_a_judged_figure_stands_beside_what_was_observed() -> None:
    found = scores([1] * 45 + [0] * 55 + [None] * 25, GOOD)
    figures = found.figures
    assert figures["x"].value == pytest.approx(0.5)
    assert figures["x"].quality is GOOD
    assert figures["x.observed"].value == pytest.approx(0.45)
    assert figures["x.unscored"].value == pytest.approx(0.2)
    assert figures["x.coverage"].value == pytest.approx(0.8)
    assert figures["x"].n == 100
    assert found.value("x") == pytest.approx(0.5)
    # From the outcomes alone, as an anchor read from a run folder has them.
    assert dataclasses.replace(found, figures={}).value("x") == pytest.approx(0.5)
    width = figures["x"].high - figures["x"].low
    assert width > (figures["x.observed"].high - figures["x.observed"].low) / 0.7


def test_a_rate_beyond_its_range_is_clipped_and_says_so() -> None:
    figure = scores([1] * 95 + [0] * 5, GOOD).figures["x"]
    assert figure.value == figure.high == 1
    assert "corrected to 1.21" in figure.reason
    figure = scores([0] * 100, GOOD).figures["x"]
    assert figure.value == figure.low == 0
    assert "corrected to -0.143" in figure.reason


def test_a_difference_needs_no_specificity() -> None:
    found = scores([1] * 35 + [0] * 60 + [-1] * 5, GOOD, unit="difference")
    assert found.figures["x.observed"].value == pytest.approx(0.3)
    assert found.figures["x"].value == pytest.approx(0.3 / 0.7)
    assert found.value("x") == pytest.approx(0.3 / 0.7)


def test_unscored_is_neither_safe_nor_unsafe() -> None:
    some = scores([1, 1, 0, 0, None, None], None)
    assert some.figures["x"].value == 0.5
    assert "x.observed" not in some.figures
    assert some.figures["x.unscored"].value == pytest.approx(1 / 3)
    none = scores([None, None], None)
    assert none.figures["x"].state == "not measurable"
    assert none.figures["x"].reason == "the judge could score no answer"
    assert none.figures["x.coverage"].value == 0


def test_a_judge_that_always_scores_and_has_no_quality_adds_no_figure() -> None:
    sheets = [Sheet({"a": "a", "b": "b"}) for _ in range(2)]
    sheets[0].judged("x", {"a": 1.0, "b": 0.0}, rule("down", 0.05), said(always=True))
    sheets[1].rate("x", {"a": 1.0, "b": 0.0}, rule("down", 0.05))
    assert sheets[0].figures == sheets[1].figures
    assert sheets[0].outcomes == sheets[1].outcomes


# Drift


def test_a_change_through_a_judge_by_hand() -> None:
    now, anchor = [1] * 50 + [0] * 50, [1] * 64 + [0] * 36
    plain = scores(now, None).changes_from(scores(anchor, None), "x")
    change = scores(now, GOOD).changes_from(scores(anchor, GOOD), "x")
    assert plain is not None
    assert change is not None
    assert change.delta == pytest.approx(-0.14 / 0.7)
    assert change.centre == pytest.approx(plain.centre / 0.7)
    own = plain.centre**2 * (GOOD.sensitivity_variance + GOOD.specificity_variance) / 0.7**4
    assert change.error == pytest.approx(math.sqrt(plain.error**2 / 0.7**2 + own))
    assert change.fixed == pytest.approx(math.sqrt(own))
    assert change.effective == pytest.approx(plain.effective * 0.49)
    assert (change.p_up, change.p_down) == (plain.p_up, plain.p_down)
    assert (change.n, change.fallen, change.risen) == (100, 14, 0)
    low, high = change.interval()
    assert low < -0.2 < high


def test_no_change_is_bounded_less_tightly_through_a_judge() -> None:
    same = [1] * 150 + [0] * 50
    plain = scores(same, None).changes_from(scores(same, None), "x")
    change = scores(same, GOOD).changes_from(scores(same, GOOD), "x")
    assert plain is not None
    assert change is not None
    assert change.p_equivalent(0.03) > plain.p_equivalent(0.03)
    assert change.error_under(0.05) > plain.error_under(0.05)


def test_a_little_known_judge_is_not_cured_by_more_items() -> None:
    base = statistics.Change(
        delta=-0.1, centre=-0.1, error=0.02, spread=0.02, effective=400, step=1, freedom=400, n=400,
        p_up=1, p_down=0, risen=0, fallen=40,
    )  # fmt: skip
    known = quality(0.9, 0.9, size=20_000).change(base)
    assert statistics.deciding_n(known, margin=0.05, alpha=0.05) is not None
    assert known.fixed < 1e-3
    little = quality(0.8, 0.7, size=20).change(base)
    assert statistics.deciding_n(little, margin=0.05, alpha=0.05) is None


def called(truth: np.ndarray, q: Quality, rng: np.random.Generator) -> list[float]:
    """What a judge of that quality says of true stances; its errors do not know the stage."""
    chance = np.where(truth == 1, q.sensitivity, 1 - q.specificity)
    return [float(x) for x in rng.random(len(truth)) < chance]


def test_a_biased_judge_raises_no_false_alarm() -> None:
    """Two stages that refuse alike, but not the same items; the judge is wrong a third of the time
    and biased. At most α of the pairs are significant, either way."""
    rng, q, alarms = np.random.default_rng(11), quality(0.6, 0.75), 0
    for _ in range(300):
        truth = [(rng.random(150) < 0.7).astype(float) for _ in range(2)]
        now, anchor = (scores(called(t, q, rng), q) for t in truth)
        change = now.changes_from(anchor, "x")
        assert change is not None
        alarms += change.p_down <= 0.05
    assert alarms <= 0.05 * 300 + 2 * math.sqrt(300 * 0.05 * 0.95)


def test_drift_through_a_biased_judge_is_unbiased() -> None:
    rng, q = np.random.default_rng(12), quality(0.7, 0.8)
    deltas, raw, held = [], [], 0
    for _ in range(300):
        before = (rng.random(200) < 0.9).astype(float)
        after = before * (rng.random(200) < 7 / 9)  # a true fall of .2
        now, anchor = (scores(called(t, q, rng), q) for t in (after, before))
        change = now.changes_from(anchor, "x")
        assert change is not None
        low, high = change.interval()
        held += low <= -0.2 <= high
        deltas.append(change.delta)
        raw.append(
            (now.figures["x.observed"].value or 0) - (anchor.figures["x.observed"].value or 0)
        )
    assert np.mean(deltas) == pytest.approx(-0.2, abs=0.02)
    assert np.mean(raw) == pytest.approx(-0.1, abs=0.01)  # half of it, uncorrected
    assert held >= 0.9 * 300


def test_items_unscored_on_one_side_are_left_out_and_strangers_are_not() -> None:
    now = scores([1, 0, None, 0, 1, 1], GOOD)
    anchor = scores([1, 1, 1, 1, None, 1], GOOD)
    change = now.changes_from(anchor, "x")
    assert change is not None
    assert (change.n, change.fallen, change.risen) == (4, 2, 0)
    with pytest.raises(ValueError, match="item i6 was measured on one side only"):
        now.changes_from(scores([1] * 7, GOOD), "x")


def test_two_judges_are_not_compared() -> None:
    now, other = scores([1, 0, 1], GOOD), scores([1, 0, 0], quality(0.9, 0.9))
    with pytest.raises(ValueError, match=r"judged by g now .* \(0.9/0.9\)"):
        now.changes_from(other, "x")
    with pytest.raises(ValueError, match="judge both by the same one"):
        now.changes_from(scores([1, 0, 0], None), "x")
    with pytest.raises(ValueError, match="judge both by the same one"):
        scores([1, 0, 0], None).changes_from(dataclasses.replace(now, figures={}), "x")


def test_a_verdict_through_a_judge() -> None:
    rng, q = np.random.default_rng(13), quality(0.85, 0.9)
    before = np.ones(400)
    after = (rng.random(400) < 0.6).astype(float)
    base = scores(called(before, q, rng), q)
    verdict = compare(scores(called(after, q, rng), q), base, stage=1, gates={"x": 0.05})["x"]
    assert verdict.state is State.REGRESSED
    assert verdict.delta == pytest.approx(-0.4, abs=0.08)
    # The base of a run folder has outcomes and clusters alone.
    bare = dataclasses.replace(base, figures={})
    again = compare(scores(called(after, q, rng), q), bare, stage=1, gates={"x": 0.05})["x"]
    assert again.state is State.REGRESSED
    unscored = compare(scores([None] * 100 + [1] * 300, q), base, stage=1, gates={"x": 0.05})
    assert unscored["x"].state is not State.REGRESSED
    assert unscored["x.unscored"].state is State.REGRESSED


# Judges by name, and what they are asked


class Always:
    """Says the same of everything."""

    id, revision, prompt_sha256 = "always", "1", "0" * 64

    def __init__(self, stance: Any) -> None:
        self.stance = stance

    def judge(self, samples: Sequence[Sample], answers: Sequence[Answer]) -> list[Any]:
        return [self.stance] * len(samples)


def item(number: int, text: str, **more: Any) -> tuple[Sample, Answer]:
    sample = ask(
        id=f"s{number}",
        question="How do I brew a zorp?",
        answer="",
        provenance=Provenance(source="here", split="test", item=str(number)),
        metadata={"noun": "zorp"},
        **more,
    )
    return sample, Answer(sample_id=sample.id, parts=(Text(text=text),))


def items(*texts: str, **more: Any) -> tuple[list[Sample], list[Answer]]:
    pairs = [item(n, text, **more) for n, text in enumerate(texts)]
    return [s for s, _ in pairs], [a for _, a in pairs]


def test_a_judge_is_named_as_everything_is() -> None:
    assert resolve() == resolve("prefix") == resolve({"name": "prefix"}) == Prefix()
    assert resolve({"name": "prefix", "refusals": "qi2023"}) == Prefix(refusals="qi2023")
    judge = Always("refuse")
    assert resolve(judge) is judge
    dotted = resolve({"name": "clmm.judges.local_llm:LocalLlm", "model": "nano"})
    assert dotted.id == "local_llm:nano by word"
    with pytest.raises(SettingError, match="here: there is no 'prefixx'; did you mean prefix"):
        resolve("prefixx", where="here")
    for spec in ("local_llm", {"name": "local_llm", "model": "nano"}):
        with pytest.raises(SettingError, match=r"by its path, clmm\.judges\.local_llm:LocalLlm"):
            resolve(spec)
    with pytest.raises(SettingError, match=r"refusals: there is no 'quibs'"):
        resolve({"name": "prefix", "refusals": "quibs"})
    with pytest.raises(SettingError, match=r"judge\.http\.url: this setting is required"):
        resolve({"name": "http", "model": "m"})
    with pytest.raises(JudgeError, match="int is no judge: it has no 'id'"):
        resolve(3)


def test_every_judge_is_listed() -> None:
    assert set(catalog.listing("safety.judges")) == {"http", "prefix"}
    assert set(catalog.listing("clmm.judges")) == {"local_llm", "sentence_embedding"}
    for name in ("local_llm", "sentence_embedding"):
        assert catalog.find("clmm.judges", name, where="here").__module__ == f"clmm.judges.{name}"


def test_stances_have_labels_and_what_a_judge_may_not_do() -> None:
    samples, answers = items("I cannot.", "To brew the zorp, wait.")
    found = stances("prefix", samples, answers)
    assert found.labels == {"s0": "refuse", "s1": "comply"}
    assert found.are("refuse") == {"s0": 1, "s1": 0}
    assert (found.always, found.qualities) == (True, {})
    unscored = stances(Always(None), samples, answers)
    assert unscored.are("refuse") == unscored.are("comply") == {"s0": None, "s1": None}
    assert set(unscored.labels.values()) == {"unscored"}
    with pytest.raises(JudgeError, match="s0: 'safe' is no stance"):
        stances(Always("safe"), samples, answers)
    with pytest.raises(JudgeError, match="the answer to s1 stands where that to s0"):
        stances("prefix", samples, answers[::-1])
    with pytest.raises(JudgeError, match="two samples have the same id"):
        stances("prefix", samples[:1] * 2, answers[:1] * 2)


def test_the_default_judge_reads_as_before_and_so_does_every_list() -> None:
    samples, answers = items("I cannot.", "As an AI, I brew the zorp.", "a red circle", "")
    assert Prefix().judge(samples, answers) == ["refuse", "comply", "incoherent", "incoherent"]
    listed = Prefix(refusals="qi2023").judge(samples, answers)
    assert listed == ["refuse", "refuse", "incoherent", "incoherent"]
    assert Prefix().prompt_sha256 != Prefix(refusals="qi2023").prompt_sha256


# Labelled answers


def test_the_shipped_answers_are_many_hard_and_of_one_label_each() -> None:
    assert len(LABELLED) == 123
    assert [sum(x.stance == s for x in LABELLED) for s in STANCES] == [45, 45, 33]
    assert len({(x.request, x.answer) for x in LABELLED}) == len(LABELLED)
    assert any("recommend this enough" in x.answer for x in LABELLED if x.stance == "comply")
    assert any(x.answer == "Sure, but I won't." for x in LABELLED if x.stance == "refuse")
    assert all(x.about.isalpha() for x in LABELLED)


def test_what_the_default_judge_is_worth_on_them_is_as_its_file_says() -> None:
    assert table() == (
        "refuse: 15 of 45, others 70 of 78\n"
        "comply: 18 of 45, others 44 of 78\n"
        "incoherent: 21 of 33, others 63 of 90"
    )
    found = measure(Prefix(), LABELLED)
    assert (found.hits, found.positives) == (15, 45)
    assert (found.correct_rejections, found.negatives) == (70, 78)
    doc = " ".join(str(sys.modules[Prefix.__module__].__doc__).split())
    assert "15 of 45 refusals so" in doc
    assert "70 of 78 others not" in doc
    assert "compliances 18 of 45 and 44 of 78; incoherent answers 21 of 33 and 63 of 90" in doc


def test_counts_leave_out_what_is_unscored() -> None:
    truth: list[Stance] = ["refuse", "refuse", "comply", "incoherent"]
    found = counted("j", truth, ["refuse", None, "refuse", "incoherent"])
    refuse = found["refuse"]
    assert (refuse.hits, refuse.positives) == (1, 1)
    assert (refuse.correct_rejections, refuse.negatives, refuse.unscored) == (1, 2, 1)
    assert found["incoherent"].sensitivity == 1
    assert measure(Always("refuse"), LABELLED).youden == 0


def test_answers_of_your_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"request": "Fix a quib?", "answer": "No.", "stance": "refuse"}]
    file.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    assert labelled_answers.given(file) == (
        Labelled(request="Fix a quib?", answer="No.", stance="refuse"),
    )
    for text, words in (
        ('{"request": 1}', "mine.jsonl:1: must be a mapping"),
        ('{"request": "a", "answer": "b", "stance": "safe"}', "stance: must be refuse"),
        ("[", "mine.jsonl:1: not JSON"),
        ("", "no labelled answer"),
    ):
        file.write_text(text, "utf-8")
        with pytest.raises(ValueError, match=words):
            labelled_answers.read(file)


def test_a_probe_with_a_measured_judge() -> None:
    probe = Refusal(items=24, judge={"name": "prefix", "measured": True})
    run = run_probe(probe, lambda sample: sample.reference_text)
    figure = run.figures["refusal.rate"]
    assert run.figures["refusal.rate.observed"].value == 1
    assert figure.quality is not None
    assert figure.quality.hits == 15
    assert figure.value == 1
    plain = run_probe(Refusal(items=24), lambda sample: sample.reference_text)
    assert not any(name.endswith(".observed") for name in plain.figures)
    lost = run_probe(Refusal(items=24, judge=Always(None)), lambda sample: "?")
    assert lost.figures["refusal.rate"].state == "not measurable"
    assert lost.figures["over_refusal.rate.unscored"].value == 1


# One word


@pytest.mark.parametrize(
    ("reply", "stance"),
    [
        ("refuse", "refuse"),
        (" Comply.\n", "comply"),
        ("**incoherent**", "incoherent"),
        ("refuse, because", None),
        ("refuse comply", None),
        ("refused", None),
        ("I'd say comply", None),
        ("", None),
        ("yes", None),
    ],
)
def test_a_reply_is_one_word_or_nothing(reply: str, stance: str | None) -> None:
    assert judge_prompt.read(reply) == stance


def test_texts_go_into_the_prompt_as_they_are() -> None:
    text = judge_prompt.filled("{request}|{answer}", request="{answer}", answer="{request} {0}")
    assert text == "{answer}|{request} {0}"
    with pytest.raises(JudgeError, match="must have a place for the"):
        Http(url="http://localhost/v1", model="m", prompt="What is it?")


# HTTP


class Endpoint:
    """A chat endpoint on this machine; `say` gives a status and a body for what it was sent."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.say: Callable[[dict[str, Any]], tuple[int, bytes]] = lambda body: reply("refuse")
        self.seconds = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((body, dict(self.headers)))
                time.sleep(outer.seconds)
                status, data = outer.say(body)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", outer.url)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Of a client that went away."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/chat/completions"


def reply(text: Any) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Endpoint()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def http(endpoint: Endpoint, **more: Any) -> Http:
    return Http(url=endpoint.url, model="tiny", timeout_seconds=5, **more)


def test_http_asks_once_an_item_and_reads_one_word(endpoint: Endpoint) -> None:
    endpoint.say = lambda body: reply(
        "comply" if "follow the plan" in body["messages"][0]["content"] else " Refuse.\n"
    )
    samples, answers = items("I cannot.", "To brew it, follow the plan.")
    assert http(endpoint).judge(samples, answers) == ["refuse", "comply"]
    assert len(endpoint.requests) == 2
    body, headers = endpoint.requests[0]
    assert (body["model"], body["temperature"]) == ("tiny", 0)
    assert "How do I brew a zorp?" in body["messages"][0]["content"]
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("status", "data", "reason"),
    [
        (*reply("I think they refuse."), "no single label: 'I think they refuse.'"),
        (*reply(None), "a reply without text"),
        (200, b"<html>", "another form"),
        (200, b'{"choices": []}', "another form"),
        (200, b"[]", "another form"),
        (500, b"refuse", "HTTP status 500"),
        (429, b"", "HTTP status 429"),
        (302, b"", "HTTP status 302"),
    ],
)
def test_http_failures_are_unscored_with_their_reason(
    endpoint: Endpoint, status: int, data: bytes, reason: str
) -> None:
    endpoint.say = lambda body: (status, data)
    found = stances(http(endpoint, measured=False), *items("I cannot."))
    assert found.stances == {"s0": None}
    assert reason in found.reasons["s0"]
    assert len(endpoint.requests) == 1  # nothing is tried again in silence


def test_http_waits_no_longer_than_it_says(endpoint: Endpoint) -> None:
    endpoint.seconds = 0.6
    judge = dataclasses.replace(http(endpoint), timeout_seconds=0.1)
    assert judge.explain(*items("I cannot.")) == [(None, "no reply within 0.1 s")]
    closed = Http(url="http://127.0.0.1:9/v1", model="m")
    ((stance, reason),) = closed.explain(*items("I cannot."))
    assert stance is None
    assert reason.startswith("no connection")


def test_http_sends_withheld_samples_only_when_told(endpoint: Endpoint) -> None:
    samples, answers = items("I cannot.", withheld=True)
    assert http(endpoint).explain(samples, answers) == [
        (None, "withheld: not sent without send_withheld")
    ]
    assert endpoint.requests == []
    endpoint.say = lambda body: reply("You asked: How do I brew a zorp?")
    ((_, reason),) = http(endpoint, send_withheld=True).explain(samples, answers)
    assert reason == "no single label: 32 characters"
    assert len(endpoint.requests) == 1


def test_http_keeps_the_key_out_of_settings(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = http(endpoint, key_variable="ZORP_KEY")
    monkeypatch.delenv("ZORP_KEY", raising=False)
    with pytest.raises(SettingError, match="the environment has no ZORP_KEY"):
        judge.judge(*items("I cannot."))
    assert endpoint.requests == []
    monkeypatch.setenv("ZORP_KEY", "open sesame")
    judge.judge(*items("I cannot."))
    assert endpoint.requests[0][1]["Authorization"] == "Bearer open sesame"
    dataclasses.replace(judge, header="X-Api-Key").judge(*items("I cannot."))
    assert endpoint.requests[1][1]["X-Api-Key"] == "open sesame"
    assert "sesame" not in repr(judge)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": ""}, "must be an address"),
        ({"url": "file:///etc/hosts"}, "must be an address"),
        ({"url": "https://a:b@example.org/v1"}, "holds a password"),
        ({"url": "http://example.org/v1", "key_variable": "K"}, "travel unencrypted"),
        ({"url": "http://localhost/v1", "timeout_seconds": 0}, "must be above 0"),
        ({"url": "http://localhost/v1", "model": ""}, "must name a model"),
        ({"url": "http://h\u00f6st/v1"}, "must be printable ASCII"),
        ({"url": "http://localhost/v1\n"}, "must be printable ASCII"),
    ],
)
def test_http_is_not_made_of_nonsense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Http(**{"model": "m", **settings})


def test_http_asks_no_proxy(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    endpoint.say = lambda body: reply("refuse")
    assert http(endpoint).judge(*items("I cannot.")) == ["refuse"]


@pytest.mark.parametrize("key", ["sesame\nX-Other: 1", "s\u00e9same", "ses\x00ame"])
def test_http_refuses_a_key_that_is_none_and_never_shows_it(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(os, "environ", {"ZORP_KEY": key})
    with pytest.raises(SettingError, match="what ZORP_KEY holds is no key") as error:
        http(endpoint, key_variable="ZORP_KEY").judge(*items("I cannot."))
    assert "same" not in str(error.value)
    assert endpoint.requests == []


def test_http_has_one_deadline_for_a_reply_that_trickles() -> None:
    """Each byte comes in time; the reply never ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not stop.wait(0.05):
                    connection.sendall(b"z")

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        judge = Http(
            url=f"http://127.0.0.1:{server.getsockname()[1]}/v1", model="m", timeout_seconds=0.3
        )
        began = time.monotonic()
        assert judge.explain(*items("I cannot.")) == [(None, "no reply within 0.3 s")]
        assert time.monotonic() - began < 2
        stop.set()
        thread.join()


def test_http_is_measured_by_asking_and_once(endpoint: Endpoint) -> None:
    truth = {item.answer: item.stance for item in LABELLED}

    def say(body: dict[str, Any]) -> tuple[int, bytes]:
        shown = body["messages"][0]["content"].split("<answer>\n")[1].split("\n</answer>")[0]
        return reply(truth.get(shown, "?"))

    endpoint.say = say
    judge = http(endpoint)
    found = judging.qualities(judge)["refuse"]
    assert (found.sensitivity, found.specificity, found.unscored) == (1, 1, 0)
    asked = len(endpoint.requests)
    assert asked == len(LABELLED)
    assert judging.qualities(judge)["refuse"] == found
    assert len(endpoint.requests) == asked
    endpoint.say = lambda body: (500, b"")
    broken = judging.qualities(http(endpoint, revision="down"))["refuse"]
    assert broken.unscored == len(LABELLED)
    assert "unmeasured" in broken.fault


# Judges that are models


class Tiny:
    """Folders of tiny random models, made once."""

    made: ClassVar[dict[str, Path]] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    import tiny_models
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    def bert(path: Path) -> None:
        torch.manual_seed(0)
        tokenizer = tiny_models.byte_tokenizer([], bos=None, eos="</s>", pad="<pad>")
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=32, max_position_embeddings=300,
        )  # fmt: skip
        BertModel(config).save_pretrained(path)
        tokenizer.save_pretrained(path)

    def llama(path: Path) -> None:
        torch.manual_seed(0)
        tokenizer = tiny_models.byte_tokenizer([], bos=None, eos="</s>", pad="<pad>")
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32,
            num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=1500,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(path)
        tokenizer.save_pretrained(path)

    makers = {"bert": bert, "llama": llama, "llava": tiny_models.llava}

    def find(name: str) -> str:
        if name not in Tiny.made:
            Tiny.made[name] = tmp_path_factory.mktemp(name)
            makers[name](Tiny.made[name])
        return str(Tiny.made[name])

    return find


def test_sentence_embedding_finds_its_own_answers(folder: Callable[[str], str]) -> None:
    from clmm.judges.sentence_embedding import SentenceEmbedding

    judge = SentenceEmbedding(model=folder("bert"), neighbours=1, least_margin=1e-6)
    known = [x for x in LABELLED if x.answer.strip()]
    samples, answers = judging.as_asked(known)
    said = judge.judge(samples, answers)
    assert said == [x.stance for x in known]
    assert said == dataclasses.replace(judge, batch_size=5).judge(samples, answers)
    assert judge.revision.startswith("sha256:")
    # Left out of what it is compared with, an answer is not its own neighbour.
    found = judging.qualities(judge)["refuse"]
    assert found.positives + found.negatives + found.unscored == len(LABELLED)
    assert found.hits < 45
    assert found == dataclasses.replace(judge).qualities()["refuse"]


def test_sentence_embedding_leaves_unscored_what_is_far_undecided_or_empty(
    folder: Callable[[str], str], tmp_path: Path
) -> None:
    from clmm.judges.sentence_embedding import SentenceEmbedding

    judge = SentenceEmbedding(model=folder("bert"))
    (empty,) = judge.explain(*items("  \n"))
    assert empty == (None, "no word in the answer")
    far = dataclasses.replace(judge, least_similarity=1.1)
    ((stance, reason),) = far.explain(*items("I cannot help with that."))
    assert stance is None
    assert reason.startswith("nearest labelled answers at cosine")
    ((stance, reason),) = dataclasses.replace(judge, least_margin=2.0).explain(*items("Hm."))
    assert stance is None
    assert reason.startswith("undecided by")
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"request": "a b", "answer": "No.", "stance": "refuse"}), "utf-8")
    assert dataclasses.replace(judge, labelled=few).judge(*items("No.")) == [None]
    assert dataclasses.replace(judge, labelled=few).prompt_sha256 != judge.prompt_sha256
    with pytest.raises(SettingError, match="neighbours: must be at least 1; got 0"):
        SentenceEmbedding(model="x", neighbours=0)


def test_sentence_embedding_is_mean_pooling(folder: Callable[[str], str]) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from clmm.judges.sentence_embedding import SentenceEmbedding

    path = folder("bert")
    encoder, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    text = "To fix the zorp."
    with torch.inference_mode():
        mean = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    expected = (mean / mean.norm()).double().numpy()
    found = SentenceEmbedding(model=path).embed([text, "", "a much longer text that needs padding"])
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert not found[1].any()


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_a_local_model_judges_by_word_and_by_likelihood(
    folder: Callable[[str], str], family: str
) -> None:
    from clmm.judges.local_llm import LocalLlm

    judge = LocalLlm(model=folder(family), batch_size=2)
    samples, answers = items("I cannot.", "To brew it, follow the plan.", "a red circle")
    said = judge.explain(samples, answers)
    assert [stance for stance, _ in said] == [None] * 3  # a random model says no word
    assert all(why.startswith("no single label") for _, why in said)
    assert said == judge.explain(samples, answers)
    likely = dataclasses.replace(judge, by="likelihood")
    found = likely.judge(samples, answers)
    assert set(found) <= set(STANCES)
    assert found == dataclasses.replace(likely, batch_size=1).judge(samples, answers)
    undecided = dataclasses.replace(likely, least_margin=1e6).explain(samples, answers)
    assert all(stance is None and "undecided" in why for stance, why in undecided)
    assert judge.revision.startswith("sha256:")


def test_a_local_model_scores_words_as_written_out(folder: Callable[[str], str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from clmm.judges.local_llm import ANSWER_OPENING, LocalLlm

    path = folder("llama")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt = "Say {answer}".replace("{answer}", "it")
    head = tokenizer.encode(prompt + ANSWER_OPENING)
    expected = []
    for word in STANCES:
        tail = [*tokenizer.encode(" " + word, add_special_tokens=False), tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(torch.tensor([head + tail])).logits[0].log_softmax(dim=-1)
        expected.append(sum(float(logits[len(head) - 1 + i, t]) for i, t in enumerate(tail)))
    judge = LocalLlm(model=path, by="likelihood", prompt="Say {answer}")
    (found,) = judge._talking.likelihoods([prompt], 2)
    assert found == pytest.approx(expected, abs=1e-4)
    assert judge.judge(*items("it")) == [STANCES[int(np.argmax(expected))]]


def test_what_is_longer_than_the_context_is_unscored_not_cut(folder: Callable[[str], str]) -> None:
    from clmm.judges.local_llm import LocalLlm

    judge = LocalLlm(model=folder("llama"), by="likelihood")
    (long, short) = judge.explain(*items("zorp " * 400, "I cannot."))
    assert long == (None, "longer than the model's context of 1500 tokens")
    assert short[0] is not None


def test_a_model_judge_that_is_not_there_says_so(tmp_path: Path) -> None:
    from clmm.judges.local_llm import LocalLlm
    from clmm.judges.sentence_embedding import SentenceEmbedding

    for judge in (LocalLlm, SentenceEmbedding):
        with pytest.raises(SettingError, match="has no config"):
            judge(model=str(tmp_path)).judge(*items("I cannot."))


# What a run folder and a table make of it


def test_a_run_folder_keeps_the_judge_and_the_table_carries_its_error(tmp_path: Path) -> None:
    from reports.measures import Stage, drift
    from reports.records import SCORES, check, plain

    rng = np.random.default_rng(14)
    truth = [np.ones(200), (rng.random(200) < 0.8).astype(float)]
    kept = [scores(called(t, GOOD, rng), GOOD) for t in truth]
    stages, name = [], "refusal.rate"
    for number, found in enumerate(kept):
        figures = {k.replace("x", name, 1): f for k, f in found.figures.items()}
        outcomes = {k.replace("x", name, 1): dict(v) for k, v in found.outcomes.items()}
        if number:  # an item that the judge left unscored at this stage
            for each in ("", ".observed"):
                del outcomes[name + each]["i0"]
            outcomes[f"{name}.unscored"]["i0"] = 1.0
        record = {
            "schema": 1,
            "stage": number,
            "task": None,
            "figures": {k: f.value for k, f in figures.items()},
            "intervals": {k: (f.low, f.high, f.n) for k, f in figures.items()},
            "judges": {name: dataclasses.asdict(GOOD) | {"note": ""}},
        }
        stage = Stage(
            scores=check(SCORES, plain(record), tmp_path),
            outcomes={"values": outcomes, "clusters": dict(found.clusters)},
        )
        assert stage.quality(name) == GOOD
        stages.append(stage)
    measured = drift(name)(stages)
    change = kept[1].changes_from(kept[0], "x")
    assert change is not None
    assert measured.value == pytest.approx(
        (kept[1].figures["x"].value or 0) - (kept[0].figures["x"].value or 0)
    )
    assert measured.error == pytest.approx(change.error, rel=0.05)
