"""Decoding options: what each changes and what it leaves, on four families and on strategies."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_models
import tiny_streams
import torch
from test_batching import MIXED, sample
from transformers import LogitsProcessorList

from clmm import Experiment, cli
from clmm.answering import Answerer
from clmm.batching import Batcher
from clmm.components import frozen_encoder
from clmm.decoding.contrastive import Contrastive, kept
from clmm.decoding.newline_ban import NewlineBan
from clmm.decoding.self_feedback import SelfFeedback, _read
from clmm.decoding.single_paragraph import SingleParagraph
from clmm.decoding_options import Decoding
from clmm.effect import effect
from clmm.learner import Learner
from clmm.loading import Loaded, load
from clmm.strategies.coda_prompt import CodaPrompt
from clmm.strategies.disco import Disco
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.smolora import SMoLora
from clmm.study import Study
from clmm.training import TrainSettings
from reports.run_folder import ConfigChangedError
from safety.scores import Sheet, rule
from streams.sample import Sample, Text
from streams.settings import SettingError

STRONG = Contrastive(alpha=50.0, beta=0.0)
"""Random weights hardly look at a picture; this makes what they see count."""
OPTIONS: list[Any] = [
    STRONG,
    NewlineBan(),
    SelfFeedback(rounds=1, feedback_tokens=4),
    SingleParagraph(),
]
WORDS: list[list[str]] = [["Yes.", "No"]] * len(MIXED)


@pytest.fixture(scope="module", params=sorted(tiny_models.FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    return load(tiny_models.FAMILIES[request.param](folder), device="cpu")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_models.llava(tmp_path_factory.mktemp("llava")), device="cpu")


def answerer(loaded: Loaded, *options: Any, **settings: Any) -> Answerer:
    """With the encoder's features kept where the family has it so, as in a study."""
    loaded.model.requires_grad_(False)
    batcher = Batcher(loaded.processor, encode_images=frozen_encoder(loaded.model))
    return Answerer(loaded.model, batcher, decoding=Decoding(options), **settings)


def texts(model: Any, samples: Sequence[Sample], tokens: int = 6) -> list[str]:
    return [answer.text for answer in model.answer(samples, max_new_tokens=tokens)]


def scores(model: Answerer, samples: list[Sample], tokens: int) -> tuple[Any, torch.Tensor]:
    """The tokens written to the samples, and the logits they were chosen by [step, row, V]."""
    batch, processors = model.decoding.prompts(model.batcher, samples)
    with torch.no_grad():
        found = model.model.generate(
            **batch,
            generation_config=model._greedy(tokens),
            logits_processor=LogitsProcessorList(processors),
            return_dict_in_generate=True,
            output_scores=True,
        )
    written = found.sequences[: len(samples), batch["input_ids"].shape[1] :]
    return written, torch.stack(found.scores)[:, : len(samples)]


# Contrastive


def test_the_noise_schedule_is_the_published_one() -> None:
    """Written out: cumulative products of 1 − β, β a sigmoid between 1e-5 and 5e-3."""
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    shares = torch.cumprod(1 - betas, dim=0)
    for step in (0, 1, 500, 999):
        assert kept(step) == pytest.approx(float(shares[step]), rel=1e-9)
    assert kept(0) > 0.9999
    assert kept(999) < 0.1


