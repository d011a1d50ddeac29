"""Q-Former and P-Former: masks cell by cell, losses by formula, toy tasks, and in the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Blip2Config,
    Blip2Model,
    InstructBlipConfig,
    InstructBlipModel,
    LlamaConfig,
)

from clmm import p_former
from clmm.configuration_mmllm import MMLLMConfig
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from clmm.projectors.p_former import PFormer
from clmm.projectors.q_former import QFormer
from clmm.q_former_losses import (
    QFormerPretraining,
    bidirectional_mask,
    contrast,
    generation,
    hard_negatives,
    matching,
    multimodal_causal_mask,
    similarities,
    unimodal_mask,
)
from streams.settings import from_spec

SIZES: dict[str, Any] = {"queries": 4, "hidden_size": 32, "depth": 2, "heads": 4, "mlp": 48,
                         "dropout": 0.0}  # fmt: skip
LANGUAGE = LlamaConfig(
    vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
)  # fmt: skip
IMAGE = 5


def cells(text: str) -> list[list[bool]]:
    return [[cell == "x" for cell in row] for row in text.split()]


def test_masks_cell_by_cell() -> None:
    """Two queries and a text of three tokens, of which the last is padding in the second row."""
    text = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert unimodal_mask(2, text).tolist() == [
        cells("xx... xx... ..xxx ..xxx ..xxx"),
        cells("xx... xx... ..xx. ..xx. ..xx."),
    ]
    assert bidirectional_mask(2, text).tolist() == [
        cells("xxxxx xxxxx xxxxx xxxxx xxxxx"),
        cells("xxxx. xxxx. xxxx. xxxx. xxxx."),
    ]
    assert multimodal_causal_mask(2, text).tolist() == [
        cells("xx... xx... xxx.. xxxx. xxxxx"),
        cells("xx... xx... xxx.. xxxx. xxxx."),
    ]


def test_contrast_equals_its_formula() -> None:
    """−Σ target · log softmax(max over queries of q·t / τ), target 0.9 on the pair + 0.1 spread."""
    torch.manual_seed(0)
    image = nn.functional.normalize(torch.randn(3, 2, 5), dim=-1)
    text = nn.functional.normalize(torch.randn(3, 5), dim=-1)
    scores = similarities(image, text)
    expected = 0.0
    for i in range(3):
        for t in range(3):
            best = max(float(image[i, q] @ text[t]) for q in range(2))
            assert float(scores[i, t]) == pytest.approx(best, abs=1e-6)
    for one in (scores / 0.07, scores.T / 0.07):
        for row in range(3):
            total = math.log(sum(math.exp(float(one[row, k])) for k in range(3)))
            for k in range(3):
                target = 0.9 * (k == row) + 0.1 / 3
                expected -= target * (float(one[row, k]) - total) / 3 / 2
    assert float(contrast(scores, 0.07)) == pytest.approx(expected, abs=1e-5)


def test_matching_and_generation_equal_their_formulas() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 2), torch.tensor([1, 0, 0, 1])
    mean = logits.mean(dim=1)
    expected = -sum(
        float(mean[row, k]) - math.log(sum(math.exp(float(x)) for x in mean[row]))
        for row, k in enumerate(labels.tolist())
    )
    assert float(matching(logits, labels)) == pytest.approx(expected / 4, abs=1e-5)

    words, given = torch.randn(2, 4, 6), torch.tensor([[5, 1, 2, 3], [5, 4, -100, -100]])
    terms = []
    for row, place, word in ((0, 1, 1), (0, 2, 2), (0, 3, 3), (1, 1, 4)):
        logs = words[row, place - 1].log_softmax(dim=0)
        terms.append(-0.9 * float(logs[word]) - 0.1 / 6 * float(logs.sum()))
    assert float(generation(words, given)) == pytest.approx(sum(terms) / 4, abs=1e-5)


def test_hard_negatives_are_sampled_by_similarity_and_never_the_pair() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([[0.9, 0.7, 0.1], [0.2, 0.9, 0.8], [0.6, 0.3, 0.9]])
    counts = torch.zeros(2, 3, 3)
    for _ in range(2000):
        images, texts = hard_negatives(scores, 0.5)
        counts[0, torch.arange(3), images] += 1
        counts[1, torch.arange(3), texts] += 1
    for side, table in enumerate((scores.T, scores)):
        chances = (table / 0.5).softmax(dim=1) + 1e-4
        chances.fill_diagonal_(0.0)
        chances /= chances.sum(dim=1, keepdim=True)
        assert (counts[side].diagonal() == 0).all()
        torch.testing.assert_close(counts[side] / 2000, chances, atol=0.03, rtol=0)
    with pytest.raises(ValueError, match="1 pair in the batch, so no negative"):
        hard_negatives(scores[:1, :1], 0.07)


def pretraining() -> QFormerPretraining:
    torch.manual_seed(0)
    model = QFormerPretraining(
        QFormer(**SIZES), 8, vocabulary=20, decoder_id=19, text_length=6, contrast_width=12
    )
    return _widened(model)


def _widened(model: Any) -> Any:
    """Initial weights for a width of 32: BERT's 0.02 is for 768 and would learn late."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model


