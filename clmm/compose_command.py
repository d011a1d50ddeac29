"""`clmm compose`: a model and its processor from one YAML file, counted, and saved.

Knows the command's options and how a composition is shown; what fits, `clmm/composition.py` says.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from clmm import llm
from clmm.composed_processor import processor_of
from clmm.composition import compose_file
from clmm.loading import outside_code, quiet
from clmm.result import plain_table, print_table
from streams.settings import SettingError


def run(options: argparse.Namespace) -> int:
    """Counts without memory; with `--out` composes the same with weights, and saves it."""
    out: Path | None = None if options.dry_run else options.out
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingError(f"--out: {out} is there already; name a new folder")
    if options.seed < 0:
        raise SettingError(f"--seed: must not be negative; got {options.seed}")
    model = compose_file(options.file, device="meta")
    print_table(parameters_table(model))
    try:
        _check_saved(model)
        processor = processor_of(model)
    except SettingError as error:
        if out is not None:
            raise
        print(f"\nIt could not be saved yet: {error}")
        return 0
    spare = model.config.text_config.vocab_size - len(processor.tokenizer)
    if spare:
        print(f"\n{spare:,} rows behind the last token of the vocabulary have none")
    if out is None:
        return 0
    torch.manual_seed(options.seed)
    with quiet():
        model = compose_file(options.file)
        processor.save_pretrained(out)
        model.save_pretrained(out)
    print(f"\nsaved: {out}")
    return 0


def _check_saved(model: Any) -> None:
    for where, name in outside_code(model.config.to_dict()):
        raise SettingError(
            f"{where}: {name!r} is code outside the package, which is never imported for a saved "
            "model; compose it in a script"
        )


def parameters_table(model: Any) -> Table:
    """Parameters by component, the width of what each makes, and how much one medium becomes."""
    config = model.config
    text = config.text_config
    table = plain_table("component", "parameters", "width", "tokens a medium")
    total = 0

    def add(name: str, module: Any, width: int | None, tokens: int | None) -> None:
        nonlocal total
        count = sum(p.numel() for p in module.parameters()) if module is not None else 0
        total += count
        cells = (width, tokens)
        table.add_row(name, f"{count:,}", *("" if cell is None else str(cell) for cell in cells))

    for name in config.inputs:
        encoder, owner = config.encoder(name), config.encoder_owner(name)
        kind = config.encoders[name]["name"] + ("" if owner == name else f" of {owner}")
        module = model.encoders[name] if owner == name else None
        add(f"encoders.{name}: {kind}", module, encoder.width, encoder.num_tokens(encoder.shape))
    for name, module in model.input_projectors.items():
        kind = config.input_projectors[name]["name"]
        add(f"projectors.{name}: {kind}", module, text.hidden_size, config.num_tokens(name))
    add(f"llm: {llm.describe(text)}", model.language_model, text.hidden_size, None)
    for name, module in model.output_projectors.items():
        length, width = config.media_generator(name).condition_shape
        add(f"output_projectors.{name}: {config.output_projectors[name]['name']}", module, width,
            length)  # fmt: skip
    for name in config.outputs:
        with torch.device("meta"):
            made = config.media_generator(name).build()
        add(f"generators.{name}: {config.generators[name]['name']}", made, None, None)
    table.add_row("total", f"{total:,}", "", "")
    return table
