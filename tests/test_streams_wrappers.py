"""Sources that change another stream: its order, its borders, its objectives."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import tiny_streams

from clmm.study import Study
from streams import catalog
from streams.loading import load_stream
from streams.settings import SettingError


def test_an_order_by_names_and_by_seed() -> None:
    base = tiny_streams.stream("a", "b", "c", "d")
    by_name = load_stream({"name": "ordered", "of": base, "order": ["d", "b"]}).tasks
    assert [task.name for task in by_name] == ["d", "b"]
    assert by_name[0].train is base.tasks[3].train
    orders = [
        "".join(
            task.name
            for task in load_stream({"name": "ordered", "of": base, "order_seed": s}).tasks
        )
        for s in (0, 0, *range(1, 12))
    ]
    assert orders[0] == orders[1]
    assert {"".join(sorted(order)) for order in orders} == {"abcd"}
    assert len(set(orders)) > 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"ordered\.order: give it or order_seed"),
        ({"order": ["a"], "order_seed": 1}, "one of the two"),
        ({"order": []}, "at least one"),
        ({"order": ["a", "a"]}, "each task once"),
        ({"order": ["coulor"]}, r"the stream has no task 'coulor'; did you mean colour\?"),
        ({"order": ["a"], "of": "digitz"}, r"ordered\.of: .*did you mean digits\?"),
        ({"order_seed": -1}, r"ordered\.order_seed"),
    ],
)
def test_bad_orders_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_stream({"name": "ordered", "of": tiny_streams.stream(), **spec})


def test_blurring_exchanges_samples_of_neighbours_alone() -> None:
    names = ("a", "bb", "ccc", "dddd")
    base = tiny_streams.stream(*names, train=40)
    spec = {"name": "blurred", "of": base, "share": 0.2, "seed": 3}
    tasks = load_stream(spec).tasks
    assert [task.name for task in tasks] == list(names)
    counts = [Counter(s.id.split("-")[0] for s in task.train) for task in tasks]
    assert counts == [
        {"a": 36, "bb": 4}, {"a": 4, "bb": 32, "ccc": 4},
        {"bb": 4, "ccc": 32, "dddd": 4}, {"ccc": 4, "dddd": 36},
    ]  # fmt: skip
    ids = [s.id for task in tasks for s in task.train]
    assert sorted(ids) == sorted(s.id for task in base.tasks for s in task.train)
    assert all(new.test is old.test for new, old in zip(tasks, base.tasks, strict=True))
    assert ids == [s.id for task in load_stream(spec).tasks for s in task.train]
    assert ids != [s.id for task in load_stream({**spec, "seed": 4}).tasks for s in task.train]


def test_blurring_nothing_and_everything() -> None:
    base = tiny_streams.stream("a", "b", "c", train=10)
    for share, own in ((0, [10, 10, 10]), (1, [5, 0, 5])):
        tasks = load_stream({"name": "blurred", "of": base, "share": share}).tasks
        assert [sum(s.id[0] == t.name for s in t.train) for t in tasks] == own
    with pytest.raises(SettingError, match=r"blurred\.of: needs two tasks or more; got a alone"):
        load_stream({"name": "blurred", "of": tiny_streams.stream("a")})
    with pytest.raises(SettingError, match=r"blurred\.share"):
        load_stream({"name": "blurred", "of": base, "share": 1.1})


def test_blurring_draws_no_picture_before_it_is_asked_for() -> None:
    digits = {"name": "default", "train_items": 2000, "test_items": 10}
    tasks = load_stream({"name": "blurred", "of": digits}).tasks
    assert len(tasks[1].train) == 2000
    assert all(one is None for one in tasks[1].train._made)  # type: ignore[attr-defined]


def test_wrappers_nest_and_are_written_back() -> None:
    spec = {
        "name": "ordered",
        "order_seed": 1,
        "of": {"name": "blurred", "of": {"name": "default", "train_items": 20, "test_items": 10}},
    }
    study = Study.resolve({"strategies": ["sequential_lora"], "stream": spec})
    first, again = load_stream(study.stream), load_stream(study.plain()["stream"])
    assert [t.name for t in first.tasks] == [t.name for t in again.tasks]
    assert [s.id for s in first.tasks[0].train] == [s.id for s in again.tasks[0].train]


def test_stages_get_their_objective_and_keep_their_samples() -> None:
    base = tiny_streams.stream("a", "bb", "ccc")
    rloo = {"name": "rloo", "samples": 4}
    spec = {"name": "staged", "of": base, "objective": rloo}
    every = load_stream(spec).tasks
    assert [task.objective for task in every] == [rloo] * 3
    assert all(new.train is old.train for new, old in zip(every, base.tasks, strict=True))
    some = load_stream({**spec, "objective": "dpo", "only": ["bb"]}).tasks
    assert [task.objective for task in some] == ["sft", "dpo", "sft"]
    listed = load_stream([base, {"name": "staged", "of": "counting", "objective": "grpo"}])
    assert [task.objective for task in listed.tasks] == ["sft", "sft", "sft", "grpo"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"staged\.objective: this setting is required"),
        ({"objective": 3}, r"staged\.objective"),
        ({"objective": "dpo", "only": ["coulor"]}, "'coulor'; did you mean colour?"),
        ({"objective": "dpo", "of": "digitz"}, r"staged\.of: .*did you mean digits\?"),
    ],
)
def test_bad_stages_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_stream({"name": "staged", "of": tiny_streams.stream(), **spec})


def test_every_wrapper_is_listed() -> None:
    lines = catalog.listing("streams.sources")
    names = ("ordered", "blurred", "staged", "preferences", "feedback", "instructed", "diversified")
    assert all(len(lines[name]) > 20 for name in names)
