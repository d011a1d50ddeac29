"""What a study is: its settings, from YAML, from `key=value` overrides, or from a script.

Knows how settings are read, checked and written back; loads no model, no stream and no data.
Errors name the field, the bad value, the nearest good one and, for a file, the line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter

from clmm.decoding_options import Decoding
from clmm.study_yaml import apply_override, parse
from streams import catalog, settings
from streams.settings import SettingError
from streams.stream import Stream

if TYPE_CHECKING:
    from clmm.training import TrainSettings

DEFAULT_STUDY = "default"


@dataclass(frozen=True, kw_only=True)
class Study:
    """One model, one stream, some strategies and seeds, and what is probed after every stage.

    `Study.resolve` makes one from plain values; every field then holds objects.
    """

    model: str = "nano"
    """nano, a folder with a Hugging Face vision-language model, or a hub id."""
    stream: Any = "default"
    """The tasks in order: a stream's name, a path, a list of sources, or a Stream."""
    strategies: tuple[Any, ...]
    """The continual strategies to compare, by name or as objects."""
    labels: tuple[str, ...] = ()
    """The strategies' names in the run folder and the report; a spec may give its own `label`."""
    probes: tuple[Any, ...]
    """What is asked after every stage beside the tasks; left out, the standard probes."""
    seeds: tuple[int, ...] = (0,)
    """One run a strategy and seed."""
    train: TrainSettings
    """How each stage trains; the same for all strategies."""
    alignment: Any = None
    """Source of alignment samples that a strategy may mix in; None when none does."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; left out, the best that is there."""
    precision: str = "fp32"
    """fp32 or bf16."""
    answer_batch_size: int = 64
    """Samples answered at a time."""
    max_new_tokens: int = 48
    """Longest answer, in tokens."""
    decoding: tuple[Any, ...] = ()
    """Mitigations while answering, by name or as objects; the same for the base and all stages."""
    gates: Mapping[str, float] | None = None
    """Figure → the smallest harmful drift that matters; left out, the default gates."""
    probe_seed: int = 0
    """Draws the probes' items; the same for all strategies, seeds and stages."""
    workers: int | None = None
    """Runs side by side, one thread each; left out, one a core, or one on a GPU. Scores stay."""

    @classmethod
    def resolve(cls, values: Mapping[str, Any]) -> Study:
        """A study from plain values or objects; raises SettingError."""
        from clmm.training import TrainSettings
        from safety import standard_probes

        known = [f.name for f in dataclasses.fields(cls) if f.name != "labels"]
        for key in values:
            if key not in known:
                raise SettingError(f"{key}: no such setting{catalog.nearest(str(key), known)}")
        resolved = dict(values)
        specs = _listed(values, "strategies")
        given = [spec.get("label") if isinstance(spec, Mapping) else None for spec in specs]
        specs = [_without_label(spec) for spec in specs]
        resolved["strategies"] = _objects("clmm.strategies", specs, "strategies")
        if not resolved["strategies"]:
            raise SettingError("strategies: name at least one; `clmm ls strategies` lists them")
        _check_parts(resolved["strategies"], "strategies", ("stages", "build"))
        resolved["labels"] = labels(resolved["strategies"], given)
        probes = _objects("safety.probes", _listed(values, "probes"), "probes")
        resolved["probes"] = tuple(standard_probes()) if values.get("probes") is None else probes
        _check_parts(resolved["probes"], "probes", ("samples", "score"))
        resolved["decoding"] = _objects("clmm.decoding", _listed(values, "decoding"), "decoding")
        Decoding(resolved["decoding"])
        resolved["gates"] = _gates(values.get("gates"))
        train = values.get("train") or {}
        if not isinstance(train, (Mapping, TrainSettings)):
            raise SettingError(f"train: give settings, such as learning_rate: 2e-4; got {train!r}")
        if isinstance(train, Mapping):
            resolved["train"] = settings.build(TrainSettings, train, where="train")
        _check_plain(cls, resolved)
        return cls(**resolved)

    def plain(self) -> dict[str, Any]:
        """Every setting as plain data, defaults filled in, for config.yaml.

        `workers` is left out: a study may be resumed with another number of them.
        """
        # A folder from before there were options must still be resumed: none is no key.
        options = [to_spec("clmm.decoding", one) for one in self.decoding]
        return {
            "model": str(self.model),
            "stream": _plain_stream(self.stream),
            "strategies": [
                {"label": label, **to_spec("clmm.strategies", strategy)}
                for label, strategy in zip(self.labels, self.strategies, strict=True)
            ],
            "probes": [to_spec("safety.probes", p) for p in self.probes],
            "seeds": list(self.seeds),
            "train": _plain(self.train),
            "alignment": _plain_stream(self.alignment),
            **{name: getattr(self, name) for name in _SCALARS},
            **({"decoding": options} if options else {}),
            **({"gates": dict(self.gates)} if self.gates is not None else {}),
        }


