"""Users' data in a folder: finds the tasks' files, splits, checks for leaks, makes the samples.

Knows layouts and splits; how a file is read is each source's own. The layouts are described in
`streams/sources/llava_json.py`.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from streams.catalog import nearest
from streams.media import MediaError, inside
from streams.sample import Provenance, Sample, Scorer
from streams.scoring import box, yes_or_no
from streams.sources._llava_records import FOLDERS, Problems, Record, StreamError, check_media
from streams.stream import Task

_SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Foldered(ABC):
    """What all sources that read a user's folder share; each adds `read`."""

    folder: Path
    """Where the data are."""
    image_folder: Path | None = None
    """Where the images and other media are, relative to `folder` or absolute; the only place that
    is searched."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The share of images or other media held out where there is no test file."""
    scorer: Scorer | None = None
    """Instead of the rule that the answers suggest."""
    licence: str = "unknown"
    """Recorded with every sample."""
    check_images: bool = True
    """Decodes all media at load. Off, a broken one stops the training that meets it."""

    plain: ClassVar[bool] = False
    """Whether the samples are plain text and media, without turns."""

    @abstractmethod
    def read(self, file: Path, folders: Sequence[Path], problems: Problems) -> list[Record]:
        """All sound records of a file, whose media are in `folders`; the others' problems."""

    def tasks(self) -> tuple[Task, ...]:
        """Raises StreamError with the first problems and the number of the others."""
        if not self.folder.is_dir():
            raise StreamError(f"{self.folder}: there is no such folder")
        problems = Problems(where=str(self.folder))
        sides = [
            (
                name,
                self._read(train, problems),
                None if test is None else self._read(test, problems),
            )
            for name, train, test in self._files()
        ]
        if self.check_images:
            read = [r for _, train, test in sides for r in (*train, *(test or ()))]
            check_media(read, problems)
        problems.check()
        return tuple(self._task(name, train, test) for name, train, test in sides)

    def _files(self) -> list[tuple[str, Path, Path | None]]:
        """(task name, train file, test file or None) of each task."""
        if train := _json(self.folder, "train"):
            _no_strays(self.folder)
            return [(_name(self.folder.resolve().name), train, _json(self.folder, "test"))]
        folders = [path for path in sorted(self.folder.iterdir()) if path.is_dir()]
        found = [
            (_name(path.name), train, _json(path, "test"))
            for path in folders
            if (train := _json(path, "train"))
        ]
        for path in folders if found else ():
            _no_strays(path)
        singles = [path for path in sorted(self.folder.iterdir()) if _is_data(path)]
        if found and singles:
            raise StreamError(
                f"{self.folder}: holds both task folders ({found[0][1].parent.name}/) and task "
                f"files ({singles[0].name}); keep one kind"
            )
        found = found or [(_name(path.stem), path, None) for path in singles]
        if not found:
            raise StreamError(
                f"{self.folder}: holds no task; give it train.json and test.json, "
                "sub-folders with those, or one JSON file a task"
            )
        names = [name for name, *_ in found]
        if twice := {name for name in names if names.count(name) > 1}:
            raise StreamError(f"{self.folder}: two tasks would be named {min(twice)!r}")
        return found

    def _read(self, file: Path, problems: Problems) -> list[Record]:
        return self.read(file, self._media_folders(file.parent), problems)

    def _media_folders(self, beside: Path) -> list[Path]:
        if self.image_folder is not None:
            chosen = self.folder / self.image_folder
            if not chosen.is_dir():
                raise StreamError(f"image_folder: there is no folder {chosen}")
            return [chosen]
        own = [folder / name for name in FOLDERS.values() for folder in (beside, self.folder)]
        candidates = [*own, beside, self.folder]
        existing = [path for path in dict.fromkeys(candidates) if path.is_dir()]
        for path in existing:
            try:
                inside(self.folder, str(path.relative_to(self.folder)))
            except MediaError as error:
                raise StreamError(f"{error}; if you trust it, name it as image_folder") from None
        return existing

    def _task(self, name: str, train: list[Record], test: list[Record] | None) -> Task:
        note = ""
        if test is None:
            train, test = self._held_out(name, train)
            note = f"the test is {self.test_share:.0%} of the images, held out"
        fitting = _fitting_scorer([*train, *test])
        if self.scorer == "yes_no" and fitting != "yes_no":
            raise StreamError(f"scorer: yes_no, but not every answer of task {name} is yes or no")
        if self.scorer == "iou":
            _require_boxes(name, [*train, *test])
        scorer = self.scorer or fitting
        sides = {
            split: [
                sample for record in side for sample in self._samples(name, split, record, scorer)
            ]
            for split, side in (("train", train), ("test", test))
        }
        _refuse_leaks(f"{self.folder}: task {name}", sides["train"], sides["test"])
        return Task(name=name, train=sides["train"], test=sides["test"], description=note)

    def _held_out(self, name: str, records: list[Record]) -> tuple[list[Record], list[Record]]:
        """Splits by groups of records that share a medium, in the order of the groups' hashes."""
        groups = _groups(records)
        groups.sort(key=lambda group: hashlib.sha256(min(map(_key, group)).encode()).digest())
        wanted = math.ceil(self.test_share * len(groups))
        if wanted >= len(groups):
            raise StreamError(
                f"{self.folder}: task {name}: {len(groups)} image(s) are too few to hold some out; "
                "give the task a train.json and a test.json"
            )
        chosen = {record.place for group in groups[:wanted] for record in group}
        return (
            [record for record in records if record.place not in chosen],
            [record for record in records if record.place in chosen],
        )

    def _samples(self, name: str, split: str, record: Record, scorer: Scorer) -> list[Sample]:
        file = record.place.split(",", 1)[0]
        return [
            Sample(
                id=f"{name}/{file}/{record.id}/{turn}",
                messages=record.turns[:turn],
                reference=record.turns[turn].parts,
                provenance=Provenance(
                    source=self.folder.resolve().name,
                    split=split,
                    item=f"{name}: {record.place}, turn {turn + 1}",
                    licence=self.licence,
                ),
                scorer=scorer,
                cluster=f"{name}/{_key(record)}",
                rejected=record.rejected,
                plain=self.plain,
            )
            for turn, message in enumerate(record.turns)
            if message.role == "assistant"
            and (not record.rejected or turn == len(record.turns) - 1)
        ]


