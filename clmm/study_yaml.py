"""Safe YAML whose errors say where: no key twice, and 1e-3 is a number; `a.b=value` over it.

Knows text and lines; what the keys mean is `clmm.study`'s affair.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from streams.settings import SettingError


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-3 as the number it is."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key, line = loader.construct_object(key_node), key_node.start_mark.line + 1
        if key in seen:
            place = f"{key_node.start_mark.name}:{line}"
            raise SettingError(f"{place}: {key} is given twice, first on line {seen[key]}")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """The plain value and the node tree of a YAML text; `name` is shown in errors."""
    loader = _Loader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise SettingError(f"{name}{line}: not YAML: {error.problem}") from None
    finally:
        loader.dispose()


def apply_override(values: dict[str, Any], text: str) -> None:
    """Applies `a.b=value`, where a number is a place in a list: `strategies.0.budget=0.1`."""
    dotted, equals, written = text.partition("=")
    if not equals or not dotted:
        raise SettingError(f"command line: {text!r} is not key=value")
    value, _ = parse(written, f"command line: {dotted}")
    keys = dotted.split(".")
    holder: Any = values
    for depth, key in enumerate(keys[:-1]):
        child = holder[_index(holder, key, dotted)] if _has(holder, key) else None
        if isinstance(child, str):
            child = {"name": child}
        if child is None:
            child = {}
        if not isinstance(child, (dict, list)):
            here = ".".join(keys[: depth + 1])
            raise SettingError(f"command line: {dotted}: {here} is {child!r} and has no settings")
        holder[_index(holder, key, dotted)] = child
        holder = child
    holder[_index(holder, keys[-1], dotted)] = value


def _has(holder: Any, key: str) -> bool:
    return isinstance(holder, list) or key in holder


def _index(holder: Any, key: str, dotted: str) -> Any:
    if isinstance(holder, dict):
        return key
    if not key.isdigit() or int(key) >= len(holder):
        last = len(holder) - 1
        raise SettingError(
            f"command line: {dotted}: {key!r} is not a place in the list, 0 to {last}"
        )
    return int(key)
