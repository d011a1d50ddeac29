"""Reads published streams from their official files: a table of tasks, two JSON files each.

Knows the two record formats that these sets share and how to find a task's files; a stream's own
layout is the table in its module. A record is LLaVA's (`streams/sources/_llava_records.py`), as
the training files are, or a question with its answer, as the test files are:

    {"question_id": "7", "image": "./GQA/images/7.jpg", "text": "Is it open?", "answer": "no"}

Ids are not read: in some files they repeat. A record is known by its task, split and number.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from streams.catalog import nearest
from streams.sample import Provenance, Sample, Scorer
from streams.scoring import box
from streams.settings import SettingError
from streams.sources._llava_records import (
    PLACEHOLDER,
    Problems,
    Record,
    StreamError,
    check_media,
    raw_records,
    shown,
    sound_records,
)
from streams.stream import Task

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task of a published stream. Where there are several names, the first that is there."""

    task: str
    places: tuple[str, ...]
    """Folders that may hold the task's files."""
    train: tuple[str, ...] = ("train.json",)
    test: tuple[str, ...] = ("test.json",)
    scorer: Scorer = "exact"
    published: str = "exact match"
    """How the authors score the task."""
    answer: str = "answer"
    """The field with a test record's answer."""
    captions: str | None = None
    """A file beside the test file, in COCO's format, whose n-th image is the n-th record's. All its
    captions of an image count as references."""
    people: str | None = None
    """A file among the pictures, in TextVQA's format, with what several people answered to the
    test questions, by `question_id`. Without it the one answer of the record counts."""


@dataclass(frozen=True, kw_only=True)
class Official:
    """What all published streams share; each adds its table."""

    folder: Path
    """Where the official files are."""
    only: tuple[str, ...] | None = None
    """Tasks to read, in this order; left out, all of them in the published order."""
    train_items: PositiveInt | None = None
    """Train records of each task at most, drawn evenly by `seed`; left out, all."""
    test_items: PositiveInt | None = None
    """Test records of each task at most."""
    seed: NonNegativeInt = 0
    """Draws the records where there are more than asked for."""

    title: ClassVar[str]
    rows: ClassVar[tuple[Row, ...]]
    roots: ClassVar[tuple[str, ...]] = (".",)
    """Where in the folder the tasks' places may be."""
    question: ClassVar[str] = "text"
    """The field with a test record's question."""

    def __post_init__(self) -> None:
        known = [row.task for row in self.rows]
        where = f"{type(self).__name__.lower()}.only"
        for name in self.only or ():
            if name not in known:
                raise SettingError(f"{where}: there is no task {name!r}{nearest(name, known)}")
        if self.only is not None and len(set(self.only)) != max(len(self.only), 1):
            raise SettingError(f"{where}: name each task once, at least one; got {self.only!r}")

    def tasks(self) -> tuple[Task, ...]:
        """Raises StreamError for missing files, else for the first file with faulty records."""
        folder = self.folder.expanduser()
        if not folder.is_dir():
            raise StreamError(f"{folder}: there is no such folder")
        by_name = {row.task: row for row in self.rows}
        rows = [by_name[name] for name in self.only or by_name]
        problems = Problems(where=str(folder))
        files = {
            (row.task, split): self._file(row, split, problems) for row in rows for split in SPLITS
        }
        problems.check()
        return tuple(
            Task(
                name=row.task,
                train=self._samples(row, "train", files[row.task, "train"]),
                test=self._samples(row, "test", files[row.task, "test"]),
                description=self._description(row, files[row.task, "test"]),
            )
            for row in rows
        )

    def _description(self, row: Row, test: Path) -> str:
        lacking = row.people and not self._people_file(row, test)
        against = f" against one answer, without {row.people}" if lacking else ""
        return f"scored by {row.scorer}{against}; as published: {row.published}"

    def picture_folders(self, row: Row, file: Path) -> list[Path]:
        """Where the pictures of the records in `file` are looked up."""
        return []

    def check(self, records: list[Record], problems: Problems) -> None:
        """A last look at the records that were chosen."""

    def _file(self, row: Row, split: Split, problems: Problems) -> Path:
        names = row.train if split == "train" else row.test
        places = [str(PurePosixPath(root, place)) for root in self.roots for place in row.places]
        for place in places:
            for name in names:
                if (path := self.folder.expanduser() / place / name).is_file():
                    return path
        expected = f"expected {' or '.join(names)} in {' or '.join(places)}"
        problems.add(f"task {row.task}", f"there is no {split} file; {expected}")
        return Path()

    def _samples(self, row: Row, split: Split, file: Path) -> list[Sample]:
        problems = Problems(where=str(file))
        numbered = list(enumerate(raw_records(file, problems), start=1))
        if not numbered and not problems.found:
            problems.add(file.name, "holds no record")
        references = self._references(row, file, numbered, problems) if split == "test" else {}
        problems.check()

        def as_llava(value: Any) -> Any:
            number, raw = value
            default = next(iter(references.get(str(number), ())), None) if row.captions else None
            return _as_llava(raw, number, self.question, row.answer, default)

        chosen = [numbered[index] for index in self._chosen(len(numbered), row, split)]
        rows = [(place, (number, raw)) for number, (place, raw) in chosen]
        folders = self.picture_folders(row, file)
        records = list(sound_records(rows, folders, problems, as_llava))
        self.check(records, problems)
        for record in records if row.scorer == "iou" and split == "test" else ():
            if not box(record.turns[-1].text):
                reason = f"{shown(record.turns[-1].text)} holds no box [left, top, right, bottom]"
                problems.add(record.place, reason)
        problems.check()
        return [
            sample
            for record in records
            for sample in self._asked(row, split, record, references.get(record.id, ()))
        ]

    def _references(
        self, row: Row, file: Path, numbered: list[tuple[int, Any]], problems: Problems
    ) -> Mapping[str, tuple[str, ...]]:
        """Record number, from 1 → all answers that count, for records that have several."""
        if row.captions:
            return _captions(file.parent / row.captions, problems)
        found = _people(self._people_file(row, file), problems)
        by_record = {
            str(number): found.get(str(raw.get("question_id")))
            for number, (_, raw) in numbered
            if isinstance(raw, dict)
        }
        return {number: texts for number, texts in by_record.items() if texts}

    def _people_file(self, row: Row, file: Path) -> Path | None:
        folders = self.picture_folders(row, file) if row.people else []
        places = [
            folder / place / str(row.people) for folder in folders for place in (row.task, ".")
        ]
        return next((path for path in places if path.is_file()), None)

    def _chosen(self, count: int, row: Row, split: Split) -> list[int]:
        """Indices in the order of the file. A larger draw holds the smaller ones."""
        items = self.train_items if split == "train" else self.test_items
        stream = zlib.crc32(f"{self.title}/{row.task}/{split}".encode())
        order = np.random.default_rng([stream, self.seed]).permutation(count)
        return sorted(order[:items].tolist())

    def _asked(
        self, row: Row, split: Split, record: Record, references: tuple[str, ...]
    ) -> list[Sample]:
        """A sample for each answer of the conversation, with the turns before it as context."""
        about = min(record.names, default=f"{split}/{record.id}")
        return [
            Sample(
                id=f"{row.task}/{split}/{record.id}/{turn}",
                messages=record.turns[:turn],
                reference=message.parts,
                provenance=Provenance(
                    source=self.title,
                    split=split,
                    item=f"{row.task}: {record.place}, turn {turn + 1}",
                ),
                scorer=row.scorer,
                cluster=f"{row.task}/{about}",
                metadata=MappingProxyType(
                    {"references": references}
                    if references and turn == len(record.turns) - 1
                    else {}
                ),
            )
            for turn, message in enumerate(record.turns)
            if message.role == "assistant"
        ]


