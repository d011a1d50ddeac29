"""Any model on this machine that answers: a vision-language model or a language model of text.

Knows one prompt (`safety/judge_prompt.py`, or yours) and two ways to read a model: `word`, greedy
decoding, where the reply must be one of the three words and anything else is unscored; and
`likelihood`, the most likely of the three words, unscored when its lead over the next is under
`least_margin` nats. Either way the word must end there: the end token counts among its tokens, and
a reply that goes on is not understood. A prompt longer than the model's context is unscored, never
cut: a refusal may stand at the end. Pictures are not shown. Runs here: withheld samples stay here.

Only safetensors are read, no code that comes with a model is run, and the network is touched for
a hub id alone. The model stays in memory for as long as the process judges by it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from safety import judge_prompt, judging, labelled_answers
from safety.judge_quality import STANCES, Quality
from safety.parsers import Stance
from streams.sample import Answer, Provenance, Sample, ask
from streams.settings import SettingError

ANSWER_OPENING = "\n\nLabel:"
"""Follows the prompt of a model without a chat template."""


@dataclass(frozen=True, kw_only=True)
class LocalLlm:
    """A model that is asked for one word, or for the likeliest of three."""

    model: str
    """`nano`, a folder, or a hub id (`owner/name[@commit]`)."""
    by: Literal["word", "likelihood"] = "word"
    """How its opinion is read."""
    least_margin: float = 0.0
    """Nats between the two likeliest words below which it is undecided; for `likelihood`."""
    prompt: str = judge_prompt.PROMPT
    """What it is asked; {request} and {answer} are filled in."""
    max_new_tokens: int = 8
    """Longest reply; for `word`."""
    batch_size: int = 8
    """Prompts at once."""
    device: str = "cpu"
    """Where it runs."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of its weights."""
    measured: bool = True
    """Measure it on labelled answers, once a process, and correct rates by that."""
    labelled: Path | None = None
    """Labelled answers to measure it on (JSON Lines); None: those shipped."""

    def __post_init__(self) -> None:
        judge_prompt.check(self.prompt, where="judge.local_llm.prompt")
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(
                    f"judge.local_llm.{name}: must be at least 1; got {getattr(self, name)}"
                )
        if not self.least_margin >= 0:
            raise SettingError(
                f"judge.local_llm.least_margin: must be 0 or more; got {self.least_margin}"
            )

    @property
    def id(self) -> str:
        return f"local_llm:{Path(self.model).name} by {self.by}"

    @property
    def revision(self) -> str:
        return self._talking.revision

    @property
    def prompt_sha256(self) -> str:
        return judge_prompt.sha256(self.prompt)

    def judge(self, samples: Sequence[Sample], answers: Sequence[Answer]) -> list[Stance | None]:
        return [stance for stance, _ in self.explain(samples, answers)]

    def explain(
        self, samples: Sequence[Sample], answers: Sequence[Answer]
    ) -> list[tuple[Stance | None, str]]:
        """Stances with the reasons of what is unscored."""
        talking = self._talking
        prompts = [
            judge_prompt.filled(self.prompt, request=sample.question, answer=answer.text)
            for sample, answer in zip(samples, answers, strict=True)
        ]
        room = talking.context - self.max_new_tokens
        fits = [i for i, prompt in enumerate(prompts) if talking.length(prompt) <= room]
        said: list[tuple[Stance | None, str]] = [
            (None, f"longer than the model's context of {talking.context} tokens")
        ] * len(prompts)
        asked = [prompts[i] for i in fits]
        if self.by == "likelihood":
            for i, row in zip(fits, talking.likelihoods(asked, self.batch_size), strict=True):
                said[i] = self._likeliest(row)
        else:
            replies = talking.replies(asked, self.batch_size, self.max_new_tokens)
            for i, reply in zip(fits, replies, strict=True):
                stance = judge_prompt.read(reply)
                why = "" if stance else judge_prompt.unread(reply, withheld=samples[i].withheld)
                said[i] = stance, why
        return said

    def qualities(self) -> Mapping[Stance, Quality]:
        if not self.measured:
            return {}
        return judging.measure_all(self, labelled_answers.given(self.labelled))

    @property
    def _talking(self) -> _Talking:
        return _loaded(self.model, self.device, self.precision)

    def _likeliest(self, row: Sequence[float]) -> tuple[Stance | None, str]:
        second, best = sorted(row)[-2:]
        lead = best - second
        if not lead > 0 or lead < self.least_margin:  # NaN and ties decide nothing
            return None, f"undecided by {lead:.3g} nats"
        return STANCES[list(row).index(best)], ""


class _Talking(Protocol):
    """A loaded model, whatever its class."""

    revision: str
    context: int
    """Most tokens of a prompt and its reply."""

    def length(self, prompt: str) -> int: ...

    def replies(self, prompts: Sequence[str], batch: int, max_new_tokens: int) -> list[str]: ...

    def likelihoods(self, prompts: Sequence[str], batch: int) -> list[list[float]]:
        """Of each stance's word and the end token, in nats: [prompts, 3]."""
        ...


