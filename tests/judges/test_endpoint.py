"""A real HTTP server on this machine that answers well, late, wrong, too often, or not at all."""

import dataclasses
import email.utils
import json
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from saecore import paths
from saecore.judges import Ask, Endpoint, EndpointError, LanguageJudge
from saecore.judges.base import ask
from saecore.judges.endpoint import KEY, MODEL, URL, _seconds

SECRET = "sk-very-secret-0123456789"


class Server(ThreadingHTTPServer):
    """``script`` holds what the next requests meet, then every one gets ``answer``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.times: list[float] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.answer = lambda body: "42"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that gave up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(body | {"path": self.path})
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
            step = server.script.pop(0) if server.script else "ok"
        try:
            self.meet(step, body)
        finally:
            with server.lock:
                server.busy -= 1

    def meet(self, step: str, body: dict) -> None:
        kind, _, value = step.partition(":")
        if kind == "late":
            time.sleep(float(value))
        elif kind == "drop":
            self.connection.close()
            return
        elif kind == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            return
        elif kind == "status":
            code, _, after = value.partition(",")
            self.reply(int(code), f'{{"error": "no {SECRET}"}}', {"Retry-After": after} if after else {})
            return
        elif kind == "redirect":
            self.reply(302, "", {"Location": value})
            return
        elif kind == "garbage":
            self.reply(200, value, {})
            return
        message = {"role": "assistant", "content": self.server.answer(body)}
        reason = "length" if kind == "cut" else "stop"
        self.reply(200, json.dumps({"choices": [{"message": message, "finish_reason": reason}]}), {})

    def reply(self, code: int, text: str, headers: dict) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format, *args) -> None:
        pass


@pytest.fixture
def server():
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv(paths.CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


def endpoint(server: Server, **options) -> Endpoint:
    options = {"first_wait": 0.01, "timeout": 5, "per_minute": 60_000} | options
    return Endpoint(server.url, "judge-1", SECRET, **options)


def asks(*contents: str) -> list[Ask]:
    return [Ask((("user", content),), 7) for content in contents]


def test_a_question_is_sent_as_chat_completions_want_it(server):
    assert endpoint(server).complete(asks("hello")) == ["42"]
    assert server.requests == [
        {"model": "judge-1", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 7,
         "path": "/v1/chat/completions"}
    ]  # fmt: skip
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    dataclasses.replace(endpoint(server), key="", limit="max_completion_tokens").complete(asks("again"))
    assert "Authorization" not in server.headers[1] and server.requests[1]["max_completion_tokens"] == 7


@pytest.mark.parametrize(
    "step",
    ["drop:", "half:", "status:500", "status:503", "status:408", "status:429", "garbage:<html>", "garbage:{}",
     'garbage:{"choices": []}', 'garbage:{"choices": [{"message": "no"}]}', "garbage:[1]", "garbage:"],
)  # fmt: skip
def test_what_may_pass_is_tried_again(server, step):
    server.script = [step, step]
    assert endpoint(server).complete(asks("hello")) == ["42"]
    assert len(server.requests) == 3


def test_an_answer_that_is_late_is_tried_again(server):
    server.script = ["late:1"]
    assert endpoint(server, timeout=0.2).complete(asks("hello")) == ["42"]
    assert len(server.requests) == 2


def test_waits_grow_from_one_try_to_the_next(server):
    server.script = ["status:500"] * 4
    endpoint(server, first_wait=0.05).complete(asks("hello"))
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert all(gap >= 0.05 * 2**i * 0.75 for i, gap in enumerate(gaps))


def test_retry_after_is_kept_by_every_question(server):
    server.script = ["status:429,0.5"]
    begun = time.monotonic()
    endpoint(server, parallel=1).complete(asks("one", "two"))
    assert all(t - begun >= 0.5 for t in server.times[1:]) and len(server.times) == 3


def test_retry_after_is_read_as_seconds_or_as_a_date():
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=90))
    assert _seconds(soon) == pytest.approx(90, abs=2)
    assert (_seconds("3"), _seconds("-1"), _seconds("soon"), _seconds(None)) == (3.0, 0.0, None, None)


def test_a_wait_beyond_patience_is_an_error_at_once(server):
    server.script = ["status:429,3600"]
    with pytest.raises(EndpointError, match="asks to wait 3600 s, more than 120; run again then"):
        endpoint(server).complete(asks("hello"))
    assert len(server.requests) == 1


def test_an_endpoint_that_stays_broken_is_an_error_and_what_was_answered_is_kept(server):
    server.script = ["ok"] + ["status:500"] * 3
    judge = endpoint(server, parallel=1, attempts=3)
    with pytest.raises(EndpointError, match=r"no answer after 3 attempts \(status 500 .*what was answered is kept"):
        judge.complete(asks("one", "two", "three"))
    before = len(server.requests)
    assert judge.complete(asks("one", "two", "three")) == ["42"] * 3
    again = [r["messages"][0]["content"] for r in server.requests[before:]]
    assert again[0] == "two" and "one" not in again


@pytest.mark.parametrize(("code", "wanted"), [(401, f"refuses the key .*see {KEY}"), (404, f"status 404.*see {URL}")])
def test_what_cannot_pass_is_not_tried_again(server, code, wanted):
    server.script = [f"status:{code}"]
    with pytest.raises(EndpointError, match=wanted):
        endpoint(server).complete(asks("hello"))
    assert len(server.requests) == 1


def test_a_failure_stops_the_other_questions(server):
    server.script = ["status:401"]
    with pytest.raises(EndpointError):
        endpoint(server, parallel=1).complete(asks(*map(str, range(50))))
    assert len(server.requests) < 5


def test_an_endpoint_that_is_down_is_one_clear_line(server):
    judge = Endpoint("http://127.0.0.1:9/v1", "judge-1", SECRET, first_wait=0.01, attempts=2)
    with pytest.raises(EndpointError, match=r"http://127.0.0.1:9/v1: no answer after 2 attempts .*see that it is up"):
        judge.complete(asks("one", "two"))


def test_answers_are_asked_for_once(server, places):
    server.answer = lambda body: body["messages"][0]["content"].upper()
    judge = endpoint(server)
    assert judge.complete(asks("a", "b", "a")) == ["A", "B", "A"]
    assert endpoint(server).complete(asks("b", "a")) == ["B", "A"]
    assert len(server.requests) == 2
    assert judge.known(asks("a")[0]) == "A" and judge.known(asks("c")[0]) is None
    others = (dataclasses.replace(judge, model="judge-2"), dataclasses.replace(judge, url="http://127.0.0.1:9/v1"))
    assert [other.known(asks("a")[0]) for other in others] == [None, None]
    assert judge.known(Ask((("user", "a"),), 8)) is None
    files = list((places / "cache" / "judge").rglob("*"))
    assert len([f for f in files if f.is_file()]) == 2 and not [f for f in files if ".partial" in f.name]


def test_an_empty_answer_is_not_kept(server):
    server.answer = lambda body: ""
    judge = endpoint(server)
    assert judge.complete(asks("a")) == [""] and judge.known(asks("a")[0]) is None
    server.answer = lambda body: "A"
    assert judge.complete(asks("a")) == ["A"] and judge.known(asks("a")[0]) == "A"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"answer": 3}'])
def test_a_damaged_answer_in_the_cache_is_asked_again(server, places, damage):
    judge = endpoint(server)
    judge.complete(asks("a"))
    (file,) = [f for f in (places / "cache" / "judge").rglob("*") if f.is_file()]
    file.write_text(damage)
    assert judge.complete(asks("a")) == ["42"] and len(server.requests) == 2
    assert judge.known(asks("a")[0]) == "42"


def test_questions_run_side_by_side_but_no_more_than_allowed(server):
    server.script = ["late:0.2"] * 8
    begun = time.monotonic()
    endpoint(server, parallel=4).complete(asks(*map(str, range(8))))
    assert server.busiest == 4 and time.monotonic() - begun < 8 * 0.2


def test_the_rate_is_kept(server):
    endpoint(server, parallel=8, per_minute=1200).complete(asks(*map(str, range(6))))
    assert max(server.times) - min(server.times) >= 5 * 0.05 - 0.02


def test_an_answer_that_was_cut_off_counts_as_none(server):
    server.script = ["cut:"]
    server.answer = lambda body: "1, 2, 3"
    assert endpoint(server).complete(asks("hello")) == [""]


def test_a_redirect_is_not_followed(server):
    elsewhere = Server()
    server.script = [f"redirect:{elsewhere.url}"]
    with pytest.raises(EndpointError, match="status 302"):
        endpoint(server).complete(asks("hello"))
    assert not elsewhere.requests
    elsewhere.server_close()


def test_the_key_is_never_shown(server, places, caplog):
    caplog.set_level(logging.DEBUG)
    server.script = ["ok", "status:429", "status:500", "status:401"]
    judge = endpoint(server, parallel=1)
    with pytest.raises(EndpointError) as failure:
        judge.complete(asks("one", "two"))
    texts = [caplog.text, repr(judge), str(judge), str(failure.value), repr(failure.value)]
    texts += [repr(failure.value.__cause__), f.read_text() if (f := next(_files(places))) else ""]
    assert not [text for text in texts if SECRET in text]
    assert "***" in str(failure.value) and "***" in caplog.text


def _files(places):
    return (f for f in (places / "cache").rglob("*") if f.is_file())


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"url": "file:///etc/passwd"}, f"{URL}='file:///etc/passwd' is no http address"),
        ({"url": "localhost"}, "is no http address"),
        ({"url": "http://me:word@localhost/v1"}, "holds @ or"),
        ({"url": "https://:word@localhost/v1"}, "holds @ or"),
        ({"url": "me:word@localhost/v1"}, "holds @ or"),
        ({"url": "ftp://me:word@localhost/v1"}, "holds @ or"),
        ({"url": "https://localhost/v1?key=word"}, "holds @ or"),
        ({"model": ""}, f"{MODEL} is empty"),
        ({"key": "sk-one\nsk-two"}, "holds a blank or a character that no header may hold"),
        ({"parallel": 0}, "parallel=0"),
        ({"per_minute": 0}, "per_minute=0"),
    ],
)
def test_what_cannot_be_used_is_refused(server, change, wanted):
    with pytest.raises(EndpointError) as failure:
        dataclasses.replace(endpoint(server), **change)
    assert wanted in str(failure.value) and "sk-one" not in str(failure.value) and "word" not in str(failure.value)


def test_it_is_set_by_the_environment(server, monkeypatch):
    for name in (URL, MODEL, KEY):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EndpointError, match=f"{URL} and {MODEL} missing; set {URL}"):
        Endpoint.from_environment()
    monkeypatch.setenv(URL, server.url + "/")
    monkeypatch.setenv(MODEL, "judge-1")
    monkeypatch.setenv(KEY, f" {SECRET}\n")
    assert Endpoint.from_environment(parallel=2).complete(asks("hello")) == ["42"]
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert server.requests[0]["path"] == "/v1/chat/completions"


def test_a_whole_judgement_survives_a_bad_hour_and_costs_nothing_twice(server, trials):
    def answer(body: dict) -> str:
        content = body["messages"][0]["content"]
        lines = [line.partition(". ")[2] for line in content.splitlines() if line[:1].isdigit()]
        if "<<" in content:
            return f"This neuron fires on {lines[0].split('<<')[1].split('>>')[0].strip()}"
        word = content.split("fires on ")[1].split(".")[0]
        return ", ".join(str(i) for i, line in enumerate(lines, 1) if f"{word} " in f"{line} ")

    server.answer = answer
    server.script = ["drop:", "status:500", "garbage:<p>", "ok", "status:429,0.1", "late:0.1", "half:"]
    judged = ask(LanguageJudge(endpoint(server)), trials)
    assert [j.accuracy for j in judged] == [j.accuracy_hard for j in judged] == [1.0] * 3
    before = len(server.requests)
    judge = LanguageJudge(endpoint(server))
    assert judge.plan(trials, 1.0, 1.0).cached == 9 and judge.plan(trials, 1.0, 1.0).cost == 0
    assert [j.accuracy for j in ask(judge, trials)] == [1.0] * 3
    assert len(server.requests) == before