def _is_data(path: Path) -> bool:
    return path.suffix in _SUFFIXES and not path.name.startswith(".")


def _no_strays(folder: Path) -> None:
    """Data that would be passed over is an error: a misspelt test.json must not vanish."""
    for path in sorted(folder.iterdir()):
        used = path.stem in ("train", "test") and path.suffix in _SUFFIXES
        if path.is_file() and path.suffix.lower() in _SUFFIXES and not used:
            hint = nearest(path.stem.lower(), ["train", "test"])
            raise StreamError(f"{path}: only train and test files are read here{hint}")


def _json(folder: Path, stem: str) -> Path | None:
    found = [path for suffix in _SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
    if len(found) > 1:
        raise StreamError(f"{folder}: holds both {found[0].name} and {found[1].name}; keep one")
    return found[0] if found else None


def _name(text: str) -> str:
    """A task's name is part of its figures' names: letters, digits, `_` and `-`."""
    return re.sub(r"[^\w-]+", "-", text).strip("-") or "task"


def _key(record: Record) -> str:
    """What a record is about: a medium, or the record itself."""
    return min(record.names, default=record.id)


def _opening(record: Record) -> str:
    roles = [turn.role for turn in record.turns]
    return repr([turn.text for turn in record.turns[: roles.index("assistant") + 1]])


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """Records that share a medium, directly or through others, are one group.

    So are records of text alone that agree up to their first answer.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parent.setdefault(key, key)) != key:
            key = above
        return key

    keys = [
        [str(medium.source) for medium in record.media] or [_opening(record)] for record in records
    ]
    for first, *others in keys:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    groups: dict[str, list[Record]] = {}
    for record, (first, *_) in zip(records, keys, strict=True):
        groups.setdefault(root(first), []).append(record)
    return list(groups.values())


def _fitting_scorer(records: Sequence[Record]) -> Scorer:
    answers = [turn.text for record in records for turn in record.turns if turn.role == "assistant"]
    if all(yes_or_no(answer) and len(answer.split()) == 1 for answer in answers):
        return "yes_no"
    return "exact" if all(len(answer.split()) <= 3 for answer in answers) else "rouge_l"


def _require_boxes(name: str, records: Sequence[Record]) -> None:
    for record in records:
        answers = [turn.text for turn in record.turns if turn.role == "assistant"]
        if not all(map(box, answers)):
            raise StreamError(
                f"scorer: iou, but task {name}, {record.place}: {answers[0]!r} holds no box "
                "[left, top, right, bottom]"
            )


def _refuse_leaks(where: str, train: Sequence[Sample], test: Sequence[Sample]) -> None:
    """The same media, question and answer in both would reward memory."""

    def content(sample: Sample) -> tuple[object, ...]:
        media = tuple((medium.kind, str(medium.source)) for medium in sample.media)
        return media, tuple(m.text for m in sample.messages), sample.reference_text

    known = {content(sample): sample for sample in train}
    problems = Problems(where=where)
    for sample in test:
        if twin := known.get(content(sample)):
            problems.add(sample.provenance.item, f"is also in train: {twin.provenance.item}")
    problems.check()