def pairs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of `count` kinds, three noisy features each, and texts [CLS] kind end padding."""
    generator = torch.Generator().manual_seed(7)
    kinds = torch.randn(8, 3, 8, generator=generator)
    features = kinds[:count] + 0.1 * torch.randn(count, 3, 8)
    ids = torch.tensor([[1, 3 + kind, 2, 0] for kind in range(count)])
    return features, ids, (ids != 0).long()


def test_each_pass_sees_what_its_mask_allows() -> None:
    model = pretraining().eval()
    features, ids, mask = pairs(2)
    image, text = model.embeddings(features, ids, mask)
    other_ids = ids.clone()
    other_ids[:, 1] = 15
    changed_image, changed_text = model.embeddings(features, other_ids, mask)
    torch.testing.assert_close(changed_image, image)
    assert not torch.allclose(changed_text, text)
    changed_image, changed_text = model.embeddings(features + 1.0, ids, mask)
    torch.testing.assert_close(changed_text, text)
    assert not torch.allclose(changed_image, image)
    assert not torch.allclose(
        model.match(features, other_ids, mask), model.match(features, ids, mask)
    )
    words = model.word_logits(features, ids, mask)
    changed = (model.word_logits(features, other_ids, mask) - words).abs().amax(dim=2) > 1e-6
    assert changed.tolist() == [[False, True, True, True]] * 2
    first_ids = ids.clone()
    first_ids[:, 0] = 15  # replaced by the token that asks for text
    torch.testing.assert_close(model.word_logits(features, first_ids, mask), words)
    assert not torch.allclose(model.word_logits(features + 1.0, ids, mask), words)


def test_generation_equals_reading_with_the_queries_cached() -> None:
    """What text sees of the queries is what they are without it, as with cached keys and values."""
    model: Any = pretraining().eval()
    features, ids, mask = pairs(2)
    words = model.word_logits(features, ids, mask)
    short = model.word_logits(features, ids[:, :2], mask[:, :2])
    torch.testing.assert_close(short, words[:, :2], atol=1e-5, rtol=1e-5)
    queries, _ = model.embeddings(features, ids, mask)
    alone = model.qformer(
        query_embeds=model.query_tokens.expand(2, -1, -1), encoder_hidden_states=features
    ).last_hidden_state
    expected = nn.functional.normalize(model.vision_proj(alone), dim=-1)
    torch.testing.assert_close(queries, expected, atol=1e-5, rtol=1e-5)


def test_every_parameter_of_the_first_stage_trains() -> None:
    model = pretraining()
    losses = model(*pairs(4))
    assert set(losses) == {"itc", "itm", "itg", "loss"}
    torch.testing.assert_close(losses["loss"], losses["itc"] + losses["itm"] + losses["itg"])
    losses["loss"].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_published_size_of_the_first_stage() -> None:
    with torch.device("meta"):
        model = QFormerPretraining(QFormer(), 1408)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(188, rel=0.01)


def test_the_first_stage_learns_pairs_and_leaves_a_projector() -> None:
    model = pretraining()
    projector: Any = _widened(QFormer(**SIZES).build(input_width=8, output_width=16)).eval()
    model.share(projector)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(100):
        optimizer.zero_grad()
        model(*pairs(8))["loss"].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        features, ids, mask = pairs(8)
        image, text = model.embeddings(features, ids, mask)
        found = similarities(image, text).argmax(dim=1)
        assert (found == torch.arange(8)).float().mean() >= 0.9  # chance is 1 in 8
        said = model.word_logits(features, ids, mask)[:, 0].argmax(dim=1)
        assert (said == ids[:, 1]).float().mean() >= 0.9  # chance is 1 in 8
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        logits = model.match(
            features[rows.flatten()], ids[columns.flatten()], mask[columns.flatten()]
        )
        matched = logits.mean(dim=1).argmax(dim=1).reshape(8, 8).bool()
        assert matched.diagonal().float().mean() >= 0.9
        assert matched.float().mean() <= 0.2  # an eighth are pairs
        read = model.vision_proj(
            projector.qformer(
                query_embeds=projector.query_tokens.expand(8, -1, -1),
                encoder_hidden_states=features,
            ).last_hidden_state
        )
        torch.testing.assert_close(nn.functional.normalize(read, dim=-1), image, atol=1e-5, rtol=0)


def test_a_decoder_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="decoder_id 20 is outside vocabulary 20"):
        QFormerPretraining(QFormer(**SIZES), 8, vocabulary=20, decoder_id=20)


def _blip(kind: Any, model: Any) -> Any:
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
    reader = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 48, "encoder_hidden_size": 8, "vocab_size": 30,
              "max_position_embeddings": 9, "hidden_dropout_prob": 0.0,
              "attention_probs_dropout_prob": 0.0}  # fmt: skip
    config = kind(
        vision_config=vision, qformer_config=reader, text_config=LANGUAGE.to_dict(),
        num_query_tokens=4,
    )  # fmt: skip
    torch.manual_seed(0)
    made = model(config).eval()
    nn.init.normal_(made.query_tokens)
    return made


def _parts(model: Any) -> dict[str, Tensor]:
    kept = ("query_tokens", "qformer.", "language_projection.")
    return {name: value for name, value in model.state_dict().items() if name.startswith(kept)}


def test_projectors_take_the_weights_of_blip2_and_instructblip() -> None:
    features = torch.randn(2, 5, 8)
    theirs = _blip(Blip2Config, Blip2Model)
    ours = QFormer(**SIZES).build(input_width=8, output_width=16).eval()
    ours.load_state_dict(_parts(theirs))
    queries = theirs.query_tokens.expand(2, -1, -1)
    read = theirs.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
    torch.testing.assert_close(ours(features), theirs.language_projection(read))

    theirs = _blip(InstructBlipConfig, InstructBlipModel)
    spec = {"name": "instruct_q_former", **SIZES, "vocabulary": 30, "text_length": 9}
    ours = from_spec("clmm.projectors", spec, where="x").build(input_width=8, output_width=16)
    ours.eval().load_state_dict(_parts(theirs))
    ids, mask = torch.tensor([[3, 4, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    read = theirs.qformer(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones(2, 4, dtype=torch.long), mask], dim=1),
        query_embeds=theirs.query_tokens.expand(2, -1, -1),
        encoder_hidden_states=features,
    ).last_hidden_state
    expected = theirs.language_projection(read[:, :4])
    tokens = ours(features, qformer_input_ids=ids, qformer_attention_mask=mask)
    torch.testing.assert_close(tokens, expected)


def composed(**projector: Any) -> MMLLMForConditionalGeneration:
    torch.manual_seed(0)
    vit = {"name": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 8, "depth": 1,
           "heads": 2, "mlp": 8}  # fmt: skip
    config = MMLLMConfig(
        encoders={"image": vit},
        input_projectors={"image": {**SIZES, "queries": 2, **projector}},
        text_config=LANGUAGE.to_dict(),
        token_ids={"image": IMAGE},
    )
    return MMLLMForConditionalGeneration(config).eval()


def test_a_composed_model_hands_instructions_to_their_images(tmp_path: Path) -> None:
    model = composed(name="instruct_q_former", vocabulary=30, text_length=9)
    ids = torch.tensor([[7, IMAGE, IMAGE, 8, IMAGE, IMAGE, 9], [0, 0, 0, 10, IMAGE, IMAGE, 11]])
    given = {
        "input_ids": ids, "attention_mask": (ids != 0).long(),
        "pixel_values": torch.randn(3, 3, 8, 8),
        "qformer_input_ids": torch.tensor([[3, 4, 0], [5, 6, 7]]),
        "qformer_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }  # fmt: skip
    logits = model(**given).logits
    features = model.encode_images(given["pixel_values"])
    rows = torch.tensor([0, 0, 1])
    tokens = model.project(
        "image", features, **{key: given[key][rows] for key in given if key.startswith("qformer")}
    )
    embeds = model.get_input_embeddings()(ids)
    embeds = embeds.masked_scatter((ids == IMAGE)[..., None], tokens.flatten(0, 1))
    mask = given["attention_mask"]
    expected = model.language_model(inputs_embeds=embeds, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected)

    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False,
               "suppress_tokens": [0, IMAGE]}  # fmt: skip
    for beams in (1, 2):
        cached, plain = (
            model.generate(**given, **options, num_beams=beams, use_cache=use)
            for use in (True, False)
        )
        assert torch.equal(cached, plain)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**given).logits, logits)
    with pytest.raises(ValueError, match="give qformer_input_ids"):
        model(**{key: value for key, value in given.items() if not key.startswith("qformer")})


@pytest.mark.parametrize("name", ["q_former", "p_former"])
def test_a_composed_model_is_saved_and_loaded_with_its_queries(name: str, tmp_path: Path) -> None:
    model = composed(name=name)
    given = {
        "input_ids": torch.tensor([[7, IMAGE, IMAGE, 8]]),
        "pixel_values": torch.randn(1, 3, 8, 8),
    }
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**given).logits, model(**given).logits)
    assert again.input_projectors["image"].query_tokens.std() > 0.01


def prompt_former() -> Any:
    torch.manual_seed(0)
    settings = PFormer(**{**SIZES, "queries": 3}, vocabulary=20, text_length=8, contrast_width=12)
    return _widened(settings.teacher(output_width=16))


def frozen_language_model() -> Any:
    torch.manual_seed(1)
    model = _widened(AutoModelForCausalLM.from_config(LANGUAGE))
    return model.requires_grad_(False).eval()


def test_prompts_equal_their_formula_at_any_text_length() -> None:
    model = prompt_former().eval()
    for length in (2, 3, 7):
        ids = torch.arange(3, 3 + 2 * length).reshape(2, length) % 20
        first = model.bert(ids).last_hidden_state[:, 0]
        spread = (first @ model.cls_proj.weight.T + model.cls_proj.bias).reshape(2, 3, 32)
        pooled = torch.tanh(spread @ model.pooler[0].weight.T + model.pooler[0].bias)
        expected = pooled @ model.language_projection.weight.T + model.language_projection.bias
        torch.testing.assert_close(model(ids), expected)


def test_p_formers_losses_equal_their_formulas() -> None:
    torch.manual_seed(0)
    one, other = (nn.functional.normalize(torch.randn(3, 5), dim=-1) for _ in range(2))
    expected = 0.0
    for row in range(3):
        logs = torch.stack([one[row] @ other[k] / 0.07 for k in range(3)]).log_softmax(dim=0)
        expected -= (0.9 * float(logs[row]) + 0.1 / 3 * float(logs.sum())) / 3
    assert float(p_former.self_contrast(one, other, 0.07)) == pytest.approx(expected, abs=1e-5)

    prompts, words = torch.randn(2, 3, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = p_former.quantisation(prompts, words)
    distances = (prompts[:, :, None] - words).square().sum(dim=3).detach()
    assert loss.item() == pytest.approx(
        float(distances.amin(dim=2).sum() / prompts.numel()), abs=1e-6
    )
    loss.backward()
    assert words.grad is None
    nearest = words[distances.argmin(dim=2)]
    torch.testing.assert_close(prompts.grad, (2 * (prompts - nearest) / prompts.numel()).detach())

    language_model = frozen_language_model()
    ids, mask = torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    prompts = torch.randn(2, 2, 16)
    embeds = torch.cat([prompts, language_model.get_input_embeddings()(ids)], dim=1)
    logs = language_model(inputs_embeds=embeds).logits.log_softmax(dim=2)
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    said = [-float(logs[row, 1 + place, ids[row, place]]) for row, place in places]
    loss = p_former.reconstruction(language_model, prompts, ids, mask)
    assert float(loss) == pytest.approx(sum(said) / 5, abs=1e-5)

    tokens = torch.randn(2, 2, 16, requires_grad=True)
    target = prompts.clone().requires_grad_()
    aligned = p_former.alignment(tokens, target, omega=0.5)
    assert aligned.item() == pytest.approx(0.5 * (tokens - target).square().mean().item(), abs=1e-6)
    aligned.backward()
    assert tokens.grad is not None
    assert target.grad is None
    with pytest.raises(ValueError, match=r"\(2, 2, 16\), but prompts \(2, 3, 16\)"):
        p_former.alignment(tokens, torch.zeros(2, 3, 16))


def test_views_hide_a_quarter_and_keep_marks_and_padding() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, 19, (200, 20))
    ids[:, 0], ids[:, 15:] = 1, 0
    seen = p_former.masked_view(ids, (ids != 0).long(), 19, kept=(1,))
    assert torch.equal(seen[:, 0], ids[:, 0])
    assert torch.equal(seen[:, 15:], ids[:, 15:])
    inside = seen[:, 1:15]
    assert (inside == 19).float().mean() == pytest.approx(0.25, abs=0.03)
    assert ((inside == 19) | (inside == ids[:, 1:15])).all()


def test_p_former_learns_prompts_and_a_q_former_follows_them() -> None:
    """A frozen language model says one of six words after the prompts; chance is 1 in 24."""
    language_model, model = frozen_language_model(), prompt_former()
    ids = torch.tensor([[1, 4 + kind, 5 + kind, 2] for kind in range(6)])
    text = torch.tensor([[10 + kind, 16 + kind] for kind in range(6)])
    ones, two = torch.ones_like(ids), torch.ones_like(text)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(100):
        losses = model.losses(
            ids, ones, language_model=language_model, text_ids=text, text_mask=two, mask_id=19,
            kept_ids=(1, 2),
        )  # fmt: skip
        assert set(losses) == {"contrast", "quantisation", "reconstruction", "loss"}
        optimizer.zero_grad()
        losses["loss"].backward()
        if step == 0:
            for name, weight in model.named_parameters():
                assert weight.grad is not None, name
            assert all(weight.grad is None for weight in language_model.parameters())
        optimizer.step()
    model.eval()
    reader = _widened(QFormer(**{**SIZES, "queries": 3}).build(input_width=8, output_width=16))
    features, _, _ = pairs(6)
    with torch.no_grad():
        prompts = model(ids)
        said = language_model(inputs_embeds=prompts).logits[:, -1].argmax(dim=1)
        assert (said == text[:, 0]).float().mean() >= 0.8
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    start = p_former.alignment(reader(features), prompts).item()
    for _ in range(100):
        optimizer.zero_grad()
        loss = p_former.alignment(reader(pairs(6)[0]), prompts)
        loss.backward()
        optimizer.step()
    assert loss.item() < start / 5
    with torch.no_grad():
        said = language_model(inputs_embeds=reader.eval()(features)).logits[:, -1].argmax(dim=1)
    assert (said == text[:, 0]).float().mean() >= 0.8
