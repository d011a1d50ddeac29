"""Reads LLaVA-format records from one JSON or JSONL file and finds everything wrong with them.

Knows the format of a record and where its media lie; knows no task and no split. A record:

    {"id": "000017", "image": "charts/17.png",
     "conversations": [{"from": "human", "value": "<image>\\nWhich bar is highest?"},
                       {"from": "gpt", "value": "The third one."}]}

`image` is a path, a list of paths, or absent for a record of text alone; `images` means the same.
Each `<image>` in a human turn stands for the next path. In the same way `video` or `videos`,
`audio` or `audios` and `points` name other media, for which `<video>`, `<audio>` and `<points>`
stand; a video may be a folder of numbered pictures. A first turn from `system` is allowed.
`rejected`, a text, makes the record a preference pair: its last answer is preferred to that one,
and the turns before are context alone. Further fields are not read; one whose name is close to
that of a field that is missing is taken for a slip.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streams.catalog import nearest
from streams.contents import check, identity
from streams.media import MediaError, inside
from streams.sample import MEDIA, Kind, Medium, Message, Part, Role, Text, Video
from streams.settings import SettingError

PLACEHOLDER = "<image>"
PLACEHOLDERS: dict[str, type[Medium]] = {f"<{medium.kind}>": medium for medium in MEDIA}
FOLDERS: dict[Kind, str] = {
    "image": "images",
    "video": "videos",
    "audio": "audio",
    "points": "points",
}
"""Where each kind is looked up first, of the folders that may hold it."""
SHOWN = 5
_HOLDER = re.compile("|".join(PLACEHOLDERS))
_ROLES: dict[str, Role] = {"system": "system", "human": "user", "gpt": "assistant"}
_SPACE = re.compile(r"[ \t\n\r]*")
_MEDIA_KEYS: dict[type[Medium], tuple[str, ...]] = {
    medium: tuple(dict.fromkeys((medium.kind, f"{medium.kind.removesuffix('s')}s")))
    for medium in MEDIA
}
_KEYS = (("id",), *_MEDIA_KEYS.values(), ("conversations",), ("rejected",))
"""The fields of a record; those of a group mean the same."""
_TURN_KEYS = (("from",), ("value",))
_ALIASES = {"user": "human", "assistant": "gpt", "bot": "gpt", "model": "gpt"}


class StreamError(SettingError):
    """A stream that cannot be loaded; the message gives file, record, line and reason."""


@dataclass(kw_only=True)
class Problems:
    """Collects what is wrong, so that a user mends many records at once."""

    where: str
    found: list[str] = field(default_factory=list)

    def place(self, file: Path) -> str:
        """The file's path below the folder, where it is there."""
        folder = Path(self.where)
        below = file != folder and file.is_relative_to(folder)
        return str(file.relative_to(folder)) if below else file.name

    def add(self, place: str, reason: str) -> None:
        self.found.append(f"{place}: {reason}")

    def check(self) -> None:
        """Raises StreamError with the first few problems and the number of the others."""
        if not self.found:
            return
        more = len(self.found) - SHOWN
        lines = [*self.found[:SHOWN], *([f"… and {more} more"] if more > 0 else [])]
        raise StreamError("\n  ".join([f"{self.where} cannot be used:", *lines]))


@dataclass(frozen=True, kw_only=True)
class Record:
    """A sound record: its id, its place in the file, its turns and its media."""

    id: str
    place: str
    turns: tuple[Message, ...]
    names: tuple[str, ...]
    """The media's paths as they are written in the file: the same on every machine."""
    rejected: tuple[Part, ...] = ()
    """An answer liked less than the last one."""

    @property
    def media(self) -> tuple[Medium, ...]:
        return tuple(medium for turn in self.turns for medium in turn.media)


def read_records(file: Path, folders: Sequence[Path], problems: Problems) -> list[Record]:
    """All sound records of `file`; the others go to `problems`.

    A medium's path is looked up in each of `folders` in turn, first in those named for its kind.
    """
    records: list[Record] = []
    first_place: dict[str, str] = {}
    for record in sound_records(raw_records(file, problems), folders, problems):
        if record.id in first_place:
            reason = f"id {record.id!r} is already that of {first_place[record.id]}"
            problems.add(record.place, reason)
            continue
        first_place[record.id] = record.place
        records.append(record)
    if not records and not problems.found:
        problems.add(problems.place(file), "holds no record")
    return records


