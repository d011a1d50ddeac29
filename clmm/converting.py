"""A published checkpoint of transformers becomes a composition: its config, tensors and processor.

What becomes what, each file in `clmm/conversion` says; this one reads safetensors shard by shard,
refuses what does not fit before it writes anything, and counts afterwards. No tensor is resized,
and none is left out that is not named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoProcessor, GenerationConfig

from clmm import fitting, llm, source_processor
from clmm.configuration_mmllm import MMLLMConfig
from clmm.loading import FLOATS, refuse_outside_code
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from streams import catalog
from streams.settings import SettingError

INDEX = "model.safetensors.index.json"
PROCESSOR = "the processor (preprocessor_config.json and a tokenizer, beside the weights)"
SHOWN = 5
"""Names in an error; the others are counted."""


class ConversionError(SettingError):
    """A checkpoint that cannot become a composition; the message names the tensors."""


class Conversion(Protocol):
    """The dataclass of a file in `clmm/conversion`."""

    model_type: ClassVar[str]
    """As config.json has it."""
    rules: ClassVar[tuple[tuple[str, str], ...]]
    """Pattern in a tensor's name → what stands there in ours; the first that is found is meant.

    `#0`, `#1`, … behind ours: these tensors, one below another, are one.
    """
    left_out: ClassVar[tuple[str, ...]]
    """Patterns of tensors that nothing is made of, for they hold nothing learnt."""
    departures: ClassVar[tuple[str, ...]]
    """What the composition does otherwise than the published model, a line each."""

    def composition(self, source: Any) -> MMLLMConfig:
        """Raises SettingError for what the composition cannot be, with the setting's name."""
        ...

    def processor(self, source: Any, config: MMLLMConfig) -> Any:
        """The composition's processor from the published one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written."""

    path: Path
    composition: str
    """`clip → mlp → llama, 32 layers of width 4096`."""
    tensors: int
    parameters: int
    left_out: tuple[str, ...]
    """Tensors of the checkpoint that nothing was made of."""
    departures: tuple[str, ...]
    """What the composition does otherwise than the published model."""


@dataclass
class _Plan:
    """Where each tensor of ours comes from, and in which shard it will be."""

    parts: dict[str, dict[int, tuple[str, list[int]]]] = field(default_factory=dict)
    """Ours → number of the part → its name in the checkpoint, and its shape."""
    file_of: dict[str, Path] = field(default_factory=dict)
    """Name in the checkpoint → file."""
    left_out: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    quantised: list[str] = field(default_factory=list)
    """Names in the checkpoint of tensors that are no floats, and what they are."""


def conversion_of(model_type: str) -> Conversion:
    """The file of `clmm/conversion` for a model_type of transformers; raises SettingError."""
    found: dict[str, Any] = {}
    for name in catalog.names("clmm.conversion"):
        cls = catalog.find("clmm.conversion", name, where="model_type")
        found[cls.model_type] = cls
    if model_type not in found:
        near = catalog.nearest(model_type, [*found])
        raise SettingError(f"model_type: no conversion of {model_type!r}{near}")
    made: Conversion = found[model_type]()
    return made


def renamed(name: str, rules: Iterable[tuple[str, str]]) -> tuple[str, int] | None:
    """Our name of a checkpoint's tensor, and which part of it that is; None without a rule."""
    for pattern, ours in rules:
        if re.search(pattern, name):
            target, _, part = re.sub(pattern, ours, name, count=1).partition("#")
            return target, int(part or 0)
    return None


