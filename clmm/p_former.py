"""P-Former: from a text the prompts that make a frozen language model say it, and its losses.

DLP (Jian et al. 2023, arXiv 2307.07063, section 3). Knows texts and a language model; no image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize
from transformers import BertModel

IGNORED = -100


class PromptFormer(nn.Module):
    """BERT's first state becomes prompts: [B, T] → [B, queries, D].

    prompts = W₂ tanh(W₁ reshape(W₀ h + b₀) + b₁) + b₂ with h [B, hidden], reshaped to
    [B, queries, hidden]. Any text length goes with any number of queries.
    """

    def __init__(
        self, config: Any, output_width: int, *, queries: int, contrast_width: int = 256
    ) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.queries = queries
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls_proj = nn.Linear(hidden, queries * hidden)
        self.pooler = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh())
        self.language_projection = nn.Linear(hidden, output_width)
        self.text_proj = nn.Linear(hidden, contrast_width)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[B, T] → prompts [B, queries, D]."""
        return self._prompts(self._first(input_ids, attention_mask))

    def losses(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        language_model: Any,
        text_ids: Tensor,
        text_mask: Tensor,
        mask_id: int,
        kept_ids: tuple[int, ...] = (),
        masked: float = 0.25,
        label_smoothing: float = 0.1,
    ) -> dict[str, Tensor]:
        """The three losses of the paper's equations (1) to (3) and, as `loss`, their sum.

        `input_ids` [B, T] are the texts in BERT's tokens, `text_ids` [B, L] the same in the
        language model's, which should be frozen. Two views of each text, each with a share
        `masked` of its tokens hidden (never `kept_ids` nor padding) and its own dropout, are
        contrasted; the first makes the prompts.
        """
        hidden = [
            self._first(
                masked_view(input_ids, attention_mask, mask_id, kept=kept_ids, share=masked),
                attention_mask,
            )
            for _ in range(2)
        ]
        one, other = (normalize(self.text_proj(state), dim=-1) for state in hidden)
        prompts = self._prompts(hidden[0])
        vocabulary = language_model.get_input_embeddings().weight
        losses = {
            "contrast": self_contrast(
                one, other, self.temperature, label_smoothing=label_smoothing
            ),
            "quantisation": quantisation(prompts, vocabulary),
            "reconstruction": reconstruction(language_model, prompts, text_ids, text_mask),
        }
        return losses | {"loss": torch.stack([*losses.values()]).sum()}

    def _first(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        states: Tensor = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        return states[:, 0]

    def _prompts(self, first: Tensor) -> Tensor:
        spread = self.cls_proj(first).unflatten(1, (self.queries, -1))
        prompts: Tensor = self.language_projection(self.pooler(spread))
        return prompts


def masked_view(
    input_ids: Tensor,
    attention_mask: Tensor,
    mask_id: int,
    *,
    kept: tuple[int, ...] = (),
    share: float = 0.25,
) -> Tensor:
    """`input_ids` with each token hidden at this chance; padding and `kept` ids stay."""
    chances = torch.full(input_ids.shape, share, device=input_ids.device)
    hidden = torch.bernoulli(chances).bool() & attention_mask.bool()
    hidden &= ~torch.isin(input_ids, input_ids.new_tensor(kept))
    return input_ids.masked_fill(hidden, mask_id)


def self_contrast(
    one: Tensor, other: Tensor, temperature: Tensor | float, *, label_smoothing: float = 0.1
) -> Tensor:
    """Cross-entropy of finding each text's other view: [B, w] and [B, w], rows of length one."""
    targets = torch.arange(len(one), device=one.device)
    return cross_entropy(one @ other.T / temperature, targets, label_smoothing=label_smoothing)


def quantisation(prompts: Tensor, vocabulary: Tensor) -> Tensor:
    """Mean squared distance of each prompt [..., D] to the nearest word vector of [V, D].

    The vocabulary gets no gradient: the prompts come to it.
    """
    flat, words = prompts.flatten(0, -2), vocabulary.detach().to(prompts.dtype)
    nearest = torch.cdist(flat.detach(), words).argmin(dim=1)
    return mse_loss(flat, words[nearest])


def reconstruction(
    language_model: Any, prompts: Tensor, text_ids: Tensor, text_mask: Tensor
) -> Tensor:
    """−log p(text | prompts) a token, the mean over the texts' tokens that are no padding."""
    words = language_model.get_input_embeddings()(text_ids)
    ones = text_mask.new_ones(prompts.shape[:2])
    labels = text_ids.masked_fill(text_mask == 0, IGNORED)
    loss: Tensor = language_model(
        inputs_embeds=torch.cat([prompts.to(words.dtype), words], dim=1),
        attention_mask=torch.cat([ones, text_mask], dim=1),
        labels=torch.cat([labels.new_full(ones.shape, IGNORED), labels], dim=1),
    ).loss
    return loss


def alignment(tokens: Tensor, prompts: Tensor, *, omega: float = 1.0) -> Tensor:
    """ω · MSE between the Q-Former's tokens and P-Former's prompts, both [B, queries, D].

    The prompts are a target without gradient; ValueError when the shapes differ.
    """
    if tokens.shape != prompts.shape:
        raise ValueError(
            f"p_former: tokens are {tuple(tokens.shape)}, but prompts {tuple(prompts.shape)}"
        )
    return omega * mse_loss(tokens, prompts.detach())
