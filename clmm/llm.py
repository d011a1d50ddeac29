"""Language models by name: the architecture of each file in `clmm/llms`, or of a saved model.

Knows settings, sizes and sources; builds no weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from clmm.study_yaml import parse
from streams import settings
from streams.catalog import nearest
from streams.settings import SettingError

_FOLDER = resources.files("clmm") / "llms"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An architecture; the file's name is its name."""

    summary: str
    """What it is, in a line."""
    source: str
    """Where its settings are from."""
    parameters: int
    """All of them, tied ones once."""
    config: dict[str, Any]
    """`model_type` and settings of its transformers config."""
    notes: str = ""
    """Where it departs from the published model."""


def presets() -> list[str]:
    """Names of the architectures that can be named."""
    return sorted(f.name.removesuffix(".yaml") for f in _FOLDER.iterdir() if _is_yaml(f.name))


def preset(name: str, *, where: str = "llm") -> Preset:
    """An architecture by name; raises SettingError with the nearest name."""
    if name not in presets():
        raise SettingError(f"{where}: there is no {name!r}{nearest(name, presets())}")
    file = f"{name}.yaml"
    values, _ = parse((_FOLDER / file).read_text("utf-8"), file)
    if (other := values.pop("like", None)) is not None:
        values["config"] = {**preset(other, where=file).config, **values.get("config", {})}
    return settings.build(Preset, values, where=file)


def text_config(llm: Any, *, where: str = "llm") -> Any:
    """The transformers config that `llm` means.

    A preset's name; a mapping with `preset` or `model_type` and settings to change; one with
    `pretrained`, a folder or hub id, whose config is read; or a config. Raises SettingError for a
    name that is none, and for settings that the config does not have.
    """
    from transformers import PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if isinstance(llm, PretrainedConfig):
        return _generating(llm, where=where)
    values = {"preset": llm} if isinstance(llm, str) else llm
    if not isinstance(values, Mapping):
        raise SettingError(f"{where}: give a name, or a mapping with model_type; got {llm!r}")
    values = dict(values)
    sources = [key for key in ("preset", "model_type", "pretrained") if key in values]
    if len(sources) != 1:
        raise SettingError(
            f"{where}: give one of preset, model_type and pretrained; got "
            f"{', '.join(sources) or llm!r}"
        )
    if sources == ["pretrained"]:
        return _generating(_saved(str(values.pop("pretrained")), values, where=where), where=where)
    if sources == ["preset"]:
        values = preset(values.pop("preset"), where=where).config | values
    kind = values.pop("model_type")
    if kind not in CONFIG_MAPPING:
        near = nearest(str(kind), [*CONFIG_MAPPING.keys()])
        raise SettingError(f"{where}.model_type: transformers has no {kind!r}{near}")
    _check_keys(CONFIG_MAPPING[kind](), values, where=where)
    try:
        made = CONFIG_MAPPING[kind](**values)
    except Exception as error:  # each config has checks of its own, and kinds of errors
        raise SettingError(f"{where}: {kind} cannot be as it is set: {reason(error)}") from None
    return _generating(made, where=where)


def reason(error: Exception) -> str:
    """What a library's error says, in its first line."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def built(config: Any) -> Any:
    """The language model of a config, in the way of transformers; weights are random."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config)


def describe(config: Any) -> str:
    """`llama, 32 layers of width 4096`."""
    return f"{config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}"


_EXTRA = ("partial_rotary_factor", "rope_theta", "decoder_start_token_id")
"""Settings that transformers takes and keeps under another name."""


def _check_keys(config: Any, changes: Mapping[str, Any], *, where: str) -> None:
    for key, value in changes.items():
        if isinstance(value, (int, float)) and value < 0 and not key.endswith("token_id"):
            raise SettingError(f"{where}.{key}: {value} is below 0")
        # `attribute_map` gives some settings a second name.
        if not hasattr(config, key) and key not in _EXTRA:
            known = [k for k in vars(config) if not k.startswith("_")]
            kind = config.model_type
            raise SettingError(f"{where}.{key}: {kind} has no such setting{nearest(key, known)}")


def _generating(config: Any, *, where: str) -> Any:
    """The config itself; SettingError where its network does not say one token after another."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    kind = type(config)
    if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return config
    # BERT and its kin are among the causal ones, for they can be made decoders.
    encodes = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if encodes or kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        what = "an encoder alone" if encodes else "no language model"
        raise SettingError(
            f"{where}: {config.model_type} is {what}; name a decoder, or an encoder and a decoder"
        )
    return config


def _saved(source: str, changes: Mapping[str, Any], *, where: str) -> Any:
    from transformers import AutoConfig

    from clmm.loading import refuse_outside_code

    local = Path(source).expanduser().is_dir()
    options = {"local_files_only": local, "trust_remote_code": False}
    try:
        refuse_outside_code(source, local=local)
        saved = AutoConfig.from_pretrained(source, **options)
        _check_keys(saved, changes, where=where)
        changed = AutoConfig.from_pretrained(source, **options, **changes)
    except SettingError:
        raise
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise SettingError(
            f"{where}.pretrained: {source!r} is neither a folder of save_pretrained nor to be had "
            f"from the hub: {first}"
        ) from error
    except Exception as error:
        raise SettingError(f"{where}: {source} cannot be changed so: {reason(error)}") from None
    _generating(changed, where=where)
    weights = _weights(saved) if changes else {}
    for key, value in changes.items():
        if key in _EXTRA and not hasattr(changed, key):
            raise SettingError(
                f"{where}.{key}: {value!r} changes nothing of a saved {saved.model_type}, which "
                f"keeps it in rope_parameters: {saved.rope_parameters}"
            )
        alone = copy.deepcopy(saved)
        setattr(alone, key, value)
        if _weights(alone) != weights:
            raise SettingError(
                f"{where}.{key}: {value!r}, but the weights of {source} are of "
                f"{getattr(saved, key)!r}; leave it out, or name the architecture without weights"
            )
    return changed


def _weights(config: Any) -> dict[str, Any]:
    """Names and shapes of a language model's weights, tied ones once; none where it cannot be."""
    import torch

    try:
        with torch.device("meta"):
            return {name: weight.shape for name, weight in built(config).named_parameters()}
    except Exception:  # the change alone makes it nothing that could be built
        return {}


def _is_yaml(name: str) -> bool:
    return name.endswith(".yaml")
