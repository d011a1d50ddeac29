"""Gated cross-attention blocks, and how they come into a language model's layers.

By a forward pre-hook on each chosen layer, so that no model class is known. Media are laid out for
one pass of the language model (`showing`) and go with its key–value cache to later ones, so that
new tokens see the last medium. Parameters are named as in transformers' IDEFICS. Knows tensors and
layers; nothing of encoders and texts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.activations import ACT2FN

ON_CACHE = "media_in_layers"


@dataclass
class Media:
    """The media of B rows, and which of them each token sees.

    `values` [B, I, m, d], rows with fewer than I media padded; None when there is no medium at all.
    `seen` [B, L] is the number among I of the last medium up to each token, −1 before the first.
    """

    values: Tensor | None
    seen: Tensor

    def rows(self, index: Tensor) -> Media:
        """These rows of the batch, as a cache that is reordered needs them."""
        values = None if self.values is None else self.values[index.to(self.values.device)]
        return Media(values, self.seen[index.to(self.seen.device)])


def laid_out(tokens: Tensor | None, here: Tensor, before: Media | None = None) -> Media:
    """Media in reading order [N, m, d] by their placeholders `here` [B, L], after those `before`.

    Raises ValueError when placeholders and media are not as many, or the rows are others.
    """
    counts = here.sum(dim=1)
    given = 0 if tokens is None else len(tokens)
    if int(counts.sum()) != given:
        raise ValueError(f"{int(counts.sum())} placeholders in the text, but {given} media")
    if before is not None and len(before.seen) != len(here):
        raise ValueError(f"{len(here)} rows follow a cache of {len(before.seen)}")
    values = None if before is None else before.values
    old = 0 if values is None else values.shape[1]
    last = here.new_full((len(here), 1), -1, dtype=torch.long)
    if before is not None:
        last = before.seen[:, -1:]
    if tokens is not None and given:
        most = int(counts.max())
        filled = torch.arange(most, device=here.device) < counts.unsqueeze(1)
        new = tokens.new_zeros(len(here), most, *tokens.shape[1:])
        new = new.masked_scatter(filled[..., None, None], tokens)
        values = new if values is None else torch.cat([values, new], dim=1)
    number = here.long().cumsum(dim=1)
    return Media(values, torch.where(number > 0, old + number - 1, last))


class GatedLayers(nn.Module):
    """A resampler in front and blocks; `attach` once, then `showing` around each pass."""

    in_layers = True

    def __init__(
        self, resampler: nn.Module, *, blocks: int, every: int, width: int, **settings: Any
    ) -> None:
        super().__init__()
        self.every = every
        self.resampler = resampler
        self.blocks = nn.ModuleList(GatedBlock(width, **settings) for _ in range(blocks))

    def forward(self, features: Tensor) -> Tensor:
        """[N, n, d] → [N, m, d], what the blocks attend to."""
        resampled: Tensor = self.resampler(features)
        return resampled

    def attach(self, layers: nn.ModuleList) -> None:
        """A block before layers 0, every, 2 · every …; ValueError when it takes other numbers."""
        chosen = [*layers][:: self.every]
        if len(chosen) != len(self.blocks):
            raise ValueError(
                f"{len(layers)} layers have {len(chosen)} places, but there are "
                f"{len(self.blocks)} gated blocks"
            )
        for layer, block in zip(chosen, self.blocks, strict=True):
            # A bound method, which a deep copy of the whole model binds to the copied block.
            layer.register_forward_pre_hook(block.before, with_kwargs=True)  # type: ignore[operator]

    @contextmanager
    def showing(self, media: Media) -> Iterator[None]:
        """The language model's pass inside sees these media; outside of it, blocks do nothing."""
        for block in self.blocks:
            block.media = media  # type: ignore[assignment]
        try:
            yield
        finally:
            for block in self.blocks:
                block.media = None  # type: ignore[assignment]


