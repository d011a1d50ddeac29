"""Loads a vision-language model and its processor by name, folder or hub id.

Only safetensors are read, code that comes with a model is never run, and the network is touched
only for a hub id. Knows no class of model: what transformers' Auto classes know can be loaded.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import logging

import clmm.modeling_mmllm
import clmm.processing_mmllm  # noqa: F401  (they register our classes with the Auto classes)
from clmm.configuration_mmllm import MMLLMConfig
from streams.catalog import nearest
from streams.settings import SettingError

Precision = Literal["fp32", "bf16", "fp16"]

FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the kinds of numbers that weights are; others are quantised."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PACKAGED = {
    name: Path(__file__).parent / "nano" / folder
    for name, folder in (("nano", "weights"), ("painter", "painter_weights"))
}
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_HUB_COPIES = ["original/*", "consolidated*"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SLOTS = ("encoders", "input_projectors", "output_projectors", "generators")
_HASHED_WHOLE_BYTES = 64 * 2**20


class ModelError(SettingError):
    """A model that cannot be loaded as named."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in evaluation mode, its processor, and what exactly was loaded."""

    model: PreTrainedModel
    processor: ProcessorMixin
    name: str
    """As it was asked for."""
    revision: str
    """The hub's commit, or a digest of the weight files' digests."""
    path: Path
    weights: dict[str, str]
    """Weight file → `sha256:…` of it, or `sha256-header:…` of its header when it is large."""


def load(
    spec: str | Path,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
) -> Loaded:
    """The model that `spec` names: `nano`, a folder, or a hub id (`owner/name[@commit]`).

    `device` None takes CUDA where there is one; `precision` is that of the weights. Raises
    ModelError, saying what to do, when nothing bears the name or what does cannot be used.
    """
    if precision not in _DTYPES:
        raise ModelError(f"precision: there is no {precision!r}{nearest(precision, [*_DTYPES])}")
    path, commit = _locate(spec)
    config = _config(path)
    _require_safetensors(path)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device: {where} was asked for, but torch sees no GPU; leave it out")
    # On a CPU torch's fused attention is the slower one for rows as short as these: its backward
    # pass took half of a training step (docs/log.md).
    attention = {"attn_implementation": "eager"} if where.type == "cpu" else {}
    with quiet():
        processor = _processor(path, config)
        both: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            config=config,
            dtype=_DTYPES[precision],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            # Refused below, by name; transformers would only count them.
            ignore_mismatched_sizes=True,
            **attention,
        )
    model, report = both
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise ModelError(
            f"model: {path}: {len(mismatched)} weights have another shape, first {name}, which is "
            f"{[*found]} and should be {[*wanted]}; config.json and the weights do not belong "
            "together"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"model: {path}: {len(missing)} weights are missing and would be random, first "
            f"{missing[0]}; config.json and the weights do not belong together"
        )
    if unused := sorted(report["unexpected_keys"]):
        said = f"{path}: {len(unused)} weights have no place in the model, first {unused[0]}"
        if isinstance(config, MMLLMConfig):
            raise ModelError(f"model: {said}; config.json and the weights do not belong together")
        warnings.warn(said, stacklevel=2)  # of other classes there are checkpoints that have some
    _require_floats(path, model)
    weights = {file.name: _digest(file) for file in sorted(path.glob("*.safetensors"))}
    together = hashlib.sha256("".join(weights.values()).encode()).hexdigest()
    return Loaded(
        model=model.to(where).eval(),
        processor=processor,
        name=str(spec),
        revision=commit or f"sha256:{together}",
        path=path,
        weights=weights,
    )


def located(spec: str | Path) -> tuple[Path, str]:
    """The folder and revision of a model of any class, for who loads it without a processor.

    Raises ModelError as `load` does, when nothing bears the name or the weights are pickles.
    """
    path, commit = _locate(spec)
    if not (path / "config.json").is_file():
        raise ModelError(f"model: {path} has no config.json; give a folder of save_pretrained")
    refuse_outside_code(path)
    _require_safetensors(path)
    digests = "".join(_digest(file) for file in sorted(path.glob("*.safetensors")))
    return path, commit or f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"


def refuse_outside_code(source: Path | str, *, local: bool = True) -> None:
    """Raises ModelError where a saved config.json names a component by a dotted path.

    Asked before a configuration is made of it, since that would import the path's module. A
    composition that someone writes may name such a path; a checkpoint, from whoever, may not.
    """
    # As transformers itself finds the values, which may lie in a file of another name.
    values, _ = PreTrainedConfig.get_config_dict(source, local_files_only=local)
    for where, name in outside_code(values):
        raise ModelError(
            f"model: {source}: {where}: {name!r} is code outside the package, which is never "
            "imported for a checkpoint"
        )


def outside_code(values: Any) -> Iterator[tuple[str, str]]:
    """Where a configuration's values name a component by a dotted path, and the path."""
    return ((where, name) for where, name in _component_names(values) if ":" in name)


