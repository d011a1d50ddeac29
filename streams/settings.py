"""Settings from untrusted mappings: a dataclass is its own schema, errors say what was meant.

pydantic checks types; this file words the errors: the field, the value, the place, the nearest
valid name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from streams import catalog

T = TypeVar("T")


_WANTED = {
    "tuple_type": "give a list, such as [a, b]",
    "list_type": "give a list, such as [a, b]",
    "dict_type": "give a mapping, such as {a: 1}",
    "int_type": "give a whole number",
    "int_parsing": "give a whole number",
    "int_from_float": "give a whole number",
    "float_type": "give a number",
    "float_parsing": "give a number",
    "bool_type": "give true or false",
    "bool_parsing": "give true or false",
    "string_type": "give a text",
}
"""pydantic's kind of error → what to give instead."""


class SettingError(ValueError):
    """A setting that cannot be used as given."""


def build(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls` from `values`; `where` prefixes every error.

    Raises SettingError for an unknown key, a missing one, or a value of the wrong type.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise SettingError(f"{where}: {cls!r} is no dataclass, so it has no settings to read")
    known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise SettingError(f"{where}.{key}: no such setting{catalog.nearest(str(key), known)}")
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":  # the dataclass itself refused, and said which field
            raise SettingError(str(first["ctx"]["error"])) from None
        if first["type"] == "missing":
            raise SettingError(f"{where}.{field}: this setting is required") from None
        wanted = _WANTED.get(first["type"], first["msg"])
        raise SettingError(f"{where}.{field}: {wanted}; got {first['input']!r}") from None


def from_spec(package: str, spec: Any, *, where: str) -> Any:
    """An object of `package` from its name, a mapping with `name`, or the object itself."""
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        return spec
    if not isinstance(spec.get("name"), str):
        raise SettingError(f"{where}: give a name, or a mapping with a name; got {dict(spec)!r}")
    rest = {key: value for key, value in spec.items() if key != "name"}
    try:
        cls = catalog.find(package, spec["name"], where=where)
    except catalog.UnknownName as error:
        raise SettingError(str(error)) from None
    return build(cls, rest, where=f"{where}.{spec['name']}")
