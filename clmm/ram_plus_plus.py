"""RAM++ (Huang et al. 2023, arXiv 2310.15200): an open-set image tagger, and its three losses.

Image tokens go to a decoder whose queries are tags. Each tag has several descriptions, embedded
once by CLIP's text encoder and then frozen; an image weighs them by how near they are to it.
Knows tensors; which texts the tags and descriptions are, whoever fills
`TagHead.descriptions` knows.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional

THRESHOLD = 0.68
"""Published probability from which a tag counts as present."""


class ImageTokens(nn.Module):
    """[N, 3, H, W] → [N, 1 + n, width]: the mean of the backbone's features, then each of them."""

    def __init__(self, backbone: nn.Module, backbone_width: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.proj = nn.Linear(backbone_width, width)

    def forward(self, values: Tensor) -> Tensor:
        seen = self.backbone(values).last_hidden_state
        projected: Tensor = self.proj(torch.cat([seen.mean(dim=1, keepdim=True), seen], dim=1))
        return projected


class TagLayer(nn.Module):
    """BERT's layer with cross-attention alone, as in Query2Label: queries do not see each other."""

    def __init__(self, hidden: int, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            hidden, heads, kdim=width, vdim=width, batch_first=True
        )
        self.attention_norm = nn.LayerNorm(hidden, eps=1e-12)
        self.up = nn.Linear(hidden, mlp)
        self.down = nn.Linear(mlp, hidden)
        self.mlp_norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        attended, _ = self.attention(queries, image, image, need_weights=False)
        queries = self.attention_norm(queries + attended)
        hidden = self.down(functional.gelu(self.up(queries)))
        normed: Tensor = self.mlp_norm(queries + hidden)
        return normed


class TagHead(nn.Module):
    """Image tokens → what the decoder makes of each tag, and its logit.

    `descriptions` [tags, descriptions, width] are CLIP's text embeddings of unit length, saved with
    the weights and never trained; random until they are filled.
    """

    descriptions: Tensor

    def __init__(
        self,
        *,
        tags: int,
        descriptions: int,
        width: int,
        hidden: int,
        depth: int,
        heads: int,
        mlp: int,
    ) -> None:
        super().__init__()
        random = functional.normalize(torch.randn(tags, descriptions, width), dim=-1)
        self.register_buffer("descriptions", random)
        self.scale = nn.Parameter(torch.tensor(log(1 / 0.07)))
        self.query = nn.Linear(width, hidden)
        self.layers = nn.ModuleList(TagLayer(hidden, width, heads, mlp) for _ in range(depth))
        self.fc = nn.Linear(hidden, 1)

    def labels(self, image: Tensor) -> Tensor:
        """Each tag's descriptions, weighed by the image: [N, 1 + n, width] → [N, tags, width].

        Weights are softmax over a tag's descriptions of exp(s) · ⟨image, description⟩, where the
        image is its first token at unit length.
        """
        whole = functional.normalize(image[:, 0], dim=-1)
        near = torch.einsum("nw,tdw->ntd", whole, self.descriptions)
        weights = (self.scale.exp() * near).softmax(dim=-1)
        return torch.einsum("ntd,tdw->ntw", weights, self.descriptions)

    def decode(self, labels: Tensor, image: Tensor) -> Tensor:
        """Labels [N, t, width] asked of an image [N, 1 + n, width] → states [N, t, hidden]."""
        states = functional.relu(self.query(labels))
        for layer in self.layers:
            states = layer(states, image)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """[N, t, hidden] → [N, t]."""
        logits: Tensor = self.fc(states).squeeze(-1)
        return logits


class RamPlusPlus(nn.Module):
    """The whole tagger: [N, 3, H, W] → logits [N, tags]."""

    def __init__(self, image: ImageTokens, head: TagHead) -> None:
        super().__init__()
        self.image = image
        self.head = head

    def states(self, values: Tensor) -> Tensor:
        """The decoder's state of every tag: [N, tags, hidden]."""
        image = self.image(values)
        return self.head.decode(self.head.labels(image), image)

    def forward(self, values: Tensor) -> Tensor:
        return self.head.logits(self.states(values))

    def losses(
        self, values: Tensor, tags: Tensor, captions: Tensor, clip_features: Tensor
    ) -> dict[str, Tensor]:
        """Tagging, image-text alignment and distillation, to be added up.

        `tags` [N, tags] of 0 and 1; `captions` [N, width] CLIP's text embeddings of the images'
        captions, each image asked of all of them; `clip_features` [N, width] CLIP's image features.
        """
        image = self.image(values)
        logits = self.head.logits(self.head.decode(self.head.labels(image), image))
        asked = captions.unsqueeze(0).expand(len(image), -1, -1)
        matches = self.head.logits(self.head.decode(asked, image))
        own = torch.eye(len(image), device=matches.device)
        return {
            "tagging": asymmetric_loss(logits, tags, gamma_negative=7),
            "alignment": asymmetric_loss(matches, own, gamma_negative=4),
            "distillation": functional.l1_loss(image[:, 0], clip_features),
        }


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_negative: float,
    gamma_positive: float = 0.0,
    margin: float = 0.05,
) -> Tensor:
    """Asymmetric loss for many labels (Ridnik et al. 2021, arXiv 2009.14119).

    −Σ y · (1 − p)^γ₊ · log p + (1 − y) · p_m^γ₋ · log(1 − p_m), with p_m = max(p − m, 0), summed
    over labels and images. The focusing factors are weights: no gradient goes through them, as
    in the authors' and RAM++'s training.
    """
    present = logits.sigmoid()
    absent = ((-logits).sigmoid() + margin).clamp(1e-8, 1)
    positive = targets * functional.logsigmoid(logits)
    negative = (1 - targets) * absent.log()
    positive = positive * (1 - present.detach()) ** gamma_positive
    negative = negative * (1 - absent.detach()) ** gamma_negative
    return -(positive + negative).sum()
