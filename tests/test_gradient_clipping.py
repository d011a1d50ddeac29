"""Adaptive gradient clipping against the paper's formula, written out."""

from __future__ import annotations

import torch
from torch import nn

from clmm.gradient_clipping import clip_adaptively


def test_adaptive_clipping_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    shapes = [(4, 3, 2, 2), (5, 3), (6,), ()]
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    parameters[1].data[0] = 0  # below ε
    parameters.append(nn.Parameter(torch.ones(2)))  # without a gradient
    for parameter, size in zip(parameters[:4], (0.02, 0.01, 0.003, 5.0), strict=True):
        parameter.grad = torch.randn_like(parameter) * size
    parameters[1].grad[2] = 0  # type: ignore[index]
    expected = []
    for parameter in parameters[:4]:
        weight, grad = parameter.detach().clone(), parameter.grad.clone()  # type: ignore[union-attr]
        units = range(len(weight)) if weight.dim() > 1 else [...]
        for i in units:
            norm, most = grad[i].norm(), 0.01 * max(weight[i].norm().item(), 1e-3)
            if norm > most:
                grad[i] = most / norm * grad[i]
        expected.append(grad)
    clip_adaptively(parameters)
    for parameter, grad in zip(parameters, expected, strict=False):
        torch.testing.assert_close(parameter.grad, grad)
    assert parameters[4].grad is None
