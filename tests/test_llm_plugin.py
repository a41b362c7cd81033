"""Our models in simonw's llm: through its Python API and its command line."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner
from fake_model import FakeModel, byte_tokenizer_folder, install
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

llm = pytest.importorskip("llm")
import yaml  # noqa: E402
from llm.cli import cli  # noqa: E402
from llm.plugins import load_plugins, pm  # noqa: E402

from lapinfer.companions import llm_plugin  # noqa: E402
from lapinfer.errors import DoesNotFitError  # noqa: E402
from lapinfer.options import SamplingParams, declared  # noqa: E402

ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs" / "guides" / "companions.md").read_text(encoding="utf-8")
ANSWER, BASE = "Paris.", "http://127.0.0.1:8080/v1"
TOOLS = (
    "{% for t in tools or [] %}{{ t.function.name }}?{% endfor %}{% for m in messages %}[{{ m.role }} {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments.city }}{{ c.id }}{% endfor %}"
    "{{ m.tool_call_id }}]{% endfor %}"
)


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    """The plugin within llm, whether lapinfer is installed or not; llm's own files go to a folder of this test."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    load_plugins()
    known = pm.is_registered(llm_plugin)
    if not known:
        pm.register(llm_plugin, "lapinfer")
    llm_plugin._models.cache_clear()
    yield
    llm_plugin._models.cache_clear()
    if not known:
        pm.unregister(llm_plugin)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The engine that `lapinfer/smollm2` is; `asked` has what was loaded, and how."""
    model = FakeModel(byte_tokenizer_folder(tmp_path / "model"), ctx=4096, script=[*ANSWER.encode(), 257])
    model.asked = install(monkeypatch, lambda: model)
    return model


def blocks(kind: str) -> list[str]:
    """Code blocks of docs/guides/companions.md."""
    return re.findall(rf"```{kind}\n(.*?)```", DOC, re.DOTALL)


def ask(*arguments):
    return CliRunner().invoke(cli, [*arguments, "--no-log"] if arguments[0] == "-m" else arguments)


def read(model: FakeModel) -> str:
    """The prompt that the model read last."""
    return bytes(t for t in model.cache[0][: model.prompt_end] if t < 256).decode()


def test_the_entry_point_is_this_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert importlib.import_module(project["entry-points"]["llm"]["lapinfer"]) is llm_plugin
    assert "register_models" in {caller.name for caller in pm.get_hookcallers(llm_plugin) or []}


def test_models_are_listed_without_the_engine():
    code = (
        "import sys, llm.plugins; from lapinfer.companions import llm_plugin as p; llm.plugins.pm.register(p);"
        "print(*(m.model_id for m in llm.get_models() if m.model_id.startswith('lapinfer/')));"
        "print([m for m in ('numba', 'lapinfer.loading', 'lapinfer.model') if m in sys.modules])"
    )
    environment = {"LLM_LOAD_PLUGINS": "", "PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    names, imported = done.stdout.splitlines()
    assert {"lapinfer/austen-fff", "lapinfer/austen-dense"} <= set(names.split())
    assert imported == "[]"


def test_models_that_cannot_be_listed_stop_nothing(monkeypatch):
    def fail():
        raise PermissionError(13, "no")

    monkeypatch.setattr("lapinfer.checkpoint.hub.list_local", fail)
    assert not [model for model in llm.get_models() if model.model_id.startswith("lapinfer/")]


def test_an_answer_comes_token_by_token_and_the_model_stays(fake):
    for question in ("capital?", "And?"):
        response = llm.get_model("lapinfer/smollm2").prompt(question)
        assert list(response) == list(ANSWER)
        usage = response.usage()
        assert (usage.input, usage.output) == (fake.prompt_end, len(ANSWER) + 1)
        assert response.response_json["finish_reason"] == "stop"
    assert [name for name, _ in fake.asked] == ["/x"]
    assert not fake.closed


def test_a_conversation_is_told_whole_and_its_beginning_is_not_read_again(fake):
    talk = llm.get_model("lapinfer/smollm2").conversation()
    talk.prompt("capital?", system="Be brief.").text()
    again = talk.prompt("Sure?")
    assert again.text() == ANSWER
    told = [read(fake).index(text) for text in ("system\nBe brief.", "capital?", ANSWER, "Sure?")]
    assert told == sorted(told)
    reused = again.usage().details["prompt_tokens_details"]["cached_tokens"]
    assert reused > len("system\nBe brief.capital?")


def test_options_are_those_of_the_library(fake):
    model = llm.get_model("lapinfer/smollm2")
    fields = model.Options.model_fields
    assert {"max_tokens", "ctx", "threads", *declared(SamplingParams)} <= set(fields)
    assert "slots" not in fields
    assert all(field.default is None and field.description for field in fields.values())
    assert model.prompt("capital?", max_tokens=3, temperature=0).text() == ANSWER[:3]
    model.prompt("capital?", ctx=128, threads=1).text()
    assert [(asked["ctx"], asked["threads"]) for _, asked in fake.asked] == [(None, None), (128, 1)]
    with pytest.raises(ValueError, match="expected a whole number from 0, got -3"):
        model.prompt("capital?", top_k=-3)


def test_answers_keep_to_a_schema(fake):
    pytest.importorskip("llguidance")
    fake.script = None
    schema = {
        "type": "object", "properties": {"legs": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["legs"],
        "additionalProperties": False,
    }  # fmt: skip
    response = llm.get_model("lapinfer/smollm2").prompt("x", schema=schema, seed=1)
    jsonschema.validate(json.loads(response.text()), schema)


def test_tools_are_called_and_their_results_come_back(fake, tmp_path):
    folder = byte_tokenizer_folder(tmp_path / "tools", chat=TOOLS)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<tool_call>", "</tool_call>")])
    backend.save(str(folder / "tokenizer.json"))
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    fake.texts, fake.script = folder, [*backend.encode(call).ids, 257]
    fake.spec = FakeModel(vocab=backend.get_vocab_size()).spec
    asked = []

    def weather(city: str) -> str:
        """Of a city."""
        asked.append(city)
        fake.script = [*b"It rains.", 257]
        return "rain"

    chain = llm.get_model("lapinfer/smollm2").chain("Well?", tools=[weather])
    assert chain.text() == "It rains."
    assert asked == ["Bern"]
    (made,) = chain._responses[0].tool_calls()
    id = made.tool_call_id
    assert read(fake) == f"weather?[user Well?][assistant Bern{id}][tool rain{id}]"


def test_thinking_is_no_part_of_the_answer(fake):
    fake.script = [*b"<think>Hm.</think>Yes.", 257]
    events = list(llm.get_model("lapinfer/smollm2").prompt("x").stream_events())
    said = {kind: "".join(e.chunk for e in events if e.type == kind) for kind in ("reasoning", "text")}
    assert said == {"reasoning": "Hm.", "text": "Yes."}


def test_without_a_chat_template_the_text_goes_on(fake, tmp_path):
    fake.texts = byte_tokenizer_folder(tmp_path / "plain", chat=None)
    model = llm.get_model("lapinfer/smollm2")
    talk = model.conversation()
    assert talk.prompt("Once ").text() == ANSWER
    assert talk.prompt(" More ").text() == ANSWER
    assert read(fake) == f"Once {ANSWER} More "
    with pytest.raises(llm.ModelError, match="no chat template, which a system prompt needs"):
        model.prompt("Once", system="Be brief.").text()


def test_an_event_loop_has_the_same_answers(fake):
    async def answer():
        return await llm.get_async_model("lapinfer/smollm2").prompt("capital?").text()

    assert asyncio.run(answer()) == ANSWER


def test_what_goes_wrong_is_one_line(fake, monkeypatch):
    model = llm.get_model("lapinfer/smollm2")
    with pytest.raises(llm.ModelError, match=r"^the prompt has \d+ tokens, but the context holds 4096"):
        model.prompt("x" * 5000).text()

    def fail(*arguments, **options):
        raise DoesNotFitError("x: needs 9 GB\x1b")

    monkeypatch.setattr("lapinfer.loading.load_model", fail)
    with pytest.raises(llm.ModelError, match=r"^x: needs 9 GB\\x1b$"):
        model.prompt("x", ctx=9).text()


def test_after_ctrl_c_the_next_answer_is_right(fake):
    talk = llm.get_model("lapinfer/smollm2").conversation()
    stopped = talk.prompt("capital?")
    for _ in zip(range(3), stopped, strict=False):
        pass
    step = fake.step

    def interrupted(*arguments, **options):
        fake.step = step
        raise KeyboardInterrupt

    fake.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        talk.prompt("capital?").text()
    assert talk.prompt("capital?").text() == ANSWER


def test_the_command_line_of_llm(fake):
    listed = ask("models", "list")
    assert "lapinfer/smollm2" in listed.stdout.splitlines()
    told = ask("-m", "lapinfer/smollm2", "capital?", "-o", "temperature", "0", "-u")
    assert (told.exit_code, told.stdout) == (0, ANSWER + "\n")
    assert f"{len(ANSWER) + 1} output" in told.stderr
    wrong = ask("-m", "lapinfer/smollm2", "capital?", "-o", "top_p", "7")
    assert wrong.exit_code == 1
    assert "expected a number from 0 to 1, got 7.0" in wrong.stderr


def test_python_and_settings_of_the_documentation(fake, tmp_path, capsys):
    for example in blocks("python"):
        code = compile(example, "docs/guides/companions.md", "exec")
        if "import llm\n" in example:
            exec(code)
    assert capsys.readouterr().out == ANSWER
    mine, continues = map(yaml.safe_load, blocks("yaml"))
    (tmp_path / "llm" / "extra-openai-models.yaml").write_text(yaml.safe_dump(mine))
    model = llm.get_model("fox")
    assert (model.api_base, model.model_name, model.key) == (BASE, "smollm2", None)
    assert continues["models"][0]["apiBase"] == BASE


@pytest.mark.parametrize("line", re.findall("^llm .*", "\n".join(blocks("sh")), re.MULTILINE))
def test_commands_of_the_documentation(fake, line):
    pytest.importorskip("llguidance")
    line = line.replace("lapinfer/austen-fff", "lapinfer/smollm2")
    done = CliRunner().invoke(cli, shlex.split(line)[1:], input="capital?\nexit\n")
    assert done.exit_code == 0, (done.output, done.exception)
    assert ("lapinfer/smollm2" if "models" in line else ANSWER if "schema" not in line else "{") in done.stdout
