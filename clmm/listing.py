"""`clmm ls`: what can be named, a line each, read from files without importing them.

Knows kinds and where they lie: a package of one file a thing, or a folder of YAML with a summary.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

KINDS = {
    "models": "What is trained and probed.",
    "streams": "The tasks in order, or a source of one.",
    "strategies": "How to learn a task without losing the others.",
    "probes": "What is asked after every stage beside the tasks.",
    "judges": "Who says whether an answer refuses.",
    "decoding": "Mitigations while answering, whose effect the probes show.",
    "encoders": "What a composed model sees and hears with.",
    "projectors": "From an encoder's features to the language model's tokens.",
    "llms": "Language models of a composition, by architecture and size.",
    "output_projectors": "From the language model's signal tokens to a generator's condition.",
    "generators": "What a composed model draws, films and sounds with.",
    "recipes": "Published models as compositions; `clmm zoo NAME` shows one.",
}
MODELS = {
    "nano": "The embedded model organism: 72-pixel pictures, byte-level text.",
    "painter": "nano with a latent diffusion model that draws what it is asked for.",
    "FOLDER": "A Hugging Face vision-language model, or what `clmm compose` made, in a folder.",
    "OWNER/NAME": "A vision-language model on the Hugging Face hub; it is downloaded.",
}
_PACKAGES = {"streams": "streams.sources", "probes": "safety.probes", "judges": "safety.judges"}
_DATA = ("llms", "recipes")


def show(kind: str | None) -> None:
    """Prints the kinds, or what there is of one."""
    if kind is None:
        _print_rows({f"clmm ls {name}": line for name, line in KINDS.items()})
    else:
        _print_rows(rows(kind))


def rows(kind: str) -> dict[str, str]:
    """Name → a line on it."""
    if kind == "models":
        return dict(MODELS)
    if kind in _DATA:
        return _summaries(kind)
    from streams import catalog  # not for `clmm --help`, which needs the kinds alone

    found = catalog.listing(_PACKAGES.get(kind, f"clmm.{kind}"))
    if kind == "judges":  # those that are models; the others import no neural network
        for name, line in catalog.listing("clmm.judges").items():
            found[f"clmm.judges.{name}:{name.title().replace('_', '')}"] = line
    return found


def _summaries(kind: str) -> dict[str, str]:
    """Of YAML files: each one's own, or that of the one it is `like`."""
    from clmm.study_yaml import parse

    folder = resources.files("clmm") / kind
    files = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    values = {name: parse(file.read_text("utf-8"), file.name)[0] for name, file in files.items()}
    found = {}
    for name in sorted(values):
        one = values[name]
        while "summary" not in one:
            one = values[one["like"]]
        found[name] = one["summary"]
    return found


def _print_rows(found: Mapping[str, str]) -> None:
    width = max(map(len, found), default=0)
    for name, line in found.items():
        print(f"{name.ljust(width)}  {line}".rstrip())
