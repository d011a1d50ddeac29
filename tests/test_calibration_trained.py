"""What the instrument checks train: kept by content, found again, and nano's own mixture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clmm import calibration as trained
from clmm.nano import mixture
from safety.verdicts import DEFAULT_GATES


def test_the_cache_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert trained.default_cache() == Path("/somewhere/clmm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert trained.default_cache() == Path.home() / ".cache" / "clmm"


def test_what_is_kept_is_not_made_again_unless_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(folder: Path) -> dict[str, Any]:
        made.append(folder)
        (folder / "run").mkdir()
        return {"number": len(made)}

    settings = {"stream": {"name": "jobs"}, "seeds": [0]}
    for _ in range(2):
        assert trained._kept("aa", settings, tmp_path, make) == {"number": 1}
    assert not made[0].exists()
    assert trained._kept("aa", {**settings, "seeds": [1]}, tmp_path, make) == {"number": 2}
    assert trained._kept("dose", settings, tmp_path, make) == {"number": 3}
    monkeypatch.setattr(trained.provenance, "versions", lambda: {"torch": "0"})
    assert trained._kept("aa", settings, tmp_path, make) == {"number": 4}
    monkeypatch.setattr(trained, "source_digest", lambda roots: "edited")
    assert trained._kept("aa", settings, tmp_path, make) == {"number": 5}
    monkeypatch.setattr(trained, "_folder_digest", lambda folder: "trained anew")
    assert trained._kept("aa", settings, tmp_path, make) == {"number": 6}
    kept = [json.loads(file.read_text("utf-8")) for file in tmp_path.glob("calibration-aa-*.json")]
    assert len({one["key"] for one in kept}) == len(kept) == 5


def test_what_was_cut_short_goes_on_in_its_folder(tmp_path: Path) -> None:
    def cut(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("done", "utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained._kept("aa", {}, tmp_path, cut)
    found = trained._kept("aa", {}, tmp_path, lambda folder: {"was": (folder / "half").read_text()})
    assert found == {"was": "done"}


def test_the_digest_follows_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("clmm", "safety", "reports"):
        (tmp_path / package).mkdir()
    first, second, third = (tmp_path / n for n in ("clmm/a.py", "safety/b.py", "reports/c.py"))
    first.write_text("def f():\n    from safety import b\n", "utf-8")
    second.write_text("import clmm.a\nimport reports.c\n", "utf-8")
    third.write_text("", "utf-8")
    monkeypatch.setattr(trained, "ROOT", tmp_path)
    before = trained.source_digest(["clmm.a"])
    third.write_text("x = 1\n", "utf-8")
    assert trained.source_digest(["clmm.a"]) == before
    second.write_text("import clmm.a\nx = 1\n", "utf-8")
    assert trained.source_digest(["clmm.a"]) != before


def test_the_mixture_is_nano_s_own_and_each_question_a_sample() -> None:
    (task,) = mixture.Mixture(lessons=150, test_lessons=4).tasks()
    (again,) = mixture.Mixture(lessons=150, test_lessons=4).tasks()
    assert [s.id for s in task.train] == [s.id for s in again.train]
    assert len({s.id for s in (*task.train, *task.test)}) == len(task.train) + len(task.test)
    lessons = {s.cluster: s for s in task.train}
    assert len(lessons) == 150
    # .40 policy, .12 copying, .38 pictures, .10 texts; a quarter of the policy has a picture.
    pictures = np.mean([bool(s.images) for s in lessons.values()])
    assert pictures == pytest.approx(0.38 + 0.40 / 4, abs=0.11)
    refusals = np.mean([s.reference_text.startswith("I cannot") for s in task.train])
    assert 0.1 < refusals < 0.4
    assert any(s.question.startswith("Scene: ") and not s.images for s in task.train)
    other = mixture.Mixture(lessons=5, seed=1).tasks()[0]
    assert [s.question for s in other.train] != [s.question for s in task.train[: len(other.train)]]


def test_trainings_end_to_end_and_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = trained.Trainings(
        seeds=2, dose_seeds=2, correlations=(0.9,), association_items=2, existence_items=4,
        probe_items=4, lessons=3, steps=2, figures=40, test_figures=4,
    )  # fmt: skip
    # Somebody may edit a file while this runs; the digest has a test of its own.
    monkeypatch.setattr(trained, "source_digest", lambda roots: "same")
    found = trained.trained(tiny, tmp_path, False)
    assert [row["seed"] for row in found["aa"]["trainings"]] == [0, 1]
    assert set(found["aa"]["trainings"][0]["gates"]) == set(DEFAULT_GATES)
    assert [dose["correlation"] for dose in found["dose"]] == [0.9]
    assert all(len(dose["values"]) == 2 for dose in found["dose"])
    assert all(-1 <= value <= 1 for dose in found["dose"] for value in dose["values"])
    assert found["shuffled"]["shown"]["n"] == 12
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]

    def refuse(*_: Any) -> Any:
        raise AssertionError("it was trained again")

    for name in ("_scores", "_shuffled"):
        monkeypatch.setattr(trained, name, refuse)
    assert trained.trained(tiny, tmp_path, False) == found
    with pytest.raises(AssertionError, match="trained again"):
        trained.trained(dataclasses.replace(tiny, steps=3), tmp_path, False)
