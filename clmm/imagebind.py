"""ImageBind's network (Girdhar et al. 2023, arXiv 2305.05665): one embedding for six modalities.

Each modality has a tower of its own: a stem that makes tokens, a transformer, a head that takes
one token into the shared space. Knows tensors of single clips; clips are averaged by the encoder.

Stochastic depth and the dropout of the original training are left out: embeddings are the same in
training and afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LARGEST_SCALE = 100.0
VOCABULARY, CONTEXT = 49408, 77  # CLIP's


@dataclass(frozen=True, kw_only=True)
class TowerSize:
    """The size of one modality's tower."""

    width: int
    """Width of its transformer."""
    depth: int
    """Transformer blocks."""
    heads: int
    """Attention heads."""
    input: tuple[int, ...]
    """One input without batch: [channels, size, …], for IMU [channels, samples]; text [places]."""
    patch: int = 16
    """Side of a patch, or readings of an IMU token."""
    stride: int = 16
    """Distance between patches."""
    scale: float | None = None
    """Factor of the normalised embedding; left out, none."""


HUGE: dict[str, TowerSize] = {
    "vision": TowerSize(
        width=1280, depth=32, heads=16, input=(3, 2, 224, 224), patch=14, stride=14
    ),
    "text": TowerSize(width=1024, depth=24, heads=16, input=(CONTEXT,), scale=1 / 0.07),
    "audio": TowerSize(width=768, depth=12, heads=12, input=(1, 128, 204), stride=10, scale=20.0),
    "depth": TowerSize(width=384, depth=12, heads=8, input=(1, 224, 224), scale=5.0),
    "thermal": TowerSize(width=768, depth=12, heads=12, input=(1, 224, 224), scale=10.0),
    "imu": TowerSize(width=512, depth=6, heads=8, input=(6, 2000), patch=8, stride=8, scale=5.0),
}


class Block(nn.Module):
    """A pre-norm block. With `bias_kv`, a learned key and value stand behind the others, so that a
    token can attend to nothing in the input."""

    def __init__(self, width: int, heads: int, *, bias_kv: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, add_bias_kv=bias_kv, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """[N, n, width] → [N, n, width]; `mask` [n, n] is true where a token may not look."""
        normed = self.attention_norm(states)
        states = (
            states + self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        )
        moved: Tensor = states + self.mlp(self.mlp_norm(states))
        return moved


class Stem(nn.Module):
    """One input → a class token and patches, with positions: [N, 1 + patches, width].

    Vision convolves pairs of frames, an image being twice the same; audio, depth and thermal one
    channel; IMU takes `patch` readings of all channels as one token. All but vision's are
    normalised.
    """

    def __init__(self, name: str, size: TowerSize):
        super().__init__()
        self.patch = size.patch
        channels = size.input[0]
        places = [(side - size.patch) // size.stride + 1 for side in size.input[-2:]]
        self.patches: nn.Module
        if name == "vision":
            kernel, stride = (2, size.patch, size.patch), (2, size.stride, size.stride)
            self.patches = nn.Conv3d(channels, size.width, kernel, stride, bias=False)
        elif name == "imu":
            places = places[-1:]
            self.patches = nn.Linear(channels * size.patch, size.width, bias=False)
        else:
            self.patches = nn.Conv2d(channels, size.width, size.patch, size.stride, bias=False)
        self.norm = nn.Identity() if name == "vision" else nn.LayerNorm(size.width)
        self.class_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.positions = nn.Parameter(torch.empty(1, 1 + math.prod(places), size.width))
        nn.init.normal_(self.class_token, std=size.width**-0.5)
        nn.init.normal_(self.positions, std=0.01 if name == "imu" else size.width**-0.5)

    def forward(self, values: Tensor) -> Tensor:
        if isinstance(self.patches, nn.Linear):
            readings = values.unflatten(-1, (-1, self.patch)).transpose(1, 2).flatten(2)
            patches = self.patches(readings)
        else:
            if isinstance(self.patches, nn.Conv3d) and values.dim() == 4:
                values = values[:, :, None].expand(-1, -1, 2, -1, -1)
            patches = self.patches(values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(values), -1, -1), self.norm(patches)], 1)
        return tokens + self.positions


class TextStem(nn.Module):
    """Token ids [N, places] → [N, places, width]."""

    def __init__(self, size: TowerSize):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, size.width)
        self.positions = nn.Parameter(torch.empty(1, *size.input, size.width))
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.words(ids) + self.positions
        return states


class Trunk(nn.Module):
    """Blocks; vision's have a norm before them, and text's look back only."""

    def __init__(self, name: str, size: TowerSize):
        super().__init__()
        self.causal = name == "text"
        self.norm = nn.LayerNorm(size.width, eps=1e-6) if name == "vision" else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, bias_kv=name not in ("vision", "text"))
            for _ in range(size.depth)
        )

    def forward(self, states: Tensor) -> Tensor:
        """[N, n, width] → [N, n, width]."""
        states = self.norm(states)
        mask = None
        if self.causal:
            n = states.shape[1]
            mask = torch.ones(n, n, dtype=torch.bool, device=states.device).triu(1)
        for block in self.blocks:
            states = block(states, mask)
        return states


class Head(nn.Module):
    """One token of each row, normed and mapped into the shared space, to length 1, then scaled.

    Text's scale is learned, at most 100.
    """

    def __init__(self, name: str, size: TowerSize, out_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(size.width, eps=1e-6)
        self.project = nn.Linear(size.width, out_width, bias=False)
        self.scale = 1.0 if size.scale is None else size.scale
        self.log_scale: nn.Parameter | None = None
        if name == "text":
            self.log_scale = nn.Parameter(torch.tensor(math.log(self.scale)))

    def forward(self, token: Tensor) -> Tensor:
        """[N, width] → [N, out_width]."""
        embedding = nn.functional.normalize(self.project(self.norm(token)), dim=-1)
        if self.log_scale is None:
            return self.scale * embedding
        return self.log_scale.exp().clamp(max=LARGEST_SCALE) * embedding


class Tower(nn.Module):
    """Stem, trunk and, unless `out_width` is left out, head of one modality."""

    def __init__(self, name: str, size: TowerSize, *, out_width: int | None):
        super().__init__()
        self.stem: nn.Module = TextStem(size) if name == "text" else Stem(name, size)
        self.trunk = Trunk(name, size)
        self.head = None if out_width is None else Head(name, size, out_width)
        self.text = name == "text"

    def tokens(self, values: Tensor) -> Tensor:
        """The trunk's tokens, the class token first: [N, n, width]."""
        states: Tensor = self.trunk(self.stem(values))
        return states

    def forward(self, values: Tensor) -> Tensor:
        """[N, *input] → [N, out_width], of the class token or of text's end, its highest id."""
        if self.head is None:
            raise ValueError("this tower was built without a head")
        states = self.tokens(values)
        place = values.argmax(-1) if self.text else states.new_zeros(len(states), dtype=torch.long)
        embedding: Tensor = self.head(states[torch.arange(len(states)), place])
        return embedding


class ImageBindNetwork(nn.Module):
    """All towers: a mapping from a modality's name to its input → the same names to [N, out]."""

    def __init__(self, sizes: Mapping[str, TowerSize] = HUGE, *, out_width: int = 1024):
        super().__init__()
        self.towers = nn.ModuleDict(
            {name: Tower(name, size, out_width=out_width) for name, size in sizes.items()}
        )

    def forward(self, media: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.towers[name](values) for name, values in media.items()}
