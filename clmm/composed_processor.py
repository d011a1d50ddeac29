"""The processor of a composition: its tokenizer with every placeholder, and each input's own part.

Knows a configuration and tokenizers: ids, counts, chat templates. Knows no weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from clmm import signal_tokens
from clmm.configuration_mmllm import MMLLMConfig
from clmm.processing_mmllm import CHAT_TEMPLATE, MMLLMProcessor, byte_tokenizer
from streams.settings import SettingError

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_IMAGE_MARK = 2
"""The byte-level tokenizer's own id of the placeholder of images."""
_PARTS_AS_TEXT = (
    "{%- set spoken = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set said = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set said.text = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- set word = part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' -%}"
    "{%- set said.text = said.text + word -%}{%- endfor -%}{%- endif -%}"
    "{%- set turn = {'role': message['role'], 'content': said.text} -%}"
    "{%- set spoken.messages = spoken.messages + [turn] -%}"
    "{%- endfor -%}"
    "{%- set messages = spoken.messages -%}"
)
"""Before a language model's own chat template, which takes texts: media become placeholders."""


def processor_of(
    model: Any, *, tokenizer: Any = None, qformer_tokenizer: Any = None
) -> MMLLMProcessor:
    """The processor of a composed model, or of its configuration.

    `tokenizer` is one, or a folder or hub id of one; left out, it is that of the language model
    which `llm: {pretrained: …}` names, and the byte-level one where none is named. A copy of it
    gets `<image>`, `<audio>`, … and signal tokens at the ids that the configuration has for them;
    ids in between, of which a vocabulary may have more than its tokenizer has tokens, get tokens
    that no text holds. `qformer_tokenizer` is for a projector that reads the instruction,
    byte-level where it is left out.

    Raises SettingError, with both numbers, for a tokenizer in which a token cannot have its id.
    """
    config: MMLLMConfig = getattr(model, "config", model)
    words = _tokenizer(config, tokenizer)
    own = words.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    signals = {name: len(ids) for name, ids in config.signal_ids.items()}
    _place(words, config)
    return MMLLMProcessor(
        tokenizer=words,
        preprocessors={name: config.encoder(name).preprocessor() for name in config.inputs},
        num_tokens={name: config.num_tokens(name) for name in config.inputs},
        chat_template=_PARTS_AS_TEXT + own if own else CHAT_TEMPLATE,
        signals=signals,
        qformer_tokenizer=_reading(config, qformer_tokenizer),
    )


def _tokenizer(config: MMLLMConfig, given: Any) -> Any:
    if given is None:
        source = config.text_config.name_or_path
        return _saved(source, "llm.pretrained") if source else _bytes(config)
    if isinstance(given, (str, Path)):
        return _saved(str(given), "tokenizer")
    return copy.deepcopy(given)


def _saved(source: str, where: str) -> Any:
    folder = Path(source).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in _FILES):
        raise SettingError(
            f"{where}: {source} holds no tokenizer (tokenizer.json); save it into the same folder, "
            "or give processor_of another"
        )
    try:
        return AutoTokenizer.from_pretrained(
            source, local_files_only=folder.is_dir(), trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise SettingError(f"{where}: the tokenizer of {source!r} cannot be had: {first}") from None


def _bytes(config: MMLLMConfig) -> Any:
    """The byte-level tokenizer, where its end token and its size are those of the model."""
    text = config.text_config
    made = byte_tokenizer(image=config.token_ids.get("image") == _IMAGE_MARK)
    if len(made) > text.vocab_size:
        raise SettingError(
            f"llm.vocab_size: the byte-level tokenizer has {len(made)} tokens, the language model "
            f"{text.vocab_size} with its placeholders; give it {len(made)} or more, or `pretrained`"
        )
    for key, wanted in (("eos_token_id", made.eos_token_id), ("pad_token_id", made.pad_token_id)):
        found = getattr(text, key, None)
        if found != wanted and not (found is None and key == "pad_token_id"):
            raise SettingError(
                f"llm.{key}: {found}, but the byte-level tokenizer's is {wanted}; give llm "
                f"`{key}: {wanted}`, or `pretrained`"
            )
    return made


def _place(tokenizer: Any, config: MMLLMConfig) -> None:
    """Every placeholder and signal token becomes a special token with the id it has to have."""
    wanted = {f"<{name}>": (f"token_ids.{name}", i) for name, i in config.token_ids.items()}
    for name, ids in config.signal_ids.items():
        marks = signal_tokens.signal_tokens(name, len(ids))
        wanted |= {m: (f"signal_ids.{name}", i) for m, i in zip(marks, ids, strict=True)}
    for token, (where, number) in sorted(wanted.items(), key=lambda item: item[1][1]):
        _place_one(tokenizer, token, number, where)
    last, size = max(tokenizer.get_vocab().values()), config.text_config.vocab_size
    if last >= size:
        raise SettingError(
            f"llm.vocab_size: {size}, but the tokenizer's last token has the id {last}"
        )


def _place_one(tokenizer: Any, token: str, number: int, where: str) -> None:
    found = tokenizer.get_vocab().get(token)
    if found is None and number < len(tokenizer):
        held = tokenizer.convert_ids_to_tokens(number)
        raise SettingError(
            f"{where}: {number} cannot be {token}: it is {held!r} in the tokenizer, which has "
            f"{len(tokenizer)} tokens; leave {where} out, or give {len(tokenizer)} or more"
        )
    if found is None:
        tokenizer.add_tokens([f"<unused_{i}>" for i in range(len(tokenizer), number)])
    # A token of the vocabulary keeps its id, and is no longer split.
    tokenizer.add_tokens([token], special_tokens=True)
    found = tokenizer.convert_tokens_to_ids(token)
    if found != number:
        raise SettingError(f"{where}: {number}, but {token} is {found} in the tokenizer")


def _reading(config: MMLLMConfig, given: Any) -> Any:
    """The Q-Former's tokenizer, no longer than its table of positions; None where none reads."""
    readers: Mapping[str, Any] = {
        name: projector
        for name in config.inputs
        if getattr(projector := config.input_projector(name), "reads_instruction", False)
    }
    if not readers:
        if given is not None:
            raise SettingError(
                "qformer_tokenizer: no projector reads the instruction; leave it out"
            )
        return None
    if isinstance(given, (str, Path)):
        given = _saved(str(given), "qformer_tokenizer")
    made = byte_tokenizer(image=False) if given is None else copy.deepcopy(given)
    for name, projector in readers.items():
        if len(made) > projector.vocabulary:
            raise SettingError(
                f"projectors.{name}.vocabulary: {projector.vocabulary}, but the instruction's "
                f"tokenizer has {len(made)} tokens"
            )
        made.model_max_length = min(made.model_max_length, projector.text_length)
    return made
