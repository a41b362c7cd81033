"""The server: who may ask, what it says of itself and of errors, models that come and go, and its end."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from serving import KEY, running, served, state_of  # noqa: E402
from talking_model import talking_model  # noqa: E402

from lapinfer.errors import CheckpointError, LapinferError, TemplateError  # noqa: E402
from lapinfer.serve import models  # noqa: E402

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served(tmp_path_factory.mktemp("model"), {"fox": "The fox."}, cors=("https://good.example",)) as url:
        yield url


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, headers=AUTHORIZED, timeout=20) as client:
        yield client


def test_health_needs_no_key(url):
    answer = httpx.get(f"{url}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_models_are_listed(client):
    (entry,) = client.get("/v1/models").json()["data"]
    assert (entry["id"], entry["object"], entry["loaded"]) == ("fake", "model", False)
    assert client.get("/v1/models/fake").json()["id"] == "fake"


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/models", {}, 401, "invalid_api_key"),
        ("/v1/models", {"Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ("/v1/models", {"x-api-key": "wrong"}, 401, "invalid_api_key"),
        ("/v1/models/other", AUTHORIZED, 404, "model_not_found"),
        ("/nothing/here", AUTHORIZED, 404, None),
        ("/v1/models", AUTHORIZED | {"Origin": "https://evil.example"}, 403, None),
        ("/tokenizer_info", AUTHORIZED | {"Sec-Fetch-Site": "cross-site"}, 403, None),  # <img src=…>: no Origin
    ],
)
def test_errors_have_openais_body(url, path, headers, status, code):
    answer = httpx.get(url + path, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("headers", [AUTHORIZED, {"Authorization": f"bearer {KEY}"}, {"x-api-key": KEY}])
def test_the_key_opens(url, headers):
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200


def test_pages_of_other_origins(url):
    preflight = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization"}  # fmt: skip
    answer = httpx.options(f"{url}/v1/models", headers=preflight)
    assert answer.headers["access-control-allow-origin"] == "https://good.example"
    answer = httpx.get(f"{url}/v1/models", headers=AUTHORIZED | {"Origin": "https://good.example"})
    assert answer.headers["access-control-allow-origin"] == "https://good.example"
    assert httpx.options(f"{url}/v1/models", headers=preflight | {"Origin": "https://evil.example"}).is_client_error


def test_a_link_elsewhere_opens_the_page(url):
    assert httpx.get(url, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example:8080", 403), ("[", 403)],
)
def test_without_a_key_no_site_can_call_this_computer_its_own(tmp_path, host, status):
    with (
        running(state_of({"fake": lambda: talking_model(tmp_path, {})}, api_key=None)) as (url, _),
        httpx.Client() as client,
    ):
        assert client.get(f"{url}/v1/models", headers={"Host": host}).status_code == status


LONG = "word " * 50


def chat(text="long", **options):
    return {"model": "fake", "messages": [{"role": "user", "content": text}]} | options


@contextmanager
def slow(folder, delay=0.002, slots=1, **options):
    """(client, scheduler, uvicorn's server) of a model that takes its time."""
    model = talking_model(folder, {"long": LONG, "short": "ok"}, delay=delay, slots=slots)
    state = state_of({"fake": lambda: model}, **options)
    with running(state) as (url, server), httpx.Client(base_url=url, headers=AUTHORIZED, timeout=20) as client:
        client.post("/v1/chat/completions", json=chat("short")).raise_for_status()
        yield client, state.models.loaded[0].scheduler, server


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_full_server_says_when_to_try_again(tmp_path):
    with slow(tmp_path, queue=1) as (client, _, _):
        streams = [client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) for _ in range(2)]
        with streams[0] as first, streams[1] as second:
            answer = client.post("/v1/chat/completions", json=chat())
            assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(answer.headers["retry-after"]) >= 1
            assert client.post("/v1/messages", json=chat() | {"max_tokens": 5}).status_code == 429
            many = client.post("/v1/completions", json={"prompt": ["x"] * 3})
            assert (many.status_code, "room for 2" in many.json()["error"]["message"]) == (400, True)
            for stream in (first, second):
                assert text_of(stream.iter_lines()) == LONG
        assert 'lapinfer_requests_refused_total{model="fake"} 2.0' in client.get("/metrics").text


def text_of(lines):
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return "".join(json.loads(each)["choices"][0]["delta"].get("content", "") for each in data[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_forgotten_within_a_step(tmp_path, stream):
    with slow(tmp_path) as (client, scheduler, _):
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=chat(), timeout=0.05)
        until(lambda: scheduler.stats().cancelled == 1)
        steps = scheduler.stats().steps
        until(lambda: scheduler.stats().running == 0)
        assert scheduler.stats().steps <= steps + 1
        assert (
            client.post("/v1/chat/completions", json=chat("short")).json()["choices"][0]["message"]["content"] == "ok"
        )


def test_answers_that_run_come_to_their_end(tmp_path):
    with slow(tmp_path, queue=4) as (client, scheduler, server):
        answers = []
        ask = lambda: answers.append(httpx.post(  # noqa: E731
            f"{client.base_url}/v1/chat/completions", json=chat(stream=True), headers=AUTHORIZED, timeout=20
        ).text)  # fmt: skip
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: scheduler.stats().running + scheduler.stats().waiting == 3)
        server.drain()
        for thread in threads:
            thread.join()
        assert [text_of(answer.splitlines()) for answer in answers] == [LONG] * 3
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{client.base_url}/health")


