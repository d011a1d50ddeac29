"""BEiT-3's vision expert: a ViT whose blocks normalise twice in each branch, by hand.

The whole BEiT-3 is a multiway transformer whose experts for language and vision share attention
weights in pre-training's fused layers; a multimodal LLM takes the vision side alone (Wang et al.
2023, arXiv 2208.10442, section 2.1). Blocks are Magneto's (Wang et al. 2022, arXiv 2210.06423),
with what it calls sub-LN:

    x ← x + W_o · LN(Attention(LN(x)))
    x ← x + W_2 · LN(GELU(W_1 · LN(x)))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-5


class Block(nn.Module):
    """[N, n, width] → the same."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.inner_attention_norm = nn.LayerNorm(width, eps=EPS)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=EPS)
        self.up = nn.Linear(width, mlp)
        self.inner_mlp_norm = nn.LayerNorm(mlp, eps=EPS)
        self.down = nn.Linear(mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        q, k, v = (
            part(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(self.inner_attention_norm(attended.transpose(1, 2).flatten(2)))
        hidden = functional.gelu(self.up(self.mlp_norm(x)))
        return x + self.down(self.inner_mlp_norm(hidden))


class Beit3Vision(nn.Module):
    """[N, 3, image_size, image_size] → [N, 1 + patches, width]: the class token, then patches."""

    def __init__(
        self, *, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp: int
    ) -> None:
        super().__init__()
        patches = (image_size // patch_size) ** 2
        self.patch = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + patches, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        for parameter in (self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, values: Tensor) -> Tensor:
        x = self.patch(values).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed
