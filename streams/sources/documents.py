"""Documents of images among text to pre-train on: a folder of JSONL files with their images.

    {"images": ["a.jpg", null, "b.jpg", null], "texts": [null, "A ring.", null, "Two of them."]}

The format is that of OBELICS (Laurençon et al. 2023, arXiv 2306.16527), with paths in place of
addresses: two lists of equal length, at each place either an image or a text. A sample is plain.
Its message is the images that the document begins with, nothing where it begins with text; its
reference is the rest, images among text. Our reading: texts that follow one another are joined by
an empty line. The folder is laid out as for `streams/sources/llava_json.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

from streams.media import MediaError
from streams.sample import Image, Message, Part, Text
from streams.sources._folders import Foldered
from streams.sources._llava_records import (
    Problems,
    Record,
    StreamError,
    find,
    raw_records,
    refuse_slips,
    shown,
)


@dataclass(frozen=True, kw_only=True)
class Documents(Foldered):
    """Without a test file, a share of the images is held out, with all documents that show them."""

    plain: ClassVar[bool] = True

    def read(self, file: Path, folders: Sequence[Path], problems: Problems) -> list[Record]:
        records = []
        number = 0
        for number, (place, raw) in enumerate(raw_records(file, problems), start=1):
            try:
                records.append(_record(raw, number, place, folders))
            except (StreamError, MediaError, OSError) as error:
                problems.add(place, str(error))
        if not number and not problems.found:
            problems.add(problems.place(file), "holds no document")
        return records


def _record(raw: Any, number: int, place: str, folders: Sequence[Path]) -> Record:
    if not isinstance(raw, dict):
        raise StreamError(f"a document must be an object, not {shown(raw)}")
    refuse_slips(raw, (("images",), ("texts",)))
    images, texts = (_entries(raw, key) for key in ("images", "texts"))
    if len(images) != len(texts):
        raise StreamError(f"has {len(images)} images and {len(texts)} texts; their lists run along")
    parts: list[Part] = []
    names = []
    for at, (name, text) in enumerate(zip(images, texts, strict=True), start=1):
        if (name is None) == (text is None):
            what = "neither an image nor a text" if name is None else "both an image and a text"
            raise StreamError(f"place {at} holds {what}; give one, and null for the other")
        if name is not None:
            parts.append(Image(source=find(Image, name, folders)))
            names.append(name)
        elif parts and isinstance(last := parts[-1], Text):
            parts[-1] = Text(text=f"{last.text}\n\n{text}")
        else:
            parts.append(Text(text=str(text)))
    head = tuple(takewhile(lambda part: isinstance(part, Image), parts))
    rest = tuple(parts[len(head) :])
    if not any(isinstance(part, Text) and part.text.strip() for part in rest):
        raise StreamError("has no text, so there is nothing to learn")
    return Record(
        id=str(number),
        place=place,
        turns=(Message(role="user", parts=head), Message(role="assistant", parts=rest)),
        names=tuple(names),
    )


def _entries(raw: dict[str, Any], key: str) -> list[str | None]:
    value = raw.get(key)
    if not isinstance(value, list) or not all(one is None or isinstance(one, str) for one in value):
        raise StreamError(f"{key}: must be a list of texts and null, not {shown(value)}")
    return value
