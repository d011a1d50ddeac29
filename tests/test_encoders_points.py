"""Point-BERT groups points as a naive reading says, has the published size, and learns shapes."""

from __future__ import annotations

from pathlib import Path

import encoder_checks
import numpy as np
import pytest
import tiny_components as tiny
import torch
from torch import nn

from clmm.encoders.point_bert import PointBert
from clmm.point_bert import Block, MiniPointNet, farthest_points, grouped, nearest_points

SMALL = {key: value for key, value in tiny.POINTS.items() if key != "name"}
POOLED = PointBert(**SMALL)


def test_published_sizes() -> None:
    assert encoder_checks.millions(PointBert()) == pytest.approx(21.86, abs=0.005)
    coloured = PointBert(channels=6, depth=18, points=10000)
    assert encoder_checks.millions(coloured) == pytest.approx(32.50, abs=0.005)
    assert (PointBert().width, PointBert().num_tokens((8192, 3))) == (768, 1)
    assert PointBert(features="tokens").num_tokens((8192, 3)) == 513


def test_farthest_points_are_the_naive_ones() -> None:
    points = torch.randn(3, 30, 3, generator=torch.Generator().manual_seed(0))
    found = farthest_points(points, 12)
    for cloud, chosen in zip(points.tolist(), found.tolist(), strict=True):
        naive = [0]
        while len(naive) < 12:
            distances = [
                min(sum((a - b) ** 2 for a, b in zip(p, cloud[c], strict=True)) for c in naive)
                for p in cloud
            ]
            naive.append(distances.index(max(distances)))
        assert chosen == naive


def test_nearest_points_are_the_naive_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    points, centres = torch.randn(2, 50, 3, generator=generator), torch.zeros(2, 4, 3)
    centres = centres.normal_(generator=generator)
    found = nearest_points(points, centres, 7)
    for n in range(2):
        for g in range(4):
            distances = [float((point - centres[n, g]).norm()) for point in points[n]]
            assert found[n, g].tolist() == sorted(range(50), key=distances.__getitem__)[:7]


def test_groups_are_relative_to_their_centres_and_keep_colours() -> None:
    cloud = torch.rand(2, 40, 6, generator=torch.Generator().manual_seed(0))
    groups, centres = grouped(cloud, groups=6, size=5)
    assert groups.shape == (2, 6, 5, 6)
    assert not groups[:, :, 0, :3].any()  # the centre is its own nearest point
    back = torch.cat([groups[..., :3] + centres[:, :, None], groups[..., 3:]], dim=-1)
    distance = torch.cdist(back.flatten(1, 2), cloud).amin(-1)
    assert float(distance.max()) < 1e-3
    with pytest.raises(ValueError, match="4 points are too few for 6 groups of 5"):
        grouped(cloud[:, :4], groups=6, size=5)


def test_a_token_is_its_group_s_in_any_order() -> None:
    torch.manual_seed(0)
    network = MiniPointNet(3, 8).eval()
    groups = torch.randn(2, 4, 5, 3)
    tokens = network(groups)
    torch.testing.assert_close(network(groups.flip(2)), tokens)
    # Written out for one group.
    first = network.first(groups[0, 0])
    whole = torch.cat([first.max(0).values.repeat(5, 1), first], dim=1)
    torch.testing.assert_close(network.second(whole).max(0).values, tokens[0, 0])


def test_a_block_is_pre_norm_attention_without_biases() -> None:
    torch.manual_seed(0)
    block, states = Block(8, 2), torch.randn(1, 5, 8)
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(block.query_key_value.weight)
        reference.in_proj_bias.zero_()
        reference.out_proj.load_state_dict(block.out.state_dict())
    normed = block.attention_norm(states)
    middle = states + reference(normed, normed, normed)[0]
    expected = middle + block.mlp(block.mlp_norm(middle))
    torch.testing.assert_close(block(states), expected)


def test_pooled_is_the_class_token_beside_the_maximum() -> None:
    torch.manual_seed(0)
    module = POOLED.build().eval()
    cloud = encoder_checks.values(POOLED)
    states = module.model(cloud)
    expected = torch.cat([states[:, 0], states[:, 1:].max(1).values], dim=-1)
    torch.testing.assert_close(module(cloud)[:, 0], expected)


def shapes(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Surfaces of spheres, cubes and squares in random poses, 48 points each."""
    kind = torch.arange(count) % 3
    ball = nn.functional.normalize(torch.randn(count, 48, 3, generator=generator), dim=-1)
    flat = 2 * torch.rand(count, 48, 3, generator=generator) - 1
    square = flat * torch.tensor([1.0, 1.0, 0.0])
    side = torch.randint(0, 3, (count, 48, 1), generator=generator)
    cube = flat.scatter(2, side, flat.gather(2, side).sign())
    chosen = torch.stack([ball, cube, square])[kind, torch.arange(count)]
    turn = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator)).Q
    cloud = chosen @ turn + 0.01 * torch.randn(count, 48, 3, generator=generator)
    return cloud / cloud.norm(dim=-1).amax(-1)[:, None, None], kind


def test_it_learns_to_tell_spheres_from_cubes_from_squares() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    settings = {**SMALL, "points": 48, "groups": 6, "group_size": 6, "hidden_size": 24}
    module = nn.Sequential(PointBert(**settings).build(), nn.Flatten(), nn.Linear(48, 3))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    for _ in range(60):
        cloud, kind = shapes(24, generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(cloud), kind).backward()
        optimizer.step()
        schedule.step()
    cloud, kind = shapes(150, generator)
    with torch.no_grad():
        right = module.eval()(cloud).argmax(-1) == kind
    assert right.float().mean() > 0.85  # chance is a third


def test_the_preprocessor_makes_a_unit_sphere_of_fixed_size(tmp_path: Path) -> None:
    extractor = PointBert(channels=6, **SMALL).preprocessor()
    rng = np.random.default_rng(0)
    clouds = [rng.uniform(0, 1, (n, 6)) * [5, 5, 5, 1, 1, 1] + 1 for n in (10, 100)]
    made = extractor(clouds, return_tensors="pt")["points_values"]
    assert made.shape == (2, 40, 6)
    torch.testing.assert_close(made[..., :3].norm(dim=-1).amax(-1), torch.ones(2))
    torch.testing.assert_close(made[..., :3].mean(1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    assert float(made[..., 3:].min()) >= 1
    extractor.save_pretrained(tmp_path)
    again = type(extractor).from_pretrained(tmp_path)
    assert torch.equal(again(clouds, return_tensors="pt")["points_values"], made)
    with pytest.raises(ValueError, match="a cloud has 3 channels, and the encoder takes 6"):
        extractor(clouds[0][:, :3])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="100 points are too few for 512 groups of 32"):
        PointBert(points=100)
