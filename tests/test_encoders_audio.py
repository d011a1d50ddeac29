"""Audio encoders keep their shapes and counts, and do what their papers' formulas say."""

from __future__ import annotations

import math
from pathlib import Path

import encoder_checks
import numpy as np
import pytest
import tiny_components as tiny
import torch
from torch import nn
from transformers import (
    ASTFeatureExtractor,
    BertConfig,
    BertModel,
    ClapFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from clmm import audio_preprocessing as audio
from clmm.beats import GatedAttention, relative_buckets
from clmm.discrete_units import discrete_units, learn_centroids
from clmm.encoders.beats import Beats
from clmm.encoders.c_former import CFormer
from clmm.encoders.clap import Clap
from clmm.encoders.hubert import Hubert
from clmm.encoders.whisper import Whisper
from clmm.integrate_and_fire import IntegrateAndFire, integrate_and_fire, quantity_loss
from streams.settings import from_spec

TINY = {
    case: from_spec("clmm.encoders", spec["audio"], where="audio")
    for case, spec in tiny.ENCODERS.items()
    if "audio" in spec and spec["audio"]["name"] != "imagebind"
}


@pytest.mark.parametrize("name", TINY)
def test_the_preprocessor_makes_the_shape(name: str) -> None:
    encoder = TINY[name]
    extractor = encoder.preprocessor()
    rate = extractor.sampling_rate
    rng = np.random.default_rng(0)
    sounds = [rng.normal(size=n).astype(np.float32) for n in (rate // 20, 2 * rate)]
    made = extractor(sounds, sampling_rate=rate, return_tensors="pt")["input_features"]
    assert made.shape == (2, *encoder.shape)
    again = extractor(sounds, sampling_rate=rate, return_tensors="pt")["input_features"]
    assert made.dtype == torch.float32
    assert torch.equal(made, again)
    one = extractor(sounds[1], sampling_rate=rate, return_tensors="pt")["input_features"]
    torch.testing.assert_close(one, made[1:])


def test_published_sizes() -> None:
    large = Hubert(hidden_size=1024, depth=24, heads=16, mlp=4096, pre_norm=True)
    xlarge = Hubert(hidden_size=1280, depth=48, heads=16, mlp=5120, pre_norm=True)
    published = [
        (Whisper(), 636.78), (Whisper(pool=2), 636.78),
        (Hubert(), 94.37), (large, 315.44), (xlarge, 962.50),
        (Clap(features="embedding"), 28.19), (Clap(features="embedding", hidden_size=128), 49.68),
        (Beats(), 90.31),
    ]  # fmt: skip
    for encoder, count in published:
        assert encoder_checks.millions(encoder) == pytest.approx(count, abs=0.005), encoder
    assert Whisper(pool=2).num_tokens(Whisper().shape) == 750
    assert [Hubert().num_tokens((160000,)), Beats().num_tokens(Beats().shape)] == [499, 496]
    assert Clap().num_tokens(Clap().shape) == 64


def test_c_former_is_x_llm_s_adaptor_without_words_and_pooler() -> None:
    with torch.device("meta"):
        network = CFormer().build()
        bert = BertModel(BertConfig(vocab_size=21128))
    adaptor = encoder_checks.millions(network.adaptor)
    assert encoder_checks.millions(bert) == pytest.approx(102.27, abs=0.005)
    words = bert.embeddings.word_embeddings.weight.numel() / 1e6
    assert adaptor == pytest.approx(102.26765 - words - 768 * 769 / 1e6, abs=1e-4)
    assert encoder_checks.millions(network) == pytest.approx(165.07, abs=0.005)


def test_pooled_whisper_is_qwen2_audio_s_encoder() -> None:
    from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig

    config = Qwen2AudioEncoderConfig(
        num_mel_bins=8, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=16,
        d_model=16, max_source_positions=50,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = Qwen2AudioEncoder(config).eval()
    ours = TINY["whisper, pooled"].build().eval()
    ours.model.load_state_dict(theirs.state_dict())
    mel = encoder_checks.values(TINY["whisper"])
    torch.testing.assert_close(ours(mel), theirs(mel).last_hidden_state)


def test_hubert_s_layers_are_its_hidden_states() -> None:
    encoder = TINY["hubert, layers"]
    module = encoder.build().eval()
    wave = encoder_checks.values(encoder)
    states = module.model(wave, output_hidden_states=True).hidden_states
    torch.testing.assert_close(module(wave), torch.cat([states[0], states[1]], dim=-1))


def test_clap_s_map_averages_to_its_pooled_output() -> None:
    module = TINY["clap"].build().eval()
    spectrogram = encoder_checks.values(TINY["clap"])
    pooled = module.model(spectrogram).pooler_output
    torch.testing.assert_close(module(spectrogram).mean(1), pooled)


def test_units_are_the_nearest_clusters_without_repeats() -> None:
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    spoken = torch.tensor([0, 0, 1, 1, 1, 2, 0, 0, 2, 2])
    generator = torch.Generator().manual_seed(0)
    features = centres[spoken] + 0.1 * torch.randn(10, 2, generator=generator)
    learned = learn_centroids(features, 3)
    order = torch.cdist(learned, centres).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    assert order[discrete_units(features, learned)].tolist() == [0, 1, 2, 0, 2]
    torch.testing.assert_close(learn_centroids(features, 3), learned)
    with pytest.raises(ValueError, match="11 units cannot be learned from 10 frames"):
        learn_centroids(features, 11)


def loop(states: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Integrate-and-fire of one sequence, frame by frame."""
    tokens, summed, held = [], 0.0, torch.zeros_like(states[0])
    for state, weight in zip(states, weights.tolist(), strict=True):
        left = weight
        while summed + left >= 1.0:
            part = 1.0 - summed
            tokens.append(held + part * state)
            left -= part
            summed, held = 0.0, torch.zeros_like(state)
        summed += left
        held = held + left * state
    return [*tokens, held] if summed >= 0.5 else tokens


@pytest.mark.parametrize("largest", [0.4, 1.0, 3.0])
def test_integrate_and_fire_is_the_loop(largest: float) -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(4, 19, 3, generator=generator)
    weights = largest * torch.rand(4, 19, generator=generator)
    fired = integrate_and_fire(states, weights)
    assert fired.tokens.shape[1] == fired.lengths.max()
    for i in range(4):
        expected = loop(states[i], weights[i])
        assert fired.lengths[i] == len(expected)
        torch.testing.assert_close(fired.tokens[i, : len(expected)], torch.stack(expected))
        assert not fired.tokens[i, len(expected) :].any()


def test_known_lengths_scale_the_weights() -> None:
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(3, 40, 3, generator=generator)
    weights = torch.rand(3, 40, generator=generator)
    lengths = torch.tensor([1, 7, 25])
    fired = integrate_and_fire(states, weights, lengths=lengths)
    assert fired.lengths.tolist() == [1, 7, 25]
    for i, length in enumerate([1, 7, 25]):
        scaled = weights[i] * length / weights[i].sum()
        expected = torch.stack(loop(states[i], scaled)[:length])
        torch.testing.assert_close(fired.tokens[i, :length], expected, rtol=1e-4, atol=1e-4)
    loss = quantity_loss(fired.weights, lengths)
    torch.testing.assert_close(loss, (weights.sum(1) - lengths).abs().mean())
    assert integrate_and_fire(states, 0.001 * weights).tokens.shape == (3, 0, 3)


def blocks(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, list]:
    """24 frames each: blocks of 2 to 11 frames, each a symbol unlike the one before."""
    frames, starts, words = torch.zeros(count, 24, dtype=torch.long), [], []
    for i in range(count):
        at, last, begun, said = 0, -1, [], []
        while at < 24:
            length = int(torch.randint(2, 12, (), generator=generator))
            last = (last + int(torch.randint(1, 4, (), generator=generator))) % 4
            frames[i, at : at + length] = last
            begun.append(at)
            said.append(last)
            at += length
        starts.append(begun)
        words.append(torch.tensor(said))
    noise = 0.1 * torch.randn(count, 24, 4, generator=generator)
    return nn.functional.one_hot(frames, 4) + noise, starts, words


def test_integrate_and_fire_learns_to_find_blocks() -> None:
    """The number is told in training alone; the places of the boundaries never."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    reader = nn.Sequential(nn.Conv1d(4, 24, 3, padding=1), nn.ReLU(), nn.Conv1d(24, 16, 1))
    fire, speak = IntegrateAndFire(16), nn.Linear(16, 4)
    weights = [p for part in (reader, fire, speak) for p in part.parameters()]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    sounds, _, words = blocks(512, generator)
    for _ in range(400):
        rows = torch.randperm(512, generator=generator)[:32].tolist()
        lengths = torch.tensor([len(words[row]) for row in rows])
        fired = fire(reader(sounds[rows].transpose(1, 2)).transpose(1, 2), lengths)
        said = nn.utils.rnn.pad_sequence([words[r] for r in rows], True, -100)
        loss = nn.functional.cross_entropy(speak(fired.tokens).flatten(0, 1), said.flatten())
        optimizer.zero_grad()
        (loss + quantity_loss(fired.weights, lengths)).backward()
        optimizer.step()
        schedule.step()

    sounds, starts, words = blocks(64, generator)
    with torch.no_grad():
        fired = fire(reader(sounds.transpose(1, 2)).transpose(1, 2))
        guesses = speak(fired.tokens).argmax(-1)
    lengths = torch.tensor([len(word) for word in words])
    counted = fired.lengths == lengths
    usual = (lengths == lengths.mode().values).float().mean()
    assert counted.float().mean() > 0.85 > usual + 0.3
    right = [bool((guesses[i, : len(w)] == w).all()) for i, w in enumerate(words) if counted[i]]
    assert sum(right) / len(right) > 0.85  # four symbols, each unlike the last: chance below 0.02
    # A boundary is where the sum of the weights passes a whole number.
    passed = fired.weights.cumsum(1).add(1e-3).floor().diff(dim=1) > 0
    near = [
        bool(passed[i, max(start - 2, 0) : start + 1].any())
        for i, begun in enumerate(starts)
        for start in begun[1:]
    ]
    chance = 1 - (1 - passed.float().mean()) ** 3
    assert sum(near) / len(near) > 0.8 > chance + 0.3


def test_c_former_leaves_the_number_free_when_it_speaks() -> None:
    torch.manual_seed(0)
    encoder = TINY["c_former"]
    network = encoder.build().eval()
    values = encoder_checks.values(encoder)
    tokens, fired = network.speak(values)
    assert tokens.shape == (2, int(fired.lengths.max()), 16)
    assert fired.lengths.tolist() != [5, 5]
    named, fired = network.speak(values, torch.tensor([3, 5]))
    assert fired.lengths.tolist() == [3, 5]
    torch.testing.assert_close(named[1], network(values)[1])
    quantity_loss(fired.weights, fired.lengths).backward()
    assert network.fire.weight.weight.grad is not None


def test_relative_buckets_are_t5_s() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    place = torch.arange(500)
    for buckets, furthest in [(320, 1280), (32, 128), (8, 16)]:
        theirs = T5Attention._relative_position_bucket(
            place[None] - place[:, None], True, buckets, furthest
        )
        assert torch.equal(relative_buckets(500, buckets=buckets, furthest=furthest), theirs)
    # Written out for a place 200 ahead.
    far = 80 + int(math.log(200 / 80) / math.log(1280 / 80) * 80)
    assert relative_buckets(201, buckets=320, furthest=1280)[0, 200] == 160 + far


def test_beats_gates_its_bias() -> None:
    torch.manual_seed(0)
    layer = GatedAttention(8, 2)
    nn.init.normal_(layer.gate_scale)
    states, bias = torch.randn(1, 5, 8), torch.randn(2, 5, 5)
    query, key, value = (part(states)[0] for part in (layer.query, layer.key, layer.value))
    heads = []
    for h in range(2):
        q, k, v = (x[:, 4 * h : 4 * h + 4] for x in (query, key, value))
        gate = layer.gate(q)
        update, reset = gate[:, :4].sum(1).sigmoid(), gate[:, 4:].sum(1).sigmoid()
        gated = update * (reset * layer.gate_scale[h, 0, 0] - 1) + 2
        scores = q @ k.T / 2 + gated[:, None] * bias[h]
        heads.append(scores.softmax(-1) @ v)
    torch.testing.assert_close(layer(states, bias)[0], layer.out(torch.cat(heads, -1)))


def test_beats_is_deep_norm() -> None:
    torch.manual_seed(0)
    network = TINY["beats"].build().eval()
    block, alpha = network.blocks[0], 4**0.25
    states, bias = torch.randn(1, 5, 16), torch.randn(2, 5, 5)
    middle = block.attention_norm(alpha * states + block.attention(states, bias))
    torch.testing.assert_close(
        block(states, bias), block.mlp_norm(alpha * middle + block.mlp(middle))
    )


def tone(seconds: float, rate: int) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * time) + 0.01 * np.cos(700 * time**2)).astype(np.float32)


EMPTY = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")


@EMPTY  # AST's own 128 bins
def test_front_ends_work_without_torchaudio() -> None:
    wave = {"raw_speech": tone(1, 16000), "sampling_rate": 16000, "return_tensors": "np"}
    assert WhisperFeatureExtractor()(**wave)["input_features"].shape == (1, 80, 3000)
    assert ASTFeatureExtractor()(**wave)["input_values"].shape == (1, 1024, 128)
    assert Wav2Vec2FeatureExtractor()(**wave)["input_values"].shape == (1, 16000)
    high = {**wave, "raw_speech": tone(1, 48000), "sampling_rate": 48000}
    assert ClapFeatureExtractor()(**high)["input_features"].shape == (1, 4, 1001, 64)


@EMPTY
def test_filter_banks_are_ast_s_with_ast_s_settings(tmp_path: Path) -> None:
    ast = ASTFeatureExtractor()
    ours = audio.FilterBanks(128, padding_value=0.0, frames=1024, mean=ast.mean, std=ast.std)
    wave = tone(1.5, 16000)
    expected = ast(wave, sampling_rate=16000, return_tensors="pt")["input_values"]
    made = ours(wave, sampling_rate=16000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(made, expected)
    ours.save_pretrained(tmp_path)
    again = audio.FilterBanks.from_pretrained(tmp_path)
    assert torch.equal(again(wave, return_tensors="pt")["input_features"], made)
    with pytest.raises(ValueError, match="of 16000 Hz; got a sound of 8000"):
        ours(wave, sampling_rate=8000)


def test_beats_filter_banks_are_normalised_and_silence_stays_silence() -> None:
    """(x − 15.41663) / (2 · 6.55582) of a wave of 16-bit numbers; ends are filled with silence."""
    extractor = Beats(seconds=1).preprocessor()
    wave = tone(0.5, 16000)
    made = extractor(wave, return_tensors="pt")["input_features"][0]
    plain = audio.FilterBanks(frames=98, mean=0.0, std=0.5, window_name="povey")
    raw = plain(wave * 2.0**15, return_tensors="pt")["input_features"][0]
    torch.testing.assert_close(made, (raw - 15.41663) / (2 * 6.55582))
    filled = extractor(np.pad(wave, (0, 8000)), return_tensors="pt")["input_features"][0]
    torch.testing.assert_close(made[50:], filled[50:])


def test_clips_start_at_even_distances_and_end_with_the_sound() -> None:
    wave = tone(5, 16000)
    clips = audio.FilterBanks(8, frames=204, mean=0.0, clips=3)
    whole = audio.FilterBanks(8, frames=204, mean=0.0)
    made = clips(wave, return_tensors="pt")["input_features"][0]
    for clip, start in zip(made, (0, 24000, 48000), strict=True):
        alone = whole(wave[start : start + 32000], return_tensors="pt")["input_features"][0]
        torch.testing.assert_close(clip, alone)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="whisper: 1500 features cannot be pooled by 7"):
        Whisper(pool=7).num_tokens((80, 3000))
    with pytest.raises(ValueError, match="hubert: 300 samples are too few"):
        Hubert().num_tokens((300,))
    with pytest.raises(ValueError, match="depths has 2 stages, heads 4"):
        Clap(depths=(2, 2))
    with pytest.raises(ValueError, match="2001 frames do not fit into the 1024"):
        Clap(seconds=20)
    with pytest.raises(ValueError, match="mel_bins 100 is no multiple of 16"):
        Beats(mel_bins=100)
    with pytest.raises(ValueError, match="13 frames are fewer than a patch's 16"):
        Beats().num_tokens((13, 128))
    with pytest.raises(ValueError, match="600 tokens are more than BERT's 512"):
        CFormer(tokens=600)
