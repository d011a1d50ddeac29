"""The weights of prompt strategies: tensors of their own beside a base that nothing changes.

A `Recipe` says which tensors a stage adds and which prompts they give each sample; here they are
held, trained, saved as one safetensors file and put before the inputs (`clmm.prompts`). What a
sample is asked by are features of the frozen base (`clmm.routing_features`), computed once and
alone, so no bit of a choice depends on a sample's company. Sharded parameters are not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clmm.batching import Batcher
from clmm.prefixes import Prefixes
from clmm.prompts import Insertion
from clmm.routing_features import Features, image_and_text
from clmm.strategy import BASE, Context, Method
from clmm.training import derived_seed
from streams.sample import Sample
from streams.settings import SettingError

PLACE = "soft_prompts"
PROMPTS_FILE = "prompts.safetensors"

Parts = Sequence[Mapping[str, Tensor]]
"""The tensors of each stage so far, by name."""


class Recipe(Protocol):
    """What one prompt strategy makes of its tensors."""

    per_sample: bool
    """Whether samples get prompts of their own."""
    grows: bool
    """Whether each stage adds tensors and freezes the earlier ones; else all train one set."""

    def tensors(self, earlier: Parts, table: Tensor) -> dict[str, Tensor]:
        """A stage's first values, from the global generator; `table` [V, D] embeds the tokens."""

    def prompts(self, parts: Parts, features: Tensor | None, *, training: bool) -> Any:
        """What the site asks for, of features [B, 2, D] of images and texts.

        `clmm.prompts.Insertion`: [B, P, D], or [1, P, D] if not `per_sample`;
        `clmm.prefixes.Prefixes`: layer → [B, 2, heads, P, width].
        """


class SoftPrompts:
    """Prompts by a recipe; a route names the task whose stage's prompts are the last to answer.

    `name` is the strategy's, for refusals: ValueError (SettingError) when the model cannot be
    served.
    """

    def __init__(
        self,
        context: Context,
        recipe: Recipe,
        *,
        name: str,
        site: type[Insertion] | type[Prefixes] = Insertion,
    ) -> None:
        model = context.model
        if hasattr(model, PLACE):
            raise RuntimeError("the model carries prompts; close its other Learner first")
        example = context.stream.tasks[0].train[:1]
        reason = (
            "hands its prompts to an encoder, before which none can be put"
            if context.batcher.decoder_start is not None
            else site.refusal(model, context.batcher.prompts(example))
        )
        if reason:
            raise SettingError(
                f"{name}: {type(model).__name__} {reason}; take a strategy that tunes LoRA"
            )
        self._model, self._recipe, self._site, self._seed = model, recipe, site, context.seed
        self._tasks = [task.name for task in context.stream.tasks]
        self._table: Tensor = model.get_input_embeddings().weight
        self.trainable_parameters = sum(one.numel() for one in self._fresh([]).values())
        self._features = Features(model, context.batcher, self, image_and_text)
        self._next: Tensor | None = None
        self._insertion: Insertion | Prefixes | None = None
        self._last: int | None = None

    @property
    def parts(self) -> list[dict[str, Tensor]]:
        """Of each stage so far. Read off the modules, where other values may stand for a while."""
        stages = getattr(self._model, PLACE, nn.ModuleDict()).values()
        return [dict(stage.named_parameters(recurse=False)) for stage in stages]

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.nbytes for part in self.parts for tensor in part.values())

    def begin(self, task: str) -> None:
        if self._recipe.grows or not self.parts:
            for part in self.parts:
                for tensor in part.values():
                    tensor.requires_grad_(False)
            self._add(self._fresh(self.parts))
        for tensor in self.parts[-1].values():
            tensor.requires_grad_(True)
        self.select(None)

    def select(self, route: str | None) -> None:
        known = self._tasks[: len(self.parts)] if self._recipe.grows else []
        if route not in (None, BASE, *known):
            raise ValueError(f"no prompts of {route!r} alone have been trained yet")
        self._last = known.index(route) + 1 if route in known else None
        if self._insertion is not None:
            self._insertion.on = route != BASE

    def save(self, folder: Path) -> None:
        save_file(
            {
                f"{number}.{name}": tensor.detach().cpu().contiguous()
                for number, part in enumerate(self.parts, start=1)
                for name, tensor in part.items()
            },
            folder / PROMPTS_FILE,
        )

    def load(self, folder: Path) -> None:
        self.restore()
        stages: dict[int, dict[str, Tensor]] = {}
        for place, tensor in load_file(folder / PROMPTS_FILE).items():
            number, _, name = place.partition(".")
            stages.setdefault(int(number), {})[name] = tensor
        for _, kept in sorted(stages.items()):
            mine = self._fresh(self.parts)
            for name in sorted(kept.keys() | mine.keys()):
                found, wanted = (list(t[name].shape) if name in t else None for t in (kept, mine))
                if found != wanted:
                    raise ValueError(f"{folder / PROMPTS_FILE}: {name} is {found}, not {wanted}")
            self._add(kept)

    def restore(self) -> None:
        if self._insertion is not None:
            self._insertion.remove()
            delattr(self._model, PLACE)
            self._insertion = None
        self._model.requires_grad_(False)

    # What a sample is asked by:

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """[B, 2, D] on the model's device, each computed alone, whoever asks first."""
        device = self._table.device
        # What is kept must serve training too, even when an answer asks for it first.
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            rows = [self._features.remembered([sample]) for sample in samples]
            return torch.cat(rows).to(device)

    def choose(self, samples: Sequence[Sample]) -> None:
        """The next pass is of these samples' rows."""
        if self._insertion is not None and self._insertion.on:
            self._next = self.features(samples)

    def answering(self, answerer: Any) -> Any:
        """The same answerer, which says before each pass whose rows come."""
        answerer.batcher = _Announcing(answerer.batcher, self.choose)
        if self._site is Prefixes:
            # Rows that share a prompt's cache would each need their prefix again.
            answerer._share_prompts = False
        return answerer

    def _prompts(self, rows: int) -> Any:
        features, self._next = self._next, None
        if self._recipe.per_sample and (features is None or len(features) != rows):
            raise RuntimeError(
                f"prompts were chosen for {0 if features is None else len(features)} samples, but "
                f"{rows} rows are asked; a strategy whose prompts depend on the sample is asked "
                "through the learner's answering, and cannot be joined with parts that ask the "
                "model in another way"
            )
        place: Any = getattr(self._model, PLACE)
        parts = self.parts[: self._last]
        return self._recipe.prompts(parts, features, training=bool(place.training))

    def _fresh(self, earlier: Parts) -> dict[str, Tensor]:
        # Drawn on the CPU, so that all devices start the same.
        parts = [{k: t.detach().cpu() for k, t in part.items()} for part in earlier]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, len(parts), "prompts"))
            return self._recipe.tensors(parts, self._table)

    def _add(self, tensors: Mapping[str, Tensor]) -> None:
        if self._insertion is None:
            self._model.add_module(PLACE, nn.ModuleDict())
            self._insertion = self._site(self._model, self._prompts)
        stage, place = nn.Module(), getattr(self._model, PLACE)
        for name, tensor in tensors.items():
            weight = tensor.to(self._table.device, torch.float32, copy=True)
            stage.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        place[f"stage-{len(place) + 1:04d}"] = stage


