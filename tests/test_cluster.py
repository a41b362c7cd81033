"""Batches and servers on a cluster of two nodes on this computer: the same answers, whatever dies in the middle."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("ray")
pytest.importorskip("uvicorn")
from lapinfer.batch.engine import Engine  # noqa: E402
from lapinfer.batch.lines import Line  # noqa: E402
from lapinfer.batch.requests import Defaults  # noqa: E402
from lapinfer.cluster.shares import Range  # noqa: E402
from lapinfer.cluster.start import cluster, imported  # noqa: E402
from lapinfer.errors import CheckpointError, InputError  # noqa: E402
from lapinfer.options import LoadOptions, ServeOptions  # noqa: E402

imported()
ROOT = Path(__file__).parent.parent
MODEL = str(ROOT / "weights" / "austen-fff")
LOADING = LoadOptions(threads=1, slots=4, quant="q8")
DEFAULTS = Defaults(max_tokens=24)
KEY = "secret-of-tests"
STORE = 100_000_000
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray's own use of pydantic
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """(Ray's cluster, homes of its nodes): a head, and a second node that has none of the head's files."""
    from ray.cluster_utils import Cluster

    homes = [tmp_path_factory.mktemp(name) for name in ("head", "second")]
    before = os.environ.get("LAPINFER_HOME")
    os.environ["LAPINFER_HOME"] = str(homes[0])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False},
    )
    try:
        made.add_node(num_cpus=1, object_store_memory=STORE, env_vars={"LAPINFER_HOME": str(homes[1])})
        yield made, homes
    finally:
        made.shutdown()
        os.environ.pop("LAPINFER_HOME") if before is None else os.environ.update(LAPINFER_HOME=before)


@pytest.fixture(scope="module")
def lines():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split()
    asked = ({"prompt": " ".join(text[4 * n : 4 * n + 12]), "custom_id": str(n)} for n in range(120))
    return [Line(number, json.dumps(each).encode()) for number, each in enumerate(asked, 1)]


@pytest.fixture(scope="module")
def records(nodes, lines):
    """What one process answers, by line."""
    engine = Engine.open(MODEL, LoadOptions(threads=2, slots=8, quant="q8"), DEFAULTS)
    found = {each.number: each.record for each in engine.answers(lines)}
    engine.close()
    return found


@contextmanager
def engines(address, count=2, model=MODEL):
    from lapinfer.cluster.documents import engines
    from lapinfer.cluster.offers import offer_of

    with cluster(address) as joined:
        offer = offer_of(joined, model, LOADING, lambda *told: None)
        with engines(offer, LOADING, DEFAULTS, Range(count, count)) as answers:
            yield answers


def processes(name, home):
    """Those of a cluster of this test, by the names that Ray gives them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        if line.startswith(name.encode()) and f"LAPINFER_HOME={home}\0".encode() in environment:
            found.append(int(place.name))
    return found


def test_a_cluster_says_what_it_has(nodes):
    with cluster(nodes[0].address) as joined:
        assert (joined.cpus, joined.own, str(joined)) == ((1, 1), False, "2 nodes with 2 CPUs")


def test_answers_are_those_of_one_process(nodes, lines, records):
    with engines(nodes[0].address) as answers:
        found = [*answers(lines)]
    assert sorted(each.number for each in found) == [line.number for line in lines]
    assert {each.number: each.record for each in found} == records
    copies = [[*home.glob("packed/*/model.safetensors")] for home in nodes[1]]
    assert [len(each) for each in copies] == [1, 1]
    assert copies[0][0].read_bytes() == copies[1][0].read_bytes()


def test_an_engine_that_dies_costs_nothing_but_time(nodes, lines, records):
    found = []
    with engines(nodes[0].address) as answers:
        for each in answers(lines):
            found.append(each)
            if len(found) == 20:
                os.kill(processes("ray::MapWorker", nodes[1][0])[0], signal.SIGKILL)
    assert sorted(each.number for each in found) == [line.number for line in lines]
    assert {each.number: each.record for each in found} == records


def test_a_driver_that_dies_goes_on(nodes, lines, records, tmp_path):
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_bytes(b"".join(line.text + b"\n" for line in lines))
    command = [sys.executable, "-m", "lapinfer", "batch", str(given), "-o", str(out), "-m", MODEL, "-n", "24"]
    command += ["--slots", "4", "--quant", "q8", "--ray", nodes[0].address, "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    part = Path(f"{out}.part")
    while process.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < 12):
        pass
    assert process.poll() is None
    process.kill()
    process.wait()
    done = part.read_bytes().count(b"\n") - 1
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{done:,} lines are done already" in again.stderr
    assert out.read_bytes() == b"".join(records[line.number] + b"\n" for line in lines)


def test_a_model_that_no_engine_can_load(nodes, tmp_path, lines):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((CheckpointError, InputError)), engines(nodes[0].address, model=str(tmp_path)):
        pass


@contextmanager
def served(address):
    """(client, Ray Serve's handle) of two replicas."""
    from lapinfer.cluster.front import Front
    from lapinfer.cluster.offers import offer_of
    from lapinfer.cluster.service import replicas
    from lapinfer.serve.server import address_of, listening, server_of

    serving = ServeOptions(port=0, api_key=KEY)
    with cluster(address) as joined:
        offers = {"austen": offer_of(joined, MODEL, LOADING, lambda *told: None)}
        with replicas(offers, LOADING, serving, Range(2, 2)) as handle:
            front = Front(serving, handle)
            listener, server = listening("127.0.0.1", 0), server_of(front, front.application())
            thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
            thread.start()
            try:
                headers = {"Authorization": f"Bearer {KEY}"}
                with httpx.Client(base_url=address_of(listener), headers=headers, timeout=60) as client:
                    yield client, handle
            finally:
                server.drain()
                thread.join(20)


def counted(client, name):
    """A counter's values, most first."""
    lines = client.get("/metrics").text.splitlines()
    return sorted((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{")), reverse=True)


def ask(client, prompt, **more):
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0} | more
    return client.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["text"]


def test_replicas_behind_one_endpoint(nodes):
    with served(nodes[0].address) as (client, _):
        # A beginning that was read once is not read by another replica.
        novel = "It is a truth universally acknowledged, that a single man in possession of a good fortune, " * 8
        for index in range(6):
            ask(client, f"{novel} {index}")
        assert counted(client, "lapinfer_requests_total") == [6.0]
        for index in range(6):  # without one, they take turns
            ask(client, f"{index}")
        first, second = counted(client, "lapinfer_requests_total")
        assert (first + second, second >= 3) == (12, True)

        # Streams stream, errors are those of the application, the front asks for keys before it reads.
        with client.stream("POST", "/v1/completions", json={"prompt": "x", "max_tokens": 60, "stream": True}) as stream:
            pieces = [piece for piece in stream.iter_raw() if piece]
        assert len(pieces) > 5
        assert pieces[-1].endswith(b"data: [DONE]\n\n")
        assert client.get("/v1/models").json()["data"][0]["id"] == "austen"
        wrong = client.post("/v1/completions", json={"prompt": "x", "temperature": "hot"})
        assert (wrong.status_code, "temperature" in wrong.json()["error"]["message"]) == (400, True)
        assert client.post("/v1/completions", json={}, headers={"Authorization": "Bearer x"}).status_code == 401
        assert client.post("/v1/completions", content=b"x" * 9_000_000).status_code == 413

        # Who leaves is forgotten; a replica that dies is started again, and others answer meanwhile.
        body = {"prompt": "x", "max_tokens": 200, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            next(stream.iter_raw())
        os.kill(processes("ray::ServeReplica", nodes[1][1])[0], signal.SIGKILL)
        assert [ask(client, str(index)) for index in range(4)] == [ask(client, str(index)) for index in range(4)]


def test_a_node_that_dies_costs_nothing_but_time(nodes, lines, records):
    """The last one: the second node is gone after it."""
    made, homes = nodes
    found = []
    with engines(made.address) as answers:
        for each in answers(lines):
            found.append(each)
            if len(found) == 20:
                (raylet,) = made.list_all_nodes()[1].all_processes["raylet"]
                os.kill(raylet.process.pid, signal.SIGKILL)
    assert sorted(each.number for each in found) == [line.number for line in lines]
    assert {each.number: each.record for each in found} == records
    assert not processes("ray::MapWorker", homes[1])


def test_nobody_answers_at_an_address():
    with (
        pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1: no cluster of Ray answers there"),
        cluster("127.0.0.1:1"),
    ):
        pass


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", ":1", "h:x"])
def test_what_is_no_address(address):
    with pytest.raises(InputError, match=f"--ray {address}: expected local, auto, or HOST:PORT"), cluster(address):
        pass
