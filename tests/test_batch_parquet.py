"""Batches in Parquet: what rows ask, and tables of answers."""

import json
from contextlib import contextmanager

import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("starlette")
import pyarrow.parquet as pq  # noqa: E402

from lapinfer.batch.files import open_source  # noqa: E402
from lapinfer.batch.lines import Line  # noqa: E402
from lapinfer.batch.records import answered, marks, refused  # noqa: E402
from lapinfer.batch.requests import Defaults, LineError, read  # noqa: E402
from lapinfer.batch.run import run  # noqa: E402
from lapinfer.errors import InputError  # noqa: E402


@contextmanager
def start():
    yield lambda lines: map(answer, reversed([*lines]))


def answer(line):
    """As an engine would, of a model that repeats what it is asked."""
    try:
        asked = read(line, Defaults(), model="m", chats=True, ctx=100)
    except LineError as error:
        return refused(line, error)
    assert len(marks(line, asked).id) == 24
    if asked.url == "/v1/embeddings":
        vector = [float(len(asked.body["input"])), 0.5]
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        body = {"object": "list", "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}}
    elif asked.anthropic:
        usage = {"input_tokens": 2, "output_tokens": 3}
        content = [{"type": "text", "text": "hi"}]
        body = {"type": "message", "content": content, "stop_reason": "end_turn", "usage": usage}
    elif asked.body["messages"][-1]["content"] == "bad":
        error = {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
        return answered(line, asked, 400, json.dumps({"error": error}).encode())
    else:
        message = {"role": "assistant", "content": asked.body["messages"][-1]["content"].upper()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}
    return answered(line, asked, 200, json.dumps(body, separators=(",", ":")).encode())


def batch(tmp_path, columns, target="out.parquet", name="in.parquet"):
    pq.write_table(pa.table(columns), tmp_path / name, row_group_size=3)
    run(open_source(str(tmp_path / name)), tmp_path / target, start, {})
    return tmp_path / target


def asked(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    return [json.loads(line.text) for line in open_source(str(tmp_path / "in.parquet")).lines()]


def test_rows_keep_their_columns_and_get_answers(tmp_path):
    prompts = ["fox", None, "bad", *(f"p{n}" for n in range(10))]
    columns = {"prompt": prompts, "rank": range(13), "answer": ["mine"] * 13}
    table = pq.read_table(batch(tmp_path, columns))
    assert table.column_names == [
        "prompt", "rank", "answer",
        "answer_2", "finish_reason", "prompt_tokens", "completion_tokens", "response", "error",
    ]  # fmt: skip
    rows = table.to_pylist()
    assert [row["prompt"] for row in rows] == prompts
    assert [row["rank"] for row in rows] == [*range(13)]
    assert [row["answer_2"] for row in rows] == ["FOX", None, None, *(f"P{n}" for n in range(10))]
    assert rows[0]["completion_tokens"] == 3
    assert json.loads(rows[0]["response"])["choices"][0]["message"]["content"] == "FOX"
    assert rows[1] == dict.fromkeys(rows[1]) | {"rank": 1, "answer": "mine"}
    assert rows[2]["error"] == "no"


def test_embeddings_are_vectors(tmp_path):
    table = pq.read_table(batch(tmp_path, {"text": ["a", "bc"], "id": [1, 2]}))
    assert table.column_names == ["text", "id", "embedding", "prompt_tokens", "completion_tokens", "response", "error"]
    assert table["embedding"].to_pylist() == [[1.0, 0.5], [2.0, 0.5]]
    assert table.schema.field("embedding").type == pa.list_(pa.float32())


def test_between_kinds_of_files(tmp_path):
    lines = ['{"prompt": "a", "custom_id": "x"}', "oops", '{"custom_id": "y", "params": {}}', '{"text": "ab"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    run(open_source(str(tmp_path / "in.jsonl")), tmp_path / "out.parquet", start, {})
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["line"], row["custom_id"], row["answer"]) for row in rows] == [
        (1, "x", "A"), (2, None, None), (3, "y", "hi"), (4, None, None),
    ]  # fmt: skip
    assert "not JSON" in rows[1]["error"]
    assert rows[3]["embedding"] == [2.0, 0.5]
    records = batch(tmp_path, {"prompt": ["a", "b"]}, "out.jsonl").read_text().splitlines()
    assert [json.loads(record)["line"] for record in records] == [1, 2]


def test_more_rows_than_are_written_at_once(tmp_path):
    prompts = [f"p{n}" for n in range(2500)]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    run(open_source(str(tmp_path / "in.txt")), tmp_path / "out.parquet", start, {})
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["answer"].to_pylist() == [prompt.upper() for prompt in prompts]
    assert pq.read_table(batch(tmp_path, {"prompt": prompts}, "two.parquet"))["answer"] == table["answer"]


def test_what_columns_ask(tmp_path):
    message = {"role": "user", "content": "a"}
    assert asked(tmp_path, {"messages": [[message]], "custom_id": [7], "other": [1]}) == [
        {"messages": [message], "custom_id": 7}
    ]
    assert asked(tmp_path, {"messages": [json.dumps([message])]}) == [{"messages": [message]}]
    assert asked(tmp_path, {"prompt": ["[1]"], "temperature": [0.5], "options": ['{"seed": 1}']}) == [
        {"prompt": "[1]", "seed": 1}
    ]
    pairs = pa.array([[("seed", 1)]], pa.map_(pa.string(), pa.int64()))
    assert asked(tmp_path, {"prompt": ["a"], "options": pairs}) == [{"prompt": "a", "seed": 1}]
    options = [{"seed": 1, "stop": None}, {"seed": None, "stop": ["a"]}]
    assert asked(tmp_path, {"prompt": ["a", "b"], "options": options}) == [
        {"prompt": "a", "seed": 1}, {"prompt": "b", "stop": ["a"]},
    ]  # fmt: skip
    assert asked(tmp_path, {"body": ['{"input": "a"}', "oops"], "url": ["/v1/embeddings"] * 2}) == [
        {"url": "/v1/embeddings", "body": {"input": "a"}}, {"url": "/v1/embeddings", "body": "oops"},
    ]  # fmt: skip
    assert asked(tmp_path, {"prompt": pa.array([], pa.string())}) == []


def test_files_that_ask_nothing(tmp_path):
    path = tmp_path / "in.parquet"
    with pytest.raises(InputError, match="expected a column body, params, messages, prompt, input or text, got a"):
        asked(tmp_path, {"a": [1]})
    path.write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(InputError, match=r"in\.parquet: cannot be read as Parquet"):
        open_source(str(path))
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        open_source(str(path))


def test_a_batch_goes_on(tmp_path):
    """Rows that are done are known by what they ask; other columns may change."""

    @contextmanager
    def stopped():
        def answers(lines):
            yield from map(answer, [next(lines)])
            raise KeyboardInterrupt

        yield answers

    pq.write_table(pa.table({"prompt": ["a", "b"], "x": [1, 2]}), tmp_path / "in.parquet")
    source, target = open_source(str(tmp_path / "in.parquet")), tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        run(source, target, stopped, {})
    assert run(source, target, start, {}).before == 1
    assert pq.read_table(target)["answer"].to_pylist() == ["A", "B"]
    assert Line(1, b'{"prompt":"a"}') == next(source.lines())
