"""Video, audio and 3D as a model's tensors: keywords, placeholders, order, and what is refused."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_oracles
import torch
from PIL import Image as Pillow
from transformers import AutoProcessor, BatchFeature, ProcessorMixin, Qwen2AudioProcessor

from clmm.answering import Answerer
from clmm.batching import IGNORED, Batcher, SampleError, content
from clmm.composition import compose
from clmm.processing_mmllm import byte_tokenizer
from clmm.processor_inputs import Inputs
from clmm.provenance import hash_samples
from streams.sample import Audio, Image, Medium, Message, Part, Points, Provenance, Sample, Text
from streams.sample import Video as Film

ORIGIN = Provenance(source="made up", split="train", item="line 3")
NAMES = ("image", "video", "audio", "points")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}"
    "{% endfor %}{{ '</s>' if message['role'] == 'assistant' }}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt }}"
)
LLM = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None,
}  # fmt: skip
ENCODERS: dict[str, Any] = {
    "image": {"name": "vit", "hidden_size": 16, "mlp": 16, "depth": 1, "heads": 2, "image_size": 16,
              "patch_size": 8},
    "video": {"name": "frames", "frames": 3},
    "audio": {"name": "whisper", "seconds": 1, "mel_bins": 8, "hidden_size": 16, "depth": 1,
              "heads": 2, "mlp": 16},
    "points": {"name": "point_bert", "points": 40, "groups": 6, "group_size": 5, "token_width": 12,
               "hidden_size": 16, "depth": 1, "heads": 2},
}  # fmt: skip
KEYS = {
    "image": "pixel_values",
    "video": "pixel_values_videos",
    "audio": "input_features",
    "points": "points_values",
}


class AllSenses(ProcessorMixin):
    """A composition's convention: one placeholder a medium, flat lists of media by keyword."""

    def __init__(self, tokenizer: Any = None, chat_template: str | None = TEMPLATE) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        self.num_tokens: dict[str, int] = {}
        self.preprocessors: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *, text: list[str], return_tensors: str, **given: Any) -> BatchFeature:  # type: ignore[override]
        self.calls.append(given)
        rate, special = given.pop("sampling_rate", None), given.pop("add_special_tokens")
        (written,) = text
        for name, number in self.num_tokens.items():
            written = written.replace(f"<{name}>", f"<{name}>" * number)
        data = dict(
            self.tokenizer(
                [written],
                return_tensors=return_tensors,
                add_special_tokens=special,
                return_token_type_ids=False,
            )
        )
        for keyword, media in given.items():
            name = {"images": "image", "videos": "video"}.get(keyword, keyword)
            flat = media[0] if name == "image" else media
            more = {"sampling_rate": rate} if name == "audio" else {}
            made = self.preprocessors[name](flat, return_tensors="pt", **more)
            data[KEYS[name]] = torch.as_tensor(made[KEYS[name]])
        return BatchFeature(data)


