"""Discrete units of speech: the nearest cluster of each frame's feature, repeats taken once.

SpeechGPT (Zhang et al. 2023, arXiv 2305.11000) writes speech this way: k-means on HuBERT's layer
11, 1000 clusters. Knows features; which encoder they come from, the caller says.
"""

from __future__ import annotations

import torch
from torch import Tensor


def learn_centroids(features: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """k-means: features [frames, d] → centroids [count, d]; ValueError for fewer frames."""
    from sklearn.cluster import KMeans

    if len(features) < count:
        raise ValueError(f"{count} units cannot be learned from {len(features)} frames")
    kmeans = KMeans(count, n_init=1, random_state=seed)
    kmeans.fit(features.detach().float().cpu().numpy())
    return torch.from_numpy(kmeans.cluster_centers_).float()


def discrete_units(features: Tensor, centroids: Tensor) -> list[int]:
    """One recording's features [n, d] → its units, without repeats of the one before."""
    nearest = torch.cdist(features.float(), centroids.to(features.device)).argmin(-1)
    return torch.unique_consecutive(nearest).tolist()