def convert(folder: Path | str, out: Path | str) -> Converted:
    """Reads `folder`, writes `out`, which `clmm.loading.load` and AutoModel can load.

    Raises SettingError, or ConversionError that names missing, unexpected and misshapen tensors;
    nothing has been written then.
    """
    source, path = Path(folder), Path(out)
    if not (source / "config.json").is_file():
        raise SettingError(f"{source} has no config.json; give a folder of save_pretrained")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SettingError(f"--out: {path} is there already; name a new folder")
    refuse_outside_code(source)
    theirs = _read(AutoConfig, source, "config.json", trust_remote_code=False)
    if (quantised := getattr(theirs, "quantization_config", None)) is not None:
        raise SettingError(
            f"config.quantization_config: {quantised!r}; give the checkpoint as it was before"
        )
    conversion = conversion_of(theirs.model_type)
    config = conversion.composition(theirs)
    config.dtype = theirs.dtype
    fitting.check(config)
    published = _read(AutoProcessor, source, PROCESSOR, trust_remote_code=False)
    processor = conversion.processor(published, config)
    source_processor.check(processor, config)
    generation = None
    if (source / "generation_config.json").is_file():
        generation = _read(GenerationConfig, source, "generation_config.json")
    with torch.device("meta"):
        model = MMLLMForConditionalGeneration(config)
    plan = _plan(_files(source), conversion)
    written = _checked(plan, model)
    path.mkdir(parents=True, exist_ok=True)
    _write(path, plan, written)
    _count(path, model, written)
    (generation or model.generation_config).save_pretrained(path)
    processor.save_pretrained(path)
    # Last: a folder without it is none that can be loaded.
    config.architectures = [type(model).__name__]
    config.save_pretrained(path)
    return Converted(
        path=path,
        composition=describe(config),
        tensors=len(written),
        parameters=sum(p.numel() for p in model.parameters()),
        left_out=tuple(sorted(plan.left_out)),
        departures=conversion.departures,
    )


def describe(config: MMLLMConfig) -> str:
    """`clip → mlp → llama, 32 layers of width 4096`."""
    parts = [
        f"{config.encoders[name]['name']} → {config.input_projectors[name]['name']}"
        for name in config.inputs
    ]
    return f"{', '.join(parts)} → {llm.describe(config.text_config)}"


def _read(cls: Any, folder: Path, what: str, **options: Any) -> Any:
    """What transformers reads of a folder; SettingError in its words where it cannot."""
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # of each class its own
        raise SettingError(f"{folder}: {what}: {llm.reason(error)}") from None


def _files(folder: Path) -> dict[Path, list[str]]:
    """The shards, in order, and which tensors an index promises of each; SettingError where one
    is missing, or no file of the folder."""
    index = folder / INDEX
    if not index.is_file():
        promised: dict[str, list[str]] = {file.name: [] for file in folder.glob("*.safetensors")}
    else:
        promised = {}
        try:
            for tensor, name in json.loads(index.read_text("utf-8"))["weight_map"].items():
                promised.setdefault(name, []).append(tensor)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SettingError(f"{index}: has no weight_map from tensors to files") from None
    if not promised:
        raise SettingError(f"{folder} has no weights (*.safetensors); pickles are not read")
    for name in promised:
        if not isinstance(name, str) or Path(name).name != name:
            raise SettingError(f"{index}: names {name!r}, which is no file's name")
        if not (folder / name).is_file():
            raise SettingError(f"{index}: names {name}, which is not there")
    return {folder / name: promised[name] for name in sorted(promised)}


def _plan(files: Mapping[Path, Iterable[str]], conversion: Conversion) -> _Plan:
    """Reads the names, shapes and kinds alone."""
    plan = _Plan()
    for file, promised in files.items():
        with _opened(file) as tensors:
            lost = sorted({*promised} - {*tensors.keys()})
            if lost:
                raise ConversionError(f"{file}: {_named('tensors are not in it', lost)}")
            for name in tensors.keys():  # noqa: SIM118  (it is no mapping)
                target = renamed(name, conversion.rules)
                if any(re.search(pattern, name) for pattern in conversion.left_out):
                    plan.left_out.append(name)
                elif target is None:
                    plan.unexpected.append(name)
                else:
                    parts, number = plan.parts.setdefault(target[0], {}), target[1]
                    if number in parts:  # the same under an earlier name of transformers
                        plan.unexpected.append(name)
                        continue
                    found = tensors.get_slice(name)
                    parts[number] = (name, [*found.get_shape()])
                    if found.get_dtype() not in FLOATS:
                        plan.quantised.append(f"{name} {found.get_dtype()}")
                    plan.file_of[name] = file
    return plan