@pytest.mark.parametrize(
    "option", [Contrastive(), Contrastive(alpha=0.5, beta=0.3, noise_step=900)]
)
def test_contrast_is_the_loop_written_out(loaded: Loaded, option: Contrastive) -> None:
    """Two whole passes a token, without any cache, of one sample alone."""
    model, steps = answerer(loaded, option), 4
    plain = Batcher(loaded.processor)
    suppressed = model._greedy(1).suppress_tokens
    for item in [one for one in MIXED if one.images]:
        clear, noised = plain.prompts([item]), plain.prompts([item])
        noised["pixel_values"] = option.noised(item, noised["pixel_values"])
        written, expected = [], []
        for _ in range(steps):
            with torch.no_grad():
                one, other = (loaded.model(**b).logits[0, -1] for b in (clear, noised))
            one[suppressed] = -math.inf
            chances = one.softmax(dim=0)
            mixed = (1 + option.alpha) * one - option.alpha * other
            mixed[chances < option.beta * chances.max()] = -math.inf
            mixed[suppressed] = -math.inf
            best = int(mixed.argmax())
            expected.append(mixed)
            written.append(best)
            if best in model._greedy(1).eos_token_id:
                break
            for batch in (clear, noised):
                batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[best]])], dim=1)
                for key in {"attention_mask", "mm_token_type_ids"} & set(batch):
                    more = torch.full((1, 1), int(key == "attention_mask"))
                    batch[key] = torch.cat([batch[key], more], dim=1)
        ids, found = scores(model, [item], steps)
        assert ids[0, : len(written)].tolist() == written
        rows = torch.stack(expected)
        torch.testing.assert_close(found[: len(rows), 0], rows, atol=1e-5, rtol=1e-5)


def test_a_contrasted_answer_depends_on_no_company(loaded: Loaded) -> None:
    alone = [texts(answerer(loaded, STRONG), [item])[0] for item in MIXED]
    plain = texts(answerer(loaded), MIXED)
    assert alone != plain
    for order in (MIXED, MIXED[::-1]):
        for size in (2, 64):
            found = texts(answerer(loaded, STRONG, batch_size=size), order)
            assert dict(zip(order_ids(order), found, strict=True)) == dict(
                zip(order_ids(MIXED), alone, strict=True)
            )


def order_ids(samples: Sequence[Sample]) -> list[str]:
    return [one.id for one in samples]


def test_alpha_and_beta_zero_is_greedy(loaded: Loaded) -> None:
    option = Contrastive(alpha=0.0, beta=0.0)
    assert texts(answerer(loaded, option), MIXED) == texts(answerer(loaded), MIXED)


def test_a_contrast_without_a_picture_changes_nothing(llava: Loaded) -> None:
    items = [sample(i, images=0) for i in range(3)]
    model = answerer(llava, Contrastive())
    batch, processors = model.decoding.prompts(model.batcher, items)
    assert not processors
    assert len(batch["input_ids"]) == 3
    assert texts(model, items) == texts(answerer(llava), items)


def test_noise_is_of_the_words_the_pixels_and_the_seed(tmp_path: Path) -> None:
    """Not of the id, the file or what is asked beside; else a kept answer would be another's."""
    pixels = torch.zeros(1, 3, 8, 8)
    first = Contrastive().noised(MIXED[0], pixels)
    again = dataclasses.replace(MIXED[0], id="other", cluster="elsewhere")
    assert torch.equal(Contrastive().noised(again, pixels), first)
    assert not torch.equal(Contrastive(seed=1).noised(MIXED[0], pixels), first)
    assert not torch.equal(Contrastive().noised(MIXED[1], pixels), first)
    share = math.sqrt(1 - kept(500))
    assert float(first.std()) == pytest.approx(share, rel=0.2)


def test_likelihoods_are_of_the_plain_model(llava: Loaded) -> None:
    for option in (Contrastive(), NewlineBan(), SelfFeedback()):
        found = answerer(llava, option).log_likelihood(MIXED, WORDS)
        assert found == answerer(llava).log_likelihood(MIXED, WORDS)


# Newline ban