@dataclass(frozen=True, kw_only=True)
class Pictured(Official):
    """A published stream with pictures."""

    image_folder: Path | None = None
    """Where the pictures' paths begin, relative to `folder` or absolute; left out, the places of
    the official layout. A link that leads out of it is refused."""
    check_images: bool = False
    """Decodes every chosen picture at load, which takes long for whole sets. Off, only that the
    file is there is checked, and a broken one stops the training that meets it."""

    image_roots: ClassVar[tuple[str, ...]] = (".",)
    """Where in the folder the pictures' paths may begin."""

    def picture_folders(self, row: Row, file: Path) -> list[Path]:
        folder = self.folder.expanduser()
        if self.image_folder is None:
            candidates = [*(folder / root for root in self.image_roots), file.parent]
        else:
            chosen = folder / self.image_folder.expanduser()
            if not chosen.is_dir():
                raise StreamError(f"image_folder: there is no folder {chosen}")
            candidates = [chosen, *(chosen / place for place in row.places)]
        return [path for path in dict.fromkeys(candidates) if path.is_dir()]

    def check(self, records: list[Record], problems: Problems) -> None:
        if self.check_images:
            check_media(records, problems)


def _as_llava(raw: Any, number: int, question: str, answer: str, default: str | None) -> Any:
    """A record of either format as LLaVA's, its number as its id."""
    if not isinstance(raw, dict):
        return raw
    pictures = {"image": raw["image"]} if raw.get("image") else {}
    if question not in raw and "conversations" in raw:
        return {"id": number, **pictures, "conversations": raw["conversations"]}
    said = raw.get(answer, default)
    if isinstance(said, (int, float)) and not isinstance(said, bool):
        said = str(said)
    for name, value in ((question, raw.get(question)), (answer, said)):
        if not isinstance(value, str):
            raise StreamError(
                f"{name}: must be a text, not {shown(value)}; a record has {question} and "
                f"{answer}, or conversations"
            )
    asked: str = raw[question]
    if pictures:
        bare = asked.replace(f"{PLACEHOLDER}\n", "").replace(PLACEHOLDER, "")
        asked = f"{PLACEHOLDER}\n{bare}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    return {"id": number, **pictures, "conversations": turns}


def _captions(file: Path, problems: Problems) -> Mapping[str, tuple[str, ...]]:
    """Image number, from 1 → its captions; empty when there is no such file."""
    captions: defaultdict[str, list[str]] = defaultdict(list)
    with _format(file, problems, "annotations, a list of image_id and caption"):
        for one in _json(file)["annotations"] if file.is_file() else ():
            captions[str(int(one["image_id"]))].append(str(one["caption"]))
    return {image: tuple(texts) for image, texts in captions.items()}


def _people(file: Path | None, problems: Problems) -> Mapping[str, tuple[str, ...]]:
    """Question id → what people answered to it; empty without a file."""
    found: dict[str, tuple[str, ...]] = {}
    if file is not None:
        with _format(file, problems, "data, a list of question_id and answers"):
            for one in _json(file)["data"]:
                found[str(one["question_id"])] = tuple(str(said) for said in one["answers"])
    return found


def _json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8-sig"))


@contextmanager
def _format(file: Path, problems: Problems, expected: str) -> Iterator[None]:
    """What goes wrong in the block is a problem of the file."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problems.add(file.name, f"{type(error).__name__}: {error}; expected {expected}")
