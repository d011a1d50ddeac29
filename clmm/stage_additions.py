"""What a stage adds to a model's own parameters, and how that is counted, added and taken off.

LoRA adapters (peft's) on one component, rows of the signal tokens, a prefix of the language model,
and the parts that an objective has besides. Knows names and modules; what trains is
`clmm/stages.py`'s to say.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from clmm import components, language_prefix, objective, signal_tokens
from clmm.configuration_mmllm import MMLLMConfig
from clmm.encoding import unused_of
from clmm.stage_settings import LoraSettings, Stage
from streams.catalog import nearest
from streams.settings import SettingError

KINDS = {
    "lora": re.compile(r"\.lora_"),
    "signal_rows": re.compile(r"\.rows$"),
    "prefix": re.compile(rf"\.{language_prefix.NAME}\."),
    "objective": re.compile(r"\.first_stage\."),
}
"""Kind of addition → what its parameters' names have."""
_WRAPPED = re.compile(r"\.base_layer|\.base(?=(\.(weight|bias))?$)")


def kind_of(name: str) -> str | None:
    """Which addition a parameter belongs to; None for one of the model's own."""
    return next((kind for kind, pattern in KINDS.items() if pattern.search(name)), None)


def plain(name: str) -> str:
    """As it was named before its layer was wrapped, by peft or for rows of its own."""
    return _WRAPPED.sub("", name)


def unused(model: Any) -> tuple[str, ...]:
    """Prefixes of parameters without effect in a composed model: no feature depends on them."""
    config = getattr(model, "config", None)
    if not isinstance(config, MMLLMConfig):
        return ()
    parts = [
        *((f"encoders.{n}", config.encoder(n)) for n in config.inputs if owns(config, n)),
        *((f"input_projectors.{n}", config.input_projector(n)) for n in config.inputs),
    ]
    return tuple(f"{where}.{prefix}" for where, part in parts for prefix in unused_of(part))


def owns(config: MMLLMConfig, name: str) -> bool:
    """Whether an input has an encoder of its own."""
    return config.encoder_owner(name) == name


def sizes(model: nn.Module, stage: Stage) -> dict[str, tuple[str, int]]:
    """Kind → the component that it is added to, and its parameters; of what the stage has.

    Raises SettingError for what this model cannot have, or has otherwise.
    """
    found: dict[str, tuple[str, int]] = {}
    if stage.lora is not None:
        layers: list[Any] = [model.get_submodule(n) for n in lora_targets(model, stage.lora)]
        widths = sum(layer.in_features + layer.out_features for layer in layers)
        found["lora"] = stage.lora.component, stage.lora.rank * widths
    if stage.signal_rows:
        language_model = _language_model(model)
        tables = (language_model.get_input_embeddings(), language_model.get_output_embeddings())
        weights = {id(table.weight): table.weight for table in tables if table is not None}
        count = len(_signal_ids(model, stage)) * sum(w.shape[1] for w in weights.values())
        found["signal_rows"] = "language_model", count
    if stage.prefix:
        layers_, heads, width = language_prefix.shape(_prefixed(model, stage))
        found["prefix"] = "language_model", layers_ * 2 * heads * stage.prefix * width
    if (staged := _staged(stage)) is not None:
        found["objective"] = "input_projector", staged.size_beside(model)
    return found


def add(model: nn.Module, stage: Stage) -> None:
    """Adds what the stage has and the model has not yet."""
    there = {kind_of(name) for name, _ in model.named_parameters()}
    if stage.lora is not None and "lora" not in there:
        _add_adapters(model, stage.lora)
    if stage.signal_rows and "signal_rows" not in there:
        signal_tokens.train_rows(_language_model(model), _signal_ids(model, stage))
    if stage.prefix and "prefix" not in there:
        language_prefix.add_prefix(model, stage.prefix)
    if (staged := _staged(stage)) is not None:
        staged.begin(model)
    if {kind_of(name) for name, _ in model.named_parameters()} - {None, "prefix"}:
        # Their names are none that `from_pretrained` knows: it would draw those weights anew.
        vars(model)["save_pretrained"] = _refuse_to_save


def remove(model: nn.Module) -> None:
    """Adapters merged into their layers, rows written back, an objective's parts taken off.

    A prefix stays, for it is part of the model. Names are those of before.
    """
    signal_tokens.keep_rows(model)
    for name, module in [*model.named_modules()]:
        if isinstance(module, LoraLayer):
            layer: Any = module
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
        if hasattr(module, "first_stage"):
            del module.first_stage
    vars(model).pop("peft_config", None)
    vars(model).pop("save_pretrained", None)


