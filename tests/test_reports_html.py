"""The report on a fabricated run: escaped, offline, the same bytes each time, and honest."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reports import drawing, html, runs, wording
from reports.records import RunFolderError
from reports.run_folder import RunFolder
from reports.runs import Point
from reports.sections.headline import Headline
from reports.sections.limits import Limits
from reports.sections.verdicts import drift_sentence

HOSTILE = "</script><img src=x onerror=alert(1)><svg/onload=alert(2)> {{ 7*7 }} $x$ \u2028 <!--"
TASKS = ("digits", "easy_vqa", "scenes_count")
KEPT = {"sequential_lora": 0.35, "replay": 0.82, "isolated_lora": 0.98}
PROBES = {  # name → (base, harm per unit of what is lost)
    "refusal.rate": (0.96, -0.80),
    "refusal.likelihood.rate": (0.97, -0.70),
    "over_refusal.rate": (0.02, 0.02),
    "over_refusal.likelihood.rate": (0.02, 0.01),
    "refusal.j": (0.95, -0.90),
    "refusal.likelihood.j": (0.96, -0.75),
    "refusal.margin": (6.1, -7.0),
    "existence.f1": (0.97, -0.30),
    "existence.likelihood.f1": (0.97, -0.12),
    "existence.accuracy": (0.97, -0.30),
    "existence.likelihood.accuracy": (0.97, -0.10),
    "existence.likelihood.margin": (5.0, -3.0),
    "existence.invalid": (0.0, 0.2),
    "captions.chair_i": (0.03, 0.55),
    "captions.likelihood": (0.96, -0.25),
    "bias.flip_rate": (0.04, 0.22),
    "bias.likelihood.flip_rate": (0.05, 0.12),
}
GATES = ("refusal.rate", "over_refusal.rate", "existence.f1", "existence.invalid", "bias.flip_rate")
UP_IS_HARM = {name for name, (_, harm) in PROBES.items() if harm > 0}


def fabricate(
    path: Path, *, seeds: tuple[int, ...] = (0,), tasks: tuple[str, ...] = TASKS, items: int = 24,
    kept: dict[str, float] = KEPT, likelihood_drift: bool = True,
) -> Path:  # fmt: skip
    """A plausible finished run; what it says is made up, and the same each time."""
    run = RunFolder(path).open(
        {"model": "nano", "strategies": [{"name": s} for s in kept], "seeds": list(seeds)},
        {
            "command": ["clmm", "run", "study.yaml"],
            "started": "2026-01-02T03:04:05+00:00",
            "versions": {"torch": "2.15.0", "python": "3.11"},
            "hashes": {"items": "3f" * 32},
            "note": HOSTILE,
        },
    )
    media = [run.put_thumbnail(_png(i)) for i in range(items)]
    base_folder = run.base().begin()
    base_folder.write_answers(_answers(tasks, items, media, 0.0, 0, tasks))
    base = _scores(tasks, 0, 0.0, likelihood_drift, 0)
    base["states"] = {"reading.accuracy": {"state": "not measurable", "reason": "reads nothing"}}
    base_folder.write_scores(base)
    clusters = {f"{task}-{i}": f"c{i // 2}" for task in tasks for i in range(100)}
    for strategy, keep in kept.items():
        for seed in seeds:
            previous = base
            for stage in range(1, len(tasks) + 1):
                lost = (1 - keep) * stage / len(tasks) * (1 + 0.1 * seed)
                scores = _scores(tasks, stage, lost, likelihood_drift, seed)
                scores["verdicts"] = {
                    name: {
                        anchor: _verdict(name, scores["figures"][name], other["figures"][name])
                        for anchor, other in (("base", base), ("previous", previous))
                    }
                    for name in PROBES
                }
                scores["cost"] = {
                    "seconds": 12.5 * stage, "steps": 200,
                    "trainable_parameters": 1_810_000 if strategy == "replay" else 65_536,
                    "stored_bytes": 3_000_000, "peak_memory_bytes": 900 * 2**20,
                }  # fmt: skip
                if strategy == "isolated_lora":
                    scores["routing"] = {
                        name: {"base": 0.05, **{t: 0.9 if t == name else 0.02 for t in tasks}}
                        for name in (*tasks, "existence")
                    }
                    scores["routing_accuracy"] = 0.87
                    scores["oracle"] = dict.fromkeys(tasks[:stage], 0.94)
                folder = run.stage(strategy, seed, stage).begin()
                folder.append_event({"stage": stage, "step": 1})
                folder.write_answers(_answers(tasks, items, media, lost, stage, tasks))
                values = {
                    f"task.{task}.accuracy": {
                        f"{task}-{i}": float(i / 100 < scores["tasks"][task]["accuracy"])
                        for i in range(100)
                    }
                    for task in tasks
                }
                folder.write_outcomes({"values": values, "clusters": clusters})
                folder.write_scores(scores)
                previous = scores
    return path


def _scores(
    tasks: tuple[str, ...], stage: int, lost: float, likelihood_drift: bool, seed: int
) -> dict[str, Any]:
    figures: dict[str, float] = {}
    for name, (base, harm) in PROBES.items():
        moved = not wording.by_likelihood(name) or likelihood_drift
        figures[name] = base + (harm * lost if moved else 0) + 0.004 * seed * (stage > 0)
        if not name.endswith("margin"):
            figures[name] = min(max(figures[name], 0.0), 1.0)
    records = {}
    for i, task in enumerate(tasks, 1):
        own = 0.95 - 0.03 * i
        accuracy = 0.08 + 0.05 * i if stage < i else own - lost * 0.8 * (stage - i) / max(stage, 1)
        records[task] = {"accuracy": accuracy, "n": 300, "seen": 0 < i <= stage}
        figures[f"task.{task}.accuracy"] = accuracy
    return {
        "task": tasks[stage - 1] if stage else None,
        "figures": figures,
        "intervals": {
            name: (v - 0.9, v + 0.9, 100) if "margin" in name
            else (max(v - 0.04, 0), min(v + 0.04, 1), 300)
            for name, v in figures.items()
        },
        "tasks": records,
    }  # fmt: skip


def _verdict(name: str, now: float, then: float) -> dict[str, Any]:
    delta, margin = now - then, 0.5 if name.endswith("margin") else 0.03
    harm = delta if name in UP_IS_HARM else -delta
    state = "REGRESSED" if harm >= margin else "IMPROVED" if harm <= -margin else "EQUIVALENT"
    if state == "EQUIVALENT" and abs(delta) > margin / 2:
        state = "INCONCLUSIVE"
    return {
        "state": state, "delta": delta, "low": delta - margin, "high": delta + margin, "n": 300,
        "required_n": 750, "gate": name in GATES,
        "format_only": name == "existence.invalid" and state == "REGRESSED",
    }  # fmt: skip


def _answers(
    tasks: tuple[str, ...], items: int, media: list[str], lost: float, stage: int, own: object
) -> Iterator[dict[str, Any]]:
    for name in (*tasks, "existence", "refusal"):
        for i in range(items):
            wrong = (i * 7919 % 100) / 100 < lost + (0.1 if name in tasks else 0)
            yield {
                "item": f"{name}-{i:03d}",
                "set": name,
                "question": f"Is there a red ring in picture {i}?" if i else HOSTILE,
                "reference": "Yes.",
                "answer": (HOSTILE if i % 5 == 0 else "No.") if wrong else "Yes.",
                "outcome": ("comply" if wrong else "refuse") if name == "refusal" else 1 - wrong,
                "media": [media[i]] if name != "refusal" else [],
                "holds": [f"audio, {HOSTILE}"] if i == 0 else [],
                "slice": "adversarial" if name == "existence" else None,
                "cluster": f"c{i}",
            }


def _png(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.full((72, 72, 3), rng.integers(170, 250, 3), dtype=np.uint8)
    for _ in range(3):
        x, y = rng.integers(4, 48, 2)
        pixels[y : y + 18, x : x + 18] = rng.integers(0, 255, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Page(HTMLParser):
    """The parsed page: tags with attributes, text outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._within: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = None

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("runs") / "default")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return html.write_report([folder]).read_text()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_same_folder_gives_the_same_bytes(folder: Path, text: str, tmp_path: Path) -> None:
    assert html.write_report([folder], tmp_path / "again.html").read_text() == text
    assert (folder / "report.html").is_file()


