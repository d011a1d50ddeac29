"""RAM++: its tag decoder and its losses against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clmm.encoders.ram_plus_plus import RamPlusPlus
from clmm.ram_plus_plus import asymmetric_loss

TINY = RamPlusPlus(
    features="tags", best=3, image_size=64, embed_dim=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2),
    window=2, token_width=12, tags=7, descriptions=3, tag_width=16, tag_heads=2, tag_mlp=24,
)  # fmt: skip


def pictures() -> Tensor:
    return torch.randn(2, *TINY.shape, generator=torch.Generator().manual_seed(1))


def test_tagger_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    network = TINY.network().eval()
    head = network.head
    values = pictures()
    seen = network.image.backbone(values).last_hidden_state
    image = network.image.proj(torch.cat([seen.mean(1, keepdim=True), seen], dim=1))
    labels = torch.zeros(2, 7, 12)
    for n in range(2):
        whole = image[n, 0] / image[n, 0].norm()
        for tag in range(7):
            weights = (head.scale.exp() * head.descriptions[tag] @ whole).softmax(0)
            labels[n, tag] = weights @ head.descriptions[tag]
    states = (labels @ head.query.weight.T + head.query.bias).clamp(min=0)
    for layer in head.layers:
        bias = layer.attention.in_proj_bias.chunk(3)
        q = states @ layer.attention.q_proj_weight.T + bias[0]
        k = image @ layer.attention.k_proj_weight.T + bias[1]
        v = image @ layer.attention.v_proj_weight.T + bias[2]
        q, k, v = (part.unflatten(-1, (2, 8)) for part in (q, k, v))
        weights = (torch.einsum("nihd,njhd->nhij", q, k) / 8**0.5).softmax(-1)
        attended = torch.einsum("nhij,njhd->nihd", weights, v).flatten(2)
        states = layer.attention_norm(states + layer.attention.out_proj(attended))
        hidden = layer.up(states)
        hidden = layer.down(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)
        states = layer.mlp_norm(states + hidden)
    logits = (states @ head.fc.weight[0]) + head.fc.bias
    torch.testing.assert_close(network(values), logits, atol=1e-5, rtol=1e-5)
    module = TINY.build().eval()
    module.model.load_state_dict(network.state_dict())
    best = logits.argsort(dim=1, descending=True)[:, :3]
    expected = torch.stack([states[n][best[n]] for n in range(2)])
    torch.testing.assert_close(module(values), expected, atol=1e-5, rtol=1e-5)


def test_published_tag_head() -> None:
    with torch.device("meta"):
        network = RamPlusPlus().network()
    layer = (
        2 * (768 + 1) * 768 + 2 * (512 + 1) * 768 + (768 + 1) * 3072 + (3072 + 1) * 768 + 4 * 768
    )
    expected = 2 * layer + (512 + 1) * 768 + 768 + 1 + 1
    assert sum(p.numel() for p in network.head.parameters()) == expected
    assert network.head.descriptions.shape == (4585, 51, 512)
    assert "head.descriptions" in network.state_dict()


def asymmetric(logit: float, target: int, gamma: float, margin: float) -> float:
    p = 1 / (1 + np.exp(-logit))
    shifted = max(p - margin, 0.0)
    return float(-np.log(p) if target else -(shifted**gamma) * np.log(1 - shifted))


def test_asymmetric_loss_is_the_papers_formula() -> None:
    logits = torch.tensor([[-6.0, -1.0, 0.3], [2.0, -0.2, 4.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    for gamma, margin in ((7.0, 0.05), (4.0, 0.05), (2.0, 0.0)):
        loss = asymmetric_loss(logits, targets, gamma_negative=gamma, margin=margin)
        pairs = zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
        expected = sum(asymmetric(x, int(y), gamma, margin) for x, y in pairs)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    plain = asymmetric_loss(logits, targets, gamma_negative=0, margin=0)
    expected = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    torch.testing.assert_close(plain, expected)
    # No gradient through the weights: a negative's is weight · p where nothing is shifted.
    asymmetric_loss(logits, targets, gamma_negative=2, margin=0).backward()
    p = logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, torch.where(targets > 0, p - 1, p**2 * p))
    focused = asymmetric_loss(logits, targets, gamma_negative=0, gamma_positive=2, margin=0)
    manual = -(targets * (1 - p) ** 2 * p.log() + (1 - targets) * (1 - p).log()).sum()
    torch.testing.assert_close(focused.detach(), manual)


def test_tagger_trains_by_its_three_losses() -> None:
    torch.manual_seed(0)
    network = TINY.network()
    values, tags = pictures(), torch.tensor([[1.0, 0, 0, 1, 0, 0, 0], [0, 1.0, 0, 0, 0, 0, 0]])
    captions, clip = torch.randn(2, 12), torch.randn(2, 12)
    losses = network.losses(values, tags, captions, clip)
    assert {*losses} == {"tagging", "alignment", "distillation"}
    image, head = network.image(values), network.head
    tagging = asymmetric_loss(network(values), tags, gamma_negative=7)
    torch.testing.assert_close(losses["tagging"], tagging)
    torch.testing.assert_close(losses["distillation"], (image[:, 0] - clip).abs().mean())
    for n in range(2):  # each caption by itself: queries do not see each other
        for m in range(2):
            state = head.decode(captions[m].view(1, 1, -1), image[n : n + 1])
            own = torch.tensor([[float(n == m)]])
            part = asymmetric_loss(head.logits(state), own, gamma_negative=4)
            losses["alignment"] = losses["alignment"] - part
    assert losses.pop("alignment").abs().item() < 1e-5
    sum(network.losses(values, tags, captions, clip).values()).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert not head.descriptions.requires_grad
