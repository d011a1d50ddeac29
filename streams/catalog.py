"""The file name is the name: finds and lists what lives in a package, one thing a file.

`find("streams.sources", "digits")` imports `streams/sources/digits.py` and returns its one
public dataclass; `listing` reads names and first docstring lines without importing anything, so
that listing costs no torch. A dotted path `package.module:Class` serves code outside.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
from pathlib import Path
from typing import Any


class UnknownName(ValueError):  # noqa: N818  (it says what it is)
    """A name that no file bears; the message says the nearest that one does."""


def nearest(word: str, known: list[str]) -> str:
    """`; did you mean X?`, or the whole list when nothing is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}")
    return Path(next(iter(spec.submodule_search_locations)))


def names(package: str) -> list[str]:
    return sorted(p.stem for p in _folder(package).glob("*.py") if not p.stem.startswith("_"))


def listing(package: str) -> dict[str, str]:
    """Name → first line of the file's docstring."""
    lines = {}
    for name in names(package):
        doc = ast.get_docstring(ast.parse((_folder(package) / f"{name}.py").read_text("utf-8")))
        lines[name] = (doc or "").split("\n", 1)[0]
    return lines


def find(package: str, name: str, *, where: str) -> type[Any]:
    """The one public frozen dataclass of the file `name` in `package`, or of a dotted path.

    Raises UnknownName, naming `where` (the field the name came from) and the nearest name.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownName(f"{where}: cannot import {name!r}: {error}") from error
    if name not in names(package):
        raise UnknownName(f"{where}: there is no {name!r}{nearest(name, names(package))}")
    module = importlib.import_module(f"{package}.{name}")
    own = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
        and not key.startswith("_")
        and key.lower() == name.replace("_", "")
    ]
    if len(own) != 1:
        raise TypeError(f"{package}/{name}.py must define one dataclass named after the file")
    return own[0]
