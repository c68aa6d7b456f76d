"""A judge behind any endpoint that speaks OpenAI's chat completions: a hosted model, or a server of one's own.

SAECORE_JUDGE_URL    the base URL, such as https://api.openai.com/v1 or http://localhost:8000/v1
SAECORE_JUDGE_MODEL  the model's name there, such as gpt-4o-mini
SAECORE_JUDGE_KEY    the key, where the endpoint wants one; it is sent and never written or shown

Answers are kept in the cache under a hash of model and question, one file each, so that a run that ends early goes on
where it stopped and a second run asks nothing.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import logging
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from saecore import paths
from saecore.judges.language import Ask

log = logging.getLogger(__name__)

URL, MODEL, KEY = "SAECORE_JUDGE_URL", "SAECORE_JUDGE_MODEL", "SAECORE_JUDGE_KEY"
PASSING = (408, 409, 425, 429)
"""Client errors that may pass, beside every server error."""
LARGEST = 2**20
"""Bytes read of an answer."""


class EndpointError(OSError):
    """An endpoint that is not set, or gives no answer; the message says which, why and the way out."""


class _Passing(Exception):
    """A failure that may pass; ``wait`` is how many seconds the endpoint asked for, if it did."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would carry the key to another host."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


@dataclass
class Pace:
    """Lets one through every 60 / ``per_minute`` seconds, and none during a pause."""

    per_minute: float
    _next: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def turn(self) -> float:
        """Seconds to wait for a turn, which is taken."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + 60 / self.per_minute
            return at - now

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


@dataclass
class Endpoint:
    """``url``: up to, without, ``/chat/completions``. Questions run ``parallel`` at once, ``per_minute`` at most.

    What may pass (no connection, a timeout of ``timeout`` seconds, a server error, too many requests, an answer that is
    none) is tried ``attempts`` times, after ``first_wait`` seconds, then twice as long each time, or as long as the
    endpoint asks for, up to ``longest_wait``. ``limit``: what the endpoint calls the bound on an answer's tokens.
    Raises EndpointError for a URL or key that cannot be used.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    parallel: int = 8
    per_minute: float = 500
    attempts: int = 6
    timeout: float = 60
    first_wait: float = 1.0
    longest_wait: float = 120
    limit: str = "max_tokens"
    _pace: Pace = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if "@" in self.url or "?" in self.url:
            raise EndpointError(f"{URL} holds @ or ?: messages would show a name or query; give the key as {KEY}")
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise EndpointError(f"{URL}={self.url!r} is no http address; give one such as https://api.openai.com/v1")
        if not self.model:
            raise EndpointError(f"{MODEL} is empty; give the model's name at {self.url}")
        self.key = self.key.strip()
        if not all("!" <= character <= "~" for character in self.key):
            raise EndpointError(f"{KEY} holds a blank or a character that no header may hold; copy the key again")
        if min(self.parallel, self.attempts) < 1 or min(self.per_minute, self.timeout) <= 0:
            raise EndpointError(
                f"parallel={self.parallel} and attempts={self.attempts} must be at least 1, "
                f"per_minute={self.per_minute} and timeout={self.timeout} positive"
            )
        self._pace = Pace(self.per_minute)

    @staticmethod
    def from_environment(**options: Any) -> Endpoint:
        """Raises EndpointError where the URL or the model is not set."""
        missing = [name for name in (URL, MODEL) if not os.environ.get(name)]
        if missing:
            raise EndpointError(
                f"no judge is set: {' and '.join(missing)} missing; set {URL} (such as https://api.openai.com/v1), "
                f"{MODEL} (such as gpt-4o-mini) and, where the endpoint wants one, {KEY}"
            )
        return Endpoint(os.environ[URL], os.environ[MODEL], os.environ.get(KEY, ""), **options)

    def complete(self, asks: Sequence[Ask]) -> list[str]:
        """The answers in order, each question asked once. Raises EndpointError; what was answered till then is kept."""
        answers = {ask: self.known(ask) for ask in asks}
        todo = [ask for ask, answer in answers.items() if answer is None]
        stop = threading.Event()
        with ThreadPoolExecutor(self.parallel) as pool:
            futures = {pool.submit(self._ask, ask, stop): ask for ask in todo}
            try:
                for future in as_completed(futures):
                    answers[futures[future]] = future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [answers[ask] or "" for ask in asks]

    def known(self, ask: Ask) -> str | None:
        """The answer in the cache. One that cannot be read is none."""
        try:
            answer = json.loads(self._place(ask).read_text(encoding="utf-8"))["answer"]
            return answer if isinstance(answer, str) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _place(self, ask: Ask) -> Path:
        text = json.dumps([self.url, self.model, ask.messages, ask.max_tokens])
        digest = hashlib.sha256(text.encode()).hexdigest()
        return paths.cache() / "judge" / digest[:2] / f"{digest}.json"

    def _ask(self, ask: Ask, stop: threading.Event) -> str:
        """One answer, kept. Raises EndpointError where it does not come, or where another question failed."""
        reason = ""
        for attempt in range(self.attempts):
            if stop.wait(self._pace.turn()):
                break
            try:
                answer = self._request(ask)
            except _Passing as error:
                reason, asked = str(error), error.wait
                log.info("%s: %s (attempt %d of %d)", self.url, reason, attempt + 1, self.attempts)
                if asked is not None and asked > self.longest_wait:
                    raise EndpointError(
                        f"{self.url}: {reason}, and asks to wait {asked:.0f} s, more than {self.longest_wait:.0f}; "
                        "run again then: what was answered is kept"
                    ) from None
                if asked is not None:
                    self._pace.pause(asked)
                elif attempt + 1 < self.attempts:
                    stop.wait(min(self.first_wait * 2**attempt, self.longest_wait) * random.uniform(0.75, 1.25))
                continue
            if answer:  # an empty one says nothing, and may be better next time
                with paths.whole(self._place(ask)) as aside:
                    aside.write_text(json.dumps({"model": self.model, "answer": answer}), encoding="utf-8")
            return answer
        raise EndpointError(
            f"{self.url}: no answer after {self.attempts} attempts ({reason}); see that it is up and that {URL} is "
            "right, then run again: what was answered is kept"
        )

    def _request(self, ask: Ask) -> str:
        messages = [{"role": role, "content": content} for role, content in ask.messages]
        body = {"model": self.model, "messages": messages, "temperature": 0, self.limit: ask.max_tokens}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        address = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        try:
            with urllib.request.build_opener(_Stay).open(request, timeout=self.timeout) as response:
                return _answer(response.read(LARGEST))
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(self._hidden(f"no answer ({error})")) from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What an error status means: to be tried again, or not."""
        try:
            said = " ".join(error.read(LARGEST).decode("utf-8", "replace").split())[:300]
        except (OSError, http.client.HTTPException):
            said = ""
        reason = self._hidden(f"status {error.code} {said}".strip())
        if error.code in PASSING or error.code >= 500:
            return _Passing(reason, _seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            return EndpointError(f"{self.url} refuses the key ({reason}); see {KEY}")
        return EndpointError(f"{self.url}: {reason}; see {URL}, {MODEL} and what the endpoint takes")

    def _hidden(self, text: str) -> str:
        """Without the key, which some endpoints repeat."""
        return text.replace(self.key, "***") if self.key else text


def _answer(body: bytes) -> str:
    """The message in a completion, "" where it is none or was cut off. Raises _Passing for anything else."""
    try:
        choice = json.loads(body)["choices"][0]
        content, ended = choice["message"]["content"], choice.get("finish_reason") != "length"
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Passing(f"{len(body)} bytes that are no completion") from None
    return content if isinstance(content, str) and ended else ""


def _seconds(header: str | None) -> float | None:
    """Of a Retry-After header, which holds seconds or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