def trains(model: nn.Module, stage: Stage) -> set[str] | None:
    """The model's own parameters that the stage's objective depends on; None: that is not told."""
    staged = _staged(stage)
    return None if staged is None else staged.trains(model)


def lora_targets(model: nn.Module, lora: LoraSettings) -> list[str]:
    """Full names of the linear layers that get adapters; SettingError for an unmatched target.

    Layers that no feature depends on get none.
    """
    idle = unused(model)
    try:
        layers = components.linears(model, lora.component)
    except ValueError as error:
        raise SettingError(f"lora.component: {error}") from None
    last = {
        name: plain(name).rsplit(".", 1)[-1]
        for name in layers
        if not (kind_of(name + ".") or (plain(name) + ".").startswith(idle))
    }
    # A head whose rows were made parameters of their own has another name.
    names = [name for name in last if last[name] not in components.HEADS]
    chosen: set[str] = set()
    for target in lora.targets or ("*",):
        hits = [n for n in names if last[n] == target or fnmatch.fnmatchcase(plain(n), target)]
        if not hits:
            near = nearest(target, sorted({last[name] for name in names}))
            where = lora.component.replace("_", " ")
            raise SettingError(
                f"lora.targets: no linear layer of the {where} is named {target!r}{near}"
            )
        chosen |= set(hits)
    _check_adapters(model, [plain(name) for name in sorted(chosen)], lora)
    return sorted(chosen)


def _check_adapters(model: nn.Module, targets: Sequence[str], lora: LoraSettings) -> None:
    """Adapters that are there must be those that the stage wants."""
    layers = {n: p for n, p in model.named_parameters() if ".lora_A." in n}
    if not layers:
        return
    adapted = sorted(plain(name.split(".lora_A.")[0]) for name in layers)
    rank = len(next(iter(layers.values())))
    if (adapted, rank) != ([*targets], lora.rank):
        raise SettingError(
            f"lora: the model has adapters of rank {rank} on {len(adapted)} layers, and the "
            f"stage wants rank {lora.rank} on {len(targets)}; finish the stage before first"
        )


def _add_adapters(model: nn.Module, lora: LoraSettings) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora_targets(model, lora),
    )
    meta = any(parameter.is_meta for parameter in model.parameters())
    with warnings.catch_warnings():
        # About weights that are tied to layers without adapters.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        inject_adapter_in_model(config, model, low_cpu_mem_usage=meta)
    for name, weight in model.named_parameters():
        if ".lora_" in name:  # small updates of a half would be rounded away
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))


def _staged(stage: Stage) -> objective.StagedObjective | None:
    """The stage's objective, where it needs parts that the model has not."""
    if stage.objective is None:
        return None
    made: Any = objective.of(stage.objective, where=f"stage {stage.name}: objective", staged=True)
    return made if hasattr(made, "network") else None


def _prefixed(model: Any, stage: Stage) -> Any:
    """The configuration of the language model that gets a prefix."""
    where, config = f"stage {stage.name}: prefix", getattr(model, "config", None)
    if not isinstance(config, MMLLMConfig):
        raise SettingError(
            f"{where}: {type(model).__name__} keeps none when it is saved; only a composed model "
            "does (`clmm convert` makes one)"
        )
    if config.is_encoder_decoder:
        kind = config.text_config.model_type
        raise SettingError(f"{where}: {kind} is an encoder and a decoder; it needs a decoder alone")
    if config.prefix_tokens not in (0, stage.prefix):
        raise SettingError(
            f"{where}: the model has one of {config.prefix_tokens} tokens already, and the stage "
            f"wants {stage.prefix}"
        )
    return config.text_config


def _signal_ids(model: Any, stage: Stage) -> list[int]:
    ids = [i for one in getattr(model.config, "signal_ids", {}).values() for i in one]
    if not ids:
        raise SettingError(f"stage {stage.name}: signal_rows: the model has no signal tokens")
    return ids


def _language_model(model: nn.Module) -> Any:
    return model.get_submodule(components.find(model)["language_model"][0])


def _refuse_to_save(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError(
        "the model is in the middle of a stage, with adapters or rows beside its weights; call "
        "clmm.stages.finish(model) first"
    )
