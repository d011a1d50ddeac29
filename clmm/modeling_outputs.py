"""The output side of the multimodal LLM: S_X → output projector → H_X → generator, and its losses.

Knows how a composed model's parts meet there. Generators are no part of the model: frozen, outside
`state_dict`, loaded when first asked, shared by copies of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from clmm import generation_losses, signal_tokens
from clmm.generators import text_relay

TARGETS = ("target_{}", "target_{}_latents", "target_{}_condition")
"""Keywords of `forward`: an output's media, their latents, τ_X(t); [spans, …] in reading order."""


@dataclass
class MMLLMOutput(CausalLMOutputWithPast):
    """What a pass with targets returns: `loss` is the weighted sum of the parts that are there."""

    language_loss: Tensor | None = None
    """Equation (2)."""
    alignment_loss: Tensor | None = None
    """Equation (4), summed over outputs."""
    denoising_loss: Tensor | None = None
    """Equation (5), summed over outputs."""
    conditions: dict[str, Tensor] | None = None
    """H_X [spans, L, d_c] by output."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """One generated medium."""

    output: str
    """image, video or audio: the output's name."""
    media: Tensor
    """[3, H, W] or [F, 3, H, W] in [0, 1], or [samples] in [−1, 1]."""


@dataclass(frozen=True, kw_only=True)
class MadeMedia:
    """Answers and what they asked for."""

    sequences: Tensor
    """Token ids [B, N], prompts included."""
    media: list[list[Made]]
    """By row in reading order; what was asked for in words comes last."""


class Generators:
    """Built generators by output. Copies of a model share it: nothing in it trains."""

    def __init__(self) -> None:
        self.built: dict[str, Any] = {}

    def __deepcopy__(self, memo: Any) -> Generators:
        return self

    def attach(self, name: str, generator: nn.Module, shape: tuple[int, int] | None) -> None:
        """Freezes it; ValueError when it takes other conditions than the settings say."""
        has = getattr(generator, "condition_shape", None)
        if has != shape:
            raise ValueError(f"generators.{name}: takes conditions {has}, the settings say {shape}")
        self.built[name] = generator.requires_grad_(False).eval()


def projectors(config: Any) -> nn.ModuleDict:
    """The output projectors Θ_{T→X} by output."""
    return nn.ModuleDict(
        {
            name: config.output_projector(name).build(
                input_width=config.text_config.hidden_size,
                output_width=config.media_generator(name).condition_shape[1],
            )
            for name in config.output_projectors
        }
    )


def generator(model: Any, name: str) -> Any:
    """The output's generator, loaded from its folder onto the model's device when first asked."""
    held: Generators = model.generators
    if name not in held.built:
        settings = model.config.media_generator(name)
        folder = Path(model.config.name_or_path or "")
        beside = folder if folder.is_dir() else None
        try:
            made = settings.load(beside)
        except ValueError as error:
            raise ValueError(f"generators.{name}: {error}") from None
        # In the precision of the model that asks, whatever the files are in.
        made = made.to(model.device, model.dtype)
        held.attach(name, made, settings.condition_shape)
    return held.built[name]


def target_keys(config: Any) -> Iterator[str]:
    return (key.format(name) for name in config.outputs for key in TARGETS)


def taken_targets(config: Any, given: dict[str, Any]) -> dict[str, Tensor]:
    """Targets among a pass's keywords, taken out of them."""
    keys = [key for key in target_keys(config) if key in given]
    return {key: value for key in keys if (value := given.pop(key)) is not None}


def learnt_labels(config: Any, labels: Tensor | None) -> Tensor | None:
    """Labels without the signal tokens that decoding forces, unless all are to be learnt."""
    if labels is None or config.loss.signals == "all":
        return labels
    later = [i for ids in config.signal_ids.values() for i in ids[1:]]
    if not later:
        return labels
    forced = torch.isin(labels, torch.tensor(later, device=labels.device))
    return labels.masked_fill(forced, generation_losses.IGNORED)


