"""Stock Avalanche plugins that were tested on vision-language models, and why others are refused.

A plugin is named as in Avalanche, with its own arguments: `{name: EWCPlugin, ewc_lambda: 1.0}`.
An object that has Avalanche's callbacks passes as it is. Stock plugins keep no state that could be
saved, so a strategy that has one starts anew when its run is resumed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from clmm.training import TrainSettings
from streams.catalog import nearest
from streams.settings import SettingError

TESTED: dict[str, str] = {
    "ReplayPlugin": "adds a batch of memory to every batch, so each update costs about twice",
    "EWCPlugin": "squares batch gradients and has no ½: set micro_batch_size 1 for the paper's",
    "MASPlugin": "importance from the logits of supervised tokens",
    "AGEMPlugin": "one more forward and backward pass an update",
    "GEMPlugin": "one more pass an update for every earlier stage",
}
"""Name → what to know."""

REFUSED: dict[str, str] = {
    "LwFPlugin": "it masks logits by class, silently wrong on token logits; take the strategy lwf",
    "SynapticIntelligencePlugin": "on a CPU it measures nothing: take the strategy si",
    "RWalkPlugin": "it was not tested on vision-language models; take the strategy rwalk",
    "GDumbPlugin": "its memory is balanced by class, and generated text has none",
    "DERPlugin": "it stores class logits, of one shape; take the strategy der_pp",
    "MIRPlugin": "it compares losses by class logits",
    "GSS_greedyPlugin": "it needs image tensors of one shape; take the strategy gss",
    "LFLPlugin": "it needs a model with a classifier's feature layer",
    "FeatureDistillationPlugin": "it needs a model with a classifier's feature layer",
    "ERACEPlugin": "it separates classes, and generated text has none",
    "ERAMLPlugin": "it can loop for ever",
    "BiCPlugin": "it corrects a classifier's bias",
    "CWRStarPlugin": "it consolidates a classifier's rows",
    "FromScratchTrainingPlugin": "it undoes the base model's training",
    "EarlyStoppingPlugin": "stages have a fixed number of updates, so that strategies compare",
    "LRSchedulerPlugin": "the learning rate follows train.warmup_share and a cosine",
}
"""Name → why not."""


def build(spec: Any, settings: TrainSettings, *, where: str) -> Any:
    """The plugin that `spec` names; raises SettingError, which starts with `where`."""
    if not isinstance(spec, (str, Mapping)):
        if any(name.startswith(("before_", "after_")) for name in dir(spec)):
            return spec
        raise SettingError(f"{where}: {spec!r} is no Avalanche plugin: it has no callback")
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = spec.pop("name", None)
    if name in REFUSED:
        raise SettingError(f"{where}: {name} is refused: {REFUSED[name]}")
    if name not in TESTED:
        raise SettingError(
            f"{where}: {name!r} is not among the tested plugins{nearest(str(name), list(TESTED))}"
        )
    from avalanche.training import plugins

    cls = getattr(plugins, name)
    known = [p for p in inspect.signature(cls).parameters if p not in ("self", "kwargs")]
    for key in spec:
        if key not in known:
            raise SettingError(f"{where}.{name}.{key}: no such setting{nearest(str(key), known)}")
    if name == "ReplayPlugin":
        # Avalanche would take the forward pass's size, which is not the batch's when accumulating.
        spec = {"batch_size": settings.batch_size, "batch_size_mem": settings.batch_size, **spec}
    try:
        plugin = cls(**spec)
    except (TypeError, ValueError, AssertionError) as error:
        raise SettingError(f"{where}.{name}: {error}") from error
    if name == "ReplayPlugin":
        plugin.after_training_exp = partial(_remember, plugin)
    return plugin


def _remember(plugin: Any, strategy: Any, **_: Any) -> None:
    """What ReplayPlugin does after a stage, less the deprecated call that warns every time."""
    plugin.storage_policy.post_adapt(strategy, strategy.experience)
