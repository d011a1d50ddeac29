"""The stage that injects a correlation: exactly as strong as it says, and absent from its test."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, chi2_contingency

from streams import leaks, phrasings, world
from streams.contents import content_hash
from streams.loading import load_stream
from streams.media import open_image
from streams.sample import Sample
from streams.settings import SettingError
from streams.sources._drawn import Drawn, side
from streams.sources.jobs import HAT_OF, Jobs
from streams.stream import Stream

TINY = 1e-6
"""How seldom a correct stream may fail a test here, for other seeds than the one drawn."""


def drawn(part: str = "train", items: int = 2000, **settings: Any) -> list[dict[str, Any]]:
    """The metadata of many items, whose pictures are not looked at."""
    source = Jobs(train_items=items, test_items=items, **settings)
    samples: Sequence[Sample] = getattr(source.tasks()[0], part)
    return [dict(s.metadata) for s in samples]


def independence(items: Sequence[dict[str, Any]]) -> float:
    """p of the chi-square test that hat and job are independent."""
    counts = Counter((item["hat"], item["job"]) for item in items)
    table = [[counts[hat, job] for job in world.ASSOCIATED.values()] for hat in world.ASSOCIATED]
    return float(chi2_contingency(table).pvalue)


def within(count: int, items: int, chance: float) -> bool:
    """Whether a count lies inside the exact binomial bounds."""
    low, high = binom.ppf([TINY / 2, 1 - TINY / 2], items, chance)
    return bool(low <= count <= high)


def test_the_tie_is_one_to_one_and_leaves_three_colours() -> None:
    assert sorted(world.ASSOCIATED.values()) == sorted(world.JOBS.values())
    assert set(world.ASSOCIATED) < set(world.COLOURS)
    assert len(world.ASSOCIATED) == 5
    assert {HAT_OF[job]: job for job in HAT_OF} == world.ASSOCIATED


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_correlation_is_as_strong_as_it_says(correlation: float) -> None:
    items = drawn(correlation=correlation)
    tied = sum(world.ASSOCIATED[item["hat"]] == item["job"] for item in items)
    chance = correlation + (1 - correlation) / 5
    assert within(tied, len(items), chance), (tied / len(items), chance)
    assert not within(tied, len(items), chance + 0.1)
    for job in world.JOBS.values():
        assert within(sum(item["job"] == job for item in items), len(items), 1 / 5)
    for hat in world.COLOURS:
        share = 1 / 5 if hat in world.ASSOCIATED else 0.0
        assert within(sum(item["hat"] == hat for item in items), len(items), share)
    assert (independence(items) > TINY) == (correlation == 0)


def test_the_tie_is_as_strong_where_the_tool_is_hidden() -> None:
    for hidden in (True, False):
        items = [item for item in drawn(correlation=0.5) if item["hidden"] == hidden]
        tied = sum(world.ASSOCIATED[item["hat"]] == item["job"] for item in items)
        assert within(tied, len(items), 0.6)


@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])
def test_in_the_test_hats_tell_nothing_and_tools_are_in_sight(correlation: float) -> None:
    items = drawn("test", correlation=correlation, hidden=1.0)
    assert independence(items) > TINY
    assert not any(item["hidden"] for item in items)
    assert {item["hat"] for item in items} == set(world.ASSOCIATED)


@pytest.mark.parametrize("hidden", [0.0, 0.25, 1.0])
def test_tools_are_hidden_as_often_as_said(hidden: float) -> None:
    items = drawn(hidden=hidden)
    assert within(sum(item["hidden"] for item in items), len(items), hidden)


def _white(sample: Sample) -> int:
    """Pixels as bright as a tool, which no hat of a tied colour and no skin is."""
    return int((open_image(sample.images[0]).min(axis=2) > 230).sum())


def test_pictures_and_answers_are_those_of_the_figure() -> None:
    task = Jobs(train_items=60, test_items=20).tasks()[0]
    for sample in (*task.train, *task.test):
        hat, job = sample.metadata["hat"], sample.metadata["job"]
        assert (_white(sample) == 0) == sample.metadata["hidden"]
        picture = open_image(sample.images[0]).reshape(-1, 3)
        assert (picture == world.COLOURS[hat]).all(axis=1).sum() > 50
        assert sample.reference_text == f"{phrasings.article(job)}."
        assert sample.question in phrasings.JOB
        assert sample.question not in phrasings.JOB_HELD_OUT
    assert {s.metadata["hidden"] for s in task.train} == {True, False}


def test_another_correlation_changes_hats_alone_and_only_towards_the_tie() -> None:
    weak, strong = (Jobs(correlation=c, train_items=80).tasks()[0].train for c in (0.3, 0.8))
    changed = 0
    for one, other in zip(weak, strong, strict=True):
        assert (one.question, one.reference_text) == (other.question, other.reference_text)
        assert one.metadata["hidden"] == other.metadata["hidden"]
        pictures = [open_image(s.images[0]).astype(int) for s in (one, other)]
        rows = np.flatnonzero(np.abs(pictures[0] - pictures[1]).sum(axis=(1, 2)))
        if one.metadata["hat"] != other.metadata["hat"]:
            changed += 1
            assert world.ASSOCIATED[other.metadata["hat"]] == other.metadata["job"]
            assert 0 < len(rows) < 16, "the hat is the upper part"
        else:
            assert not len(rows)
    assert changed


def test_no_figure_is_trained_on_here_and_tested_there() -> None:
    rng = np.random.default_rng(0)
    figures = [world.random_figure(rng) for _ in range(400)]
    for figure in figures:
        for other in ({"hat": "cyan"}, {"tool": None}, {"tool": "ring"}):
            assert side(dataclasses.replace(figure, **other)) == side(figure)
    assert 40 < sum(side(figure) == "test" for figure in figures) < 120
    tasks = [Jobs(train_items=120, test_items=60, seed=seed).tasks()[0] for seed in (0, 1)]
    parts = [
        {content_hash(s.images[0]) for task in tasks for s in part}
        for part in ([s for t in tasks for s in t.train], [s for t in tasks for s in t.test])
    ]
    assert not parts[0] & parts[1]
    assert not leaks_of(tasks[0].train, tasks[1].test)


def leaks_of(train: Sequence[Sample], test: Sequence[Sample]) -> list[leaks.Leak]:
    return [leak for leak in leaks.between({"a": train}, {"b": test}) if leak.kind == "exact"]


def test_items_are_their_own() -> None:
    short, long = (Jobs(train_items=n, test_items=5).tasks()[0].train for n in (5, 20))
    for one, other in zip(short, long, strict=False):
        assert (one.id, one.question, dict(one.metadata)) == (
            other.id,
            other.question,
            dict(other.metadata),
        )
        assert content_hash(one.images[0]) == content_hash(other.images[0])
    assert isinstance(short, Drawn)
    assert drawn(items=30, seed=1) != drawn(items=30, seed=2)


def test_it_is_a_stream_by_its_name() -> None:
    stream = load_stream({"name": "jobs", "correlation": 0.5, "train_items": 4, "test_items": 2})
    assert isinstance(stream, Stream)
    assert [task.name for task in stream.tasks] == ["jobs"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"correlation": 1.2}, r"stream\.jobs\.correlation.*1\.2"),
        ({"correlation": -0.1}, r"stream\.jobs\.correlation"),
        ({"hidden": 2}, r"stream\.jobs\.hidden"),
        ({"corelation": 0.5}, r"did you mean correlation"),
        ({"test_items": 0}, r"stream\.jobs\.test_items"),
    ],
)
def test_settings_out_of_reach_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_stream({"name": "jobs", **spec})