_PACKAGES = ("clmm.strategies", "clmm.decoding", "safety.probes", "streams.sources")
_SCALARS = ("device", "precision", "answer_batch_size", "max_new_tokens", "probe_seed")


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """The settings whose types pydantic can check without importing a neural network."""

    model: str = "nano"
    seeds: tuple[int, ...] = (0,)
    device: str | None = None
    precision: str = "fp32"
    answer_batch_size: int = 64
    max_new_tokens: int = 48
    probe_seed: int = 0
    workers: int | None = None


def _gates(given: Any) -> dict[str, float] | None:
    """That they are margins; whether they are figures, the base's scores tell."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given:
        raise SettingError(f"gates: give a mapping, such as {{refusal.rate: 0.05}}; got {given!r}")
    for name, margin in given.items():
        number = isinstance(margin, (int, float)) and not isinstance(margin, bool)
        if not number or not margin > 0:
            raise SettingError(f"gates.{name}: a margin must be a positive number; got {margin!r}")
    return {str(name): float(margin) for name, margin in given.items()}


def _check_plain(cls: type[Study], resolved: dict[str, Any]) -> None:
    """Checks and converts the simple fields in place."""
    if isinstance(resolved.get("seeds"), int):
        resolved["seeds"] = (resolved["seeds"],)
    if isinstance(resolved.get("model"), Path):
        resolved["model"] = str(resolved["model"])
    seeds = resolved.get("seeds", ())
    if isinstance(seeds, str) or not isinstance(seeds, Iterable) or not all(map(_whole, seeds)):
        raise SettingError(f"seeds: give a list of whole numbers, such as [0, 1]; got {seeds!r}")
    names = [f.name for f in dataclasses.fields(_Plain) if f.name in resolved]
    try:
        checked = settings.build(_Plain, {n: resolved[n] for n in names}, where="study")
    except SettingError as error:
        raise SettingError(str(error).removeprefix("study.")) from None
    resolved.update({name: getattr(checked, name) for name in names})
    if len(set(checked.seeds)) != len(checked.seeds) or not checked.seeds:
        raise SettingError(f"seeds: give each seed once, at least one; got {list(checked.seeds)}")
    if checked.precision not in ("fp32", "bf16"):
        nearest = catalog.nearest(checked.precision, ["fp32", "bf16"])
        raise SettingError(f"precision: there is no {checked.precision!r}{nearest}")
    if checked.device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", checked.device):
        near = catalog.nearest(checked.device, ["cpu", "cuda", "mps"])
        raise SettingError(f"device: there is no {checked.device!r}{near}")
    for seed in checked.seeds:
        if seed < 0:
            raise SettingError(f"seeds: a seed must not be negative; got {seed}")
    for name in ("answer_batch_size", "max_new_tokens", "workers"):
        value = getattr(checked, name)
        if value is not None and value < 1:
            raise SettingError(f"{name}: must be at least 1; got {value}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_parts(parts: Sequence[Any], key: str, methods: tuple[str, ...]) -> None:
    """That each is what its place asks for, with numbers that it can be built from."""
    for place, part in enumerate(parts):
        if isinstance(part, type) or not all(callable(getattr(part, m, None)) for m in methods):
            raise SettingError(f"{key}[{place}]: {part!r} is not one; see `clmm ls {key}`")
        for name in ("rank", "alpha", "items"):
            if not isinstance(value := getattr(part, name, 1), (int, float)) or value < 1:
                raise SettingError(f"{key}[{place}].{name}: must be at least 1; got {value!r}")


def _listed(values: Mapping[str, Any], key: str) -> list[Any]:
    specs = values.get(key)
    if specs is None:
        return []
    single = isinstance(specs, (str, Mapping)) or not isinstance(specs, Iterable)
    return [specs] if single else list(specs)


def _without_label(spec: Any) -> Any:
    if not isinstance(spec, Mapping):
        return spec
    return {key: value for key, value in spec.items() if key != "label"}


def _objects(package: str, specs: Sequence[Any], key: str) -> tuple[Any, ...]:
    return tuple(_object(package, spec, f"{key}[{i}]") for i, spec in enumerate(specs))


def _object(package: str, spec: Any, where: str) -> Any:
    """What the object itself refuses knows no place: it is told its place in the list."""
    try:
        return settings.from_spec(package, spec, where=where)
    except SettingError as error:
        text = str(error).removeprefix(f"{where.partition('[')[0]}.")
        raise SettingError(text if text.startswith(where) else f"{where}: {text}") from None


def to_spec(package: str, thing: Any) -> dict[str, Any]:
    """`{"name": …, settings…}` from which `settings.from_spec` makes `thing` again."""
    kind = type(thing)
    own = kind.__module__.startswith(f"{package}.")
    name = kind.__module__.rpartition(".")[2] if own else f"{kind.__module__}:{kind.__qualname__}"
    values = _fields(thing) if dataclasses.is_dataclass(thing) else _plain(thing)
    return {"name": name, **(values if isinstance(values, dict) else {"value": values})}


def _plain_stream(stream: Any) -> Any:
    """A source as its spec. Of a Stream made by hand only names remain: it cannot be read back,
    but the provenance's hash tells whether a resumed run has the same one."""
    if isinstance(stream, Stream):
        return {"name": stream.name, "tasks": [task.name for task in stream.tasks]}
    if isinstance(stream, (list, tuple)):
        return [_plain_stream(source) for source in stream]
    if dataclasses.is_dataclass(stream) and not isinstance(stream, type):
        return to_spec("streams.sources", stream)
    return _plain(stream)


