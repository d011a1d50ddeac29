"""A composed model's Q-Former in its first stage: what is added, and what is trained instead of it.

Knows the model's parts, samples and a tokenizer; the losses are `clmm/q_former_losses.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clmm import components
from clmm.batching import SampleError, to_model
from clmm.modeling_mmllm import FEATURES, values_key
from clmm.projectors.q_former import QFormer as Projector
from clmm.q_former_losses import QFormerPretraining
from streams.catalog import nearest
from streams.settings import SettingError

if TYPE_CHECKING:
    from clmm.benchmark import Examples
    from clmm.objectives.q_former import QFormer
    from streams.sample import Sample

NAME = "first_stage"
"""Under which a projector has what its first stage adds."""


def size_beside(model: Any, objective: QFormer) -> int:
    """Parameters that the first stage adds to the projector's own."""
    with torch.device("meta"):
        whole = sum(p.numel() for p in _built(model, objective).parameters())
    return whole - sum(p.numel() for p in _own(model, objective).values())


def begin(model: Any, objective: QFormer) -> None:
    """Adds the text's side and the heads to the projector, which becomes part of the whole."""
    projector = _projector(model, objective)
    if hasattr(projector, NAME):
        return
    weight = projector.query_tokens
    with weight.device:
        stage = _built(model, objective).to(weight.dtype)
    stage.share(projector)
    setattr(projector, NAME, stage.train(projector.training))


def trains(model: Any, objective: QFormer) -> set[str]:
    """The projector's own parameters that the losses depend on: queries and layers."""
    return set(_own(model, objective))


class FirstStage(nn.Module):
    """What is trained in the model's place: pairs → itc, itm and itg [3]. The encoder is frozen."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        objective: QFormer,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self._autocast = autocast
        tokenizer = getattr(processor, "qformer_tokenizer", None) or processor.tokenizer
        own = tokenizer.cls_token_id is None
        if len(tokenizer) > objective.vocabulary - 1 - own:
            raise SettingError(
                f"q_former.vocabulary: {objective.vocabulary}, but the tokenizer has "
                f"{len(tokenizer)} tokens; give {len(tokenizer) + 1 + own}"
            )
        self._tokenizer = tokenizer
        self._begin = objective.vocabulary - 2 if own else tokenizer.cls_token_id
        end = tokenizer.sep_token_id
        self._end = tokenizer.eos_token_id if end is None else end

    def forward(self, examples: Examples) -> Tensor:
        whole = getattr(_projector(self.model, self.objective), NAME)
        weight = whole.query_tokens
        batch = to_model(examples.tensors, device=weight.device, dtype=weight.dtype)
        name = self.objective.input
        features = batch.get(name + FEATURES)
        if features is None:
            with torch.no_grad():
                features = self.model.encode(name, batch[values_key(name)])
        ids, mask = (text.to(weight.device) for text in self.texts(examples.samples))
        with torch.autocast(weight.device.type, self._autocast, enabled=self._autocast is not None):
            losses = whole(features.to(weight.dtype), ids, mask)
        return torch.stack([losses[part] for part in ("itc", "itm", "itg")])

    def texts(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] of each pair's text between its first token and its last, and their mask.

        Raises SampleError for a text that is too long.
        """
        rows = []
        for sample in samples:
            words = self._tokenizer(sample.reference_text, add_special_tokens=False)["input_ids"]
            rows.append([self._begin, *words, *([] if self._end is None else [self._end])])
            if len(rows[-1]) > self.objective.text_length:
                raise SampleError(
                    f"sample {sample.id}: its text has {len(rows[-1])} tokens, and "
                    f"q_former.text_length is {self.objective.text_length}"
                )
        ids, mask = torch.zeros(2, len(rows), max(map(len, rows)), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        return ids, mask

    def train(self, mode: bool = True) -> FirstStage:
        super().train(mode)
        for root in components.find(self.model)["encoder"]:
            self.model.get_submodule(root).eval()
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """The trained ones alone, as the trainer's other model has them."""
        named = super().named_parameters(*args, **kwargs)
        return ((name, weight) for name, weight in named if weight.requires_grad)


def _projector(model: Any, objective: QFormer) -> Any:
    projectors = getattr(model, "input_projectors", nn.ModuleDict())
    if objective.input not in projectors:
        near = nearest(objective.input, [*projectors]) if len(projectors) else ""
        raise SettingError(f"q_former.input: the model has no {objective.input!r}{near}")
    if not isinstance(model.config.input_projector(objective.input), Projector):
        kind = model.config.input_projectors[objective.input]["name"]
        raise SettingError(
            f"q_former: the projector of {objective.input} is {kind}, and only a q_former has a "
            "first stage"
        )
    return projectors[objective.input]


def _own(model: Any, objective: QFormer) -> dict[str, nn.Parameter]:
    return {
        f"input_projectors.{objective.input}.{name}": parameter
        for name, parameter in _projector(model, objective).named_parameters()
        if name == "query_tokens" or name.startswith("qformer.")
    }


def _built(model: Any, objective: QFormer) -> QFormerPretraining:
    settings: Any = model.config.input_projector(objective.input)
    return QFormerPretraining(
        settings,
        model.config.encoder(objective.input).width,
        vocabulary=objective.vocabulary,
        decoder_id=objective.vocabulary - 1,
        text_length=objective.text_length,
        contrast_width=objective.contrast_width,
        label_smoothing=objective.label_smoothing,
    )
