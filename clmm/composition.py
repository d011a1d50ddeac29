"""Composes a multimodal LLM from components by name, and says which two do not fit.

Knows names, settings, widths and counts; what a component computes is its own file's affair, and
how they work together `clmm/modeling_mmllm.py`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from clmm import fitting
from clmm import llm as llms
from clmm.configuration_mmllm import MMLLMConfig
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from clmm.study_yaml import parse
from streams.catalog import nearest
from streams.settings import SettingError

SHOWN = 5
"""Names in an error; the others are counted."""

REQUIRED = ("llm", "encoders", "projectors")
KEYS = (
    *REQUIRED, "output_projectors", "generators", "signals", "generation_loss", "token_ids",
    "signal_ids",
)  # fmt: skip


def compose(
    *,
    llm: Any,
    encoders: Mapping[str, Any],
    projectors: Mapping[str, Any],
    output_projectors: Mapping[str, Any] | None = None,
    generators: Mapping[str, Any] | None = None,
    signals: Mapping[str, int] | None = None,
    generation_loss: Mapping[str, Any] | None = None,
    token_ids: Mapping[str, int] | None = None,
    signal_ids: Mapping[str, Sequence[int]] | None = None,
    device: str | torch.device | None = None,
) -> MMLLMForConditionalGeneration:
    """A model of random weights, in evaluation mode; a language model's own may be loaded.

    `llm` is a name of `clmm/llms`, such as vicuna-7b; a mapping with `model_type` and settings of
    transformers' config, or with `preset` and what is to be another; or `{"pretrained": folder or
    hub id}`, whose weights are loaded. `encoders` and `projectors` map each input (image, video,
    audio, …) to a name of `clmm/encoders` or `clmm/projectors`, or to a mapping of a `name` and
    settings; so do `generators` and `output_projectors` each output, which says with how many
    `signals` it is asked for, and `generation_loss` how all that is taught. Without `token_ids` and
    `signal_ids`, placeholders and signal tokens become new rows behind the vocabulary. On the
    device `meta` the model takes no memory and can only be counted.

    Raises SettingError for components that do not fit, with both names and both numbers.
    """
    config = configuration(
        llm=llm,
        encoders=encoders,
        projectors=projectors,
        output_projectors=output_projectors,
        generators=generators,
        signals=signals,
        generation_loss=generation_loss,
        token_ids=token_ids,
        signal_ids=signal_ids,
    )
    where = torch.device(device or "cpu")
    with where:
        model = MMLLMForConditionalGeneration(config)
    source = llm.get("pretrained") if isinstance(llm, Mapping) else None
    if source is not None and where.type != "meta":
        _load_language_model(model, str(source))
    return model.eval()


def compose_file(
    path: Path | str, *, device: str | torch.device | None = None
) -> MMLLMForConditionalGeneration:
    """`compose` with the keys of a YAML file. Raises SettingError naming the file."""
    if not Path(path).is_file():
        raise SettingError(f"{path}: there is no such file")
    values, _ = parse(Path(path).read_text("utf-8"), str(path))
    if not isinstance(values, Mapping):
        raise SettingError(f"{path}: give llm, encoders and projectors; got {values!r}")
    for key in values:
        if key not in KEYS:
            raise SettingError(f"{path}: {key}: no such setting{nearest(str(key), [*KEYS])}")
    for key in REQUIRED:
        if key not in values:
            raise SettingError(f"{path}: {key}: this setting is required")
    return compose(**values, device=device)


def configuration(
    *,
    llm: Any,
    encoders: Mapping[str, Any],
    projectors: Mapping[str, Any],
    output_projectors: Mapping[str, Any] | None = None,
    generators: Mapping[str, Any] | None = None,
    signals: Mapping[str, int] | None = None,
    generation_loss: Mapping[str, Any] | None = None,
    token_ids: Mapping[str, int] | None = None,
    signal_ids: Mapping[str, Sequence[int]] | None = None,
) -> MMLLMConfig:
    """The checked configuration of a composition; builds no weights."""
    text = copy.deepcopy(llms.text_config(llm))
    slots = {
        "encoders": encoders,
        "projectors": projectors,
        "output_projectors": output_projectors or {},
        "generators": generators or {},
    }
    specs = {where: _specs(given, where) for where, given in slots.items()}
    ids = dict(token_ids or {})
    _check_names(ids, specs["encoders"], "token_ids", "encoders")
    for name in specs["encoders"]:
        if name not in ids:
            ids[name] = _new_rows(text, 1)[0]
    marks = {name: [*given] for name, given in (signal_ids or {}).items()}
    for slot, given in (("signals", signals or {}), ("signal_ids", marks)):
        _check_names(given, specs["generators"], slot, "generators")
    for name, count in (signals or {}).items():
        if not isinstance(count, int) or count < 1:
            raise SettingError(f"signals.{name}: {count!r}; give 1 or more")
        if name in marks and len(marks[name]) != count:
            raise SettingError(f"signals.{name}: {count}, but signal_ids has {len(marks[name])}")
        if name not in marks:
            marks[name] = _new_rows(text, count)
    for where, token in [
        *((f"token_ids.{name}", token) for name, token in ids.items()),
        *((f"signal_ids.{name}", token) for name, tokens in marks.items() for token in tokens),
    ]:
        if not 0 <= token < text.vocab_size:
            raise SettingError(
                f"{where}: {token} is outside of the vocabulary of {text.vocab_size} of "
                f"{text.model_type}"
            )
    config = _checked(
        encoders=specs["encoders"],
        input_projectors=specs["projectors"],
        text_config=text,
        token_ids=ids,
        output_projectors=specs["output_projectors"],
        generators=specs["generators"],
        signal_ids=marks,
        generation_loss=dict(generation_loss or {}),
    )
    fitting.check(config)
    return config


def _checked(**slots: Any) -> MMLLMConfig:
    """The configuration, whose errors speak of `projectors`, as the caller does."""
    try:
        return MMLLMConfig(**slots)
    except SettingError as error:
        raise SettingError(str(error).removeprefix("input_")) from None


def _new_rows(text: Any, count: int) -> list[int]:
    """Ids behind the vocabulary, which grows by them."""
    first = text.vocab_size
    text.vocab_size += count
    return [*range(first, first + count)]


def _specs(given: Any, where: str) -> dict[str, dict[str, Any]]:
    """Names and settings by input or output; a bare name is a mapping with it."""
    if not isinstance(given, Mapping):
        raise SettingError(f"{where}: give a mapping, such as {{image: NAME}}; got {given!r}")
    specs = {}
    for name, spec in given.items():
        if not isinstance(spec, (str, Mapping)):
            raise SettingError(f"{where}.{name}: give a name, or a mapping with it; got {spec!r}")
        specs[name] = {"name": spec} if isinstance(spec, str) else dict(spec)
    return specs


def _check_names(given: Mapping[str, Any], known: Mapping[str, Any], here: str, there: str) -> None:
    for name in given:
        if name not in known:
            near = nearest(name, [*known]) if known else ""
            raise SettingError(f"{here}.{name}: there is no {there}.{name}{near}")


def _load_language_model(model: MMLLMForConditionalGeneration, source: str) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    local = Path(source).expanduser().is_dir()
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    both: Any = auto.from_pretrained(
        source,
        local_files_only=local,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    loaded, report = both
    # A tied head has the embedding's values.
    missing = report["missing_keys"] - loaded.all_tied_weights_keys.keys()
    for names, what in (
        (missing, "are missing and would be random"),
        (report["unexpected_keys"], "have no place in the language model"),
    ):
        if names:
            shown = ", ".join(sorted(names)[:SHOWN]) + (" …" if len(names) > SHOWN else "")
            raise SettingError(f"llm.pretrained: {source}: {len(names)} weights {what}: {shown}")
    size = model.config.text_config.vocab_size
    if loaded.get_input_embeddings().weight.shape[0] != size:
        # New rows are drawn about the mean of the old ones.
        loaded.resize_token_embeddings(size)
    model.language_model.load_state_dict(loaded.state_dict())
