"""A recipe: a published model as data, its composition, its tiny twin, its stages, its counts.

One YAML file of `clmm/recipes` each; the file's name is the recipe's. Knows how they are read;
`clmm/measuring.py` counts them and `clmm/zoo.py` lists and shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from clmm.stage_settings import Stage
from clmm.study_yaml import parse
from streams import settings
from streams.catalog import nearest
from streams.settings import SettingError

_FOLDER = resources.files("clmm") / "recipes"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the paper says of its own size."""

    parameters: int | None = None
    """Of the whole model; None where none is published."""
    trainable: dict[str, int] = field(default_factory=dict)
    """Stage → parameters that train in it."""
    source: str = ""
    """Where the numbers are from."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One reason why measured and published differ: measured minus all reasons is published."""

    component: str
    """A component of the composition, such as encoders.image, whose own count it then is; or
    something that is in one of the two counts alone, in words."""
    parameters: int
    """What it adds to the measured count; negative for what only the published one has."""
    note: str = ""
    """Why."""
    stage: str | None = None
    """The stage whose trainable parameters it explains; left out, the whole."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """The count of a component whose library is not installed."""

    parameters: int
    note: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published model."""

    name: str
    """The file's."""
    summary: str
    """What it is, in a line."""
    model: str
    """Its name in the taxonomy."""
    table1: str | None = None
    """Its row in the survey's table 1."""
    paper: str
    """arXiv number, or address."""
    compose: dict[str, Any]
    """What `compose` takes: llm, encoders, projectors, output_projectors, generators, signals …"""
    tiny: dict[str, Any]
    """What is another in the tiny twin, merged into `compose` key by key."""
    stages: tuple[Stage, ...]
    """In the order of training."""
    published: Published = Published()
    explanation: tuple[Explained, ...] = ()
    """What closes the gap between measured and published."""
    stated: dict[str, Stated] = field(default_factory=dict)
    """Component → its count where the library that builds it is not installed."""
    notes: str = ""
    """Where this composition departs from the published model, and why."""

    @classmethod
    def read(cls, name: str) -> Recipe:
        """By name; SettingError with the nearest, and for what is no setting of a recipe."""
        if name not in names():
            raise SettingError(f"there is no recipe {name!r}{nearest(name, names())}")
        return cls.of(name, _values(name), where=f"{name}.yaml")

    @classmethod
    def of(cls, name: str, values: Any, *, where: str) -> Recipe:
        """From plain values."""
        if not isinstance(values, Mapping):
            raise SettingError(f"{where}: give summary, model, compose and stages; got {values!r}")
        values = dict(values)
        values["stages"] = tuple(
            Stage.read(stage, where=f"{where}: stages[{i}]")
            for i, stage in enumerate(values.get("stages") or ())
        )
        values["explanation"] = tuple(
            settings.build(Explained, line, where=f"{where}: explanation[{i}]")
            for i, line in enumerate(values.get("explanation") or ())
        )
        published = values.get("published") or {}
        values["published"] = settings.build(Published, published, where=f"{where}: published")
        values["stated"] = {
            component: settings.build(Stated, line, where=f"{where}: stated.{component}")
            for component, line in (values.get("stated") or {}).items()
        }
        recipe = settings.build(cls, {"name": name, **values}, where=where)
        recipe._check(where)
        return recipe

    def _check(self, where: str) -> None:
        known = [stage.name for stage in self.stages]
        for place, stage in [
            *(("published.trainable", s) for s in self.published.trainable),
            *(("explanation", line.stage) for line in self.explanation if line.stage),
        ]:
            if stage not in known:
                raise SettingError(
                    f"{where}: {place}: there is no stage {stage!r}{nearest(str(stage), known)}"
                )

    def composition(self, *, tiny: bool = False) -> dict[str, Any]:
        """The arguments of `compose`, of the published size or of the tiny twin."""
        return merged(self.compose, self.tiny) if tiny else self.compose

    def build(self, *, tiny: bool = False, device: Any = None) -> Any:
        """The model, by `compose`."""
        from clmm.composition import compose

        return compose(**self.composition(tiny=tiny), device=device)


def names() -> list[str]:
    """Recipes that can be named."""
    files = (f.name for f in _FOLDER.iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def _values(name: str) -> Any:
    """What the file says, over what the one that it is `like` says."""
    file = f"{name}.yaml"
    values, _ = parse((_FOLDER / file).read_text("utf-8"), file)
    if isinstance(values, Mapping) and "like" in values:
        own = {key: value for key, value in values.items() if key != "like"}
        return {**_values(values["like"]), **own}
    return values


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `values`, mapping by mapping; a bare name counts as a mapping with it."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        if isinstance(old, str) and isinstance(change, Mapping):
            old = {"preset" if key == "llm" else "name": old}
        if isinstance(old, Mapping) and isinstance(change, Mapping) and not _another(old, change):
            change = merged(old, change)
        result[key] = change
    return result


def _another(old: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    """Whether another component is named: its settings are not the old one's."""
    return any(key in change and change[key] != old.get(key) for key in ("name", "model_type"))
