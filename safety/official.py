"""Published probes' files by local path: hashes checked, faults named by file, line and id.

Knows files, records and ids; what a record means, each reader in `safety/probes` says. Nothing is
ever downloaded. Files are untrusted: JSON, CSV and text only, pictures inside their folder only.
Of a file that is read as withheld no error shows a value, only its kind and length.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from streams.catalog import nearest
from streams.media import MediaError, inside
from streams.sample import Image

T = TypeVar("T")
MOST_BYTES = 2**30
"""Longest file that is read."""
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_KINDS |= {list: "a list", dict: "a mapping"}


class OfficialFileError(ValueError):
    """A published file that is missing, altered or broken; names the file, the place, the id."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of a file and where it stands."""

    place: str
    """`coco_pope_random.json:12`, for errors."""
    values: Mapping[str, Any]
    withheld: bool = False
    """Whether errors may show no value."""

    def at(self, place: str, values: Mapping[str, Any] | None = None) -> Record:
        """This record under another place, or a part of it; withheld as it is."""
        return replace(self, place=place, values=self.values if values is None else values)

    def get(self, field: str, kind: type[T]) -> T:
        """The field's value; raises OfficialFileError when it is not there or of another kind."""
        if field not in self.values:
            # Without its header a table's first texts are its fields.
            known = [] if self.withheld else [str(key) for key in self.values]
            near = nearest(field, known) if known else ""
            raise OfficialFileError(f"{self.place}: has no field {field!r}{near}")
        value: Any = self.values[field]
        exact = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if not exact:
            wanted = _KINDS.get(kind, kind.__name__)
            raise OfficialFileError(
                f"{self.place}: {field}: must be {wanted}; got {self._of(value)}"
            )
        return value

    def one_of(self, field: str, known: Sequence[str]) -> str:
        """A label, in lower case; raises OfficialFileError for one that is not known."""
        value = self.get(field, str).strip().lower()
        if value not in known:
            near = nearest("" if self.withheld else value, list(known))
            raise OfficialFileError(
                f"{self.place}: {field}: there is no label {self._of(value)}{near}"
            )
        return value

    def _of(self, value: Any) -> str:
        return _shown(value, withheld=self.withheld)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A file's text and the digest of its bytes."""

    path: Path
    sha256: str
    text: str
    withheld: bool = False
    """Whether errors may show no value; its records are withheld too."""

    @property
    def source(self) -> str:
        """For provenance: `coco_pope_random.json sha256:0123456789ab`."""
        return f"{self.path.name} sha256:{self.sha256[:12]}"

    def lines(self) -> list[Record]:
        """JSON Lines: a mapping a line; empty lines are passed over.

        Only a line feed ends a line: JSON may hold U+2028 or U+0085 in a text.
        """
        return [
            self._record(number, self._parsed(line, f":{number}"))
            for number, line in enumerate(self.text.split("\n"), start=1)
            if line.strip()
        ]

    def json(self) -> Any:
        """One JSON value."""
        return self._parsed(self.text, "")

    def items(self) -> list[Record]:
        """A JSON list of mappings, or JSON Lines; numbered from 1."""
        if not self.text.lstrip().startswith("["):
            return self.lines()
        return [self._record(n, value) for n, value in enumerate(self.json(), start=1)]

    def table(self, *, delimiter: str = ",", header: Sequence[str] | None = None) -> list[Record]:
        """A CSV or TSV table; without `header` its first line names the columns."""
        lines = io.StringIO(self.text)
        if delimiter == ",":
            reader = csv.reader(lines, strict=True)
        else:  # fields are as they stand; quotes mean nothing
            reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        names, found = header, []
        for row in self._rows(reader):
            if names is None:
                names = [name.strip() for name in row]
                if twice := [name for name, count in Counter(names).items() if count > 1]:
                    shown = _shown(twice[0], withheld=self.withheld)
                    raise OfficialFileError(
                        f"{self.path.name}: two columns are named {shown}; is its "
                        "first line the header?"
                    )
                continue
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                # Withheld, the names may be the texts of a table without its header.
                listed = "" if self.withheld and header is None else f" ({', '.join(names)})"
                raise OfficialFileError(
                    f"{self.path.name}:{reader.line_num}: {len(row)} columns where "
                    f"{len(names)} are expected{listed}"
                )
            found.append(self._record(reader.line_num, dict(zip(names, row, strict=True))))
        return found

    def _rows(self, reader: Any) -> Iterator[list[str]]:
        while True:
            first = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # its messages quote nothing of the file
                raise OfficialFileError(
                    f"{self.path.name}:{first}: not a table: the row that begins here: {error}"
                ) from None
            yield row

    def _record(self, number: int, value: Any) -> Record:
        return self.record(value, f"{self.path.name}:{number}")

    def record(self, value: Any, place: str) -> Record:
        """A part of a JSON value as a record. Raises OfficialFileError when it is no mapping."""
        if not isinstance(value, Mapping):
            shown = _shown(value, withheld=self.withheld)
            raise OfficialFileError(f"{place}: must be a mapping; got {shown}")
        return Record(place=place, values=value, withheld=self.withheld)

    def _parsed(self, text: str, where: str) -> Any:
        try:
            unique = functools.partial(_unique, withheld=self.withheld)
            return json.loads(text, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise OfficialFileError(f"{self.path.name}{where}: not JSON: {error}") from None


def read(
    folder: Path, name: str, sha256: Mapping[str, str] | None = None, *, withheld: bool = False
) -> Document:
    """The file `name` in `folder`; of a `withheld` one no error shows a value.

    Raises OfficialFileError when it is not there, is no regular file, too large or no UTF-8, or its
    digest is not the one that `sha256` (file name → hexadecimal digest) gives for it.
    """
    root = folder.expanduser()
    path = root / name
    if path.exists() and not path.is_file():
        raise OfficialFileError(f"{path}: is no regular file, but a folder, a pipe or a device")
    if not path.is_file():
        known = [file.name for file in sorted(root.glob("*"))] if root.is_dir() else []
        hint = nearest(name, known) if known else "; there is no such folder or it is empty"
        raise OfficialFileError(f"{root}: there is no file {name}{hint}")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise OfficialFileError(f"{path}: has {size:,} bytes; at most {MOST_BYTES:,} are read")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    wanted = (sha256 or {}).get(name)
    if wanted is not None and wanted.lower().removeprefix("sha256:") != digest:
        raise OfficialFileError(
            f"{path}: its SHA-256 is {digest}, not {wanted}; the file was changed or is another "
            "release"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OfficialFileError(f"{path}: not a text file in UTF-8: {error.reason}") from None
    return Document(path=path, sha256=digest, text=text, withheld=withheld)


def check_digests(sha256: Mapping[str, str], names: Iterable[str], *, where: str) -> None:
    """Raises OfficialFileError for a digest of a file that is not read: it would check nothing."""
    known = list(names)
    for name, digest in sha256.items():
        if name not in known:
            raise OfficialFileError(f"{where}: {name} is not read here{nearest(name, known)}")
        plain = digest.lower().removeprefix("sha256:")
        if len(plain) != 64 or set(plain) - set("0123456789abcdef"):
            raise OfficialFileError(f"{where}.{name}: not a SHA-256 in hexadecimal; got {digest!r}")


def check_limit(limit: int | None, *, where: str) -> None:
    """Raises OfficialFileError for a limit that leaves nothing to ask."""
    if limit is not None and limit < 1:
        raise OfficialFileError(f"{where}: must be at least 1, or none for all; got {limit}")


def check_count(found: int, published: Sequence[int], partial: bool, *, where: str) -> None:
    """Raises OfficialFileError for a file that is not whole, unless a `partial` one is meant."""
    if found not in published and not partial:
        counts = " or ".join(f"{count:,}" for count in published)
        raise OfficialFileError(
            f"{where}: holds {found:,} items where the published file has {counts}; where a part "
            "of it is meant, set partial: true"
        )


def check_ids(found: Iterable[str], expected: Iterable[str] | None = None, *, where: str) -> None:
    """Raises OfficialFileError, naming the first id, for duplicate, missing or extra ids."""
    ids = list(found)
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise OfficialFileError(f"{where}: {_several(twice, 'duplicate')}")
    if expected is None:
        return
    wanted, have = list(expected), set(ids)
    if missing := [name for name in wanted if name not in have]:
        raise OfficialFileError(f"{where}: {_several(missing, 'missing')}")
    known = set(wanted)
    if extra := [name for name in ids if name not in known]:
        raise OfficialFileError(f"{where}: {_several(extra, 'extra')}")


def picture(folder: Path, name: str, *, place: str) -> Image:
    """A picture by its name in the folder, as a path; raises OfficialFileError with the place."""
    try:
        path = inside(folder.expanduser(), name)
    except MediaError as error:
        raise OfficialFileError(f"{place}: {error}") from None
    if not path.is_file():
        raise OfficialFileError(f"{place}: there is no picture {name} in {folder}")
    return Image(source=path)


def _unique(pairs: list[tuple[str, Any]], *, withheld: bool) -> dict[str, Any]:
    """Where ids are keys, a repeated one must not vanish."""
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"key {_shown(twice[0], withheld=withheld)} is there twice")
    return dict(pairs)


def _several(ids: Sequence[str], kind: str) -> str:
    more = f", and {len(ids) - 1} more" if len(ids) > 1 else ""
    return f"{kind} id {ids[0]}{more}"


def _shown(value: Any, *, withheld: bool) -> str:
    """The value's start; of a withheld one its kind and length."""
    if withheld:
        kind = _KINDS.get(type(value), "nothing")
        if isinstance(value, str):
            return f"{kind} of {len(value)} characters"
        return f"{kind} of {len(value)}" if isinstance(value, list | dict) else kind
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
