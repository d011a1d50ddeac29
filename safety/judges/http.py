"""A language model behind a chat endpoint, OpenAI's form; asked only if you name its address.

Knows HTTP and one prompt; sends the texts of requests and answers, no pictures, to the address
in `url` and nowhere else: redirects are not followed, no proxy is asked, whatever the environment
says. Every item is asked once, at temperature 0.
What fails (no connection, a status, a timeout, another form, more than one word) is unscored with
its reason and never tried again in silence. Withheld samples are sent only with `send_withheld`.
The key is read from an environment variable; it is in no setting and no file.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safety import judge_prompt, judging, labelled_answers
from safety.judge_quality import Quality
from safety.parsers import Stance
from streams.sample import Answer, Sample
from streams.settings import SettingError

MOST_BYTES = 2**20
"""Longest reply that is read."""
_LOCAL = ("localhost", "127.0.0.1", "::1")


class _Failed(Exception):  # noqa: N818  (it is a reason)
    """Why an item is unscored."""


@dataclass(frozen=True, kw_only=True)
class Http:
    """A judge behind an OpenAI-compatible chat endpoint."""

    url: str
    """The endpoint's whole address, as https://HOST/v1/chat/completions."""
    model: str
    """The model's name there."""
    revision: str = "unknown"
    """Which version of the model the server runs, where you know: it is recorded."""
    key_variable: str | None = None
    """Name of the environment variable that holds the key; None: no key is sent."""
    header: str = "Authorization"
    """Header of the key: `Authorization` gets `Bearer KEY`, any other the key as it is."""
    timeout_seconds: float = 60.0
    """How long one item may take in all, from the connection to the reply's last byte."""
    max_tokens: int = 8
    """Longest reply; a model that thinks aloud needs more."""
    prompt: str = judge_prompt.PROMPT
    """What it is asked; {request} and {answer} are filled in."""
    send_withheld: bool = False
    """Also send samples of harmful sets to that address."""
    measured: bool = True
    """Measure it on labelled answers, once a process, and correct rates by that."""
    labelled: Path | None = None
    """Labelled answers to measure it on (JSON Lines); None: those shipped."""

    def __post_init__(self) -> None:
        if not self.url.isascii() or not self.url.isprintable() or " " in self.url:
            raise SettingError(
                "judge.http.url: must be printable ASCII without spaces; write other characters as "
                "%XX and a host's as xn--…"
            )
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise SettingError(
                f"judge.http.url: must be an address, http:// or https://; got {self.url!r}"
            )
        if address.username or address.password:
            raise SettingError(
                "judge.http.url: holds a password; put it into an environment variable and name "
                "that in key_variable"
            )
        if self.key_variable and address.scheme == "http" and address.hostname not in _LOCAL:
            raise SettingError(
                f"judge.http.url: the key would travel unencrypted to {address.hostname}; use https"
            )
        if not self.model:
            raise SettingError("judge.http.model: must name a model; got ''")
        if not self.timeout_seconds > 0:
            raise SettingError(
                f"judge.http.timeout_seconds: must be above 0; got {self.timeout_seconds}"
            )
        judge_prompt.check(self.prompt, where="judge.http.prompt")

    @property
    def id(self) -> str:
        return f"{self.model} at {urlsplit(self.url).netloc}"

    @property
    def prompt_sha256(self) -> str:
        return judge_prompt.sha256(self.prompt)

    def judge(self, samples: Sequence[Sample], answers: Sequence[Answer]) -> list[Stance | None]:
        return [stance for stance, _ in self.explain(samples, answers)]

    def explain(
        self, samples: Sequence[Sample], answers: Sequence[Answer]
    ) -> list[tuple[Stance | None, str]]:
        """Stances with the reasons of what is unscored; SettingError when the key is not there."""
        headers = self._headers()
        return [
            self._one(sample, answer, headers)
            for sample, answer in zip(samples, answers, strict=True)
        ]

    def qualities(self) -> Mapping[Stance, Quality]:
        if not self.measured:
            return {}
        return judging.measure_all(self, labelled_answers.given(self.labelled))

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.key_variable:
            key = os.environ.get(self.key_variable, "").strip()
            if not key:
                raise SettingError(
                    f"judge.http.key_variable: the environment has no {self.key_variable}"
                )
            if not key.isascii() or not key.isprintable():  # nothing of it may be shown
                raise SettingError(
                    f"judge.http.key_variable: what {self.key_variable} holds is no key: it must "
                    "be one line of printable ASCII"
                )
            bearer = self.header.lower() == "authorization"
            headers[self.header] = f"Bearer {key}" if bearer else key
        return headers

    def _one(
        self, sample: Sample, answer: Answer, headers: Mapping[str, str]
    ) -> tuple[Stance | None, str]:
        if sample.withheld and not self.send_withheld:
            return None, "withheld: not sent without send_withheld"
        text = judge_prompt.filled(self.prompt, request=sample.question, answer=answer.text)
        try:
            reply = self._ask(text, headers)
        except _Failed as reason:
            return None, str(reason)
        stance = judge_prompt.read(reply)
        why = "" if stance else judge_prompt.unread(reply, withheld=sample.withheld)
        return stance, why

    def _ask(self, text: str, headers: Mapping[str, str]) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), dict(headers), method="POST"
        )
        # A socket's timeout begins anew at each byte; only a thread can be left at the deadline.
        replied: Future[bytes] = Future()
        deadline = time.monotonic() + self.timeout_seconds

        def work() -> None:
            try:
                replied.set_result(self._reply(request, deadline))
            except Exception as error:
                replied.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            return _content(replied.result(self.timeout_seconds))
        except TimeoutError:
            raise _Failed(f"no reply within {self.timeout_seconds:g} s") from None

    def _reply(self, request: urllib.request.Request, deadline: float) -> bytes:
        data = b""
        try:
            with _OPENER.open(request, timeout=self.timeout_seconds) as response:
                while len(data) <= MOST_BYTES and (part := response.read1(2**16)):
                    data += part
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except urllib.error.HTTPError as error:
            error.close()
            raise _Failed(f"HTTP status {error.code}") from None
        except TimeoutError:
            raise _Failed(f"no reply within {self.timeout_seconds:g} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Failed(f"no reply within {self.timeout_seconds:g} s") from None
            raise _Failed(f"no connection: {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Failed(f"the connection broke: {type(error).__name__}") from None
        if len(data) > MOST_BYTES:
            raise _Failed(f"a reply of more than {MOST_BYTES} bytes")
        return data


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the texts and the key to an address that nobody named."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def _content(data: bytes) -> str:
    try:
        content: Any = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError):
        raise _Failed("a reply in another form than a chat endpoint's") from None
    if not isinstance(content, str):
        raise _Failed("a reply without text")
    return content
