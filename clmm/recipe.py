"""A recipe: a published model as data, its composition, its tiny twin, its stages, its counts.

One YAML file of `clmm/recipes` each; the file's name is the recipe's. One that is `like` another
says what is different: `compose` and `tiny` are merged key by key, `more_stages` come behind the
other's, any other key takes the place of the other's. Knows how recipes are read;
`clmm/measuring.py` counts them and `clmm/zoo.py` lists and shows them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from clmm import llm as llms
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
    """One reason why measured and published differ: measured minus all reasons is published.

    The count of what is ours is measured, never written down: all of it where the published count
    leaves it out, or the difference to what is `printed` for it.
    """

    component: str
    """Ours: a component such as encoders.image, a part of one such as language_model.model.norm,
    `lora` or `signal_rows` of the stage, or several with + between. With `parameters`, something
    that only the published count has, in words."""
    printed: str | None = None
    """What is published for it, as printed, such as 7 B or 0.975 B; its digits must be those of
    the measured count, rounded or cut, together with what it has `besides`."""
    besides: int = 0
    """What the published part has that ours has not, or not there: negative where it has less."""
    parameters: int | None = None
    """Of something that is not ours, what it adds to the measured count: negative."""
    note: str = ""
    """Why."""
    stage: str | None = None
    """The stage whose trainable parameters it explains, all of the component's; left out, the
    whole."""

    def __post_init__(self) -> None:
        if self.parameters is not None and (self.printed is not None or self.besides):
            raise SettingError(
                f"{self.component}: parameters is of what is not ours, and printed and besides of "
                "what is; give one of the two"
            )
        if self.printed is None and self.besides:
            raise SettingError(f"{self.component}: besides {self.besides} of no printed count")
        if self.printed is not None:
            digits(self.printed)


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
    stages: tuple[Stage, ...]
    """In the order of training."""
    tiny: dict[str, Any] = field(default_factory=dict)
    """What is another in the tiny twin besides `clmm/tiny.yaml`, merged into it key by key."""
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
        return merged(shrunk(self.compose), self.tiny) if tiny else self.compose

    def build(self, *, tiny: bool = False, device: Any = None) -> Any:
        """The model, by `compose`."""
        from clmm.composition import compose

        return compose(**self.composition(tiny=tiny), device=device)


def digits(printed: str) -> tuple[int, int]:
    """`7.1 B` as parameters and what its last digit stands for: 7.1e9 and 1e8."""
    found = re.fullmatch(r"(\d+)(?:\.(\d+))? ([MB])", printed)
    if found is None:
        raise SettingError(f"printed: give a count such as 7.1 B or 435 M; got {printed!r}")
    whole, fraction, unit = found[1], found[2] or "", found[3]
    last = int({"M": 10**6, "B": 10**9}[unit] / 10 ** len(fraction))
    return int(whole + fraction) * last, last


def prints(count: int, printed: str) -> bool:
    """Whether a count has the printed digits, rounded or cut: 1.37 is 1.4 B and 1.3 B."""
    value, last = digits(printed)
    return -last / 2 <= count - value < last


def names() -> list[str]:
    """Recipes that can be named."""
    files = (f.name for f in _FOLDER.iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def _values(name: str) -> Any:
    """What the file says, over what the one that it is `like` says."""
    file = f"{name}.yaml"
    values, _ = parse((_FOLDER / file).read_text("utf-8"), file)
    if not isinstance(values, Mapping) or "like" not in values:
        return values
    base = _values(values["like"])
    own = {key: value for key, value in values.items() if key not in ("like", "more_stages")}
    for key in ("compose", "tiny"):
        own[key] = merged(base.get(key) or {}, own.get(key) or {})
    if "more_stages" in values:
        own["stages"] = [*base["stages"], *values["more_stages"]]
    return {**base, **own}


@functools.cache
def _small() -> dict[str, dict[str, Any]]:
    """`clmm/tiny.yaml`: kind of component → name → the settings that make it small."""
    values, _ = parse((resources.files("clmm") / "tiny.yaml").read_text("utf-8"), "tiny.yaml")
    found: dict[str, dict[str, Any]] = values
    return found


def shrunk(parts: Mapping[str, Any]) -> dict[str, Any]:
    """A composition whose components have the settings of `clmm/tiny.yaml`, where there are any."""
    small = dict(parts)
    kind = llms.text_config(parts["llm"]).model_type
    small["llm"] = merged({"llm": parts["llm"]}, {"llm": _small()["llm"].get(kind, {})})["llm"]
    for slot, settings_of in _small().items():
        if slot != "llm" and slot in parts:
            small[slot] = {name: _shrunk(spec, settings_of) for name, spec in parts[slot].items()}
    return small


def _shrunk(spec: Any, settings_of: Mapping[str, Any]) -> Any:
    """A component and those inside of it; a bare name becomes a mapping with it."""
    spec = {"name": spec} if isinstance(spec, str) else spec
    spec = merged(spec, settings_of.get(spec["name"], {}))
    for key, value in spec.items():
        inside = [value] if isinstance(value, Mapping) else value
        if isinstance(inside, list) and inside and all(_named(one) for one in inside):
            found = [_shrunk(one, settings_of) for one in inside]
            spec[key] = found if isinstance(value, list) else found[0]
    return spec


def _named(spec: Any) -> bool:
    return isinstance(spec, Mapping) and "name" in spec


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
