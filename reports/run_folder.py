"""The run folder: where everything a run leaves behind lies, and what it looks like.

The only file that knows a path inside a run folder; `reports.records` says what the files hold.
It trains nothing, scores nothing and draws nothing. A folder may come from anybody: names are
checked, every file read must lie inside the folder, there is no pickle, and pictures are known by
the hash of their bytes.

    RUN/
      config.yaml        the resolved study; a resumed run refuses a changed one
      provenance.json    {"schema": 1, "sessions": [...]}: one mapping each time the run was opened
      base/              stage 0, shared by all strategies and seeds; a stage folder
      STRATEGY/seed-S/
        events.jsonl     one JSON object a line; a torn last line is tolerated
        stages/NN/       a stage folder
      media/HASH.png     thumbnails by content hash
      report.html

A stage folder holds `answers.jsonl` (one `AnswerRecord` a line), `outcomes.json` (`Outcomes`, what
paired tests need), `checkpoint/`, and `scores.json` (`Scores`), which is written last and by
rename: its existence means that the stage is done.

Several processes may write at once as long as each strategy and seed has one writer; `open` is
called once, by the parent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reports import records
from reports.differences import differences
from reports.records import AnswerRecord, Outcomes, RunFolderError, Scores

HARMLESS = frozenset({"workers", "answer_batch_size"})
"""Top-level keys of config.yaml that may differ on resume: they change no number."""

MAX_FILE_BYTES = 512 * 2**20
"""A larger JSON or YAML file is refused rather than read into memory."""

UNTRAINED = frozenset({"zero_shot"})
"""Strategies that leave the model as it is; what is known of them is the base."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,149}")
_HASH = re.compile(r"[0-9a-f]{32}")
_RESERVED = frozenset({"base", "media"})
_PNG = b"\x89PNG\r\n\x1a\n"


class ConfigChangedError(RunFolderError):
    """The study on resume differs from the study the folder was made for."""


