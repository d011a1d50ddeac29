"""Where two plain configurations differ, a line each; strategies and probes go by their names.

Knows mappings, lists and values; knows no file.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

_ABSENT = object()


def differences(
    here: Mapping[str, Any], now: Mapping[str, Any], *, but: Container[str] = ()
) -> list[str]:
    """`train.steps: 10 before, 20 now`, for every key that is not in `but`."""
    keys = [key for key in dict.fromkeys([*here, *now]) if key not in but]
    return [
        line
        for key in keys
        for line in _difference(here.get(key, _ABSENT), now.get(key, _ABSENT), key)
    ]


def _difference(here: Any, now: Any, where: str) -> Iterator[str]:
    if isinstance(here, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*here, *now]):
            yield from _difference(here.get(key, _ABSENT), now.get(key, _ABSENT), f"{where}.{key}")
    elif isinstance(here, list) and isinstance(now, list):
        before, after = _by_name(here), _by_name(now)
        if before and after:
            yield from _of_named(before, after, where)
            return
        for i in range(max(len(here), len(now))):
            one, other = (v[i] if i < len(v) else _ABSENT for v in (here, now))
            yield from _difference(one, other, f"{where}[{i}]")
    elif here is _ABSENT:
        yield f"{where}: not there before, {now!r} now"
    elif now is _ABSENT:
        yield f"{where}: {here!r} before, not there now"
    elif here != now or isinstance(here, bool) != isinstance(now, bool):
        yield f"{where}: {here!r} before, {now!r} now"


def _by_name(values: list[Any]) -> dict[str, Any]:
    """Mappings by their label, or else by their name; empty when these do not tell them apart."""
    for key in ("label", "name"):
        named = {str(v[key]): v for v in values if isinstance(v, dict) and v.get(key)}
        if len(named) == len(values):
            return named
    return {}


def _of_named(here: dict[str, Any], now: dict[str, Any], where: str) -> Iterator[str]:
    for name in dict.fromkeys([*here, *now]):
        if name not in here:
            yield f"{where}[{name}]: not there before, there now"
        elif name not in now:
            yield f"{where}[{name}]: there before, not there now"
        else:
            yield from _difference(here[name], now[name], f"{where}[{name}]")
    if here.keys() == now.keys() and list(here) != list(now):
        yield f"{where}: {', '.join(here)} before, {', '.join(now)} now"
