"""HuBERT (Hsu et al. 2021, arXiv 2106.07447): speech features learned by predicting clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from clmm.encoding import Selected, unused_blocks

KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)


@dataclass(frozen=True, kw_only=True)
class Hubert:
    """Base unless set otherwise: 94 million parameters, a feature every 20 ms.

    Masking and dropout of its own pre-training are off, so that features are the same in training
    and afterwards. `clmm.discrete_units` makes SpeechGPT's units of a layer's features.
    """

    seconds: float = 10.0
    """Length of a recording; shorter ones are filled with silence, longer ones cut."""
    hidden_size: int = 768
    """Width of one layer's feature."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads."""
    mlp: int = 3072
    """Width between the two maps of a block's MLP."""
    convolution: int = 512
    """Channels of the seven convolutions that read the wave."""
    pre_norm: bool = False
    """Norms before each part of a block and in every convolution, as large and xlarge have."""
    layers: tuple[int, ...] | None = None
    """Hidden states that are taken, 0 the embeddings and -1 the last, joined; left out, the model's
    own last state. SpeechGPT's units are of layer 11."""
    normalise: bool = True
    """Give every wave mean 0 and deviation 1."""

    modality: ClassVar[str] = "audio"

    @property
    def width(self) -> int:
        return self.hidden_size * len(self.layers or (-1,))

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(16000 * self.seconds),)

    @property
    def unused(self) -> tuple[str, ...]:
        """Parameters that the feature rule leaves idle, by the start of their names."""
        ends = ["model.encoder.layer_norm."] if self.pre_norm else []
        return unused_blocks(self.layers, self.depth, blocks="model.encoder.layers", ends=ends)

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        length = shape[-1]
        for kernel, stride in zip(KERNELS, STRIDES, strict=True):
            length = (length - kernel) // stride + 1
        if length < 1:
            raise ValueError(f"hubert: {shape[-1]} samples are too few; it takes 400 for a feature")
        return length

    def build(self) -> nn.Module:
        from transformers import HubertConfig, HubertModel

        config = HubertConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp,
            conv_dim=(self.convolution,) * len(KERNELS),
            conv_kernel=KERNELS,
            conv_stride=STRIDES,
            conv_bias=self.pre_norm,
            feat_extract_norm="layer" if self.pre_norm else "group",
            do_stable_layer_norm=self.pre_norm,
            hidden_dropout=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
            mask_time_prob=0.0,
        )
        return Selected(HubertModel(config), layers=self.layers)

    def preprocessor(self) -> Any:
        from clmm.audio_preprocessing import Waveforms

        return Waveforms(do_normalize=self.normalise, samples=self.shape[0])
