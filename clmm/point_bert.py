"""Point-BERT's network (Yu et al. 2022, arXiv 2111.14819), in plain torch.

Far points become centres of groups of their nearest neighbours, a small PointNet makes a token of
each group, a transformer reads the tokens. Knows points; which features are taken, the encoder
says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Farthest point sampling: points [N, P, 3] → indices [N, count].

    The first point begins; each next one is the farthest from all that are chosen.
    """
    chosen = points.new_zeros(len(points), count, dtype=torch.long)
    distance = points.new_full(points.shape[:2], torch.inf)
    for i in range(1, count):
        last = points.gather(1, chosen[:, i - 1, None, None].expand(-1, 1, 3))
        distance = distance.minimum((points - last).square().sum(-1))
        chosen[:, i] = distance.argmax(-1)
    return chosen


def nearest_points(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """Points [N, P, 3] and centres [N, G, 3] → indices [N, G, count], the nearest first."""
    # The default, by a matrix product, mistakes the order of near neighbours.
    distance = torch.cdist(centres, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.topk(count, largest=False).indices


def grouped(cloud: Tensor, *, groups: int, size: int) -> tuple[Tensor, Tensor]:
    """A cloud [N, P, 3 + colours] → groups [N, G, size, 3 + colours] and centres [N, G, 3].

    Coordinates of a group are relative to its centre; colours are as they were.
    """
    if groups > cloud.shape[1] or size > cloud.shape[1]:
        raise ValueError(
            f"{cloud.shape[1]} points are too few for {groups} groups of {size} neighbours"
        )
    with torch.no_grad():
        points = cloud[..., :3].float()
        first = farthest_points(points, groups)
        batch = torch.arange(len(cloud), device=cloud.device)
        near = nearest_points(points, points[batch[:, None], first], size)
    centres = cloud[..., :3][batch[:, None], first]
    members = cloud[batch[:, None, None], near]
    relative = members[..., :3] - centres[:, :, None]
    return torch.cat([relative, members[..., 3:]], dim=-1), centres


class MiniPointNet(nn.Module):
    """Groups [N, G, size, channels] → tokens [N, G, width]: two shared MLPs with a maximum after
    each; the second sees each point beside the group's maximum (PointNet, arXiv 1612.00593)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.Linear(channels, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 256)
        )
        self.second = nn.Sequential(
            nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, width)
        )

    def forward(self, groups: Tensor) -> Tensor:
        batch = groups.shape[:3]
        # All points of a batch are rows, so that each layer is one matrix product.
        points = self.first(groups.flatten(0, 2)).unflatten(0, batch)
        whole = points.amax(2, keepdim=True).expand_as(points)
        seen = self.second(torch.cat([whole, points], dim=-1).flatten(0, 2))
        tokens: Tensor = seen.unflatten(0, batch).amax(2)
        return tokens


class Block(nn.Module):
    """A pre-norm transformer block; queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, states: Tensor) -> Tensor:
        """[N, n, width] → [N, n, width]."""
        joint = self.query_key_value(self.attention_norm(states))
        query, key, value = joint.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        states = states + self.out(mixed.transpose(1, 2).flatten(2))
        moved: Tensor = states + self.mlp(self.mlp_norm(states))
        return moved


class PointBertNetwork(nn.Module):
    """Clouds [N, P, channels] → the class token and every group's, after the norm:
    [N, 1 + groups, width]; positions are added before every block."""

    def __init__(
        self,
        *,
        channels: int,
        groups: int,
        group_size: int,
        token_width: int,
        width: int,
        depth: int,
        heads: int,
    ):
        super().__init__()
        self.groups = groups
        self.group_size = group_size
        self.tokens = MiniPointNet(channels, token_width)
        self.project = nn.Linear(token_width, width)
        self.positions = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.class_position = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, cloud: Tensor) -> Tensor:
        groups, centres = grouped(cloud, groups=self.groups, size=self.group_size)
        states = self.project(self.tokens(groups))
        positions = self.positions(centres)
        states = torch.cat([self.class_token.expand(len(cloud), -1, -1), states], dim=1)
        positions = torch.cat([self.class_position.expand(len(cloud), -1, -1), positions], dim=1)
        for block in self.blocks:
            states = block(states + positions)
        normed: Tensor = self.norm(states)
        return normed