def wishing(loaded: Loaded, wishes: str) -> Any:
    """Gives the model a head that always wants these characters, the first the most."""
    tokens = [loaded.processor.tokenizer.encode(c, add_special_tokens=False)[-1] for c in wishes]
    head = loaded.model.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    for place, token in enumerate(tokens):
        bias[token] = 100.0 - place
    with torch.no_grad():
        head.weight.zero_()
    head.bias = torch.nn.Parameter(bias, requires_grad=False)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_model_that_wants_breaks_writes_none(family: str, tmp_path: Path) -> None:
    loaded = load(tiny_models.FAMILIES[family](tmp_path), device="cpu")
    wishing(loaded, "\nab")

    def written(*options: Any) -> list[str]:
        ids, _ = scores(answerer(loaded, *options), MIXED[:3], 6)
        return [loaded.processor.tokenizer.decode(row) for row in ids]

    assert written() == ["\n" * 6] * 3
    assert written(NewlineBan()) == ["\na\na\na"] * 3
    assert written(NewlineBan(breaks="line")) == ["a" * 6] * 3
    # A contrast that keeps the likeliest token alone must not be left with a barred one.
    greedy = Contrastive(beta=1.0)
    assert written(greedy, NewlineBan()) == written(NewlineBan(), greedy) == ["\na\na\na"] * 3


class _Vocabulary:
    """Tokens as larger tokenizers have them: breaks inside, before and behind other text."""

    texts = ("<end>", "a", "\n", "\n\n", ".\n", "\nb", "c\n\nd", "<mark>", "\r\n")
    all_special_ids = (0, 7)
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.texts[i] for i in ids)


def test_which_tokens_are_barred_after_which() -> None:
    class Processor:
        tokenizer = _Vocabulary()

    class Batch:
        processor, turns = Processor(), type("Turns", (), {"end_id": 0})()

    def barred(option: NewlineBan, *before: int) -> set[int]:
        ids, width = torch.tensor([[2, *before]]), len(_Vocabulary.texts) + 2
        found = option.bar(Batch(), 1)(ids, torch.zeros(1, width))
        return set(found[0].isneginf().nonzero().flatten().tolist())

    ban = NewlineBan()
    assert barred(ban) == {3, 6}  # the prompt's own line break opens no break of the answer's
    assert barred(ban, 1) == {3, 6}
    for end in (2, 4, 8):
        assert barred(ban, 1, end) == {2, 3, 5, 6}
    assert barred(ban, 1, 4, 7) == {2, 3, 5, 6}  # a special token is not written
    assert barred(ban, 4, 1) == {3, 6}
    assert barred(NewlineBan(breaks="line"), 1) == {2, 3, 4, 5, 6, 8}


# Single paragraph


def test_the_instruction_is_behind_the_last_user_turn_alone(llava: Loaded) -> None:
    option = SingleParagraph(text="In one paragraph.")
    first = MIXED[0].messages[0]
    several = dataclasses.replace(MIXED[0], messages=(first, turn("assistant", "So."), first))
    changed = option.rewritten(several)
    assert changed.messages[:2] == several.messages[:2]
    assert changed.messages[2].parts[:-1] == first.parts
    assert changed.messages[2].text == f"{first.text}\nIn one paragraph."
    assert dataclasses.replace(changed, messages=several.messages) == several
    document = dataclasses.replace(MIXED[2], plain=True)
    assert option.rewritten(document) is document

    model, plain = answerer(llava, option), answerer(llava)
    asked = [option.rewritten(item) for item in MIXED]
    assert model.answer(MIXED, max_new_tokens=6) == plain.answer(asked, max_new_tokens=6)
    assert model.log_likelihood(MIXED, WORDS) == plain.log_likelihood(asked, WORDS)


def turn(role: Any, text: str) -> Any:
    return dataclasses.replace(MIXED[0].messages[0], role=role, parts=(Text(text=text),))


# Self-feedback


class Script:
    """A model that says what is next for a sample: criticism, revision and decision in turn."""

    def __init__(self, said: dict[str, list[str | None]]) -> None:
        self.said = {key: list(lines) for key, lines in said.items()}
        self.heard: list[tuple[str, list[str], int]] = []

    def __call__(
        self, rows: Sequence[int], turns: Sequence[Sample], tokens: int
    ) -> list[str | None]:
        found = []
        for turn in turns:
            self.heard.append((turn.id, [message.text for message in turn.messages], tokens))
            line = self.said[turn.id].pop(0)
            if line in ("first", "other"):  # by what the letters stand for
                shown = dict(row.split(". ", 1) for row in turn.question.splitlines()[1:3])
                wanted = "old" if line == "first" else "new"
                line = next(letter for letter, text in shown.items() if text.startswith(wanted))
            found.append(line)
        return found