def _component_names(values: Any, where: str = "", *, inside: bool = False) -> Iterator[Any]:
    """Where in a config.json a component is named, at any depth, and its name."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            here = f"{where}.{key}" if where else str(key)
            if inside and key == "name" and isinstance(value, str):
                yield where, value
            yield from _component_names(value, here, inside=inside or key in _SLOTS)
    elif isinstance(values, list):
        for i, value in enumerate(values):
            yield from _component_names(value, f"{where}[{i}]", inside=inside)


def _locate(spec: str | Path) -> tuple[Path, str | None]:
    """The folder, downloaded if `spec` is a hub id, and then its commit."""
    name = str(spec)
    folder = _PACKAGED.get(name) or Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve(), None
    if folder.suffix in (".yaml", ".yml"):
        if not folder.is_file():
            raise ModelError(f"model: there is no file {name!r}")
        made = folder.stem
        raise ModelError(
            f"model: {name!r} is a composition, which becomes a model by `clmm compose {name} "
            f"--out {made}`; then give `model: {made}`"
        )
    if name in _PACKAGED:
        raise ModelError(f"model: {name!r} is not built; run `clmm build {name}`")
    if folder.exists():
        raise ModelError(f"model: {name!r} is a file; give the folder that holds config.json")
    hub = None if isinstance(spec, Path) else _HUB_ID.fullmatch(name)
    if hub is None:
        raise ModelError(f"model: there is no {name!r}{_near(folder)}")
    try:
        path = snapshot_download(
            hub["id"],
            revision=hub["revision"],
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_COPIES,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model: {name!r} is neither a folder here nor to be had from the hub: "
            f"{str(error).strip().splitlines()[0]}{_near(folder)}"
        ) from error
    return Path(path), Path(path).name


def _near(folder: Path) -> str:
    """The packaged name or neighbouring folder that was likely meant."""
    local = [f.name for f in folder.parent.glob("*/") if (f / "config.json").is_file()]
    return (
        f"{nearest(folder.name, [*_PACKAGED, *local])} (or give a folder, or a hub id owner/name)"
    )


def _config(path: Path) -> Any:
    if not (path / "config.json").is_file():
        raise ModelError(f"model: {path} has no config.json; give a folder of save_pretrained")
    refuse_outside_code(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except SettingError as error:  # a composition that cannot be
        raise ModelError(f"model: {path}: {error}") from None
    except ValueError as error:
        raise ModelError(
            f"model: {path}: transformers does not know this class, and code that comes with a "
            f"model is never run: {str(error).strip().splitlines()[0]}"
        ) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(
            f"model: {path}: model_type {config.model_type!r} does not take images and text and "
            "answer in text; name a vision-language model"
        )
    return config


def _require_floats(path: Path, model: Any) -> None:
    """Quantised values would be read as if they were the weights."""
    wanted = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in sorted(wanted & {*tensors.keys()}):
                if (kind := tensors.get_slice(name).get_dtype()) not in FLOATS:
                    raise ModelError(f"model: {file}: {name} is {kind}, no float; it is quantised")


def _require_safetensors(path: Path) -> None:
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ModelError(
            f"model: {path}: {pickles[0]} is a pickle, which can run any code when it is read, so "
            "it is refused; where you trust it, load it with transformers and save_pretrained it "
            "again, which writes safetensors"
        )
    raise ModelError(f"model: {path} has no weights (*.safetensors)")


def _processor(path: Path, config: Any) -> ProcessorMixin:
    composed = isinstance(config, MMLLMConfig)
    if composed and not (path / "processor_config.json").is_file():
        raise ModelError(
            f"model: {path} has no processor (processor_config.json); "
            "clmm.processor_of(model).save_pretrained(…) makes it"
        )
    try:
        processor = AutoProcessor.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        raise ModelError(f"model: {path}: its processor cannot be loaded: {error}") from error
    if composed:
        _check_inputs(path, config, processor)
    elif not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(
            f"model: {path} has no processor for images and text (processor_config.json); "
            "save the processor into the same folder"
        )
    return processor


def _check_inputs(path: Path, config: MMLLMConfig, processor: Any) -> None:
    """The processor serves every input of the model, and puts as many placeholders into a text, of
    the same id, as the model fills."""
    counts = getattr(processor, "num_tokens", None)
    if counts is None or {*counts} != {*config.inputs}:
        has = "none" if counts is None else f"one for {', '.join(counts) or 'text'} alone"
        raise ModelError(
            f"model: {path}: the model takes {', '.join(config.inputs) or 'text'}, and needs a "
            f"processor for it; there is {has}; clmm.processor_of(model) makes it"
        )
    for name in config.inputs:
        made, wanted = counts[name], config.num_tokens(name)
        if made != wanted:
            raise ModelError(
                f"model: {path}: the processor makes {made} tokens of one {name}, the model "
                f"{wanted}; config.json and the processor do not belong together"
            )
        found, token = getattr(processor, f"{name}_token_id", None), config.token_ids.get(name)
        if found != token:
            raise ModelError(
                f"model: {path}: the processor's placeholder of one {name} has the id {found}, the "
                f"model's {token}; config.json and the processor do not belong together"
            )


def _digest(file: Path) -> str:
    """Of the whole file, or of a large one's header: its names, shapes and offsets."""
    with file.open("rb") as stream:
        if file.stat().st_size <= _HASHED_WHOLE_BYTES:
            return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        length = stream.read(8)
        header = stream.read(int.from_bytes(length, "little"))
        return "sha256-header:" + hashlib.sha256(length + header).hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """No bars of weights read or written inside the program's own display."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