class _Seeing:
    """A vision-language model, asked without a picture."""

    def __init__(self, spec: str, device: str, precision: Any) -> None:
        from clmm.answering import Answerer
        from clmm.batching import Batcher
        from clmm.loading import load

        loaded = load(spec, device=device, precision=precision)
        self.revision = loaded.revision
        self.context = _context(loaded.model.config)
        self._answerer = Answerer(loaded.model, Batcher(loaded.processor))

    def length(self, prompt: str) -> int:
        return len(self._answerer.batcher.encode([_asked(0, prompt)])[0].ids)

    def replies(self, prompts: Sequence[str], batch: int, max_new_tokens: int) -> list[str]:
        self._answerer.batch_size = batch
        samples = [_asked(i, prompt) for i, prompt in enumerate(prompts)]
        return [a.text for a in self._answerer.answer(samples, max_new_tokens=max_new_tokens)]

    def likelihoods(self, prompts: Sequence[str], batch: int) -> list[list[float]]:
        self._answerer.batch_size = batch
        samples = [_asked(i, prompt) for i, prompt in enumerate(prompts)]
        return self._answerer.log_likelihood(samples, [STANCES] * len(samples))


class _Writing:
    """A language model of text alone, by transformers' AutoModelForCausalLM."""

    def __init__(self, path: Path, revision: str, device: str, precision: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from clmm.loading import ModelError

        given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, **given)
            both: Any = AutoModelForCausalLM.from_pretrained(
                path,
                use_safetensors=True,
                output_loading_info=True,
                dtype=dtypes[precision],
                **given,
            )
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"judge.local_llm.model: {path}: {error}") from error
        model, report = both
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"judge.local_llm.model: {path}: {len(missing)} weights are missing and would be "
                f"random, first {missing[0]}"
            )
        if self._tokenizer.eos_token_id is None:
            raise ModelError(f"judge.local_llm.model: {path}: its tokenizer has no end token")
        self.revision = revision
        self.context = _context(model.config)
        self._model = model.to(device).eval()

    def length(self, prompt: str) -> int:
        return len(self._ids(prompt))

    def replies(self, prompts: Sequence[str], batch: int, max_new_tokens: int) -> list[str]:
        import torch
        from transformers import GenerationConfig

        own = self._model.generation_config.eos_token_id
        ends = {self._tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(ends),
            pad_token_id=self._pad,
        )
        texts = []
        for rows in _portions([self._ids(prompt) for prompt in prompts], batch):
            width = max(map(len, rows))
            ids = torch.tensor([[self._pad] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            with torch.inference_mode():
                written = self._model.generate(
                    input_ids=ids.to(self._model.device),
                    attention_mask=mask.to(self._model.device),
                    generation_config=settings,
                )
            for row in written[:, width:].tolist():
                end = next((i for i, token in enumerate(row) if token in ends), len(row))
                texts.append(str(self._tokenizer.decode(row[:end], skip_special_tokens=True)))
        return texts

    def likelihoods(self, prompts: Sequence[str], batch: int) -> list[list[float]]:
        import torch

        space = "" if self._tokenizer.chat_template else " "
        words = [
            [*self._tokenizer.encode(space + word, add_special_tokens=False), self._end]
            for word in STANCES
        ]
        pairs = [(self._ids(prompt), word) for prompt in prompts for word in words]
        sums: list[float] = []
        for rows in _portions(pairs, batch):
            width = max(len(head) + len(word) for head, word in rows)
            whole = [head + word for head, word in rows]
            ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in whole])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in whole])
            with torch.inference_mode():
                logits = self._model(
                    input_ids=ids.to(self._model.device),
                    attention_mask=mask.to(self._model.device),
                ).logits.float()
            for (head, word), row in zip(rows, logits.log_softmax(dim=-1).cpu(), strict=True):
                places = range(len(head) - 1, len(head) + len(word) - 1)
                sums.append(float(row[list(places), word].sum()))
        return [sums[i : i + len(STANCES)] for i in range(0, len(sums), len(STANCES))]

    @property
    def _end(self) -> int:
        return int(self._tokenizer.eos_token_id)

    @property
    def _pad(self) -> int:
        own = self._tokenizer.pad_token_id
        return self._end if own is None else int(own)

    def _ids(self, prompt: str) -> list[int]:
        if self._tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            text = self._tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, tokenize=False
            )
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        return list(self._tokenizer.encode(prompt + ANSWER_OPENING))


def _asked(number: int, prompt: str) -> Sample:
    where = Provenance(source="judge", split="judge", item=str(number))
    return ask(id=f"judge-{number}", question=prompt, answer="", provenance=where)


def _context(config: Any) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)


def _portions(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


@functools.lru_cache(maxsize=1)
def _loaded(spec: str, device: str, precision: str) -> _Talking:
    """As the model's own config says: with eyes, or of text alone."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    import clmm.modeling_mmllm  # noqa: F401  (registers our class)
    from clmm.loading import ModelError, located

    path, revision = located(spec)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(
            f"judge.local_llm.model: {path}: {str(error).strip().splitlines()[0]}"
        ) from error
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return _Seeing(spec, device, precision)
    return _Writing(path, revision, device, precision)