def test_an_answer_has_its_time(tmp_path):
    with slow(tmp_path, delay=0.01, timeout=0.1) as (client, scheduler, _):
        answer = client.post("/v1/chat/completions", json=chat())
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert answer.headers["x-should-retry"] == "false"
        *_, last, _ = client.post("/v1/chat/completions", json=chat(stream=True)).text.splitlines()
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        until(lambda: scheduler.stats().running == 0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/tokenize"])
def test_bodies_have_a_size(tmp_path, path):
    with slow(tmp_path, body=0.001) as (client, *_):
        assert client.post(path, content=b" " * 1001).status_code == 413
        chunks = iter([b" " * 600, b" " * 600])
        assert client.post(path, content=chunks).status_code == 413
        wrong = client.post(path, content=b"{")
        assert (wrong.status_code, "JSON" in str(wrong.json()["error"]["message"])) == (400, True)


def test_metrics_tell_what_happened(tmp_path):
    with slow(tmp_path) as (client, *_):
        client.post("/v1/chat/completions", json=chat("short"))
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        value = lambda name: float(lines[f'lapinfer_{name}{{model="fake"}}'])  # noqa: E731
        assert (value("requests_total"), value("generated_tokens_total")) == (2, 2 * len("ok") + 2)
        assert (value("requests_running"), value("requests_waiting")) == (0, 0)
        assert lines['lapinfer_prefix_hits_total{model="fake",tier="slots"}'] == "1.0"
        assert value("prefix_misses_total") == 1
        assert value("time_to_first_token_seconds_count") == 2
        assert value("time_between_tokens_seconds_count") == 2 * len("ok")
        assert float(lines['lapinfer_touched_bytes_total{model="fake",part="head"}']) > 0


def test_models_come_and_go(tmp_path):
    made = {name: talking_model(tmp_path / name, {"who": name, "long": LONG}, delay=0.002) for name in "abc"}
    state = state_of({name: lambda name=name: made[name] for name in made}, memory=2)
    with running(state) as (url, _), httpx.Client(base_url=url, headers=AUTHORIZED, timeout=20) as client:

        def ask(name):
            answer = client.post("/v1/chat/completions", json=chat("who", model=name)).json()
            assert (answer["model"], answer["choices"][0]["message"]["content"]) == (name, name)

        ask("a")
        ask("b")
        ask("a")
        assert [each["loaded"] for each in client.get("/v1/models").json()["data"]] == [True, True, False]
        ask("c")
        assert [made[name].model.closed for name in "abc"] == [False, True, False]
        with client.stream("POST", "/v1/chat/completions", json=chat(model="a", stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            made["b"] = talking_model(tmp_path / "again", {"who": "b"})
            ask("b")  # c leaves, though it was used later: a has somebody
            assert [made[name].model.closed for name in "ac"] == [False, True]
            assert text_of(lines) == LONG


def test_who_waits_for_a_models_memory_is_told_after_its_time():
    async def ask():
        model = SimpleNamespace(tokenizer=None)
        state = state_of({"a": lambda: model, "b": lambda: model}, memory=1, timeout=0.1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models, "Scheduler", lambda model, most_waiting: SimpleNamespace(close=lambda: None))
            with await state.models.lease("a"):
                told = await asyncio.gather(*[state.models.lease("b") for _ in range(2)], return_exceptions=True)
                assert [(each.status, each.headers) for each in told] == [(503, {"Retry-After": "30"})] * 2
            model.close = lambda: None
            (await state.models.lease("b")).release()
            assert [each.name for each in state.models.loaded] == ["b"]

    asyncio.run(ask())


def test_a_model_that_gets_no_thread_is_closed(monkeypatch):
    model, closed = SimpleNamespace(tokenizer=None), []
    model.close = lambda: closed.append(True)

    def none(*given, **options):
        raise LapinferError("the system refuses one more thread")

    monkeypatch.setattr(models, "Scheduler", none)
    with pytest.raises(LapinferError, match="one more thread"):
        asyncio.run(state_of({"a": lambda: model}).models.lease("a"))
    assert closed


@pytest.mark.parametrize(
    ("size", "error", "status"),
    [
        (3, None, 503),
        (1, CheckpointError("/home/me/secret/model.safetensors: is damaged"), 500),
        (1, TemplateError("/home/me/secret/tokenizer_config.json:3: the chat template failed"), 400),
        (1, KeyError("x"), 500),
    ],
)
def test_what_goes_wrong_tells_no_secrets(size, error, status):
    def fail():
        raise error

    with running(state_of({"fake": fail}, memory=2, size=lambda path, options: size)) as (url, _):
        for path in ("/v1/chat/completions", "/v1/messages"):
            answer = httpx.post(url + path, json=chat("x", max_tokens=5), headers=AUTHORIZED)
            assert answer.status_code == status
            assert not [word for word in ("home", "secret", "Traceback", "KeyError") if word in answer.text]