def _checked(plan: _Plan, model: Any) -> list[str]:
    """Names of ours that will be written; raises ConversionError when it is not all of them."""
    wanted = {name: [*tensor.shape] for name, tensor in model.state_dict().items()}
    tied: dict[str, str] = dict(model.all_tied_weights_keys)
    for name in sorted(plan.parts.keys() - wanted.keys()):
        plan.unexpected += [source for source, _ in plan.parts.pop(name).values()]
    _drop_copies(plan, tied)
    there = {name for name in wanted if name in plan.parts}
    # Of tied ones it is enough that one is there: any may give the others their values.
    owners = {tied.get(name, name) for name in there}
    missing = [name for name in wanted if tied.get(name, name) not in owners]
    shapes, problems = [], []
    for name in sorted(there):
        parts = [plan.parts[name][number] for number in sorted(plan.parts[name])]
        sizes = [shape for _, shape in parts]
        joined = [sum(size[0] for size in sizes), *sizes[0][1:]] if sizes[0] else sizes[0]
        if joined != wanted[name] or {*plan.parts[name]} != {*range(len(parts))}:
            whole = " + ".join(f"{source} {size}" for (source, size) in parts)
            shapes.append(f"{whole} is not {name} {wanted[name]}")
    for what, names in (
        ("tensors are missing", missing),
        ("tensors are unexpected", sorted(plan.unexpected)),
        ("tensors have another shape", shapes),
        ("tensors are no floats", sorted(plan.quantised)),
    ):
        if names:
            problems.append(_named(what, names))
    if problems:
        raise ConversionError("; ".join(problems))
    broken = [name for name in sorted(there) if not _tensor(plan, name).isfinite().all()]
    if broken:
        sources = [name for key in broken for name, _ in plan.parts[key].values()]
        raise ConversionError(_named("tensors hold what is no number", sources))
    return sorted(there)


def _named(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}"


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise SettingError(f"{file}: is no whole file of safetensors: {error}") from None


def _drop_copies(plan: _Plan, tied: Mapping[str, str]) -> None:
    """Of tied tensors that a checkpoint holds twice, equal ones are written once.

    Unequal ones are both kept: so transformers itself reads such a checkpoint.
    """
    for name, owner in tied.items():
        if name in plan.parts and owner in plan.parts:
            one, other = (_tensor(plan, key) for key in (name, owner))
            if one.shape == other.shape and torch.equal(one, other):
                del plan.parts[name]


def _tensor(plan: _Plan, name: str) -> torch.Tensor:
    """A tensor of ours, its parts one below another."""
    parts = []
    for number in sorted(plan.parts[name]):
        source, _ = plan.parts[name][number]
        with safe_open(plan.file_of[source], "pt") as tensors:
            parts.append(tensors.get_tensor(source))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _write(path: Path, plan: _Plan, written: list[str]) -> None:
    """One shard for each of the checkpoint's, so that one at a time is in memory."""
    shards: dict[Path, list[str]] = {}
    for name in written:
        last = max(plan.file_of[source] for source, _ in plan.parts[name].values())
        shards.setdefault(last, []).append(name)
    weight_map: dict[str, str] = {}
    total = 0
    for number, file in enumerate(sorted(shards), 1):
        tensors = {name: _tensor(plan, name).contiguous() for name in shards[file]}
        own = "model.safetensors"
        if len(shards) > 1:
            own = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, path / own, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, own)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _count(path: Path, model: Any, written: list[str]) -> None:
    """Raises RuntimeError when the files hold other numbers than the model: tensors, and values."""
    shapes: dict[str, list[int]] = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names = [*tensors.keys()]
            shapes |= {name: tensors.get_slice(name).get_shape() for name in names}
    state = model.state_dict()
    found = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    wanted = {name: state[name].numel() for name in written}
    if found != wanted:
        raise RuntimeError(
            f"{path}: {len(found)} tensors of {sum(found.values())} values were written, not "
            f"{len(wanted)} of {sum(wanted.values())}"
        )


def print_converted(folder: Path, out: Path) -> None:
    """What `clmm convert` does."""
    converted = convert(folder, out)
    print(converted.composition)
    print(f"{converted.tensors} tensors, {converted.parameters:,} parameters: {converted.path}")
    for name in converted.left_out:
        print(f"left out: {name}")
    for line in converted.departures:
        print(f"otherwise: {line}")