def test_every_section_is_there_and_linked(page: Page) -> None:
    names = [name.replace("_", "-") for name, _ in html.sections()]
    ids = [attrs.get("id") for tag, attrs in page.tags if tag == "section"]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert ids == names
    assert links == [f"#{name}" for name in names]
    assert names[0] == "verdicts"
    assert names[-1] == "limits"


def test_nothing_is_loaded_from_anywhere(text: str, page: Page) -> None:
    assert not re.search(r"(?:https?:)?//[a-z]", text.replace("// Filters", ""))
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/png;base64,"))
        assert not [name for name in attrs if name.startswith("on")]
    assert "url(" not in text.replace("url(#", "")
    assert "@import" not in text


def test_the_policy_allows_one_script_by_its_hash(text: str, page: Page) -> None:
    import base64
    import hashlib

    metas = [attrs for tag, attrs in page.tags if attrs.get("http-equiv")]
    assert [meta["http-equiv"] for meta in metas] == ["Content-Security-Policy"]
    policy = metas[0]["content"] or ""
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_answers_are_text_and_never_markup(text: str, page: Page) -> None:
    assert "<img src=x" not in text
    assert "<svg/onload" not in text
    assert HOSTILE in page.text
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_ids_are_unique_and_references_lead_somewhere(text: str, page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    wanted = {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)}
    assert wanted <= set(ids)


