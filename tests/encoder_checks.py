"""What every encoder must hold: its shape, its gradients, its weights on disk and in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from clmm.configuration_mmllm import MMLLMConfig
from clmm.modeling_mmllm import MMLLMForConditionalGeneration, values_key

TEXT = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
PLACEHOLDER = 5


def millions(encoder: Any) -> float:
    """Parameters of the encoder as its settings say, counted without memory, in millions."""
    with torch.device("meta"):
        built = encoder if isinstance(encoder, nn.Module) else encoder.build()
    return sum(p.numel() for p in built.parameters()) / 1e6


def values(encoder: Any, media: int = 2) -> torch.Tensor:
    return torch.randn(media, *encoder.shape, generator=torch.Generator().manual_seed(0))


def holds(encoder: Any, folder: Path) -> None:
    """Forward, backward, and again from the disk."""
    torch.manual_seed(0)
    module = encoder.build().train()
    made = module(values(encoder))
    assert made.shape == (2, encoder.num_tokens(encoder.shape), encoder.width)
    (made * torch.randn_like(made)).sum().backward()
    unused = tuple(getattr(encoder, "unused", ()))
    for name, parameter in module.named_parameters():
        idle = name.startswith(unused) or not parameter.requires_grad
        assert (parameter.grad is None) == idle, name
    for prefix in unused:
        assert any(name.startswith(prefix) for name, _ in module.named_parameters()), prefix

    module.eval()
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    torch.manual_seed(1)
    again = encoder.build().eval()
    again.load_state_dict(load_file(folder / "weights.safetensors"))
    torch.testing.assert_close(again(values(encoder)), module(values(encoder)))
    one = values(encoder)[:1]
    torch.testing.assert_close(module(one), module(values(encoder))[:1], rtol=1e-4, atol=1e-5)


def composes(encoder: str, folder: Path, *, name: str = "audio", **settings: Any) -> None:
    """In a model that is saved and loaded, where weights are built without memory first."""
    torch.manual_seed(0)
    config = MMLLMConfig(
        encoders={name: {"name": encoder, **settings}},
        input_projectors={name: {"name": "linear"}},
        text_config=TEXT,
        token_ids={name: PLACEHOLDER},
    )
    model = MMLLMForConditionalGeneration(config).eval()
    ids = torch.tensor([[7, *[PLACEHOLDER] * config.num_tokens(name), 8]])
    batch = {"input_ids": ids, values_key(name): values(config.encoder(name), 1)}
    model.save_pretrained(folder)
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