def conditions(model: Any, input_ids: Tensor, states: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By output, each span's row and column [n, 2], and H_X [n, L, d_c], from states [B, N, D].

    S_X are the states of the signal tokens themselves, in one pass over the finished sequence.
    """
    made = {}
    for name, ids in model.config.signal_ids.items():
        rows, columns = signal_tokens.spans(input_ids, ids)
        signals = states[rows[:, None], columns]
        if model.config.output_projector(name).add_embedding:
            embed = model.get_input_embeddings()
            signals = signals + embed(input_ids[rows[:, None], columns]).to(signals)
        projector = model.output_projectors[name]
        weight = next(projector.parameters())
        made[name] = (
            torch.stack([rows, columns[:, 0]], dim=1),
            projector(signals.to(weight.dtype)),
        )
    return made


def with_losses(
    model: Any, output: Any, input_ids: Tensor | None, targets: Mapping[str, Tensor]
) -> MMLLMOutput:
    """A pass's output with (4) and (5) added to its loss (2), by the configuration's weights.

    Raises ValueError where spans and targets differ in number.
    """
    if input_ids is None:
        raise ValueError("targets of the output side need input_ids: they say where signals are")
    loss = model.config.loss
    found = conditions(model, input_ids, output.hidden_states[-1])
    for name in model.config.outputs:
        if name not in found and any(key.format(name) in targets for key in TARGETS):
            kind = model.config.generators[name]["name"]
            raise ValueError(f"target_{name}: {kind} is asked in words, which have no such target")
    alignment, denoising = [], []
    for name, (_, condition) in found.items():
        media, latents, wanted = (targets.get(key.format(name)) for key in TARGETS)
        for target in (media, latents, wanted):
            if target is not None and len(target) != len(condition):
                raise ValueError(
                    f"{len(condition)} {name}s are asked for in the text, but {len(target)} targets"
                )
        if not len(condition):
            continue
        if wanted is not None and loss.alignment_weight:
            wanted = wanted.to(condition.device)
            alignment.append(generation_losses.alignment(condition, wanted, loss.alignment))
        if (media is not None or latents is not None) and loss.denoising_weight:
            drop = loss.drop if model.training else 0.0
            made, kind = generator(model, name), model.config.generators[name]["name"]
            try:
                value = made.loss(condition, media=media, latents=latents, drop=drop)
            except ValueError as error:
                raise ValueError(f"target_{name}: {kind}: {error}") from None
            denoising.append(value.to(condition.device))
    language = output.loss
    aligned = torch.stack(alignment).sum() if alignment else None
    denoised = torch.stack(denoising).sum() if denoising else None
    return MMLLMOutput(
        **{key: value for key, value in output.items() if key != "loss"},
        loss=loss.total(language, aligned, denoised),
        language_loss=language,
        alignment_loss=aligned,
        denoising_loss=denoised,
        conditions={name: condition for name, (_, condition) in found.items()},
    )


def forcing(config: Any, others: Any = None) -> LogitsProcessorList:
    """`generate`'s logits processors, with the one that keeps sequences of signal tokens whole and
    says no placeholder, of which there would be no medium."""
    forced = signal_tokens.ForcedSignals(
        [*config.signal_ids.values()], never=config.token_ids.values()
    )
    return LogitsProcessorList([*(others or ()), forced])


def one_each(model: Any, output: str, **inputs: Any) -> Tensor:
    """The first medium of that output of each row, made where not asked for: [B, …]."""
    made = generate_media(model, wanted=output, **inputs)
    return torch.stack([next(m.media for m in row if m.output == output) for row in made.media])


@torch.no_grad()
def generate_media(
    model: Any,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    wanted: str | None = None,
    **inputs: Any,
) -> MadeMedia:
    """Answers, one pass over them, and the media that they ask for.

    `inputs` are `generate`'s, `input_ids` among them; `steps` and `guidance` are the generators'
    own when left out. With `wanted`, each row that asks for no medium of that output is made to.
    Outputs that are asked in words (text_relay) need the `tokenizer`.
    """
    config = model.config
    relayed = [
        name for name in config.outputs if config.media_generator(name).condition_shape is None
    ]
    if relayed and tokenizer is None:
        raise ValueError(f"{relayed[0]} is asked in words: give the tokenizer")
    if wanted is not None and wanted not in config.signal_ids:
        raise ValueError(f"{wanted!r} has no signal tokens; outputs with: {[*config.signal_ids]}")
    prompt = inputs["input_ids"]
    options = {"steps": steps, "guidance": guidance, "seed": seed}
    ids = [*config.signal_ids.values()]
    sequences = model.generate(**inputs)
    ends = model.generation_config.eos_token_id
    sequences, there = signal_tokens.completed(
        sequences,
        ids,
        start=prompt.shape[1],
        pad=_padding(model),
        ends=ends if isinstance(ends, list) else [ends],
        wanted=config.signal_ids[wanted] if wanted else None,
    )
    placed: list[tuple[int, int, Made]] = []
    if ids:
        for name, (places, condition) in _second_pass(model, inputs, sequences, there).items():
            if len(places):
                media = generator(model, name).generate(condition, **options)
                for (row, column), one in zip(places.tolist(), media, strict=True):
                    placed.append((row, column, Made(output=name, media=one)))
    placed.sort(key=lambda place: place[:2])
    made = [[one for at, _, one in placed if at == row] for row in range(len(sequences))]
    if relayed:
        answers = tokenizer.batch_decode(sequences[:, prompt.shape[1] :], skip_special_tokens=True)
        for row, answer in enumerate(answers):
            for name, words in text_relay.requests(answer):
                if name in relayed:
                    media = generator(model, name).generate([words], **options)
                    made[row].append(Made(output=name, media=media[0]))
    return MadeMedia(sequences=sequences, media=made)


def _second_pass(
    model: Any, inputs: Mapping[str, Any], sequences: Tensor, there: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Conditions from one pass over finished answers: training has seen such states, no others."""
    prompt = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(prompt) if mask is None else mask
    mask = torch.cat([mask.to(there), there], dim=1)
    media = {key: inputs[key] for key in model._media_keys if inputs.get(key) is not None}
    output = model(
        input_ids=sequences,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=1,
        **media,
    )
    return conditions(model, sequences, output.hidden_states[-1])


def _padding(model: Any) -> int:
    """What fills a row behind its end: the padding token, or else the end itself."""
    config = model.generation_config
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    pad = end if config.pad_token_id is None else config.pad_token_id
    if pad is None:
        raise ValueError("the generation configuration has neither a padding nor an end token")
    return int(pad)


def add_outputs(
    model: Any,
    tokenizer: Any,
    *,
    generators: Mapping[str, Any],
    output_projectors: Mapping[str, Any],
    signals: Mapping[str, int],
    generation_loss: Mapping[str, Any] | None = None,
) -> None:
    """Gives a composed model outputs, in place: signal tokens, their rows and output projectors.

    `signals` is the number of signal tokens of each output; the rest is as in the configuration.
    The vocabulary grows to the tokenizer's. Raises ValueError where the model has outputs already.
    """
    config = model.config
    if config.outputs:
        raise ValueError(f"the model has outputs already: {', '.join(config.outputs)}")
    values = config.to_dict() | {
        "generators": generators,
        "output_projectors": output_projectors,
        "signal_ids": signal_tokens.add_to(tokenizer, signals),
        "generation_loss": generation_loss,
    }
    slots = ("generators", "output_projectors", "signal_ids", "generation_loss")
    checked = type(config)(**values)
    for slot in slots:
        setattr(config, slot, getattr(checked, slot))
    language_model = model.language_model
    weight = language_model.get_input_embeddings().weight
    if len(tokenizer) > len(weight):
        language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        config.text_config.vocab_size = len(tokenizer)
    model.output_projectors = projectors(config).to(weight.device, weight.dtype)
    model.output_modalities = (*config.outputs, "text")


def train_outputs(model: Any, *, rows: bool = True) -> list[nn.Parameter]:
    """Freezes the model but for its output projectors and, with `rows`, its signal tokens' rows.

    `signal_tokens.keep_rows(model.language_model)` ends that. Returns what trains.
    """
    model.requires_grad_(False)
    trained = [*model.output_projectors.requires_grad_().parameters()]
    ids = [i for one in model.config.signal_ids.values() for i in one]
    if rows and ids:
        trained += signal_tokens.train_rows(model.language_model, ids)
    if not trained:
        raise ValueError("the model has no output projector and no signal token to train")
    return trained