@pytest.mark.parametrize(
    ("said", "last", "decisions"),
    [
        (["bad", "new", "first"], "old", {"kept": 1}),
        (
            ["bad", "new", "other", "bad", "new2", "I cannot tell"],
            "new",
            {"revised": 1, "unparsed": 1},
        ),
        (["bad", "new", "other", "fine", "new"], "new", {"revised": 1, "unchanged": 1}),
        (["bad", "old"], "old", {"unchanged": 1}),
        (["bad", ""], "old", {"unchanged": 1}),
        (["bad", "new", "both A and B"], "old", {"unparsed": 1}),
        ([None], "old", {"unasked": 1}),
        (["bad", None], "old", {"unasked": 1}),
        (["bad", "new", None], "old", {"unasked": 1}),
    ],
)
def test_every_branch_of_the_loop(
    said: list[str | None], last: str, decisions: dict[str, int]
) -> None:
    script = Script({"s0": said, "s1": ["bad", "old"]})
    samples = [MIXED[1], MIXED[0]]
    found, counts = SelfFeedback().revised(samples, ["old", "old"], script, max_new_tokens=6)
    assert found == ["old", last]
    assert counts == Counter(decisions) + Counter(unchanged=1)
    assert not any(script.said.values())


def test_rounds_are_bounded_and_turns_are_those_of_a_conversation() -> None:
    option = SelfFeedback(rounds=2, feedback_tokens=9)
    script = Script({"s0": ["bad", "new1", "other", "bad2", "new2", "other", "never asked"]})
    script.said["s0"][5] = "B" if _second_is_b() else "A"
    found, counts = option.revised([MIXED[0]], ["old"], script, max_new_tokens=6)
    assert found == ["new2"]
    assert counts == {"revised": 2}
    assert script.said["s0"] == ["never asked"]
    question = MIXED[0].question
    asked = [option.criticise, "bad", option.revise]
    assert script.heard[0] == ("s0", [question, "old", *asked[:1]], 9)
    assert script.heard[1] == ("s0", [question, "old", *asked], 6)
    [vote] = script.heard[2][1]
    assert sorted(vote.splitlines()[1:3]) in (["A. new1", "B. old"], ["A. old", "B. new1"])
    assert vote.startswith(question + "\n")
    assert vote.endswith("\n" + option.decide)
    assert "bad" not in vote
    assert script.heard[3][1][1] == "new1"


def _second_is_b() -> bool:
    """Whether the second round shows the revision as B."""
    from clmm.decoding.self_feedback import _lettered

    return _lettered(MIXED[0], 1, "new1", "new2")["B"] == "new2"


def test_a_decision_is_read_strictly() -> None:
    pair = {"A": "a red ring", "B": "No."}
    for text in ("A", "(A)", "A.", "A)", "Answer A", " A\n", "A. a red ring"):
        assert _read(text, pair) == "a red ring", text
    for text in ("B", "B:", "Answer (B).", "B. No."):
        assert _read(text, pair) == "No.", text
    for text in ("", "a", "b", "A dog", "A or B", "A B", "No.", "BA", "A. No.", "Neither", "C"):
        assert _read(text, pair) is None, text


def test_letters_follow_texts_and_both_orders_occur() -> None:
    from clmm.decoding.self_feedback import _lettered

    orders = {_lettered(MIXED[0], 0, "old", f"new{i}")["A"] == "old" for i in range(20)}
    assert orders == {True, False}


