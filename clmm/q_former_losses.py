"""The Q-Former's first training stage: contrast, matching and generation with three masks.

BLIP-2 (Li et al. 2023, arXiv 2301.12597), section 3.1 and figure 2. Knows features and texts; no
language model. Negatives come from the batch of this process alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, linear, normalize

from clmm.projectors.q_former import QFormer

IGNORED = -100


def unimodal_mask(queries: int, text_mask: Tensor) -> Tensor:
    """Queries see queries, text sees text: [B, q + T, q + T], true where row may see column.

    `text_mask` [B, T] is 1 for tokens and 0 for padding, which nobody sees.
    """
    kind = _kinds(queries, text_mask)
    return (kind[:, None] == kind) & _real(queries, text_mask)


def bidirectional_mask(queries: int, text_mask: Tensor) -> Tensor:
    """All see all but padding: [B, q + T, q + T]."""
    seen = _real(queries, text_mask)
    return seen.expand(-1, seen.shape[2], -1)


def multimodal_causal_mask(queries: int, text_mask: Tensor) -> Tensor:
    """Queries see queries; text sees queries and the text up to itself: [B, q + T, q + T]."""
    kind = _kinds(queries, text_mask)
    place = torch.arange(len(kind), device=text_mask.device)
    allowed = (kind == 0) | ((kind[:, None] == 1) & (place <= place[:, None]))
    return allowed & _real(queries, text_mask)


def _kinds(queries: int, text_mask: Tensor) -> Tensor:
    """0 for a query, 1 for a token of the text: [q + T]."""
    places = torch.arange(queries + text_mask.shape[1], device=text_mask.device)
    return (places >= queries).long()


def _real(queries: int, text_mask: Tensor) -> Tensor:
    ones = text_mask.new_ones(len(text_mask), queries)
    return torch.cat([ones, text_mask], dim=1).bool().unsqueeze(1)


def similarities(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of each image's best query and each text: [B, q, w] and [C, w] → [B, C].

    Both are rows of length one.
    """
    return torch.einsum("iqw,tw->itq", image, text).amax(dim=2)


def contrast(
    scores: Tensor, temperature: Tensor | float, *, label_smoothing: float = 0.1
) -> Tensor:
    """ITC of `similarities` [B, B]: the mean of both directions' cross-entropies."""
    targets = torch.arange(len(scores), device=scores.device)
    logits = scores / temperature
    directions = [
        cross_entropy(x, targets, label_smoothing=label_smoothing) for x in (logits, logits.T)
    ]
    return torch.stack(directions).mean()


