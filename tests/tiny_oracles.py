"""Tiny models of transformers' own multimodal classes, saved in a folder, to be compared with.

From their real configs, with random weights that are large enough to matter (queries and gates are
zero otherwise), and their own processors around a byte-level tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_models
import torch
from tokenizers import processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsImageProcessor,
    IdeficsProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    OPTConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    T5Config,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
    WhisperFeatureExtractor,
)

SIDE = 16
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": 4,
}  # fmt: skip
SECOND = 16_000
QWEN_AUDIO_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(*special: str, around: str = "<s> $A", bos: str = "<s>", eos: str = "</s>") -> Any:
    """Bytes; `around` says what stands before and behind a row."""
    made = tiny_models.byte_tokenizer([*special], bos=bos, eos=eos, pad="<pad>")
    marks = [mark for mark in (bos, eos) if mark in around]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(mark, made.convert_tokens_to_ids(mark)) for mark in marks]
    )
    return made


def _llama(tokenizer: Any, config: Any = LlamaConfig, **more: Any) -> Any:
    sizes = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    return config(vocab_size=len(tokenizer), **_ids(tokenizer), **(sizes | more))


def _ids(tokenizer: Any) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _t5(tokenizer: Any) -> Any:
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=24,
        d_ff=32,
        d_kv=8,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _opt(tokenizer: Any) -> Any:
    return OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        word_embed_proj_dim=24,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        **_ids(tokenizer),
    )


def _save(folder: Path, model: PreTrainedModel, processor: ProcessorMixin, **how: Any) -> Path:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.4)
    model.tie_weights()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.eval().save_pretrained(folder, **how)
    processor.save_pretrained(folder)
    return folder


def llava(folder: Path, **more: Any) -> Path:
    """Three layers of CLIP, of which the last is not used."""
    tokenizer = _tokenizer("<image>")
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessor(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=4,
        num_additional_image_tokens=1,
        vision_feature_select_strategy=more.get("vision_feature_select_strategy", "default"),
        chat_template=tiny_models.LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=_llama(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **more,
    )
    return _save(folder, LlavaForConditionalGeneration(config), processor)


def llava_whole(folder: Path) -> Path:
    """Class token, two layers at once, tied embeddings."""
    return llava(
        folder,
        vision_feature_select_strategy="full",
        vision_feature_layer=[-1, 1],
        tie_word_embeddings=True,
    )


def vip_llava(folder: Path) -> Path:
    tokenizer = _tokenizer("<image>")
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessor(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=4,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=tiny_models.LLAVA_TEMPLATE,
    )
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=_llama(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=[-2, -3, 0],
    )
    return _save(folder, VipLlavaForConditionalGeneration(config), processor)


def _former() -> dict[str, Any]:
    return {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip


def _blip_2(folder: Path, text: Callable[[Any], Any], around: str) -> Path:
    tokenizer = _tokenizer("<image>", around=around)
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=5)
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=_former(),
        text_config=text(tokenizer),
        num_query_tokens=5,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return _save(folder, Blip2ForConditionalGeneration(config), processor)


def blip_2_opt(folder: Path) -> Path:
    return _blip_2(folder, _opt, "<s> $A")


def blip_2_t5(folder: Path) -> Path:
    return _blip_2(folder, _t5, "$A </s>")


def _instruct_blip(folder: Path, text: Callable[[Any], Any], around: str) -> Path:
    tokenizer = _tokenizer("<image>", around=around)
    words = _tokenizer(around="<s> $A </s>")
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = InstructBlipProcessor(images, tokenizer, words, num_query_tokens=5)
    config = InstructBlipConfig(
        vision_config=VISION,
        qformer_config=_former() | {"vocab_size": len(words), "max_position_embeddings": 128},
        text_config=text(tokenizer),
        num_query_tokens=5,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return _save(folder, InstructBlipForConditionalGeneration(config), processor)


def instruct_blip_llama(folder: Path) -> Path:
    return _instruct_blip(folder, _llama, "<s> $A")


def instruct_blip_t5(folder: Path) -> Path:
    return _instruct_blip(folder, _t5, "$A </s>")


def idefics(folder: Path, *, tie: bool = False, resampler: bool = True) -> Path:
    """Three additional tokens, as the instructed checkpoints have."""
    special = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
    tokenizer = _tokenizer(*special)
    processor = IdeficsProcessor(IdeficsImageProcessor(image_size=SIDE), tokenizer, image_size=SIDE)
    vision = {key: value for key, value in VISION.items() if key != "hidden_size"}
    config = IdeficsConfig(
        vocab_size=len(tokenizer) - len(special),
        additional_vocab_size=len(special),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        cross_layer_interval=2,
        qk_layer_norms=True,
        alpha_type="vector" if tie else "float",
        tie_word_embeddings=tie,
        use_resampler=resampler,
        vision_config=vision | {"embed_dim": 16},
        perceiver_config={
            "use_resampler": resampler,
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "qk_layer_norms_perceiver": True,
        },
        **_ids(tokenizer),
    )
    return _save(folder, IdeficsForVisionText2Text(config), processor)


def idefics_tied(folder: Path) -> Path:
    """Tied embeddings, vectors for gates, no resampler."""
    return idefics(folder, tie=True, resampler=False)


def intern_vl(folder: Path) -> Path:
    """Four tokens an image; RMSNorm on queries and keys; tied embeddings."""
    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(*special.values(), around="$A", eos="<|im_end|>")
    tokenizer._set_model_specific_special_tokens(special)
    size = {"height": SIDE, "width": SIDE}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=tiny_models.QWEN_TEMPLATE.replace(
            "<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n"
        ),
    )
    config = InternVLConfig(
        vision_config=VISION | {"use_qk_norm": True, "norm_type": "rms_norm"},
        text_config=_llama(tokenizer, Qwen2Config),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return _save(folder, InternVLForConditionalGeneration(config), processor)


def qwen2_audio(folder: Path) -> Path:
    """One second, fifty frames, 25 tokens."""
    special = ("<|im_start|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    tokenizer = _tokenizer(*special, around="$A", eos="<|im_end|>")
    processor = Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        tokenizer,
        chat_template=QWEN_AUDIO_TEMPLATE,
    )
    config = Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(
            num_mel_bins=8,
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=24,
            max_source_positions=50,
        ),
        text_config=_llama(tokenizer, Qwen2Config),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return _save(folder, Qwen2AudioForConditionalGeneration(config), processor)


ORACLES: dict[str, Callable[[Path], Path]] = {
    "llava": llava,
    "llava_whole": llava_whole,
    "vip_llava": vip_llava,
    "blip_2_opt": blip_2_opt,
    "blip_2_t5": blip_2_t5,
    "instruct_blip_llama": instruct_blip_llama,
    "instruct_blip_t5": instruct_blip_t5,
    "idefics": idefics,
    "idefics_tied": idefics_tied,
    "intern_vl": intern_vl,
    "qwen2_audio": qwen2_audio,
}
