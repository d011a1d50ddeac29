"""Tiny vision-language models of four families, from their real configs, saved in a folder.

Weights are random; processors, image processors and chat templates are the families' own, with a
byte-level tokenizer in place of the published vocabularies. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from clmm.configuration_mmllm import MMLLMConfig
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from clmm.processing_mmllm import MMLLMProcessor
from clmm.processing_mmllm import byte_tokenizer as mmllm_tokenizer

LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}{% else %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}{{ message['role'].capitalize() }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def byte_tokenizer(
    special: list[str], *, bos: str | None, eos: str, pad: str
) -> PreTrainedTokenizerFast:
    """256 bytes and the special tokens: any text works, nothing is merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"eos_token": eos, "pad_token": pad} | ({"bos_token": bos} if bos else {})
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.add_special_tokens({"additional_special_tokens": special})
    return fast


def _id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _text(vocabulary: int, hidden: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    }


def _save(folder: Path, model: PreTrainedModel, processor: ProcessorMixin) -> Path:
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava(folder: Path, *, hidden: int = 32, layers: int = 2, template: bool = True) -> Path:
    """CLIP vision, two-layer projector, Llama: 16 placeholders for an image of 32 × 32."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(["<image>"], bos="<s>", eos="</s>", pad="<pad>")
    # Llama's tokenizer itself puts the start token, so that the template does not.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessor(size=size, crop_size=size, do_pad=False),
        tokenizer=tokenizer,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE if template else None,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            **_text(len(tokenizer), hidden, layers),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=_id(tokenizer, "<image>"),
        image_seq_length=16,
    )
    return _save(folder, LlavaForConditionalGeneration(config), processor)


def qwen2_vl(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """Any image size: patches of 4 × 4, merged 2 × 2, so one placeholder for 8 × 8 pixels."""
    torch.manual_seed(0)
    special = [
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    tokenizer = byte_tokenizer(special, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    ids = {token: _id(tokenizer, token) for token in special}
    pixels = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    patches: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **patches),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels, **patches),
        chat_template=QWEN_TEMPLATE,
    )
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": hidden,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        text_config={
            **_text(len(tokenizer), hidden, layers),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [hidden // 32, hidden // 32, hidden // 16],
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return _save(folder, Qwen2VLForConditionalGeneration(config), processor)


def idefics3(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """Tiles of 32 × 32 after SigLIP and pixel shuffle: 4 placeholders a tile (SmolVLM's design)."""
    torch.manual_seed(0)
    places = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    special = [
        "<fake_token_around_image>",
        "<image>",
        "<global-img>",
        "<end_of_utterance>",
        *places,
    ]
    tokenizer = byte_tokenizer(
        special, bos="<|begin_of_text|>", eos="<end_of_utterance>", pad="<|end_of_text|>"
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS_TEMPLATE,
    )
    config = Idefics3Config(
        vision_config={
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        text_config={
            "model_type": "llama",
            **_text(len(tokenizer), hidden, layers),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=_id(tokenizer, "<image>"),
        scale_factor=2,
    )
    return _save(folder, Idefics3ForConditionalGeneration(config), processor)


def mmllm(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """Our own class: ViT, linear projector, Llama: 16 placeholders for an image of 32 × 32."""
    torch.manual_seed(0)
    tokenizer = mmllm_tokenizer()
    config = MMLLMConfig(
        encoders={
            "image": {
                "name": "vit",
                "hidden_size": hidden,
                "mlp": 2 * hidden,
                "depth": 2,
                "heads": 4,
                "image_size": 32,
                "patch_size": 8,
            }
        },
        text_config={
            "model_type": "llama",
            **_text(len(tokenizer), hidden, layers),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        input_projectors={"image": {"name": "linear"}},
        token_ids={"image": tokenizer.convert_tokens_to_ids("<image>")},
    )
    processor = MMLLMProcessor(
        config.encoder("image").preprocessor(), tokenizer, {"image": config.num_tokens("image")}
    )
    return _save(folder, MMLLMForConditionalGeneration(config), processor)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "idefics3": idefics3,
    "mmllm": mmllm,
}
