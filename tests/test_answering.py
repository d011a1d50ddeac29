"""Answers and scores of four families: the same alone and in company, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_streams
import torch
from test_batching import MIXED, loss_sum, sample

from clmm.answering import Answerer
from clmm.batching import Batcher, SampleError
from clmm.components import find, merged
from clmm.learner import Learner
from clmm.loading import Loaded, load
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from safety.answering import Scoring
from streams.sample import Sample

CANDIDATES: list[tuple[str, ...]] = [("Yes.", "No, not at all."), ("",), (), ("a",), ("b", "cc")]


@pytest.fixture(scope="module", params=sorted(tiny_models.FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    return load(tiny_models.FAMILIES[request.param](folder), device="cpu")


def answerer(loaded: Loaded, **settings: object) -> Answerer:
    return Answerer(loaded.model, Batcher(loaded.processor), **settings)  # type: ignore[arg-type]


def test_answers_do_not_depend_on_the_company(loaded: Loaded) -> None:
    alone = [answerer(loaded).answer([item], max_new_tokens=6)[0].text for item in MIXED]
    for batch_size in (2, 64):
        for order in (MIXED, MIXED[::-1]):
            answers = answerer(loaded, batch_size=batch_size).answer(order, max_new_tokens=6)
            assert [a.sample_id for a in answers] == [item.id for item in order]
            assert {a.sample_id: a.text for a in answers} == {
                item.id: text for item, text in zip(MIXED, alone, strict=True)
            }


def test_an_answer_is_the_greedy_choice_token_by_token(loaded: Loaded) -> None:
    item, ids = MIXED[0], []
    batcher = Batcher(loaded.processor)
    batch = batcher.prompts([item])
    for _ in range(4):
        with torch.no_grad():
            best = int(loaded.model(**batch).logits[0, -1].argmax())
        if best == batcher.turns.end_id:
            break
        ids.append(best)
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[best]])], dim=1)
        for key in {"attention_mask", "mm_token_type_ids"} & set(batch):
            more = torch.full((1, 1), int(key == "attention_mask"))
            batch[key] = torch.cat([batch[key], more], dim=1)
    expected = loaded.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert answerer(loaded).answer([item], max_new_tokens=4)[0].text == expected


def test_drawn_answers_see_their_own_pictures(loaded: Loaded) -> None:
    """Two pictures beside one: all rows of a sample are the same, and those of the sample alone."""
    seen: list[torch.Tensor] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    inner = loaded.model.get_submodule(find(loaded.model)["language_model"][0])
    hook = inner.register_forward_pre_hook(note, with_kwargs=True)
    several = [sample(3, images=2), sample(4)]
    for count in (1, 2):
        answerer(loaded).draw(several, count=count, temperature=1.0, max_new_tokens=1)
    hook.remove()
    torch.testing.assert_close(seen[1], seen[0].repeat_interleave(2, dim=0))


@pytest.mark.parametrize("share", [True, False, None])
def test_log_likelihood_is_the_sum_over_tokens_by_hand(loaded: Loaded, share: bool | None) -> None:
    if share and "qwen" in loaded.name:
        pytest.skip("its cache does not carry rotary positions; None avoids sharing")
    batcher = Batcher(loaded.processor)
    expected = [
        [-loss_sum(loaded.model, batcher.continuations([item], [text]))[0] for text in texts]
        for item, texts in zip(MIXED, CANDIDATES, strict=True)
    ]
    for batch_size in (2, 64):
        scores = answerer(loaded, share_prompts=share, batch_size=batch_size).log_likelihood(
            MIXED, CANDIDATES
        )
        assert [len(row) for row in scores] == [len(texts) for texts in CANDIDATES]
        for row, right in zip(scores, expected, strict=True):
            assert row == pytest.approx(right, abs=1e-4)


def test_the_loss_of_the_reference_is_its_negative_log_likelihood(loaded: Loaded) -> None:
    """Training and scoring speak of the same tokens."""
    batch = Batcher(loaded.processor).training([MIXED[0]])
    tokens = int((batch["labels"] != -100).sum())
    with torch.no_grad():
        loss = float(loaded.model(**batch).loss)
    [[score]] = answerer(loaded).log_likelihood([MIXED[0]], [[MIXED[0].reference_text]])
    assert -score / tokens == pytest.approx(loss, rel=1e-5)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_models.llava(tmp_path_factory.mktemp("llava")), device="cpu")


def test_training_overfits_and_the_answer_then_is_the_reference(tmp_path: Path) -> None:
    """The end token is learnt too: the answer stops by itself, at the first token after it."""
    loaded = load(tiny_models.llava(tmp_path), device="cpu")
    items = [sample(0, answer="No."), sample(1, answer="a red ring")]
    batcher = Batcher(loaded.processor)
    optimiser = torch.optim.AdamW(loaded.model.parameters(), lr=1e-2)
    for _ in range(100):
        loaded.model(**batcher.training(items)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    answers = Answerer(loaded.model, batcher).answer(items, max_new_tokens=20)
    assert [a.text for a in answers] == ["No.", "a red ring"]


def test_each_module_keeps_its_mode_and_sampling_settings_are_ignored(llava: Loaded) -> None:
    model = llava.model
    model.train()
    model.model.vision_tower.eval()
    before = [module.training for module in model.modules()]
    plain = answerer(llava).answer(MIXED, max_new_tokens=4)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=2.0)
    try:
        assert answerer(llava).answer(MIXED, max_new_tokens=4) == plain
    finally:
        model.generation_config.update(do_sample=False, temperature=1.0, repetition_penalty=1.0)
    assert [module.training for module in model.modules()] == before
    model.eval()


def test_a_placeholder_is_never_written(loaded: Loaded) -> None:
    """Even by a model that wants nothing else: it would stand for an image that is not there."""
    head = loaded.model.get_output_embeddings()
    before = head.weight.detach().clone()
    wanted = getattr(loaded.processor, "image_token_id")  # noqa: B009
    with torch.no_grad():
        head.weight.zero_()
        bias = torch.zeros(len(before))
        bias[wanted] = 100.0
    head.bias = torch.nn.Parameter(bias)
    try:
        ids = answerer(loaded).model.generate(
            **Batcher(loaded.processor).prompts(MIXED),
            generation_config=answerer(loaded)._greedy(3),
        )
        assert not (ids[:, -3:] == wanted).any()
    finally:
        head.bias = None
        with torch.no_grad():
            head.weight.copy_(before)


def test_a_full_device_halves_the_batch(llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    answering, real, sizes = answerer(llava, batch_size=4), Batcher.prompts, []

    def small(self: Batcher, samples: list[Sample]) -> dict[str, torch.Tensor]:
        sizes.append(len(samples))
        if len(samples) > 1:
            raise torch.OutOfMemoryError("full")
        return real(self, samples)

    expected = answering.answer(MIXED, max_new_tokens=2)
    monkeypatch.setattr(Batcher, "prompts", small)
    assert answering.answer(MIXED, max_new_tokens=2) == expected
    assert sizes == [4, 2, 1, 1, 1, 1, 1]


def test_scoring_is_what_the_probes_ask_for(llava: Loaded) -> None:
    assert isinstance(answerer(llava), Scoring)
    assert answerer(llava).answer([]) == []
    assert answerer(llava).log_likelihood([], []) == []


def test_check_names_the_sample_whose_placeholders_the_model_refuses(tmp_path: Path) -> None:
    """The commonest fault of LLaVA checkpoints: one placeholder too many."""
    loaded = load(tiny_models.llava(tmp_path), device="cpu")
    answerer(loaded).check(MIXED)
    setattr(loaded.processor, "num_additional_image_tokens", 2)  # noqa: B010
    with pytest.raises(SampleError, match=r"sample s0: the model refused it: .*tokens: 17"):
        answerer(loaded).check(MIXED)


def test_ranks_split_the_work_and_each_gets_all(
    llava: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two ranks one after the other, in one process."""
    expected = answerer(llava).answer(MIXED, max_new_tokens=3)
    shares: dict[int, Any] = {}

    def gather(everyone: list[Any], mine: Any) -> None:
        shares[torch.distributed.get_rank()] = mine
        everyone[:] = [shares.get(rank, mine) for rank in range(2)]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(KeyError):  # the other's share is not there yet
        answerer(llava).answer(MIXED, max_new_tokens=3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert answerer(llava).answer(MIXED, max_new_tokens=3) == expected
    assert sorted([*shares[0], *shares[1]]) == list(range(len(MIXED)))


def _share_of_two(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    loaded = load(folder, device="cpu")
    answering = answerer(loaded, batch_size=2)
    texts = [answer.text for answer in answering.answer(MIXED, max_new_tokens=3)]
    torch.save([texts, answering.log_likelihood(MIXED, CANDIDATES)], f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_work_and_both_know_all(llava: Loaded) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_share_of_two, args=(str(llava.path), port), nprocs=2)
    texts = [answer.text for answer in answerer(llava).answer(MIXED, max_new_tokens=3)]
    scores = answerer(llava).log_likelihood(MIXED, CANDIDATES)
    for rank in range(2):
        theirs = torch.load(llava.path / f"rank{rank}.pt", weights_only=True)
        assert theirs[0] == texts
        for row, right in zip(theirs[1], scores, strict=True):
            assert row == pytest.approx(right, abs=1e-4)


def test_adapters_are_merged_while_answering_and_the_base_comes_back() -> None:
    loaded = tiny_streams.loaded()
    strategy = SequentialLora(rank=2)
    samples = tiny_streams.stream("colour").tasks[0].test
    settings = TrainSettings(learning_rate=1e-2, batch_size=4, steps=3)
    before = tiny_streams.weights(loaded.model)
    with Learner(strategy, loaded, tiny_streams.stream("colour"), settings, 0) as learner:
        learner.train_stage(1)
        trained = tiny_streams.weights(loaded.model)
        with merged(loaded.model), torch.no_grad():
            inputs = learner.batcher.prompts(samples)
            apart = tiny_streams.weights(loaded.model)
            fused = loaded.model(**inputs).logits
        assert any(not torch.equal(trained[name], apart[name]) for name in trained)
        now = tiny_streams.weights(loaded.model)
        assert all(torch.equal(trained[name], now[name]) for name in trained)
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(**inputs).logits, fused, atol=1e-4, rtol=1e-4)
    after = tiny_streams.weights(loaded.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