def _fields(thing: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(thing, f.name)) for f in dataclasses.fields(thing) if f.init}


def _plain(value: Any) -> Any:
    if isinstance(value, Stream):
        return _plain_stream(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        package = type(value).__module__.rpartition(".")[0]
        return to_spec(package, value) if package in _PACKAGES else _fields(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(TypeAdapter(Any).dump_python(value, mode="json", fallback=repr))


def labels(strategies: Sequence[Any], given: Sequence[str | None]) -> tuple[str, ...]:
    """Folder names: the given ones, else the name and what sets it apart from namesakes."""
    specs = [to_spec("clmm.strategies", strategy) for strategy in strategies]
    found: list[str] = []
    for spec, label in zip(specs, given, strict=True):
        twins = [other for other in specs if other["name"] == spec["name"]]
        apart = [
            key
            for key in spec
            if any(other.get(key) != spec[key] for other in twins)
            and isinstance(spec[key], (str, int, float, bool, type(None)))
        ]
        parts = spec["of"] if isinstance(spec.get("of"), list) else [spec]
        name = "-".join(str(part["name"]).rpartition(":")[2] for part in parts)
        text = label or "-".join([name, *(f"{key}-{spec[key]}" for key in apart)])
        text = re.sub(r"[^\w.-]+", "_", str(text), flags=re.ASCII)
        if text in found:
            place = f"strategies[{len(found)}]"
            raise SettingError(f"{place}: {text} is there already; give it a label of its own")
        found.append(text)
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A study as somebody wrote it, with the places to blame for errors."""

    name: str
    values: dict[str, Any]
    path: Path | None = None
    _node: yaml.Node | None = field(default=None, repr=False)
    _overridden: tuple[str, ...] = ()

    def study(self) -> Study:
        """The study; a SettingError gets the line it came from."""
        try:
            return Study.resolve(self.values)
        except SettingError as error:
            raise SettingError(f"{self.place(str(error))}{error}") from None

    def place(self, message: str) -> str:
        """`study.yaml:12: ` for a message that begins with a field that the file sets."""
        # `strategies[1]: replay.budget: …` is a place, and what stands there says where.
        dotted = re.match(r"([\w.\[\]-]+: )+|[\w.\[\]-]*", message)
        keys = re.findall(r"[\w-]+", dotted.group() if dotted else "")
        for override in self._overridden:
            blamed, overridden = set(keys), override.split(".")
            if overridden[0] in blamed and (overridden[-1] in blamed or len(keys) == 1):
                return "command line: "
        node, line = self._node, 0
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                for key_node, value in node.value:
                    if key_node.value == key:
                        node, line = value, key_node.start_mark.line + 1
                        break
            elif isinstance(node, yaml.SequenceNode) and key.isdigit():
                node = node.value[int(key)]
                line = node.start_mark.line + 1
        if self.path is None:
            return ""
        return f"{self.path}:{line}: " if line else f"{self.path}: "


def read(source: str | Path, overrides: Sequence[str] = ()) -> Written:
    """A study file, or a packaged one by its name, with `key=value` overrides applied."""
    path = Path(source)
    folder = Path(str(resources.files("clmm"))) / "studies"
    packaged = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if str(source) in packaged and not path.is_file():
        path = packaged[str(source)]
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = catalog.nearest(str(source), [*near, *packaged])
        raise SettingError(f"{source}: there is no such study file{hint}")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: not a text file in UTF-8: {error.reason}") from None
    values, node = parse(text, str(path))
    if not isinstance(values, dict):
        raise SettingError(f"{path}: a study is a mapping of settings, not {type(values).__name__}")
    for key in ("model", "stream", "alignment"):
        if key in values:
            values[key] = beside(values[key], path.parent)
    for override in overrides:
        apply_override(values, override)
    keys = tuple(override.partition("=")[0] for override in overrides)
    return Written(name=path.stem, values=values, path=path, _node=node, _overridden=keys)


def beside(value: Any, folder: Path) -> Any:
    """A relative path means: beside the file that says it, when it is there."""
    if isinstance(value, list):
        return [beside(one, folder) for one in value]
    if isinstance(value, dict):
        paths = {
            key: beside(value[key], folder) for key in ("name", "folder", "of") if key in value
        }
        return {**value, **paths}
    if isinstance(value, str) and "/" in value and (folder / value).exists():
        return str((folder / value).resolve())
    return value


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Plain settings as YAML, keys in their own order."""
    return yaml.safe_dump(dict(plain), sort_keys=False, allow_unicode=True, width=100)