def test_self_feedback_asks_the_model_itself(loaded: Loaded) -> None:
    """As a plain answerer asked turn by turn; ids and order stay; documents keep their answer."""
    option = SelfFeedback(rounds=2, feedback_tokens=5)
    items = [*MIXED, dataclasses.replace(MIXED[2], id="document", plain=True)]
    plain = answerer(loaded)

    def ask(rows: Sequence[int], turns: Sequence[Sample], tokens: int) -> list[str | None]:
        return list(texts(plain, turns, tokens))

    model = answerer(loaded, option)
    found = model.answer(items, max_new_tokens=6)
    expected, counts = option.revised(items, texts(plain, items), ask, max_new_tokens=6)
    assert [answer.text for answer in found] == expected
    assert [answer.sample_id for answer in found] == order_ids(items)
    assert model.decoding.decisions == counts
    assert sum(counts.values()) == len(MIXED)
    alone = [texts(answerer(loaded, option), [item])[0] for item in items]
    assert alone == expected


def test_a_turn_that_cannot_be_asked_ends_the_rounds(llava: Loaded) -> None:
    """One answer is the word that stands for an image; another makes the prompt too long."""
    longest = max(len(Batcher(llava.processor).encode([item])[0].ids) for item in MIXED)
    batcher = Batcher(llava.processor, max_length=longest + 30)
    model = Answerer(llava.model, batcher, decoding=Decoding([SelfFeedback()]))
    image = llava.processor.image_token  # type: ignore[attr-defined]
    found = model.decoding.revised(
        model.batcher, MIXED[:2], [image, "b"], lambda asked, tokens: [], max_new_tokens=4
    )
    assert found == [image, "b"]
    assert model.decoding.decisions == {"unasked": 2}


def test_the_instruction_is_no_part_of_further_turns(llava: Loaded) -> None:
    script = Script({"s0": ["bad", "old"]})
    decoding = Decoding([SelfFeedback(), SingleParagraph(text="Briefly.")])
    batcher = decoding.asking(Batcher(llava.processor))

    def write(samples: Sequence[Sample], tokens: int) -> list[str]:
        turns = [decoding.asked(one) for one in samples]
        return [str(text) for text in script([0], turns, tokens)]

    decoding.revised(batcher, [MIXED[0]], ["old"], write, max_new_tokens=4)
    assert [heard[1][0].endswith("\nBriefly.") for heard in script.heard] == [True, True]
    assert not any("Briefly" in text for heard in script.heard for text in heard[1][1:])


# Together, and with strategies


def test_without_options_nothing_is_wrapped(llava: Loaded) -> None:
    batcher = Batcher(llava.processor)
    model = Answerer(llava.model, batcher)
    assert model.batcher is batcher
    assert model.decoding.key == ""
    batch, processors = model.decoding.prompts(batcher, MIXED)
    assert processors == []
    assert all(torch.equal(batch[key], value) for key, value in batcher.prompts(MIXED).items())


@pytest.mark.parametrize(
    "strategy",
    [IsolatedLora(rank=2), Disco(rank=2), SMoLora(rank=4), CodaPrompt(length=2)],
    ids=lambda one: type(one).__name__,
)
def test_every_route_answers_through_the_options(strategy: Any) -> None:
    """Routers see what was asked; answers come as from the same weights with the options."""
    stream = tiny_streams.stream("colour", "yes", train=6, test=2)
    settings = TrainSettings(learning_rate=1e-2, batch_size=4, steps=2)
    items = [*stream.tasks[0].test, *stream.tasks[1].test]
    found: dict[bool, Any] = {}
    for decoded in (False, True):
        options = OPTIONS if decoded else []
        with Learner(
            strategy, tiny_streams.loaded(), stream, settings, 0, decoding=options
        ) as learner:
            for stage in (1, 2):
                learner.train_stage(stage)
            model = learner.answering()
            found[decoded] = model.answer(items, max_new_tokens=4)
            alone = [model.answer([item], max_new_tokens=4)[0] for item in items]
            assert alone == found[decoded]
            assert [len(row) for row in model.log_likelihood(items, [["a", "b"]] * 4)] == [2] * 4
            assert bool(learner.decoding.decisions) == decoded
    assert [a.route for a in found[True]] == [a.route for a in found[False]]
    assert [a.sample_id for a in found[True]] == [one.id for one in items]
    assert found[True] != found[False]


