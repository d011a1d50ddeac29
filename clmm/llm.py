"""Language models by name: the architecture of each file in `clmm/llms`, or of a saved model.

Knows settings, sizes and sources; builds no weights.
"""

from __future__ import annotations

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
        return llm
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
        return _saved(str(values.pop("pretrained")), values, where=where)
    if sources == ["preset"]:
        values = preset(values.pop("preset"), where=where).config | values
    kind = values.pop("model_type")
    if kind not in CONFIG_MAPPING:
        near = nearest(str(kind), [*CONFIG_MAPPING.keys()])
        raise SettingError(f"{where}.model_type: transformers has no {kind!r}{near}")
    config = CONFIG_MAPPING[kind]()
    for key in values:
        # `attribute_map` gives some settings a second name.
        if not hasattr(config, key) and key not in _EXTRA:
            known = [k for k in vars(config) if not k.startswith("_")]
            raise SettingError(f"{where}.{key}: {kind} has no such setting{nearest(key, known)}")
    return CONFIG_MAPPING[kind](**values)


def describe(config: Any) -> str:
    """`llama, 32 layers of width 4096`."""
    return f"{config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}"


_EXTRA = ("partial_rotary_factor", "rope_theta")
"""Settings that transformers takes and keeps under another name."""


def _saved(source: str, changes: Mapping[str, Any], *, where: str) -> Any:
    from transformers import AutoConfig

    local = Path(source).expanduser().is_dir()
    try:
        return AutoConfig.from_pretrained(
            source, local_files_only=local, trust_remote_code=False, **changes
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise SettingError(
            f"{where}.pretrained: {source!r} is neither a folder of save_pretrained nor to be had "
            f"from the hub: {first}"
        ) from error


def _is_yaml(name: str) -> bool:
    return name.endswith(".yaml")