class RunFolder:
    """A run folder at `path`. Making the object touches nothing; `open` creates or resumes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def exists(self) -> bool:
        return (self.path / "config.yaml").is_file()

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def open(self, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> RunFolder:
        """Create the folder, or resume it and add a session to its provenance.

        Raises ConfigChangedError, with the difference field by field, if `config` differs from the
        folder's in more than the `HARMLESS` keys; the folder's config is never rewritten.
        """
        config = records.plain(config)
        if self.exists:
            changed = differences(self.config(), config, but=HARMLESS)
            if changed:
                raise ConfigChangedError(
                    f"{self.path}: this run was made with another configuration:\n  "
                    + "\n  ".join(changed)
                    + "\nResume with the old configuration, or give another folder."
                )
            sessions = self.provenance()
        else:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise RunFolderError(
                    f"{self.path}: exists, and is not a run folder (it has no config.yaml); "
                    "give a new or empty folder"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
            write_whole(self.path / "config.yaml", text.encode())
            sessions = []
        sessions.append(records.plain(provenance))
        _write_json(self.path / "provenance.json", {"schema": records.SCHEMA, "sessions": sessions})
        return self

    def config(self) -> dict[str, Any]:
        """The resolved study this folder was made for."""
        path = self.path / "config.yaml"
        try:
            value = yaml.safe_load(self.config_text())
        except yaml.YAMLError as error:
            raise RunFolderError(f"{path}: not YAML: {error}") from None
        if not isinstance(value, dict):
            raise RunFolderError(f"{path}: expected a mapping, found {type(value).__name__}")
        return value

    def config_text(self) -> str:
        if not self.exists:
            raise RunFolderError(f"{self.path}: not a run folder: it has no config.yaml")
        return self.read(self.path / "config.yaml").decode("utf-8", errors="replace")

    def provenance(self) -> list[dict[str, Any]]:
        """One mapping for each time the run was opened; empty if there is no record."""
        path = self.path / "provenance.json"
        if not path.is_file():
            return []
        record = records.parse(self.read(path), path)
        sessions = record.get("sessions") if isinstance(record, dict) else None
        if not isinstance(sessions, list) or not all(isinstance(s, dict) for s in sessions):
            raise RunFolderError(f"{path}: expected sessions, a list of mappings")
        return sessions

    @property
    def reveals_unsafe(self) -> bool:
        """Whether texts and pictures of withheld items were stored."""
        return any(session.get("reveal_unsafe") for session in self.provenance())

    def base(self) -> StageFolder:
        """Stage 0: the model before any training, shared by all strategies and seeds."""
        return StageFolder(run=self, path=self.path / "base", strategy=None, seed=None, stage=0)

    def stage(self, strategy: str, seed: int, stage: int) -> StageFolder:
        """The folder of a stage, 1-based; stage 0 is the base."""
        if stage == 0:
            return self.base()
        if stage < 0 or seed < 0:
            raise RunFolderError(f"seed and stage are not negative; got {seed} and {stage}")
        path = self._strategy(strategy) / f"seed-{seed}" / "stages" / f"{stage:02d}"
        return StageFolder(run=self, path=path, strategy=strategy, seed=seed, stage=stage)

    def studied(self) -> dict[str, Mapping[str, Any]]:
        """Label → name and settings of the strategies that the study lists, in its order."""
        entries = self.config().get("strategies") or []
        specs = [entry if isinstance(entry, dict) else {"name": str(entry)} for entry in entries]
        return {str(spec.get("label") or spec.get("name")): spec for spec in specs}

    def untrained(self) -> list[str]:
        """Labels of the listed strategies that train nothing and so have no stage."""
        return [label for label, spec in self.studied().items() if spec.get("name") in UNTRAINED]

    def strategies(self) -> list[str]:
        """Names with at least one seed's folder: in the study's order, then by name."""
        return self._in_order(
            path.name
            for path in self.path.iterdir()
            if _NAME.fullmatch(path.name)
            and path.name not in _RESERVED
            and next(path.glob("seed-*"), None) is not None
        )

    def listed(self) -> list[str]:
        """As `strategies`, with those that train nothing in their places."""
        return self._in_order({*self.strategies(), *self.untrained()})

    def _in_order(self, names: Iterable[str]) -> list[str]:
        order = list(self.studied())

        def rank(name: str) -> tuple[int, str]:
            known = [n for n in (name, name.partition("-")[0]) if n in order]
            return (order.index(known[0]) if known else len(order)), name

        return sorted(names, key=rank)

    def seeds(self, strategy: str) -> list[int]:
        return _numbers(self._strategy(strategy), r"seed-(\d+)")

    def stages(self, strategy: str, seed: int) -> list[int]:
        """The stages that are done, without the base."""
        folder = self._strategy(strategy) / f"seed-{seed}" / "stages"
        return [n for n in _numbers(folder, r"(\d+)") if n and self.stage(strategy, seed, n).done]

    def finished(self, strategy: str, seed: int) -> list[int]:
        """The stages that are done from the first on; after a gap is another attempt's."""
        done = self.stages(strategy, seed)
        return [number for place, number in enumerate(done, 1) if number == place]

    def put_thumbnail(self, png: bytes) -> str:
        """Store PNG bytes once and return their name; safe from several processes at a time."""
        if not png.startswith(_PNG):
            raise RunFolderError("a thumbnail must be the bytes of a PNG file")
        name = hashlib.sha256(png).hexdigest()[:32]
        path = self.path / "media" / f"{name}.png"
        if not path.is_file():
            # A power cut may tear it: `thumbnail` checks the hash, so no fsync is needed here.
            write_whole(path, png, durable=False)
        return name

    def thumbnail(self, name: str) -> bytes | None:
        """The PNG bytes stored under `name`; None if missing or not what its name promises."""
        if not _HASH.fullmatch(name):
            raise RunFolderError(f"media: {name!r} is not a content hash")
        path = self.path / "media" / f"{name}.png"
        if not path.is_file():
            return None
        png = self.read(path)
        good = png.startswith(_PNG) and hashlib.sha256(png).hexdigest()[:32] == name
        return png if good else None

    def read(self, path: Path) -> bytes:
        """The bytes of a file that really lies inside this folder (a link may not lead out)."""
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise RunFolderError(f"{path}: leads out of the run folder")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RunFolderError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes")
        return path.read_bytes()

    def _strategy(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise RunFolderError(
                f"strategy {name!r}: a name has letters, digits and '_-.=+', starts with a "
                f"letter or digit, and is not {' or '.join(sorted(_RESERVED))}"
            )
        return self.path / name


@dataclass(frozen=True, kw_only=True)
class StageFolder:
    """What one stage of one strategy and seed leaves behind."""

    run: RunFolder
    path: Path
    strategy: str | None
    """None at the base."""
    seed: int | None
    """None at the base."""
    stage: int

    @property
    def done(self) -> bool:
        return (self.path / "scores.json").is_file()

    @property
    def checkpoint(self) -> Path:
        """A folder for the learner's state; whoever saves it makes it."""
        return self.path / "checkpoint"

    def begin(self) -> StageFolder:
        """An empty folder to work in: what an interrupted attempt left is removed."""
        if self.done:
            raise RunFolderError(f"{self.path}: this stage is done; it is never overwritten")
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        return self

    def write_answers(self, answers: Iterable[Mapping[str, Any]]) -> None:
        path = self.path / "answers.jsonl"
        checked = records.check(
            records.ANSWERS, [records.plain(answer) for answer in answers], path
        )
        write_whole(path, b"".join(records.line(answer) for answer in checked))

    def read_answers(self) -> list[AnswerRecord]:
        path = self.path / "answers.jsonl"
        if not path.is_file():
            raise RunFolderError(f"{path}: missing; was the stage interrupted?")
        lines = self.run.read(path).splitlines()
        answers = [records.parse(line, path, number) for number, line in enumerate(lines, 1)]
        return records.check(records.ANSWERS, answers, path)

    @property
    def has_outcomes(self) -> bool:
        return (self.path / "outcomes.json").is_file()

    def write_outcomes(self, outcomes: Mapping[str, Any]) -> None:
        path = self.path / "outcomes.json"
        _write_json(path, records.check(records.OUTCOMES, records.plain(outcomes), path))

    def read_outcomes(self) -> Outcomes:
        path = self.path / "outcomes.json"
        if not self.has_outcomes:
            raise RunFolderError(f"{path}: missing; paired comparisons need it")
        return records.check(records.OUTCOMES, records.parse(self.run.read(path), path), path)

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Write scores.json, which marks the stage as done: call it last. `schema` is filled in."""
        path = self.path / "scores.json"
        record = {"schema": records.SCHEMA, "stage": self.stage, **records.plain(scores)}
        if record["stage"] != self.stage:
            raise RunFolderError(f"{path}: scores of stage {record['stage']} belong elsewhere")
        records.check(records.SCORES, record, path)
        _write_json(path, record)

    def read_scores(self) -> Scores:
        """The validated scores. Raises RunFolderError if the stage is unfinished or malformed."""
        path = self.path / "scores.json"
        if not self.done:
            raise RunFolderError(f"{path}: missing, so the stage did not finish; run it again")
        record = records.parse(self.run.read(path), path)
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != records.SCHEMA:
            raise RunFolderError(
                f"{path}: schema {schema!r}, but this version reads {records.SCHEMA}; "
                "the folder was written by another version of clmm"
            )
        return records.check(records.SCORES, record, path)

    def append_events(self, *events: Mapping[str, Any]) -> None:
        """Append to the events of this strategy and seed (one writer at a time)."""
        path = self._events
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = b"".join(records.line(records.plain(event)) for event in events)
        with path.open("a+b") as file:
            file.seek(0)
            whole = file.read().rpartition(b"\n") if _torn(file) else None
            if whole is not None:  # a killed process left half a line: drop it
                file.truncate(len(whole[0]) + len(whole[1]))
            file.write(lines)

    append_event = append_events

    def read_events(self) -> list[dict[str, Any]]:
        """The events of this strategy and seed, of all its stages and attempts."""
        path = self._events
        if not path.is_file():
            return []
        whole, _, _ = self.run.read(path).rpartition(b"\n")
        return [
            records.parse(line, path, number) for number, line in enumerate(whole.splitlines(), 1)
        ]

    @property
    def _events(self) -> Path:
        return (self.path if self.strategy is None else self.path.parent.parent) / "events.jsonl"


def _numbers(folder: Path, pattern: str) -> list[int]:
    if not folder.is_dir():
        return []
    matches = (re.fullmatch(pattern, path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def _torn(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    torn = file.read(1) != b"\n"
    file.seek(0)
    return torn


def _write_json(path: Path, record: Any) -> None:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1)
    write_whole(path, text.encode() + b"\n")


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write by rename, so that a reader or a killed process never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable and hasattr(os, "O_DIRECTORY"):
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