def query(features: Tensor) -> Tensor:
    """Both parts of length 1/√2, joined: [B, 2, D] → [B, 2D] of length 1."""
    return nn.functional.normalize(features, dim=2).flatten(start_dim=1) / 2**0.5


def cosines(rows: Tensor, keys: Tensor) -> Tensor:
    """[B, D] and [M, D] → [B, M]; 0 where a row is zero."""
    return nn.functional.normalize(rows, dim=1) @ nn.functional.normalize(keys, dim=1).T


def drawn_rows(table: Tensor, count: int) -> Tensor:
    """The embeddings [count, D] of tokens drawn at random: what a language model has met."""
    rows = torch.randint(len(table), (count,))
    return table.detach()[rows.to(table.device)].float().cpu()


class Announcer:
    """An Avalanche plugin: whatever asks the model in training says whose rows come."""

    supervised_only = True

    def __init__(self, weights: SoftPrompts) -> None:
        self._weights = weights
        self._model: Any = None

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        if self._model is not strategy.model:
            self._model = strategy.model
            # Plugins may ask the model after a stage too, so the hook stays.
            self._model.register_forward_pre_hook(
                lambda _, args: self._weights.choose(args[0].samples)
            )


class Pull:
    """An Avalanche plugin: `strength` times the mean of `distance(parts, features)` [B]."""

    supervised_only = True

    def __init__(
        self, weights: SoftPrompts, distance: Callable[[Parts, Tensor], Tensor], *, strength: float
    ) -> None:
        self._weights, self._distance, self._strength = weights, distance, strength
        self._rows = 1

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        self._rows = len(strategy.mb_x)

    def after_forward(self, strategy: Any, **_: Any) -> None:
        if self._strength:
            features = self._weights.features(strategy.mb_x.samples)
            total = self._distance(self._weights.parts, features).sum()
            strategy.loss = strategy.loss + self._strength * total / self._rows


class Penalty:
    """An Avalanche plugin: adds `value(parts)` [], which depends on the weights alone."""

    def __init__(self, weights: SoftPrompts, value: Callable[[Parts], Tensor]) -> None:
        self._weights, self._value = weights, value

    def before_backward(self, strategy: Any, **_: Any) -> None:
        strategy.loss = strategy.loss + self._value(self._weights.parts)


def prompted(weights: SoftPrompts, plugins: Sequence[Any]) -> Method:
    """A method whose prompts depend on the sample."""
    return Method(
        weights=weights, plugins=[Announcer(weights), *plugins], answering=weights.answering
    )


class _Announcing:
    """A batcher that says whose rows it makes."""

    def __init__(self, batcher: Batcher, say: Callable[[Sequence[Sample]], None]) -> None:
        self._batcher, self._say = batcher, say

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batcher, name)

    def prompts(self, samples: Sequence[Sample]) -> Any:
        self._say(samples)
        return self._batcher.prompts(samples)

    def continuations(self, samples: Sequence[Sample], texts: Sequence[str]) -> Any:
        self._say(samples)
        return self._batcher.continuations(samples, texts)