@pytest.fixture(scope="module")
def made() -> tuple[Any, AllSenses]:
    """A tiny composition of all senses with a processor for it."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [f"<{name}>" for name in NAMES[1:]]},
        replace_extra_special_tokens=False,
    )
    text = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    model = compose(
        llm=LLM | text,
        encoders=ENCODERS,
        projectors=dict.fromkeys(ENCODERS, "linear"),
        token_ids={name: tokenizer.convert_tokens_to_ids(f"<{name}>") for name in NAMES},
    ).eval()
    processor = AllSenses(tokenizer)
    for name in NAMES:
        processor.num_tokens[name] = model.config.num_tokens(name)
        processor.preprocessors[name] = model.config.encoder(name).preprocessor()
    return model, processor


def image(seed: int = 0) -> Image:
    rng = np.random.default_rng([seed, 0])
    return Image(source=rng.integers(0, 255, (20, 24, 3), dtype=np.uint8))


def film(seed: int = 0, frames: int = 6) -> Film:
    rng = np.random.default_rng([seed, 1])
    return Film(source=rng.integers(0, 255, (frames, 20, 24, 3), dtype=np.uint8))


def sound(seed: int = 0, rate: int = 16_000) -> Audio:
    wave = np.random.default_rng([seed, 2]).uniform(-1, 1, 5000)
    return Audio(source=wave.astype(np.float32), sampling_rate=rate)


def cloud(seed: int = 0) -> Points:
    return Points(source=np.random.default_rng([seed, 3]).normal(size=(50, 3)).astype(np.float32))


def asked(name: str, *parts: Part, answer: str = "a bell") -> Sample:
    return Sample(
        id=name,
        messages=(Message(role="user", parts=(*parts, Text(text="What is it?"))),),
        reference=(Text(text=answer),),
        provenance=ORIGIN,
    )


MIXED = [
    asked("text"),
    asked("video", film(1)),
    asked("two sounds", sound(1), Text(text="or"), sound(2), answer="the first"),
    asked("all", cloud(1), sound(3), image(1), film(2), film(3), answer="no"),
    asked("points", cloud(2)),
]


def test_media_reach_the_processor_as_flat_lists_in_reading_order(made: Any) -> None:
    _, processor = made
    batcher = Batcher(processor)
    processor.calls.clear()
    batcher.prompts(MIXED)
    text, video, sounds, every, points = processor.calls
    assert text.keys() == set()
    assert [v.shape for v in video["videos"]] == [(6, 20, 24, 3)]
    for given, one in zip(sounds["audio"], (sound(1), sound(2)), strict=True):
        assert np.array_equal(given, one.source)
    assert [len(every[key]) for key in ("points", "audio", "videos")] == [1, 1, 2]
    assert [type(one) for one in every["images"][0]] == [Pillow.Image]
    assert points["points"][0].dtype == np.float32


def test_tensors_are_joined_along_their_first_axis_in_the_samples_order(made: Any) -> None:
    model, processor = made
    batch = Batcher(processor).prompts(MIXED)
    counts = {name: int((batch["input_ids"] == model.config.token_ids[name]).sum())
              for name in NAMES}  # fmt: skip
    for name, media in (("image", 1), ("video", 3), ("audio", 3), ("points", 2)):
        assert len(batch[KEYS[name]]) == media
        assert counts[name] == media * model.config.num_tokens(name)
    alone = Batcher(processor).prompts(MIXED[4:])["points_values"]
    assert torch.equal(batch["points_values"][1:], alone)


def test_a_model_of_all_senses_trains_and_answers_as_if_samples_came_alone(made: Any) -> None:
    model, processor = made
    batcher = Batcher(processor)
    answerer = Answerer(model, batcher)
    answerer.check(MIXED)
    batch = batcher.training(MIXED)
    loss = model(**batch).loss
    loss.backward()
    assert all(p.grad is not None for p in model.input_projectors.parameters())
    model.zero_grad()
    with torch.no_grad():
        sums = []
        for item in MIXED:
            row = batcher.training([item])
            count = int((row["labels"] != IGNORED).sum())
            sums.append((float(model(**row).loss) * count, count))
    assert loss.item() == pytest.approx(sum(s for s, _ in sums) / sum(n for _, n in sums), rel=1e-5)
    together = answerer.answer(MIXED, max_new_tokens=4)
    alone = [answerer.answer([item], max_new_tokens=4)[0] for item in MIXED]
    assert [a.text for a in together] == [a.text for a in alone]
    likely = answerer.log_likelihood(MIXED, [("yes", "no")] * len(MIXED))
    assert all(np.isfinite(values).all() for values in likely)


def test_the_first_sample_of_each_kind_goes_through_the_model(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = made
    monkeypatch.setattr(model, "forward", partial(_broken_at, model.forward, "points_values"))
    with pytest.raises(SampleError, match="sample all: the model refused it: no room"):
        Answerer(model, Batcher(processor)).check(MIXED[:4])
    Answerer(model, Batcher(processor)).check(MIXED[:3])


def _broken_at(forward: Any, key: str, **inputs: Any) -> Any:
    if key in inputs:
        raise ValueError("no room")
    return forward(**inputs)


def refused(batcher: Batcher, *parts: Part) -> str:
    with pytest.raises(SampleError) as caught:
        batcher.prompts([asked("bad", *parts)])
    message = str(caught.value)
    assert message.startswith("sample bad (made up, train, line 3): ")
    return message


def test_what_cannot_be_given_is_named(made: Any, tmp_path: Path) -> None:
    _, processor = made
    batcher = Batcher(processor)
    assert "have 8000 and 16000 Hz; a processor takes" in refused(batcher, sound(), sound(1, 8000))
    assert "absent.wav: there is no such file" in refused(
        batcher, Audio(source=tmp_path / "absent.wav")
    )
    flat = np.zeros((2, 3, 9, 3), np.uint8)
    assert "frames of 3 rows, which processors take for" in refused(batcher, Film(source=flat))
    for name, what in (("video", "a video"), ("audio", "a recording"), ("points", "a point cloud")):
        message = refused(batcher, Text(text=f"an <{name}> tag"))
        assert f"contains '<{name}>', which stands for {what}" in message


@pytest.mark.parametrize("name", NAMES)
def test_a_placeholder_for_every_token_of_every_medium(
    made: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = made
    medium = {"image": image(), "video": film(), "audio": sound(), "points": cloud()}[name]
    batcher = Batcher(processor)
    count = processor.num_tokens[name]
    monkeypatch.setitem(processor.num_tokens, name, count + 1)
    message = refused(batcher, medium)
    assert f"{count} {name} features but {count + 1} {name} placeholders" in message
    monkeypatch.setattr(processor, "chat_template", TEMPLATE.replace("'<' +", "'<no ' +"))
    assert f"but 0 {name} placeholders in its prompt" in refused(Batcher(processor), medium)


def test_a_model_without_the_input_says_which_it_has(made: Any, tmp_path: Path) -> None:
    seeing = AutoProcessor.from_pretrained(tiny_models.llava(tmp_path / "llava"))
    for medium in (film(), sound(), cloud()):
        message = refused(Batcher(seeing), medium)
        assert f"of kind {medium.kind}, which the model does not take; its inputs: image" in message
    hearing = AutoProcessor.from_pretrained(tiny_oracles.qwen2_audio(tmp_path / "audio"))
    assert "its inputs: audio" in refused(Batcher(hearing), image())


def test_whether_a_sample_reaches_every_encoder(made: Any, tmp_path: Path) -> None:
    ours = Inputs.of(made[1])
    assert [ours.all_shown(item) for item in MIXED] == [False, False, False, True, False]
    qwen = Inputs.of(AutoProcessor.from_pretrained(tiny_models.qwen2_vl(tmp_path)))
    assert qwen.kinds == ("image", "video")
    shown = [qwen.all_shown(asked("x", *p)) for p in ((image(),), (film(),), ())]
    assert shown == [True, True, False]


# What is kept and hashed


def test_prompts_differ_where_their_media_do(tmp_path: Path) -> None:
    gif = tmp_path / "a.gif"
    Pillow.new("L", (4, 4)).save(gif, save_all=True, append_images=[Pillow.new("L", (4, 4), 9)])
    wave = sound().source
    assert isinstance(wave, np.ndarray)
    media: list[Medium] = [
        Image(source=gif),
        Film(source=gif),
        sound(),
        dataclasses.replace(sound(), sampling_rate=8000),
        sound(1),
        cloud(),
        film(),
        film(0, 5),
    ]
    samples = [asked("same", medium) for medium in media]
    assert len({content(one) for one in samples}) == len(media)
    assert len({hash_samples([one]) for one in samples}) == len(media)
    twin = asked("same", Audio(source=wave.copy(), sampling_rate=16_000))
    assert content(twin) == content(samples[2])
    assert hash_samples([twin]) == hash_samples(samples[2:3])


def test_a_changed_frame_of_a_folder_is_read_again(made: Any, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    batcher, seen = Batcher(made[1]), []
    for side, colour in ((16, "red"), (18, "blue")):
        Pillow.new("RGB", (side, side), colour).save(folder / "1.png")
        seen.append(batcher.prompts([asked("x", Film(source=folder))])["pixel_values_videos"])
    assert not torch.equal(*seen)


# Without turns, without a template


def test_captions_and_documents_of_all_media(made: Any) -> None:
    _, processor = made
    caption = Sample(
        id="caption",
        messages=(Message(role="user", parts=(sound(),)),),
        reference=(Text(text="a bell"),),
        provenance=ORIGIN,
        plain=True,
    )
    document = dataclasses.replace(
        caption, reference=(Text(text="a bell"), film(), Text(text="rings"))
    )
    batcher = Batcher(processor)
    assert batcher.turns.render(caption) == "<audio>"
    batch = batcher.training([caption, document])
    assert (len(batch["input_features"]), len(batch["pixel_values_videos"])) == (2, 1)
    learnt = batch["input_ids"][1][batch["labels"][1] != IGNORED]
    assert processor.tokenizer.decode(learnt) == "a bellrings</s>"


def test_a_model_without_chat_template_gets_the_plain_form(made: Any) -> None:
    bare = AllSenses(made[1].tokenizer, chat_template=None)
    bare.num_tokens = dict(made[1].num_tokens)
    with pytest.warns(UserWarning, match="no chat template"):
        batcher = Batcher(bare)
    written = batcher.turns.render(asked("x", sound(), cloud()))
    assert written == "USER: <audio>\n<points>\nWhat is it? ASSISTANT:"


# Processors of transformers


def test_qwen2_vl_takes_videos(tmp_path: Path) -> None:
    from clmm.loading import load

    loaded = load(tiny_models.qwen2_vl(tmp_path), device="cpu")
    template = tiny_models.QWEN_TEMPLATE.replace(
        "{% else %}{{ part['text'] }}",
        "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
        "{% else %}{{ part['text'] }}",
    )
    loaded.processor.chat_template = template
    batcher = Batcher(loaded.processor)
    samples = [asked("a", film(1), image(1)), asked("b", film(2, frames=4)), asked("c", image(2))]
    batch = batcher.training(samples)
    theirs = loaded.processor(
        text=[batcher.turns.render(one) for one in samples],
        images=[[m.source for m in one.images] for one in samples if one.images],
        videos=[one.media[0].source for one in samples[:2]],
        padding=True,
        return_tensors="pt",
    )
    for key in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        assert torch.equal(batch[key], theirs[key]), key
    assert loaded.model(**batch).loss.isfinite()
    Answerer(loaded.model, batcher).check(samples)


def test_fewer_video_features_than_placeholders_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = AutoProcessor.from_pretrained(tiny_models.qwen2_vl(tmp_path))
    processor.chat_template = "{{ '<|video_pad|>' }}" + tiny_models.QWEN_TEMPLATE.replace(
        "part['type'] == 'image'", "false"
    )
    monkeypatch.setattr(
        type(processor), "replace_video_token", lambda self, *_, **__: "<|video_pad|>" * 3
    )
    assert "18 video features but 3 video placeholders" in refused(Batcher(processor), film())


def test_qwen2_audio_takes_recordings_at_its_own_rate_alone(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_oracles.qwen2_audio(tmp_path))
    assert isinstance(processor, Qwen2AudioProcessor)
    batcher = Batcher(processor)
    samples = [asked("a", sound(1)), asked("b", sound(2), sound(3)), asked("c")]
    batch = batcher.prompts(samples)
    theirs = processor(
        text=[batcher.turns.render(one) for one in samples],
        audio=[sound(i).source for i in (1, 2, 3)],
        sampling_rate=16_000,
        padding=True,
        return_tensors="pt",
    )
    for key in ("input_features", "feature_attention_mask"):
        assert torch.equal(batch[key], theirs[key]), key
    assert "the processor refused it: " in refused(batcher, sound(1, 8000))


def test_intern_vl_writes_a_video_as_images(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_oracles.intern_vl(tmp_path))
    token = getattr(processor, "video_token", None)
    processor.chat_template = TEMPLATE.replace(
        "'<' + part['type'] + '>'",
        f"{{'video': {token!r}, 'image': '<IMG_CONTEXT>'}}[part['type']]",
    )
    batch = Batcher(processor).prompts([asked("a", film(frames=8)), asked("b", film(), image())])
    assert len(batch["pixel_values"]) > 2