def hard_negatives(scores: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """An image for each text and a text for each image that do not belong to it: [B] and [B].

    Sampled with the softmax of the similarities [B, B] as chances, and 0.0001 for each besides.
    Raises ValueError for a batch of one.
    """
    if len(scores) < 2:
        raise ValueError(f"q_former: {len(scores)} pair in the batch, so no negative; at least 2")
    logits = (scores / temperature).detach()
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    chances = [((x.softmax(dim=1) + 1e-4).masked_fill(own, 0.0)) for x in (logits.T, logits)]
    images, texts = (torch.multinomial(x, 1)[:, 0] for x in chances)
    return images, texts


def matching(logits: Tensor, labels: Tensor) -> Tensor:
    """ITM: cross-entropy of the mean of the queries' logits [B, q, 2]; labels [B], 1 is a pair."""
    return cross_entropy(logits.mean(dim=1), labels)


def generation(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """ITG: cross-entropy of each next token; logits [B, T, V], labels [B, T], −100 is ignored."""
    return cross_entropy(
        logits[:, :-1].flatten(0, 1),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )


class QFormerPretraining(nn.Module):
    """A Q-Former with all that its first stage needs besides; `share` makes a projector part of it.

    The text begins with a token whose last state stands for it ([CLS]); for generation it is
    replaced by `decoder_id` ([DEC]), an embedding of the vocabulary. Word predictions use the
    embeddings' weights (tied, with a bias).
    """

    def __init__(
        self,
        settings: QFormer,
        input_width: int,
        *,
        vocabulary: int = 30523,
        decoder_id: int = 30522,
        text_length: int = 512,
        contrast_width: int = 256,
        label_smoothing: float = 0.1,
    ) -> None:
        from transformers import Blip2QFormerModel

        super().__init__()
        if not 0 <= decoder_id < vocabulary:
            raise ValueError(
                f"q_former: decoder_id {decoder_id} is outside vocabulary {vocabulary}"
            )
        hidden = settings.hidden_size
        self.decoder_id = decoder_id
        self.label_smoothing = label_smoothing
        self.query_tokens = nn.Parameter(torch.randn(1, settings.queries, hidden) * 0.02)
        self.qformer: Any = Blip2QFormerModel(
            settings.config(input_width, use_qformer_text_input=True)
        )
        self.words = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(text_length, hidden)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.vision_proj = nn.Linear(hidden, contrast_width)
        self.text_proj = nn.Linear(hidden, contrast_width)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.itm_head = nn.Linear(hidden, 2)
        self.transform = nn.Linear(hidden, hidden)
        self.transform_norm = nn.LayerNorm(hidden, eps=1e-12)
        self.word_bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> dict[str, Tensor]:
        """Images [B, n, d] and their texts [B, T] → itc, itm, itg and their sum, `loss`."""
        image, text = self.embeddings(features, text_ids, text_mask)
        scores = similarities(image, text)
        other_images, other_texts = hard_negatives(scores, self.temperature)
        rows = torch.arange(len(features), device=features.device)
        images = torch.cat([rows, other_images, rows])
        texts = torch.cat([rows, rows, other_texts])
        logits = self.match(features[images], text_ids[texts], text_mask[texts])
        losses = {
            "itc": contrast(scores, self.temperature, label_smoothing=self.label_smoothing),
            "itm": matching(logits, (torch.arange(len(images)) < len(rows)).long().to(rows.device)),
            "itg": self.say(features, text_ids, text_mask),
        }
        return losses | {"loss": torch.stack([*losses.values()]).sum()}

    def embeddings(
        self, features: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For contrast, of length one: [B, q, w] of the images and [B, w] of the texts."""
        queries, text = self._read(features, text_ids, text_mask, unimodal_mask)
        image = normalize(self.vision_proj(queries), dim=-1)
        return image, normalize(self.text_proj(text[:, 0]), dim=-1)

    def match(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Logits of each query that image and text are no pair, or one: [B, q, 2]."""
        queries, _ = self._read(features, text_ids, text_mask, bidirectional_mask)
        logits: Tensor = self.itm_head(queries)
        return logits

    def say(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """The generation loss of the texts, given the images."""
        labels = self._decoder(text_ids).masked_fill(text_mask == 0, IGNORED)
        logits = self.word_logits(features, text_ids, text_mask)
        return generation(logits, labels, label_smoothing=self.label_smoothing)

    def word_logits(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """[B, T, V] of each text's next tokens, its first token replaced by [DEC]."""
        ids = self._decoder(text_ids)
        _, text = self._read(features, ids, text_mask, multimodal_causal_mask)
        hidden = self.transform_norm(gelu(self.transform(text)))
        return linear(hidden, self.words.weight, self.word_bias)

    def share(self, projector: nn.Module) -> None:
        """Makes the queries and layers of a `q_former` projector this one's own.

        What remains is the text's: its MLPs, words and heads, of which the projector has none.
        """
        self.query_tokens = projector.query_tokens  # type: ignore[assignment]
        for name, parameter in projector.get_submodule("qformer").named_parameters():
            parent, _, last = name.rpartition(".")
            setattr(self.qformer.get_submodule(parent), last, parameter)

    def _decoder(self, text_ids: Tensor) -> Tensor:
        first = torch.full_like(text_ids[:, :1], self.decoder_id)
        return torch.cat([first, text_ids[:, 1:]], dim=1)

    def _read(
        self, features: Tensor, text_ids: Tensor, text_mask: Tensor, mask: Any
    ) -> tuple[Tensor, Tensor]:
        """Last states of the queries [B, q, hidden] and of the text [B, T, hidden]."""
        queries = self.query_tokens.expand(len(features), -1, -1)
        places = torch.arange(text_ids.shape[1], device=text_ids.device)
        text = self.words(text_ids) + self.positions(places)
        count = queries.shape[1]
        allowed = mask(count, text_mask).unsqueeze(1)
        lowest = torch.finfo(text.dtype).min
        states: Tensor = self.qformer(
            query_embeds=torch.cat([queries, text], dim=1),
            query_length=count,
            # Added to the scores, for not every attention of transformers reads booleans.
            attention_mask=torch.zeros_like(allowed, dtype=text.dtype).masked_fill(
                ~allowed, lowest
            ),
            encoder_hidden_states=features,
        ).last_hidden_state
        return states[:, :count], states[:, count:]
