"""Loads a stream from what a user wrote: a name, a folder, a mapping of settings, or a list.

Knows no task and no file format: those are one file each in `streams.sources`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from streams import catalog
from streams.settings import SettingError, from_spec
from streams.sources._llava_records import StreamError
from streams.stream import Stream, Task

__all__ = ["Source", "StreamError", "load_stream"]
PACKAGE = "streams.sources"


@runtime_checkable
class Source(Protocol):
    """Anything that has tasks."""

    def tasks(self) -> tuple[Task, ...]: ...


def load_stream(spec: Any, *, where: str = "stream") -> Stream:
    """The stream that `spec` names; everything wrong with its data is found here, not later.

    `spec` is a source's name (`default`), a path to a folder (`./my-data`: see
    `streams/sources/llava_json.py`), a mapping `{name: …, **settings}` whose name is either, a
    Stream or an object with `tasks()`, or a list of those, whose tasks follow one another. A name
    wins over a folder of the same name: write `./digits` for the folder.

    Raises SettingError for an unknown name or setting and StreamError for unusable data.
    """
    if isinstance(spec, Stream):
        return spec
    several = isinstance(spec, (list, tuple))
    if several and not spec:
        raise SettingError(f"{where}: the list of streams is empty")
    specs = [(f"{where}[{i}]", one) for i, one in enumerate(spec)] if several else [(where, spec)]
    tasks = [task for place, one in specs for task in _tasks(one, place)]
    for task in tasks:
        for side, items in (("train", task.train), ("test", task.test)):
            if not items:
                raise StreamError(f"{where}: task {task.name} has no {side} item")
    try:
        return Stream(name="+".join(_label(one) for _, one in specs), tasks=tuple(tasks))
    except ValueError as error:
        raise StreamError(f"{where}: {error}") from None


def _tasks(spec: Any, where: str) -> tuple[Task, ...]:
    if isinstance(spec, Stream):
        return spec.tasks
    source = (
        spec if isinstance(spec, Source) else from_spec(PACKAGE, _known(spec, where), where=where)
    )
    if not isinstance(source, Source):
        raise SettingError(f"{where}: {spec!r} is not a stream: it has no tasks()")
    try:
        return source.tasks()
    except SettingError as error:
        raise type(error)(f"{where}: {error}") from None


def _known(spec: Any, where: str) -> Any:
    """`spec` with a folder's path replaced by the source that reads folders."""
    if isinstance(spec, Path):
        return {"name": "llava_json", "folder": spec}
    values = {"name": spec} if isinstance(spec, str) else spec
    name = values.get("name") if isinstance(values, Mapping) else None
    if not isinstance(name, str) or name in catalog.names(PACKAGE):
        return spec
    folder = Path(name).expanduser()
    if folder.is_dir():
        return {**values, "name": "llava_json", "folder": folder}
    if "/" in name or "\\" in name:
        what = "is a file; name the folder that holds it" if folder.is_file() else "does not exist"
        raise SettingError(f"{where}: {name!r} {what}")
    if ":" not in name:
        hint = catalog.nearest(name, catalog.names(PACKAGE))
        raise SettingError(f"{where}: there is neither a stream nor a folder {name!r}{hint}")
    return spec


def _label(spec: Any) -> str:
    if isinstance(spec, Mapping):
        spec = spec.get("folder", spec.get("name"))
    if isinstance(spec, (str, Path)):
        return Path(spec).name or str(spec)
    return spec.name if isinstance(spec, Stream) else type(spec).__name__
