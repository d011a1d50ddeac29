"""The zoo: recipes that can be built, and the survey's taxonomy of multimodal language models.

Lists and filters by formula without torch; measures a recipe when it is shown or written. Knows no
network: `clmm/measuring.py` counts.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.table import Table

from clmm.recipe import Recipe, names
from clmm.result import Terminal
from streams.catalog import nearest
from streams.settings import SettingError

FORMULA = ("input", "encoder", "projector", "llm", "output_projector", "generator", "output")
"""The formula of a model, from left to right."""
KEYS = (*FORMULA, "io", "name", "date", "venue", "functional", "design", "paper", "source")
"""What models can be filtered by."""
WRITTEN = (
    "name", "measured_parameters", "published_parameters", "difference", "explanation",
)  # fmt: skip
"""What `--out` writes of a recipe."""

_LETTERS = {"image": "I", "video": "V", "audio": "A", "text": "T", "points": "3D", "point": "3D"}
_COLUMNS = {"projector": "input_projector", "source": "arch_source"}
"""Key → column of the table where the two differ."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the taxonomy."""

    values: Mapping[str, str]
    """Key of `KEYS` → what the table says; empty where it says nothing."""

    @property
    def name(self) -> str:
        return self.values["name"]


def taxonomy() -> list[Entry]:
    """The 154 models, in order of their dates."""
    text = (resources.files("clmm") / "taxonomy.tsv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    entries = []
    for row in rows:
        values = {key: row.get(_COLUMNS.get(key, key)) or "" for key in KEYS}
        values["input"], values["output"] = _sides(values["io"])
        entries.append(Entry(values=values))
    return entries


def formula_of(recipe: Recipe) -> dict[str, str]:
    """What a recipe is made of, by the taxonomy's keys."""
    parts = recipe.composition()
    llm = parts["llm"]
    outputs = [*parts.get("generators", {}), "text"]
    inputs = [*parts["encoders"], "text"]
    sides = ["+".join(_LETTERS.get(name, name) for name in side) for side in (inputs, outputs)]
    return {
        "input": sides[0],
        "encoder": _kinds(parts["encoders"]),
        "projector": _kinds(parts["projectors"]),
        "llm": llm if isinstance(llm, str) else str(llm.get("preset") or llm.get("model_type")),
        "output_projector": _kinds(parts.get("output_projectors", {})),
        "generator": _kinds(parts.get("generators", {})),
        "output": sides[1],
        "io": " -> ".join(sides),
        "name": f"{recipe.name} {recipe.model}",
        "paper": recipe.paper,
    }


def wanted(words: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` words as a filter; SettingError for a key that is none."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not value.strip():
            raise SettingError(f"--formula: give KEY=VALUE, such as encoder=clip; got {word!r}")
        if key not in KEYS:
            raise SettingError(f"--formula: there is no key {key!r}{nearest(key, [*KEYS])}")
        if key in found:
            raise SettingError(f"--formula: {key} is given twice")
        found[key] = value.strip()
    return found


def matches(values: Mapping[str, str], chosen: Mapping[str, str]) -> bool:
    """Whether a model is of the formula. `input` and `output` are sets of modalities that must all
    be there (`input=image,audio` or `I+A`), `io` is the whole of both sides; any other value must
    be in the model's, without regard to case and marks."""
    for key, value in chosen.items():
        have = values.get(key, "")
        if key in ("input", "output"):
            if not _modalities(value) <= _modalities(have):
                return False
        elif key == "io":
            if [_modalities(s) for s in _sides(value)] != [_modalities(s) for s in _sides(have)]:
                return False
        elif _bare(value) not in _bare(have):
            return False
    return True


def models(chosen: Mapping[str, str]) -> list[Entry]:
    """Models of the taxonomy that are of the formula."""
    return [entry for entry in taxonomy() if matches(entry.values, chosen)]


def recipes(chosen: Mapping[str, str]) -> list[Recipe]:
    """Recipes that are of the formula by their composition, or else by the taxonomy's words."""
    rows = {entry.name: entry.values for entry in taxonomy()}
    found = (Recipe.read(name) for name in names())
    return [
        recipe
        for recipe in found
        if matches(formula_of(recipe), chosen) or matches(rows[recipe.model], chosen)
    ]


def record(recipe: Recipe) -> dict[str, Any]:
    """A recipe measured against what is published, as plain data."""
    from clmm.measuring import measure, reasons

    measured = measure(recipe)

    def explanation(stage: str | None) -> list[dict[str, Any]]:
        return [asdict(reason) for reason in reasons(recipe, measured, stage=stage)]

    published = recipe.published
    gap = None if published.parameters is None else measured.total - published.parameters
    return {
        "name": recipe.name,
        "model": recipe.model,
        "table1": recipe.table1,
        "paper": recipe.paper,
        "formula": {key: formula_of(recipe)[key] for key in FORMULA},
        "measured_parameters": measured.total,
        "published_parameters": published.parameters,
        "published_source": published.source,
        "difference": gap,
        "explanation": explanation(None),
        "components": dict(measured.components),
        "stated": {name: recipe.stated[name].note for name in measured.stated},
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                "data": stage.data,
                "training": stage.training,
                "measured_trainable": table.trainable,
                "published_trainable": published.trainable.get(stage.name),
                "explanation": explanation(stage.name),
                "frozen_and_trainable": table.record(),
            }
            for stage, table in zip(recipe.stages, measured.stages, strict=True)
        ],
        "notes": recipe.notes,
    }


def unexplained(measured: int, published: int, explanation: Iterable[Mapping[str, Any]]) -> int:
    """What is left between two counts when the reasons are taken off."""
    return measured - sum(int(line["parameters"]) for line in explanation) - published


def print_listing(chosen: Mapping[str, str]) -> None:
    """Recipes, then models of the taxonomy; SettingError where there is neither."""
    found, entries = recipes(chosen), models(chosen)
    if not (found or entries):
        raise SettingError(f"--formula: no recipe and no model is of {_said(chosen)}")
    table = _table("recipe", *FORMULA, "published")
    for recipe in found:
        parts = formula_of(recipe)
        size = recipe.published.parameters
        cells = [parts[key] or "–" for key in FORMULA]
        table.add_row(recipe.name, *cells, "–" if size is None else f"{size / 1e9:.4g} B")
    if found:
        _print(table)
        print()
    by_model = [Recipe.read(name).model for name in names()]
    table = _table("model", "date", *FORMULA, "recipes")
    for entry in entries:
        cells = [entry.values[key] or "–" for key in FORMULA]
        count = by_model.count(entry.name)
        table.add_row(entry.name, entry.values["date"], *cells, str(count or "–"))
    if entries:
        _print(table)
        print()
    print(
        f"{len(found)} of {len(names())} recipes, {len(entries)} of {len(taxonomy())} models; "
        "`clmm zoo NAME` shows one"
    )


def print_recipe(recipe: Recipe, values: Mapping[str, Any]) -> None:
    """The parameter table of a recipe, measured against published, stage by stage."""
    print(f"{recipe.name}: {recipe.summary}")
    row = f", row {recipe.table1} of table 1" if recipe.table1 else ""
    print(f"{recipe.model}, {recipe.paper}{row}\n")
    table = _table("component", numbers=("parameters",))
    for name, count in values["components"].items():
        table.add_row(name + (" (stated)" if name in values["stated"] else ""), f"{count:,}")
    measured, published = values["measured_parameters"], values["published_parameters"]
    table.add_row("measured", f"{measured:,}")
    _add_published(table, measured, published, values["explanation"])
    _print(table)
    _print_reasons(values["explanation"])
    for name, note in values["stated"].items():
        print(f"stated: {name} is {note}")
    print(f"published: {values['published_source'] or 'nothing'}")
    # Generators are in no stage, adapters and signal rows in no composition.
    outside = sum(n for name, n in values["components"].items() if name.startswith("generators."))
    for number, stage in enumerate(values["stages"], 1):
        print(f"\nstage {number}: {stage['name']} ({stage['kind']})")
        for key in ("data", "training"):
            if stage[key]:
                print(f"{key}: {stage[key]}")
        table = _table("component", numbers=("total", "frozen", "trainable", "share"))
        parts = stage["frozen_and_trainable"]
        everything = {"total": parts["total"], "trainable": parts["trainable"]}
        said = "all" + (" but generators" if outside else "")
        if added := parts["total"] - (measured - outside):
            said += f", and {added:,} of adapters and signal rows"
        for name, part in {**parts["components"], said: everything}.items():
            total, trainable = part["total"], part["trainable"]
            cells = (total, total - trainable, trainable)
            table.add_row(name, *(f"{c:,}" for c in cells), f"{trainable / total:.2%}")
        _print(table)
        if stage["published_trainable"] is not None:
            found, said = stage["measured_trainable"], stage["published_trainable"]
            left = unexplained(found, said, stage["explanation"])
            print(
                f"published as trainable: {said:,}; measured {found - said:+,} "
                f"({(found - said) / said:+.2%}), unexplained {left:+,} ({left / said:+.2%})"
            )
            _print_reasons(stage["explanation"])
    if recipe.notes:
        print(f"\nnotes: {recipe.notes}")


def print_entry(entry: Entry) -> None:
    """What the taxonomy says of a model that has no recipe of its name."""
    for key in KEYS:
        if entry.values[key]:
            print(f"{key}: {entry.values[key]}")
    print(f"recipes: {', '.join(_recipes_of(entry)) or 'none'}")


def run(name: str | None = None, *, formula: Sequence[str] = (), out: Path | None = None) -> int:
    """`clmm zoo`: lists, shows one, or writes what is measured; returns the exit status."""
    chosen = wanted(formula)
    if out is not None:
        _make_room(out)
    if name is not None and chosen:
        raise SettingError(f"--formula: {name} is one already; leave one of them out")
    if name is None and out is None:
        print_listing(chosen)
        return 0
    if name is None:
        records = [record(recipe) for recipe in recipes(chosen)]
        if not records:
            raise SettingError(f"--formula: no recipe is of {_said(chosen)}")
    elif name in names():
        recipe = Recipe.read(name)
        records = [record(recipe)]
        print_recipe(recipe, records[0])
    else:
        entry = _entry(name)
        print_entry(entry)
        own = _recipes_of(entry) if out is not None else []
        if out is not None and not own:
            raise SettingError(f"--out: {entry.name} has no recipe that could be measured")
        records = [record(Recipe.read(recipe)) for recipe in own]
    if out is not None:
        written = [{key: one[key] for key in WRITTEN} for one in records]
        try:
            out.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise SettingError(f"--out: cannot write {out}: {error.strerror}") from None
    return 0


def _make_room(out: Path) -> None:
    """The file's folder; SettingError, before anything is measured, where there can be none."""
    if out.is_dir():
        raise SettingError(f"--out: {out} is a folder; name a file, such as zoo.json")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--out: cannot make {out.parent}: {error.strerror}") from None


def _recipes_of(entry: Entry) -> list[str]:
    return [name for name in names() if Recipe.read(name).model == entry.name]


def _said(chosen: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in chosen.items())


def _entry(name: str) -> Entry:
    """The model of that name in the taxonomy; SettingError with the nearest."""
    entries = taxonomy()
    for entry in entries:
        if _bare(entry.name) == _bare(name):
            return entry
    known = [*names(), *(entry.name for entry in entries)]
    raise SettingError(f"there is no {name!r} in the zoo{_nearest(name, known)}")


def _nearest(word: str, known: list[str]) -> str:
    """The nearest name without regard to case, or a word on where all are: there are many."""
    found = nearest(word.lower(), [name.lower() for name in known])
    for name in known:
        if found == f"; did you mean {name.lower()}?":
            return f"; did you mean {name}?"
    return "; `clmm zoo` lists them"


def _kinds(parts: Mapping[str, Any]) -> str:
    """`imagebind, frames`: each component once, in order."""
    kinds = [spec if isinstance(spec, str) else spec["name"] for spec in parts.values()]
    return ", ".join(dict.fromkeys(kinds))


def _sides(io: str) -> tuple[str, str]:
    left, _, right = io.replace("→", "->").partition("->")
    return left.strip(), right.strip()


def _modalities(side: str) -> set[str]:
    """`I+V+T`, `I/V+T` and `image, video` as letters."""
    words = (word.strip() for word in re.split(r"[+,/]", side) if word.strip())
    return {_LETTERS.get(word.lower(), word.upper()) for word in words}


def _bare(text: str) -> str:
    return re.sub(r"[^\w+*]|_", "", text.lower())


def _add_published(
    table: Table, measured: int, published: int | None, reasons: Sequence[Mapping[str, Any]]
) -> None:
    if published is None:
        table.add_row("published", "–")
        return
    table.add_row("published", f"{published:,}")
    gap, left = measured - published, unexplained(measured, published, reasons)
    table.add_row("difference", f"{gap:+,} ({gap / published:+.2%})")
    table.add_row("unexplained", f"{left:+,} ({left / published:+.2%})")


def _print_reasons(reasons: Sequence[Mapping[str, Any]]) -> None:
    for line in reasons:
        note = f": {line['note']}" if line["note"] else ""
        print(f"  {line['parameters']:+,} {line['component']}{note}")


def _table(*texts: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in texts:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print(table: Table) -> None:
    """On a terminal in its width; in a pipe each row on a line."""
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=1000)
    console.print(table)