def sound_records(
    rows: Iterable[tuple[str, Any]],
    folders: Sequence[Path],
    problems: Problems,
    as_llava: Callable[[Any], Any] = lambda raw: raw,
) -> Iterator[Record]:
    """The sound ones of (place, value) pairs; `as_llava` brings another format into this one."""
    for place, raw in rows:
        try:
            record = _record(as_llava(raw), place, folders)
        except (StreamError, MediaError, OSError) as error:
            problems.add(place, str(error))
            continue
        yield record


def check_media(records: Sequence[Record], problems: Problems) -> None:
    """Decodes every medium once. Pillow lets other threads work while it decodes."""
    users = {
        identity(medium): (medium, record)
        for record in reversed(records)
        for medium in record.media
    }

    def fault(user: tuple[Medium, Record]) -> str | None:
        try:
            check(user[0])
        except MediaError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        faults = pool.map(fault, users.values())
        for (_, record), reason in zip(users.values(), faults, strict=True):
            if reason:
                problems.add(record.place, reason)


def raw_records(file: Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    """(place, value) of each record, with the line on which it starts."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.add(problems.place(file), f"cannot be read as UTF-8 text: {error}")
        return
    try:
        if file.suffix == ".jsonl":
            yield from _from_lines(text, problems.place(file), problems)
        else:
            yield from _from_array(text, problems.place(file))
    except (ValueError, RecursionError) as error:
        problems.add(problems.place(file), _json_fault(error, text, 1))


def _from_lines(text: str, name: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    index = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        index += 1
        place = f"{name}, record {index} (line {number})"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(place, _json_fault(error, line, number))
            continue
        yield place, value


def _from_array(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Decodes element after element, because json alone forgets where each one stood."""
    decoder = json.JSONDecoder()

    def past_space(at: int) -> int:
        found = _SPACE.match(text, at)
        return found.end() if found else at

    at = past_space(0)
    if text[at : at + 1] != "[":
        hint = "; for one object a line, name it .jsonl" if text[at : at + 1] == "{" else ""
        raise StreamError(f"must hold a list of records{hint}")
    at, index, line, counted = past_space(at + 1), 0, 1, 0
    while text[at : at + 1] != "]":
        index += 1
        line, counted = line + text.count("\n", counted, at), at
        value, at = decoder.raw_decode(text, at)
        yield f"{name}, record {index} (line {line})", value
        at = past_space(at)
        if text[at : at + 1] == ",":
            at = past_space(at + 1)
            if text[at : at + 1] == "]":
                raise json.JSONDecodeError("Expecting a record after ','", text, at)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
    if past_space(at + 1) != len(text):
        raise json.JSONDecodeError("Extra data after the list", text, past_space(at + 1))


def _json_fault(error: Exception, text: str, first_line: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        line = first_line + error.lineno - 1
        return f"line {line}, column {error.colno}: is not valid JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return "is not valid JSON: nested too deeply"
    return str(error)


def _record(raw: Any, place: str, folders: Sequence[Path]) -> Record:
    if not isinstance(raw, dict):
        raise StreamError(f"a record must be an object, not {shown(raw)}")
    refuse_slips(raw, _KEYS)
    identity = raw.get("id")
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or identity == "":
        raise StreamError(f"id: must be a text or a number, not {shown(identity)}")
    names = {medium: _names(raw, keys) for medium, keys in _MEDIA_KEYS.items()}
    media = {
        medium: [medium(source=find(medium, name, folders)) for name in own]
        for medium, own in names.items()
    }
    turns = _turns(raw.get("conversations"), media)
    return Record(
        id=str(identity),
        place=place,
        turns=turns,
        names=tuple(name for own in names.values() for name in own),
        rejected=_rejected(raw, turns[-1].text),
    )


def refuse_slips(
    raw: Mapping[str, Any], fields: Sequence[tuple[str, ...]], where: str = ""
) -> None:
    """Raises StreamError for a key that must be a misspelt one of `fields` that is missing."""
    missing = [name for group in fields if not raw.keys() & group for name in group]
    known = {name for group in fields for name in group}
    for key in raw.keys() - known:
        low = key.lower()
        # Swapped letters count as near however short the word is.
        swapped = [name for name in missing if sorted(name) == sorted(low)]
        if near := swapped or difflib.get_close_matches(low, missing, n=1, cutoff=0.8):
            raise StreamError(f"{where}{key}: no such field; did you mean {near[0]}?")


def _rejected(raw: dict[str, Any], answer: str) -> tuple[Part, ...]:
    if "rejected" not in raw:
        return ()
    text = raw["rejected"]
    if not isinstance(text, str) or not text.strip() or _holders(text):
        raise StreamError(f"rejected: must be an answer of text alone, not {shown(text)}")
    if text.strip() == answer.strip():
        raise StreamError("rejected: is the same as the last answer")
    return (Text(text=text),)


def _names(raw: dict[str, Any], keys: Sequence[str]) -> list[str]:
    given = [key for key in keys if key in raw]
    if len(given) > 1:
        raise StreamError(f"has both {' and '.join(given)}; give one of them")
    names = raw.get(given[0]) if given else None
    names = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StreamError(f"{keys[0]}: must be a path or a list of paths, not {shown(names)}")
    return names


def find(medium: type[Medium], name: str, folders: Sequence[Path]) -> Path:
    """Where a medium of that name is; StreamError when none of the folders has it."""
    own = FOLDERS[medium.kind]
    found = [
        path
        for folder in sorted(folders, key=lambda one: one.name != own)
        if (path := inside(folder, name)).is_file() or (medium is Video and path.is_dir())
    ]
    if not found:
        looked = " or ".join(str(folder) for folder in folders)
        raise StreamError(f"{medium.kind}: there is no {name!r} in {looked}")
    return found[0]


def _turns(raw: Any, media: Mapping[type[Medium], Sequence[Medium]]) -> tuple[Message, ...]:
    if not isinstance(raw, list) or not raw:
        raise StreamError(f"conversations: must be a list of turns, not {shown(raw)}")
    left = {medium: list(given) for medium, given in media.items()}
    turns: list[Message] = []
    for number, turn in enumerate(raw, start=1):
        where = f"conversations, turn {number}"
        if isinstance(turn, dict):
            refuse_slips(turn, _TURN_KEYS, f"{where}: ")
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise StreamError(f"{where}: must have a from and a value of text; got {shown(turn)}")
        role = _role(turn.get("from"), where)
        text: str = turn["value"]
        expected = "assistant" if turns and turns[-1].role == "user" else "user"
        if role != expected and not (role == "system" and number == 1):
            if expected == "assistant":
                raise StreamError(f"{where}: the question before it has no answer")
            raise StreamError(f"{where}: comes from {turn['from']!r}; human and gpt must alternate")
        if role != "user" and (stray := _holders(text)):
            raise StreamError(f"{where}: {stray[0]} in a turn that is not from human")
        if role != "system" and not text.strip():
            kind = "answer" if role == "assistant" else "question"
            raise StreamError(f"{where}: the {kind} is empty")
        turns.append(Message(role=role, parts=_parts(text, left)))
    if turns[-1].role != "assistant":
        raise StreamError("has no answer: its last turn is not from gpt")
    holders = [holder for turn in raw for holder in _holders(str(turn["value"]))]
    more = {h: holders.count(h) - len(media[medium]) for h, medium in PLACEHOLDERS.items()}
    wrong = [
        f"{holders.count(holder)} {holder} placeholders for {len(media[medium])} "
        f"{_MEDIA_KEYS[medium][-1]}"
        for holder, medium in PLACEHOLDERS.items()
        if more[holder]
    ]
    if wrong:
        hint = ""
        if min(more.values()) < 0 < max(more.values()):
            hint = f"; did you mean {min(more, key=more.__getitem__)}?"
        raise StreamError(", ".join(wrong) + hint)
    return tuple(turns)


def _holders(text: str) -> list[str]:
    """The placeholders in a text, in reading order."""
    return _HOLDER.findall(text)


def _role(name: Any, where: str) -> Role:
    if not isinstance(name, str) or name not in _ROLES:
        meant = _ALIASES.get(str(name))
        hint = f"; did you mean {meant}?" if meant else nearest(str(name), list(_ROLES))
        raise StreamError(f"{where}: there is no role {shown(name)}{hint}")
    return _ROLES[name]


def _parts(text: str, left: Mapping[type[Medium], list[Medium]]) -> tuple[Part, ...]:
    """Text and media in reading order; takes the media it needs from `left`.

    The line break that LLaVA writes between a placeholder and the text belongs to neither.
    """
    holders, pieces = _holders(text), _HOLDER.split(text)
    parts: list[Part] = []
    for index, piece in enumerate(pieces):
        if index and (given := left[PLACEHOLDERS[holders[index - 1]]]):
            parts.append(given.pop(0))
        piece = piece.removeprefix("\n") if index else piece
        piece = piece.removesuffix("\n") if index < len(pieces) - 1 else piece
        if piece:
            parts.append(Text(text=piece))
    return tuple(parts)


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