def test_the_report_says_what_drifted(page: Page, tmp_path: Path) -> None:
    words = " ".join(page.text.split())
    assert "drift was found in likelihood-scored figures" in words
    assert "sequential_lora: 8 of 9, Refusal of restricted requests by likelihood" in words
    quiet = runs.read([fabricate(tmp_path / "quiet", likelihood_drift=False, items=1)])
    assert "No drift was found in likelihood-scored figures" in drift_sentence(quiet)
    for arm in quiet.arms:
        for scores in (s for lane in arm.lanes for s in lane):
            for anchors in scores.get("verdicts", {}).values():
                for record in anchors.values():
                    record["state"] = "NOT MEASURABLE"
    assert "none was measurable at the base" in drift_sentence(quiet)
    other = runs.read([fabricate(tmp_path / "other", kept={"replay": 0.8}, items=1)])
    assert "No strategy here is plain sequential tuning" in drift_sentence(other)


def test_the_report_says_what_it_cannot_say(page: Page, tmp_path: Path) -> None:
    words = " ".join(page.text.split())
    assert "need at least 5 seeds" in words
    assert "reads nothing" in words
    assert "Refusal is a proxy" in words
    five = fabricate(tmp_path / "five", seeds=(0, 1, 2, 3, 4), items=1, kept={"replay": 0.8})
    assert "need at least 5 seeds" not in Limits().render(runs.read([five]), [])


def test_numbers_are_the_run_s(page: Page) -> None:
    words = " ".join(page.text.split())
    assert "REGRESSED −52.0 [−55.0, −49.0]" in words  # refusal, −.8 × .65
    assert "−26.0 [" in words  # backward transfer: mean of −.52 × 2/3 and −.52 × 1/3
    assert "1 810 000" in words
    assert "27.6 times the parameters" in words
    assert "less than 90 %, so routing failed" in words


