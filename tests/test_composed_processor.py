"""One processor for every input: what it makes, what it keeps on disk, and what it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_generators
import tiny_models
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

import clmm
from clmm import llm
from clmm.composition import compose, configuration
from clmm.loading import ModelError, load
from clmm.modeling_mmllm import values_key
from clmm.processing_mmllm import MMLLMProcessor, byte_tokenizer
from clmm.recipe import Recipe, merged, names
from clmm.turns import Turns
from streams.settings import SettingError

LLM = {
    "model_type": "llama", "vocab_size": 261, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
CLIP = {
    "name": "clip", "image_size": 16, "patch_size": 8, "hidden_size": 16, "depth": 2, "heads": 2,
    "mlp": 16,
}  # fmt: skip
WHISPER = {
    "name": "whisper", "seconds": 1, "mel_bins": 8, "hidden_size": 16, "depth": 1, "heads": 2,
    "mlp": 16,
}  # fmt: skip
POINTS = {
    "name": "point_bert", "points": 40, "groups": 6, "group_size": 5, "token_width": 12,
    "hidden_size": 16, "depth": 1, "heads": 2,
}  # fmt: skip
BIND = {
    "name": "imagebind", "image_size": 32, "clips": 2, "mel_bins": 26, "frames": 36, "samples": 40,
    "hidden_size": 8, "depth": 1, "heads": 2, "embedding_size": 6,
}  # fmt: skip
SENSES: dict[str, Any] = {
    "image": CLIP,
    "video": "frames",
    "audio": WHISPER,
    "points": POINTS,
    **{name: {**BIND, "modality": name} for name in ("depth", "thermal", "imu")},
}
RNG = np.random.default_rng(0)
MEDIA: dict[str, Any] = {
    "image": [RNG.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(2)],
    "video": [RNG.integers(0, 255, (n, 20, 30, 3), dtype=np.uint8) for n in (3, 9)],
    "audio": [RNG.normal(size=n).astype(np.float32) * 0.1 for n in (16000, 4000)],
    "points": [RNG.normal(size=(n, 3)).astype(np.float32) for n in (30, 90)],
    "depth": [RNG.uniform(size=(40, 30)).astype(np.float32) for _ in range(2)],
    "thermal": [RNG.uniform(size=(40, 30)).astype(np.float32) for _ in range(2)],
    "imu": [RNG.normal(size=(6, n)).astype(np.float32) for n in (40, 10)],
}
KEYWORDS = {"image": "images", "video": "videos"}


def composed(encoders: dict[str, Any], **more: Any) -> Any:
    torch.manual_seed(0)
    given = {"llm": LLM, "encoders": encoders, "projectors": dict.fromkeys(encoders, "linear")}
    return compose(**(given | more))


def keywords(*names: str, count: int = 2) -> dict[str, Any]:
    return {KEYWORDS.get(name, name): MEDIA[name][:count] for name in names}


@pytest.fixture(scope="module")
def model() -> Any:
    return composed(SENSES)


@pytest.fixture(scope="module")
def processor(model: Any) -> MMLLMProcessor:
    return clmm.processor_of(model)


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hearing")
    model = composed({"audio": WHISPER})
    model.save_pretrained(folder)
    clmm.processor_of(model).save_pretrained(folder)
    return folder


def test_every_input_is_served(model: Any, processor: Any) -> None:
    texts = [
        " and ".join(f"<{name}>" for name in SENSES),
        "Then " + "".join(f"<{n}>" for n in SENSES),
    ]
    batch = processor(
        text=texts, **keywords(*SENSES), sampling_rate=16000, padding=True, return_tensors="pt"
    )
    for name in SENSES:
        assert batch[values_key(name)].shape == (2, *model.config.encoder(name).shape), name
        placed = (batch["input_ids"] == model.config.token_ids[name]).sum()
        assert placed == 2 * model.config.num_tokens(name), name
    assert {*batch} == {*processor.model_input_names}
    with torch.no_grad():
        logits = model(**batch).logits
    assert torch.isfinite(logits).all()
    for name in SENSES:
        key = values_key(name)
        with torch.no_grad():
            other = model(**{**batch, key: batch[key].flip(0)}).logits
        assert not torch.equal(other, logits), name
    assert model.generate(**batch, max_new_tokens=2, pad_token_id=0).shape[0] == 2


def test_media_come_in_reading_order_in_lists_of_any_depth(processor: Any) -> None:
    frames, sounds = MEDIA["video"], MEDIA["audio"]
    texts = ["<video><audio><video>", "<audio>"]
    flat = processor(text=texts, videos=frames, audio=sounds)
    pictures = [[Image.fromarray(frame) for frame in video] for video in frames]
    for videos, audio in (
        ([frames, []], [[sounds[0]], [sounds[1]]]),
        (pictures, tuple(sounds)),
        ([pictures], [torch.from_numpy(sound) for sound in sounds]),
    ):
        again = processor(text=texts, videos=videos, audio=audio)
        for key in ("pixel_values_videos", "input_features"):
            assert torch.equal(again[key], flat[key])
    # The first recording is as long as the encoder hears; the other is followed by silence.
    alone = processor(text="<audio>", audio=sounds[1])["input_features"]
    torch.testing.assert_close(alone[0], flat["input_features"][1])
    one = processor(text="<audio>", audio=sounds[1:], sampling_rate=16000)
    assert torch.equal(one["input_features"], alone)


def test_a_round_trip_changes_nothing(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".jinja"}
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is MMLLMProcessor
    assert again.to_json_string() == processor.to_json_string()
    assert again.chat_template == processor.chat_template
    given: dict[str, Any] = {"text": "".join(f"<{name}>" for name in SENSES)}
    given |= keywords(*SENSES, count=1) | {"return_tensors": "pt"}
    one, other = processor(**given), again(**given)
    assert {*one} == {*other}
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_chat_template_knows_all_parts(processor: Any) -> None:
    parts = [{"type": name} for name in SENSES] + [{"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "It."}]
    marks = "".join(f"<{name}>" for name in SENSES)
    assert processor.apply_chat_template(turns, tokenize=False) == (
        f"<|user|>{marks}What?<|assistant|>It.</s>"
    )
    found = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video", "video": MEDIA["video"][0]}]}],
        tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    assert found["pixel_values_videos"].shape == (1, 5, 3, 16, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "<audio>"}, r"1 <audio> placeholders in the text, 0 recordings"),
        ({"text": "a", "videos": MEDIA["video"]}, r"0 <video> placeholders in the text, 2 videos"),
        ({"text": "<points>", "points": MEDIA["points"]}, r"1 <points> .*, 2 clouds"),
        (
            {"text": "<audio>", "audio": MEDIA["audio"][:1], "sampling_rate": 8000},
            r"audio: recordings of 8000 Hz, but the encoder hears 16000 Hz; resample",
        ),
        (
            {"text": "<audio>", "audio": np.zeros(16001, np.float32)},
            r"audio\[0\]: 16001 samples, but the encoder takes 16000; cut it first",
        ),
        (
            {"text": "<audio>", "audio": np.zeros((2, 900), np.float32)},
            r"audio\[0\]: give an array \[samples\]; got one of \[2, 900\]",
        ),
        ({"text": "<audio>", "audio": np.zeros(0, np.float32)}, r"audio\[0\]: .* got one of \[0\]"),
        ({"text": "<audio>", "audio": np.zeros(9, np.int16)}, r"audio\[0\]: give floats .* int16"),
        ({"text": "<audio>", "audio": np.array([0.0, np.nan])}, r"audio\[0\]: .* no numbers"),
        ({"text": "<imu>", "imu": np.zeros((6, 41))}, r"imu\[0\]: 41 samples, .* takes 40"),
        (
            {"text": "<points>", "points": np.zeros((9, 2))},
            "a cloud has 2 channels, and the encoder takes 3",
        ),
        (
            {"text": "<video>", "videos": MEDIA["depth"][:1]},
            r"video\[0\]: .* got one of \[40, 30\]",
        ),
        ({"text": "<video>", "videos": np.zeros((0, 4, 4, 3))}, r"video\[0\]: give an array"),
        ({"text": "<image>", "images": np.zeros((2, 8, 8, 3), np.uint8)}, "image: 1 were given"),
    ],
)
def test_what_does_not_fit_is_refused(processor: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**given)


def test_media_of_no_input_are_refused(hearing: Path) -> None:
    processor: Any = AutoProcessor.from_pretrained(hearing)
    for name in ("image", "video", "points", "thermal"):
        keyword = KEYWORDS.get(name, name)
        with pytest.raises(
            ValueError, match=rf"{keyword}: the model has no such input; inputs: audio"
        ):
            processor(text="a", **{keyword: MEDIA[name]})
    assert processor(text="a", images=None, videos=[])["input_ids"]


def test_one_that_only_hears_loads_and_speaks(hearing: Path) -> None:
    loaded = load(hearing, device="cpu")
    batch = loaded.processor(
        text="<audio>Who?", audio=MEDIA["audio"][:1], sampling_rate=16000, return_tensors="pt"
    )
    new = loaded.model.generate(**batch, max_new_tokens=3, pad_token_id=0)
    assert new.shape[1] > batch["input_ids"].shape[1]
    assert not hasattr(loaded.processor, "image_processor")


def test_one_that_only_touches_points_loads(tmp_path: Path) -> None:
    model = composed({"points": POINTS})
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="processor"):
        load(tmp_path, device="cpu")
    processor = clmm.processor_of(model)
    processor.save_pretrained(tmp_path)
    loaded = load(tmp_path, device="cpu")
    batch = loaded.processor(text="<points>", points=MEDIA["points"][:1], return_tensors="pt")
    torch.testing.assert_close(loaded.model(**batch).logits, model(**batch).logits)
    seeing = composed({"image": CLIP, "points": POINTS}, token_ids={"points": 0})
    seeing.save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"model takes image, points, and needs .* there is one for points alone"
    ):
        load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature_extractor": {"feature_extractor_type": "pipeline"}}, "'pipeline' is no image"),
        ({"feature_extractor": {"feature_extractor_type": "LlamaModel"}}, "no feature extractor"),
        ({"feature_extractor": 3}, r"preprocessors\.audio: give a preprocessor's settings; got 3"),
        (
            {"feature_extractor": {"feature_extractor_type": "FrameProcessor", "frames": 2}},
            "preprocessors.audio: FrameProcessor: .*image_processor",
        ),
        ({"num_tokens": {"audio": -1}}, r"num_tokens\.audio: -1; give 1 or more"),
        ({"num_tokens": {"video": 4}}, r"num_tokens: counts for \['video'\], but .*\['audio'\]"),
        ({"audio_token": "<nothing>"}, r"placeholders\.audio: the tokenizer has no <nothing>"),
        ({"preprocessors": 7}, "its processor cannot be loaded"),
    ],
)
def test_a_hostile_processor_is_refused(
    hearing: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    for file in hearing.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "processor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(ModelError, match=message):
        load(tmp_path, device="cpu")


def test_what_older_versions_wrote_loads_alike(hearing: Path, tmp_path: Path) -> None:
    new: Any = AutoProcessor.from_pretrained(hearing)
    new.save_pretrained(tmp_path / "hears")
    file = tmp_path / "hears" / "processor_config.json"
    kept = ("feature_extractor", "num_tokens", "audio_token")
    old = {key: value for key, value in json.loads(file.read_text()).items() if key in kept}
    file.write_text(json.dumps({**old, "processor_class": "AudioProcessor"}))
    again: Any = AutoProcessor.from_pretrained(tmp_path / "hears")
    given = {"text": "<audio>a", "audio": MEDIA["audio"][:1]}
    assert torch.equal(again(**given)["input_features"], new(**given)["input_features"])
    assert again.to_json_string() == new.to_json_string()

    reads = byte_tokenizer(image=False)
    seeing = composed({"image": CLIP}).config.encoder("image").preprocessor()
    first = MMLLMProcessor(
        seeing, byte_tokenizer(), {"image": 4}, images_first=True, qformer_tokenizer=reads
    )
    first.save_pretrained(tmp_path / "reads")
    file = tmp_path / "reads" / "processor_config.json"
    kept = ("image_processor", "num_tokens", "image_token", "images_first")
    old = {key: value for key, value in json.loads(file.read_text()).items() if key in kept}
    file.write_text(json.dumps({**old, "processor_class": "InstructionProcessor"}))
    again = AutoProcessor.from_pretrained(tmp_path / "reads")
    asked = {"text": "<image>Hm", "images": MEDIA["image"][:1]}
    assert again(**asked)["qformer_input_ids"] == first(**asked)["qformer_input_ids"]
    assert again(**asked)["input_ids"] == first(**asked)["input_ids"]


def test_an_instruction_is_read_in_tokens_of_its_own(tmp_path: Path) -> None:
    former = {
        "name": "instruct_q_former", "queries": 3, "hidden_size": 16, "depth": 2, "heads": 2,
        "mlp": 16, "vocabulary": 261, "text_length": 12,
    }  # fmt: skip
    model = composed({"image": CLIP}, projectors={"image": former})
    first = clmm.processor_of(model)
    first.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    processor: Any = load(tmp_path, device="cpu").processor
    given = {"text": ["<image> What?", "<image>Who?"], "images": MEDIA["image"]}
    batch = processor(**given, padding=True, return_tensors="pt")
    assert batch["qformer_attention_mask"].tolist() == [[1] * 5, [1] * 4 + [0]]
    plain = byte_tokenizer(image=False)
    assert batch["qformer_input_ids"][0].tolist() == plain("What?")["input_ids"]
    other = processor(**given | {"text": ["<image> Where", "<image>Who?"]}, padding=True,
                      return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        seen = [model(**batch | {"input_ids": batch["input_ids"]}).logits]
        changed = {key: other[key] for key in other if key.startswith("qformer")}
        seen.append(model(**{**batch, **changed}).logits)
    assert not torch.equal(*seen)
    with pytest.raises(ValueError, match="an instruction of 13 tokens, but the Q-Former reads 12"):
        processor(text="<image>" + "a" * 13, images=MEDIA["image"][:1])
    with pytest.raises(
        SettingError, match=r"projectors\.image\.vocabulary: 261, but .* tokenizer has 262 tokens"
    ):
        clmm.processor_of(model, qformer_tokenizer=byte_tokenizer())
    with pytest.raises(SettingError, match="qformer_tokenizer: no projector reads"):
        clmm.processor_of(composed({"image": CLIP}), qformer_tokenizer=byte_tokenizer())


def test_signal_tokens_have_the_ids_of_the_model() -> None:
    config = composed(
        {"audio": WHISPER},
        output_projectors={"image": {"name": "mlp"}},
        generators={"image": {**tiny_generators.SPECS["image"], "condition_length": 3}},
        signals={"image": 3},
    ).config
    processor = clmm.processor_of(config)
    assert config.signal_ids == {"image": [262, 263, 264]}
    assert processor(text="a[IMG]")["input_ids"][0][1:] == [262, 263, 264]
    assert processor.signals == {"image": 3}


def saved_llm(folder: Path, rows: int, template: str | None = None) -> tuple[Path, Any]:
    """A language model whose vocabulary has more rows than its tokenizer has tokens."""
    tokenizer = tiny_models.byte_tokenizer([], bos=None, eos="</s>", pad="<pad>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(llm.text_config(LLM | {"vocab_size": rows})).save_pretrained(
        folder
    )
    return folder, tokenizer


OWN = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_the_tokenizer_of_a_language_model_gets_the_placeholders(tmp_path: Path) -> None:
    folder, tokenizer = saved_llm(tmp_path / "llm", 300, OWN)
    assert len(tokenizer) == 258
    model = composed({"image": CLIP, "audio": WHISPER}, llm={"pretrained": str(folder)})
    assert model.config.token_ids == {"image": 300, "audio": 301}
    processor: Any = clmm.processor_of(model)
    ids = processor(text="a<audio>b", audio=MEDIA["audio"][:1])["input_ids"][0]
    assert ids == [*tokenizer("a").input_ids, *[301] * 50, *tokenizer("b").input_ids]
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    # Its own template takes texts, and gets media as their placeholders.
    turns = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "Who?"}]}]
    written = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert written == "[user] <audio>Who?\n[assistant] "
    assert Turns.of(processor).opening == "[assistant] "
    own = copy.deepcopy(processor.tokenizer)
    clmm.processor_of(model, tokenizer=str(folder))
    own.add_tokens(["<x>", "<y>"])
    with pytest.raises(SettingError, match=r"llm\.vocab_size: 302, .* last token has the id 303"):
        clmm.processor_of(model, tokenizer=own)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"token_ids": {"image": 7}},
            r"token_ids\.image: 7 cannot be <image>: it is '.*' in the tokenizer, which has 258",
        ),
        ({"token_ids": {"image": 258, "audio": 260}}, None),
        (
            {"token_ids": {"image": 280, "audio": 270}, "held": ["<image>"]},
            r"token_ids\.image: 280, but <image> is 258 in the tokenizer",
        ),
    ],
)
def test_a_tokenizer_in_which_they_cannot_be_is_refused(
    tmp_path: Path, more: dict[str, Any], message: str | None
) -> None:
    folder, tokenizer = saved_llm(tmp_path / "llm", 300)
    tokenizer.add_tokens(more.pop("held", []))
    model = composed({"image": CLIP, "audio": WHISPER}, llm={"pretrained": str(folder)}, **more)
    if message is None:
        found: Any = clmm.processor_of(model, tokenizer=tokenizer)
        assert (found.image_token_id, found.audio_token_id) == (258, 260)
        assert found.tokenizer.convert_ids_to_tokens(259) == "<unused_259>"
        assert len(tokenizer) == 258  # the one that was given is as it was
        return
    with pytest.raises(SettingError, match=message):
        clmm.processor_of(model, tokenizer=tokenizer)


def test_a_language_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder, _ = saved_llm(tmp_path, 300)
    (folder / "tokenizer.json").unlink()
    model = composed({"image": CLIP}, llm={"pretrained": str(folder)})
    with pytest.raises(SettingError, match=r"llm\.pretrained: .* holds no tokenizer"):
        clmm.processor_of(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 40}, r"llm\.vocab_size: the byte-level tokenizer has 261 .* model 41 with"),
        ({"eos_token_id": 2}, r"llm\.eos_token_id: 2, but .*'s is 1; give llm `eos_token_id: 1`"),
        ({"pad_token_id": 5}, r"llm\.pad_token_id: 5, but .*'s is 0"),
    ],
)
def test_bytes_need_room_and_their_own_end(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        clmm.processor_of(composed({"image": CLIP}, llm=LLM | changes))


def test_a_vocabulary_may_be_larger_than_bytes() -> None:
    given = LLM | {"vocab_size": 1000, "pad_token_id": None}
    processor: Any = clmm.processor_of(composed({"image": CLIP}, llm=given))
    assert processor.image_token_id == 1000
    six = composed({"image": CLIP}, llm=LLM | {"vocab_size": 262}, token_ids={"image": 2})
    assert len(clmm.processor_of(six).tokenizer) == 262


@pytest.mark.parametrize("name", names())
def test_every_recipe_has_a_processor(name: str, tmp_path: Path) -> None:
    made = Recipe.read(name).composition(tiny=True)
    bytes_alone = {"vocab_size": 261, "pad_token_id": 0, "eos_token_id": 1}
    made["llm"] = merged({"llm": made["llm"]}, {"llm": bytes_alone})["llm"]
    for spec in made["projectors"].values():
        if isinstance(spec, dict) and "vocabulary" in spec:
            spec["vocabulary"] = 261
    config = configuration(**made)
    first = clmm.processor_of(config)
    first.save_pretrained(tmp_path)
    processor: Any = AutoProcessor.from_pretrained(tmp_path)
    assert processor.to_json_string() == first.to_json_string()
    rates = {getattr(one, "sampling_rate", None) for one in processor.preprocessors.values()}
    sound = MEDIA["audio"][1][: 400 if 16000 in rates else None]
    media = {"image": MEDIA["image"][0], "video": MEDIA["video"][0], "audio": sound}
    batch = processor(
        text="".join(f"<{name}>" for name in config.inputs),
        return_tensors="pt",
        **{KEYWORDS.get(name, name): [media[name]] for name in config.inputs},
    )
    for name in config.inputs:
        assert batch[values_key(name)].shape == (1, *config.encoder(name).shape)
        placed = int((batch["input_ids"] == config.token_ids[name]).sum())
        assert placed == config.num_tokens(name)
