"""The server: who may ask, what it says of itself and of errors, models that come and go, and its end."""

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from serving import KEY, running, served, state_of  # noqa: E402
from talking_model import talking_model  # noqa: E402

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