def test_kept_answers_are_of_the_options_that_gave_them(tmp_path: Path) -> None:
    stream = tiny_streams.stream("colour", train=8, test=4)
    settings = TrainSettings(learning_rate=1e-2, batch_size=4, steps=2)
    items = stream.tasks[0].test
    strategy, base = IsolatedLora(rank=2), tiny_streams.loaded()
    with Learner(strategy, base, stream, settings, 0) as learner:
        learner.train_stage(1)
        learner.save(tmp_path)
        plain = texts(learner.answering(), items, 4)
        learner.save_answers(tmp_path)
    with Learner(strategy, base, stream, settings, 0, decoding=[STRONG]) as learner:
        learner.load(tmp_path)
        treated = texts(learner.answering(), items, 4)
        assert treated != plain
        assert texts(learner.answering(), items, 4) == treated
    with Learner(strategy, base, stream, settings, 0) as learner:
        learner.load(tmp_path)
        assert texts(learner.answering(), items, 4) == plain


# Names, refusals, the command line


def test_a_study_names_options_and_none_is_no_key() -> None:
    plain = Study.resolve({"strategies": ["replay"]})
    assert plain.decoding == ()
    assert "decoding" not in plain.plain()
    named = Study.resolve({"strategies": ["replay"], "decoding": "newline_ban"})
    assert named.decoding == (NewlineBan(),)
    specs = [{"name": "contrastive", "alpha": 0.5}, SingleParagraph()]
    several = Study.resolve({"strategies": ["replay"], "decoding": specs})
    assert several.decoding == (Contrastive(alpha=0.5), SingleParagraph())
    again = Study.resolve({"strategies": ["replay"], "decoding": several.plain()["decoding"]})
    assert again.decoding == several.decoding


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("contrastve", r"decoding\[0\]: there is no 'contrastve'; did you mean contrastive\?"),
        ([{"name": "contrastive", "beta": 2}], r"decoding\[0\]: contrastive.beta: must be from 0"),
        ({"name": "contrastive", "noise_step": 1000}, r"noise_step: must be 0 to 999; got 1000"),
        ({"name": "contrastive", "alpha": -1}, r"contrastive.alpha: must be 0 or above; got -1"),
        ({"name": "newline_ban", "breaks": "word"}, r"newline_ban.breaks"),
        ({"name": "self_feedback", "rounds": 0}, r"self_feedback.rounds: must be at least 1"),
        ({"name": "self_feedback", "decide": " "}, r"self_feedback.decide: must say something"),
        ({"name": "single_paragraph", "text": ""}, r"single_paragraph.text: must say something"),
        (["newline_ban", "newline_ban"], r"decoding\[1\]: newline_ban is there already"),
        ([3], r"decoding\[0\]: 3 is not one; see `clmm ls decoding`"),
    ],
)
def test_a_bad_option_is_refused_by_name(spec: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Study.resolve({"strategies": ["replay"], "decoding": spec})


def test_a_model_that_cannot_be_served_is_refused(llava: Loaded) -> None:
    batcher = Batcher(llava.processor)
    Decoding(OPTIONS).check(llava.model, batcher)

    class Deaf(Batcher):
        def _encode(self, sample: Sample) -> Any:
            prompt = super()._encode(sample)
            return dataclasses.replace(prompt, media={"tiles": prompt.media["pixel_values"]})

    wanted = r"decoding\[0\] \(contrastive\): Llava.* pixels can be noised .*; take newline_ban, "
    with pytest.raises(SettingError, match=wanted):
        Decoding([Contrastive()]).check(llava.model, Deaf(llava.processor))
    single = Batcher(llava.processor)
    single.turns = dataclasses.replace(
        single.turns, template="{{ 'USER: ' + messages[-1]['content'][0]['text'] }}"
    )
    wanted = r"\(self_feedback\): .* leaves out earlier answers; take contrastive"
    with pytest.raises(SettingError, match=wanted):
        Decoding([SelfFeedback()]).check(llava.model, single)


def test_an_option_without_breaks_to_bar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from clmm.decoding import newline_ban

    monkeypatch.setattr(newline_ban, "_texts", lambda tokenizer: ["a", "b"])
    batcher = Batcher(tiny_streams.loaded().processor)
    with pytest.raises(SettingError, match=r"no token with a line break.*leave newline_ban out"):
        Decoding([NewlineBan()]).check(tiny_streams.loaded().model, batcher)


def test_the_effect_is_the_paired_change() -> None:
    def sheet(values: dict[str, float]) -> Any:
        sheet = Sheet({item: item for item in values})
        sheet.rate("x.right", values, rule("down", 0.02))
        sheet.rate("x.shown", values, rule())
        sheet.constant("x.floor", 0.5)
        return sheet.scores({})

    items = {str(i): float(i % 4 == 0) for i in range(40)}
    better = dict.fromkeys(items, 1.0)
    rows = effect(sheet(items), sheet(better))
    change = sheet(better).changes_from(sheet(items), "x.right")
    low, high = change.interval()
    right = {"without": 0.25, "with": 1.0, "change": 0.75, "low": low, "high": high}
    assert rows["x.right"] == {**right, "verdict": "IMPROVED"}
    assert rows["x.shown"] == right
    assert rows["x.floor"] == {"without": 0.5, "with": 0.5}


def test_probe_shows_what_an_option_changes(
    llava: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "probe.json"
    command = ["probe", str(llava.path), "--probes", "bias", "--items", "2", "--device", "cpu"]
    decoded = [*command, "--decoding", "contrastive,self_feedback", "--out", str(out)]
    assert cli.main(decoded) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split()[:3] == ["figure", "without", "with"]
    assert "decisions" in shown
    record = json.loads(out.read_text("utf-8"))
    assert [one["name"] for one in record["decoding"]] == ["contrastive", "self_feedback"]
    assert cli.main([*command, "--out", str(out)]) == 0
    capsys.readouterr()
    plain = json.loads(out.read_text("utf-8"))
    assert not {"decoding", "effect", "decisions"} & plain.keys()
    found = {name: row["without"] for name, row in record["effect"].items()}
    assert found == plain["figures"]
    assert {name: row["with"] for name, row in record["effect"].items()} == record["figures"]
    assert cli.main([*command, "--decoding", "newline_bann"]) == 2
    assert "did you mean newline_ban" in capsys.readouterr().err
    assert cli.main(["ls", "decoding"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == ["contrastive", "newline_ban", "self_feedback", "single_paragraph"]


def test_a_study_answers_by_its_options_and_no_other(
    llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and stages answer by them; a run goes on with no other; the report is written."""
    settings: dict[str, Any] = {
        "model": llava.path,
        "stream": tiny_streams.stream("colour", train=6, test=2),
        "strategies": ["isolated_lora"],
        "probes": [],
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 1e-2},
        "max_new_tokens": 4,
        "device": "cpu",
        "workers": 1,
    }
    option = {"name": "self_feedback", "rounds": 1, "feedback_tokens": 4}
    result = Experiment(**settings, decoding=[option, "newline_ban"]).run(tmp_path / "run")
    assert not result.failures
    config = result.folder.config()
    assert [one["name"] for one in config["decoding"]] == ["self_feedback", "newline_ban"]
    cost = result.folder.stage("isolated_lora", 0, 1).read_scores()["cost"]
    assert sum(cost["decisions"].values()) == 2  # type: ignore[typeddict-item]
    assert result.report().is_file()
    with pytest.raises(ConfigChangedError, match="decoding"):
        Experiment(**settings).run(tmp_path / "run")

    trained: list[Any] = []
    monkeypatch.setattr(Learner, "train_stage", lambda *_, **__: trained.append(1))
    monkeypatch.setattr(Contrastive, "refusal", lambda *_: "has no pictures; take newline_ban")
    with pytest.raises(SettingError, match=r"decoding\[0\] \(contrastive\): .* take newline_ban"):
        Experiment(**settings, decoding="contrastive").run(tmp_path / "other")
    assert not trained
    assert not (tmp_path / "other" / "config.yaml").exists()