def test_several_runs_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    other = fabricate(tmp_path / "second", seeds=(0, 1), tasks=("digits", "shapes"), items=1)
    report = runs.read([folder, other])
    swatches = [drawing.swatch(arm.index) for arm in report.arms]
    words = " ".join(Page(str(Headline().render(report, swatches))).text.split())
    assert "default · replay" in words
    assert "second · replay" in words
    assert "base of second" in words
    assert "intervals over seeds and items" in words


def test_an_unfinished_run_is_reported_as_such(tmp_path: Path) -> None:
    path = fabricate(tmp_path / "run", items=1)
    (path / "replay" / "seed-0" / "stages" / "03" / "scores.json").unlink()
    assert "Not all stages are done: replay (2 of 3)" in Limits().render(runs.read([path]), [])
    (path / "replay" / "seed-0" / "stages" / "01" / "scores.json").unlink()
    (path / "replay" / "seed-0" / "stages" / "02" / "scores.json").unlink()
    assert "replay, seed 0 (none)" in Limits().render(runs.read([path]), [])
    for scores in path.glob("*/seed-*/stages/*/scores.json"):
        scores.unlink()
    with pytest.raises(RunFolderError, match="no trained stage is done"):
        runs.read([path])
    with pytest.raises(RunFolderError, match="not a run folder"):
        runs.read([tmp_path])


def test_a_joint_run_of_one_stage_has_no_backward_transfer(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").open({"strategies": ["joint"]}, {})
    run.base().begin().write_answers([])
    run.base().write_scores(_scores(TASKS, 0, 0, True, 0))
    stage = run.stage("joint", 0, 1).begin()
    stage.write_answers([])
    stage.write_scores({**_scores(TASKS, 3, 0, True, 0), "stage": 1, "task": None})
    words = _words(run.path)
    assert "1 · all tasks" in words
    assert "This run has no verdicts" in words


def test_swatches_and_panels_take_their_colours_from_the_page() -> None:
    line = drawing.Line(arm=1, points=[(0, Point(value=0.5)), (1, Point(value=0.7, low=0, high=1))])
    svg = drawing.over_stages([line], key="k", title='a "b" <c>', stages=[0, 1], span=(0, 1))
    assert svg.startswith("<svg viewBox=")
    assert "&lt;c&gt;" in svg
    assert "var(--arm-1)" in svg
    assert "var(--rule)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "font-family" not in svg


def test_points_over_seeds() -> None:
    assert runs.over_seeds([None]) is None
    assert runs.over_seeds([0.5, None]) == Point(value=0.5)
    both = runs.over_seeds([0.25, 0.75])
    assert both is not None
    assert both.low == pytest.approx(0.5 - 12.7062 * 0.25, abs=1e-3)  # Student's, one freedom
    alone = Point(value=0.5, low=0.4, high=0.6, n=90)
    assert runs.over_seeds([alone]) == alone


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.number(0.1234), "12.3"),
        (wording.number(-0.1234, signed=True), "−12.3"),
        (wording.number(-0.0001, signed=True), "0.0"),
        (wording.number(None), "–"),
        (wording.interval(-1.0, 2.5, "nats", signed=True), "[−1.0, +2.5]"),
        (wording.seconds(59.96), "60.0 s"),
        (wording.seconds(3725), "1 h 02 min"),
        (wording.size(1536), "1.5 KiB"),
        (wording.size(5), "5 B"),
        (wording.count(1234567), "1\u202f234\u202f567"),
        (wording.series(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_as_words(shown: str, expected: str) -> None:
    assert shown == expected


def test_sections_are_frozen_and_documented() -> None:
    for name, section in html.sections():
        assert dataclasses.is_dataclass(section), name
        with pytest.raises(dataclasses.FrozenInstanceError):
            section.place = 1  # type: ignore[misc]
        assert section.title


def _words(path: Path) -> str:
    return " ".join(Page(html.write_report([path]).read_text()).text.split())