class GatedBlock(nn.Module):
    """GATED XATTN-DENSE of Flamingo's figure 4, [B, L, D] → [B, L, D]."""

    def __init__(
        self,
        width: int,
        *,
        media_width: int,
        heads: int,
        mlp: int,
        gated_mlp: bool,
        activation: str,
        norm: str,
        qk_norm: bool,
        gate: str,
        eps: float,
    ) -> None:
        super().__init__()
        self.media: Media | None = None
        self.cross_attn = _CrossAttention(
            width, media_width, heads=heads, qk_norm=qk_norm, norm=norm, eps=eps
        )
        self.mlp = _Mlp(width, mlp, gated=gated_mlp, activation=activation)
        self.input_layernorm = _norm(norm, width, eps)
        self.post_attention_layernorm = _norm(norm, width, eps)
        shape = (1, 1, width) if gate == "vector" else (1,)
        self.alpha_cross_attn = nn.Parameter(torch.zeros(shape))
        self.alpha_dense = nn.Parameter(torch.zeros(shape))

    def forward(self, hidden: Tensor, media: Media) -> Tensor:
        """[B, L, D] → [B, L, D]; tokens before the first medium get the MLP alone."""
        if media.seen.shape != hidden.shape[:2]:
            raise ValueError(
                f"a layer got {tuple(hidden.shape[:2])} tokens, but media were laid out for "
                f"{tuple(media.seen.shape)}"
            )
        if media.values is not None:
            mixed = self.cross_attn(self.input_layernorm(hidden), media.values, media.seen)
            hidden = hidden + self.alpha_cross_attn.tanh() * mixed
        dense = self.mlp(self.post_attention_layernorm(hidden))
        passed: Tensor = hidden + self.alpha_dense.tanh() * dense
        return passed

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The hook: a layer's hidden states, wherever they stand in its arguments."""
        if self.media is None:
            return None
        if args:
            return (self(args[0], self.media), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self(kwargs["hidden_states"], self.media)}


class _CrossAttention(nn.Module):
    def __init__(
        self, width: int, media_width: int, *, heads: int, qk_norm: bool, norm: str, eps: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(media_width, width, bias=False)
        self.v_proj = nn.Linear(media_width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.q_layer_norm = _norm(norm, width // heads, eps) if qk_norm else None
        self.k_layer_norm = _norm(norm, width // heads, eps) if qk_norm else None

    def forward(self, hidden: Tensor, media: Tensor, seen: Tensor) -> Tensor:
        """[B, L, D], [B, I, m, d] and [B, L] → [B, L, D], zero where a token sees no medium."""
        count, size = media.shape[1:3]
        flat = media.flatten(1, 2).to(hidden.dtype)
        query, key, value = (
            made.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for made in (self.q_proj(hidden), self.k_proj(flat), self.v_proj(flat))
        )
        if self.q_layer_norm is not None and self.k_layer_norm is not None:
            query, key = self.q_layer_norm(query), self.k_layer_norm(key)
        none = (seen < 0).unsqueeze(2)
        # A row of weights that are all forbidden is no number; what comes of it is dropped below.
        allowed = (seen.unsqueeze(2) == torch.arange(count, device=seen.device)) | none
        mask = allowed.repeat_interleave(size, dim=2).unsqueeze(1)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return mixed.masked_fill(none, 0.0)


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, *, gated: bool, activation: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False) if gated else None
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.act_fn = ACT2FN["relu2" if activation == "squared_relu" else activation]

    def forward(self, hidden: Tensor) -> Tensor:
        up = self.up_proj(hidden)
        inner = (
            self.act_fn(up) if self.gate_proj is None else self.act_fn(self.gate_proj(hidden)) * up
        )
        mapped: Tensor = self.down_proj(inner)
        return mapped


def _norm(kind: str, width: int, eps: float) -> nn.Module:
    return _RmsNorm(width, eps=eps) if kind == "rms" else nn.LayerNorm(width, eps=eps)


class _RmsNorm(nn.RMSNorm):
    def forward(self, hidden: Tensor) -> Tensor:
        """In the weight's precision, which under autocast is not the input's."""
        return super().forward(hidden.to(self.weight.dtype)).to(hidden.dtype)


def layers_of(language_model: Any, depth: int) -> nn.ModuleList:
    """The decoder's layers: its outermost list of `depth` modules. ValueError without one."""
    decoder = getattr(language_model, "base_model", language_model)
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"{type(language_model).__name__} has no list of {depth} layers")


def remembered(cache: Any, name: str) -> Media | None:
    """The media of an input that went into a key–value cache."""
    found: Media | None = getattr(cache, ON_CACHE, {}).get(name)
    return found


def remember(cache: Any, name: str, media: Media) -> None:
    """Media go with the cache: to later passes, and along when its rows are chosen anew."""
    if not hasattr(cache, ON_CACHE):
        setattr(cache, ON_CACHE, {})
        for method, index in _CHOICES.items():
            if hasattr(cache, method):
                setattr(cache, method, functools.partial(_choose, cache, method, index))
    getattr(cache, ON_CACHE)[name] = Media(media.values, media.seen[:, -1:])


def _choose(cache: Any, method: str, index: Any, choice: Any) -> None:
    getattr(type(cache), method)(cache, choice)
    own = getattr(cache, ON_CACHE)
    for name, media in own.items():
        own[name] = media.rows(index(choice, len(media.seen)))


def _given(choice: Tensor, rows: int) -> Tensor:
    return choice


def _repeated(choice: int, rows: int) -> Tensor:
    return torch.arange(rows).repeat_interleave(choice)


_CHOICES = {
    "reorder_cache": _given,
    "batch_select_indices": _given,
    "batch_repeat_interleave": _repeated,
}
"""A cache's methods that choose its rows → the rows that they choose."""
