"""The whole, from the command line to the kernels, on damaged files and absurd requests: one line and an exit code."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny
from fake_model import byte_tokenizer_folder
from packed_files import sealed
from typer.testing import CliRunner

import lapinfer
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.cli import app
from lapinfer.errors import CheckpointError, InputError, LapinferError
from lapinfer.loading import load_model
from lapinfer.options import LoadOptions
from lapinfer.packing.reader import read_packed
from lapinfer.text.language_model import from_model

ROOT = Path(__file__).parent.parent
D, F, V, LAYERS = 32, 64, 258, 2
CONFIG = {
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def stored_tensors():
    shapes = {"model.embed_tokens": (V, D), "model.norm": (D,)}
    for layer in range(LAYERS):
        modules = {
            "input_layernorm": (D,),
            "post_attention_layernorm": (D,),
            "self_attn.q_proj": (D, D),
            "self_attn.k_proj": (D // 2, D),
            "self_attn.v_proj": (D // 2, D),
            "self_attn.o_proj": (D, D),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in modules.items()}
    rng = np.random.default_rng(0)
    return {
        f"{name}.weight": rng.standard_normal(shape, np.float32) / 4 + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def make_checkpoint(folder, tensors=None, **config):
    byte_tokenizer_folder(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    safetensors.numpy.save_file(tensors or stored_tensors(), folder / "model.safetensors")
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    place = tmp_path / "home with spaces, ü and 日本"
    monkeypatch.setenv("LAPINFER_HOME", str(place))
    return place


@pytest.fixture
def checkpoint(tmp_path, home):
    return make_checkpoint(tmp_path / "tiny")


@pytest.fixture
def packed(checkpoint, tmp_path):
    """A packed folder, written by the converter."""
    assert invoke("convert", checkpoint, tmp_path / "packed", "--quant", "q8").exit_code == 0
    return tmp_path / "packed"


def invoke(*arguments, **options):
    return CliRunner().invoke(app, list(map(str, arguments)), **options)


def run(model, *options, prompt="hi", **more):
    return invoke("run", "-m", model, "-n", 4, "--temp", 0, *options, prompt, **more)


def refused(result, *words, code=1):
    """One line on stderr behind the notices, nothing on stdout, no traceback, the exit code."""
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.strip().endswith(lines[0])
    assert len(lines[0]) < 1000
    assert all(word in lines[0] for word in words), lines[0]
    assert result.stdout.strip() == ""


def process(*arguments, **options):
    """The command in a process of its own."""
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        **options,
    )


def finished(started, seconds=60):
    out, err = started.communicate(timeout=seconds)
    return started.returncode, out, err


def damage_header(path, change):
    """Rewrite a safetensors header; `change` edits its entries, the data stays as it is."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text = text.ljust(length) if len(text) <= length else text
    path.unlink()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def cut(path, keep):
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: int(len(data) * keep)])


# Options


@pytest.mark.parametrize(
    ("options", "word", "code"),
    [
        (("-t", 0), "threads", 2),
        (("-t", -1), "threads", 2),
        (("-t", 10_000), "threads", 1),
        (("-c", 10**12), "--ctx-size", 3),
        (("-c", 3), "context holds 3", 1),
        (("--temp", -1), "temperature", 2),
        (("--temp", "nan"), "temperature", 2),
        (("--top-p", 2), "top_p", 2),
        (("--min-p", "nan"), "min_p", 2),
        (("--top-k", -1), "top_k", 2),
        (("--seed", -1), "seed", 2),
        (("--repeat-penalty", 1e300), "repetition_penalty", 2),
        (("--quant", "q7"), "quant", 2),
        (("--kv", "q3"), "kv", 2),
    ],
)
def test_options_out_of_range(checkpoint, options, word, code):
    refused(invoke("run", "-m", checkpoint, *options, "hi"), word, code=code)


@pytest.mark.parametrize("options", [("-c", 0), ("-n", 0), ("-n", "many"), ("--nonsense",)])
def test_wrong_usage_ends_with_2(checkpoint, options):
    assert invoke("run", "-m", checkpoint, *options, "hi").exit_code == 2


@pytest.mark.parametrize(("command", "options"), [("bench", ("-m",)), ("explain", ()), ("info", ())])
def test_every_command_refuses_what_is_no_model(tmp_path, home, command, options):
    refused(invoke(command, *options, tmp_path / "nothing"), "nothing")


def test_no_memory_is_taken_for_what_does_not_fit(checkpoint, home):
    with pytest.raises(lapinfer.DoesNotFitError, match="KV cache"):
        lapinfer.load(checkpoint, slots=10_000_000, ctx=4096)


# What is named


def test_names_that_are_no_model(tmp_path, home):
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty.gguf", "folder", "loop", "pipe"):
        refused(run(tmp_path / name), name)
    refused(run("/dev/null"), "/dev/null")
    refused(run("a" * 500))
    refused(run(""))


def test_a_pipe_in_place_of_a_file(checkpoint):
    for name in ("config.json", "model.safetensors"):
        shutil.move(checkpoint / name, checkpoint / "kept")
        os.mkfifo(checkpoint / name)
        refused(run(checkpoint), str(checkpoint))
        (checkpoint / name).unlink()
        shutil.move(checkpoint / "kept", checkpoint / name)


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"\xc3"])
def test_a_prompt_that_is_not_text(checkpoint, text):
    refused(invoke("run", "-m", checkpoint, "-", input=text), "UTF-8")


def test_an_empty_prompt(checkpoint):
    refused(run(checkpoint, prompt=""), "empty")


# Checkpoints


def _wrong_dtype(header):
    header["model.norm.weight"]["dtype"] = "F64"


def _overlap(header):
    first, second = sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])[:2]
    header[second]["data_offsets"][0] -= 4
    header[second]["shape"] = [1]
    assert first


def _past_the_end(header):
    header["model.norm.weight"]["data_offsets"] = [1 << 40, (1 << 40) + 4 * D]


def _another_shape(header):
    header["model.norm.weight"]["shape"] = [2, D // 2]


def _missing(header):
    header["model.other.weight"] = header.pop("model.norm.weight")


@pytest.mark.parametrize("change", [_wrong_dtype, _overlap, _past_the_end, _another_shape, _missing])
def test_lying_headers(checkpoint, change):
    damage_header(checkpoint / "model.safetensors", change)
    refused(run(checkpoint), str(checkpoint))


@pytest.mark.parametrize("keep", [0, 0.001, 0.01, 0.5, 0.999])
def test_truncated_weights(checkpoint, home, keep):
    cut(checkpoint / "model.safetensors", keep)
    refused(run(checkpoint), "model.safetensors")
    assert not list(home.rglob("model.safetensors"))


def test_a_missing_shard(checkpoint):
    tensors = stored_tensors()
    (checkpoint / "model.safetensors").unlink()
    names = {name: f"part{i % 2}.safetensors" for i, name in enumerate(tensors)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    part = {name: array for name, array in tensors.items() if names[name] == "part0.safetensors"}
    safetensors.numpy.save_file(part, checkpoint / "part0.safetensors")
    refused(run(checkpoint), "part1.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_numbers(checkpoint, home, value):
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        tensors = stored_tensors()
        tensors[name][...] = value
        safetensors.numpy.save_file(tensors, checkpoint / "model.safetensors")
        refused(run(checkpoint), name)
        assert not list(home.rglob("model.safetensors"))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model_type": 3}', b"{}"])
def test_malformed_config(checkpoint, text):
    (checkpoint / "config.json").write_bytes(text)
    refused(run(checkpoint), str(checkpoint))


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 1 << 24},
        {"hidden_size": 10**30},
        {"vocab_size": 1 << 24},
        {"vocab_size": -1},
        {"num_hidden_layers": 1000},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 4},
        {"intermediate_size": "64"},
        {"rms_norm_eps": float("nan")},
        {"hidden_act": "mish"},
        {"model_type": "mamba"},
        {"rope_scaling": {"rope_type": "magic"}},
        {"rope_theta": -1},
        {"max_position_embeddings": 0},
    ],
)
def test_config_that_is_not_true(tmp_path, home, config):
    code = 3 if config == {"hidden_size": 1 << 24} else 1  # its KV cache would not fit, which is seen first
    refused(run(make_checkpoint(tmp_path / "tiny", **config)), "tiny", code=code)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_malformed_files_beside(checkpoint, name, text):
    (checkpoint / name).write_bytes(text)
    refused(run(checkpoint), name)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**12) %}x{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 'x' * 10**12 }}",
        "{% if %}",
        "{{ raise_exception('no') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_hostile_chat_template(checkpoint, template):
    (checkpoint / "chat_template.jinja").write_text(template)
    refused(run(checkpoint), "template")


def test_a_broken_template_stops_only_chat(checkpoint, tmp_path, monkeypatch):
    (checkpoint / "chat_template.jinja").write_text("{% for m in messages %}\n{% newtag %}{% endfor %}")
    (tmp_path / "text.txt").write_text("abc def " * 40)
    refused(run(checkpoint), "chat_template.jinja:2", "newtag", "--raw")
    assert run(checkpoint, "--raw").exit_code == 0
    assert invoke("perplexity", checkpoint, tmp_path / "text.txt", "-c", 64).exit_code == 0
    monkeypatch.setattr("lapinfer.report.roofline.weights_bandwidth", lambda *arguments: 1e10)
    info = invoke("info", checkpoint)
    assert info.exit_code == 0
    assert "newtag" in info.stdout
    with lapinfer.load(checkpoint) as model:
        assert model.generate("abc", max_tokens=2).tokens
        with pytest.raises(CheckpointError, match="newtag"):
            model.chat("abc")


def test_hostile_sampling_defaults_are_ignored(checkpoint):
    (checkpoint / "generation_config.json").write_text(
        '{"temperature": -1, "top_k": 1e99, "eos_token_id": [-5, 1e9, "x"]}'
    )
    assert invoke("run", "-m", checkpoint, "-n", 3, "hi").exit_code == 0


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path, home):
    tensors = stored_tensors()
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:200]
    folder = make_checkpoint(tmp_path / "tiny", tensors, vocab_size=200)
    refused(run(folder), "256")
    refused(run(folder, "--raw", prompt="日"), "from 0 to 199")


# Packed files


def _longer_rows(header):
    formats = json.loads(header["__metadata__"]["tensors"])
    formats["embed"]["shape"][0] *= 2
    header["__metadata__"]["tensors"] = json.dumps(formats)


def _other_format(header):
    formats = json.loads(header["__metadata__"]["tensors"])
    formats["layers.0.qkv"]["format"] = "q4"
    header["__metadata__"]["tensors"] = json.dumps(formats)


def _no_formats(header):
    header["__metadata__"]["tensors"] = "{}"


def _swapped(header):
    header["layers.0.o"], header["layers.0.down"] = header["layers.0.down"], header["layers.0.o"]


def _beyond(header):
    header["norm.weight"]["data_offsets"] = [1 << 40, (1 << 40) + 4 * D]


def _future(header):
    header["__metadata__"]["version"] = "99"


@pytest.mark.parametrize(
    "change",
    [
        _longer_rows,
        _other_format,
        _no_formats,
        _swapped,
        _future,
        _beyond,
    ],
)
def test_hostile_packed_files(packed, change):
    damage_header(packed / "model.safetensors", change)
    refused(run(packed), "model.safetensors")


@pytest.mark.parametrize(
    "config",
    [{"vocab_size": 1000}, {"vocab_size": 100}, {"num_hidden_layers": 3}, {"hidden_size": 64},
     {"intermediate_size": 96}, {"tie_word_embeddings": False}, {"attention_bias": True}, {"num_attention_heads": 4}],
)  # fmt: skip
def test_packed_files_beside_another_config(packed, config):
    (packed / "config.json").write_text(json.dumps(CONFIG | config))
    refused(run(packed), "model.safetensors")


def test_a_packed_file_of_nan_ends_with_one_error(packed):
    path = packed / "model.safetensors"
    file = SafetensorsFile(path).tensors["layers.1.down"]
    data = bytearray(path.read_bytes())
    data[file.start : file.stop] = b"\xff\x7e" * ((file.stop - file.start) // 2)
    path.unlink()
    path.write_bytes(data)
    refused(run(packed), "tensor 'layers.1.down' differs from what was written: the file is damaged; convert")
    path.write_bytes(sealed(data))
    refused(run(packed), "not finite numbers", "down of layer 1")
    with pytest.raises(LapinferError, match="not finite numbers"):
        list(lapinfer.load(packed).stream("hi", max_tokens=100))


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_truncated_packed_files(packed, keep):
    cut(packed / "model.safetensors", keep)
    refused(run(packed), "model.safetensors")


def test_a_damaged_packed_copy_in_the_cache_is_made_anew_or_refused(checkpoint, home):
    answer = run(checkpoint)
    assert answer.exit_code == 0
    (copy,) = home.rglob("model.safetensors")
    cut(copy, 0.5)
    again = run(checkpoint)
    assert (again.exit_code, again.stdout) == (0, answer.stdout) or "model.safetensors" in again.stderr


def test_a_changed_checkpoint_is_packed_again(checkpoint):
    before = run(checkpoint)
    tensors = {name: array * (1 if array.ndim == 1 else -0.7) for name, array in stored_tensors().items()}
    safetensors.numpy.save_file(tensors, checkpoint / "model.safetensors")
    after = run(checkpoint)
    assert (before.exit_code, after.exit_code) == (0, 0)
    assert before.stdout != after.stdout


# Token ids


@pytest.mark.parametrize("ids", [[V], [-1], [1, 2, 1 << 40], [], [1 << 70]])
def test_token_ids_out_of_range(checkpoint, ids):
    with lapinfer.load(checkpoint) as model:
        for call in (model.forward, model.generate, lambda ids: next(model.stream(ids))):
            if ids or call == model.forward:
                with pytest.raises(InputError):
                    call(ids)
        assert np.isfinite(model.forward([1, 2, 3])).all()


def test_more_than_the_context(checkpoint):
    with lapinfer.load(checkpoint, ctx=16) as model:
        for call in (model.forward, model.generate):
            with pytest.raises(InputError, match="context"):
                call([1] * 17)
        full = model.generate([1] * 10, temperature=0)
        assert len(full.tokens) <= 7


@pytest.mark.filterwarnings("error")
def test_wrong_arguments_of_a_step(checkpoint):
    one, yes = [0], [True]
    with lapinfer.load(checkpoint) as language_model:
        model = language_model.model
        right = model.forward([1, 2, 3])
        for arguments, error in (
            (("a", one, one, yes), "token: expected a list of whole numbers"),
            (([1.5], one, one, yes), r"token\[0\]: expected a whole number, got 1.5"),
            (([[1]], one, one, yes), r"token\[0\]: .* got list"),
            ((np.ones((1, 1), int), one, one, yes), "token: .* an array of shape"),
            (([1 << 70], one, one, yes), "token id 1180591620717411303424 is out of range"),
            (([1, 1 << 70], [0, 0], [0, 1], [False, True]), "out of range"),
            ((one, [True], one, yes), r"slot\[0\]: .* got True"),
            ((one, one, [None], yes), r"pos\[0\]: .* got None"),
            ((one, one, [-1], yes), "position -1 is out of range"),
            ((one, one, one, "x"), "want: expected a list of booleans"),
            ((one, one, one, []), "as many slots, positions and wants"),
            ((3, one, one, yes), "token: .* got 3"),
        ):
            with pytest.raises(InputError, match=error):
                model.step(*arguments)
        for call, error in (
            (lambda: model.prefill("ab"), "ids: expected a list of whole numbers"),
            (lambda: model.prefill([1], slot=1.0), "slot: expected a whole number from 0 to 0, got 1.0"),
            (lambda: model.prefill([1], start=1 << 70), "start: .* got 1180591620717411303424"),
            (lambda: model.forward([0.5]), r"ids\[0\]: .* got 0.5"),
            (lambda: model.forward(np.ones((2, 2), int)), "ids: .* an array of shape"),
        ):
            with pytest.raises(InputError, match=error):
                call()
        assert np.array_equal(model.forward(np.array([1, 2, 3], np.uint16)), right)
    with pytest.raises(InputError, match="closed"):
        model.forward([1, 2, 3])


# Disks and memory


def test_an_unwritable_cache_folder(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("LAPINFER_HOME", str(place))
        refused(run(checkpoint), "file")


def test_deleting_the_packed_copy_while_it_runs(checkpoint, home):
    with lapinfer.load(checkpoint) as model:
        before = model.forward([1, 2, 3])
        shutil.rmtree(home)
        assert np.array_equal(model.forward([1, 2, 3]), before)


# Several at once


def test_threads_that_generate_at_once(checkpoint):
    with lapinfer.load(checkpoint) as model:
        prompts = ["a", "bc", "def", "ghij"]
        expected = [model.generate(p, temperature=0, max_tokens=12).tokens for p in prompts]
        got = {}

        def generate(prompt):
            got[prompt] = model.generate(prompt, temperature=0, max_tokens=12).tokens

        threads = [threading.Thread(target=generate, args=(p,)) for p in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [got[p] for p in prompts] == expected


def test_several_models_at_once(checkpoint):
    with lapinfer.load(checkpoint, quant="q8") as one, lapinfer.load(checkpoint, quant="f32") as two:
        a, b = one.forward([1, 2, 3]), two.forward([1, 2, 3])
        assert np.array_equal(one.forward([1, 2, 3]), a)
        assert np.array_equal(two.forward([1, 2, 3]), b)
        assert not np.array_equal(a, b)


def test_warnings_as_errors(checkpoint):
    code = (
        f"import lapinfer\nwith lapinfer.load({str(checkpoint)!r}) as m:\n"
        " m.chat([{'role': 'user', 'content': 'hi'}], max_tokens=5)\n"
        " m.generate('hi', max_tokens=5, temperature=1e-310)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_can_generate(checkpoint):
    code = (
        f"import lapinfer, os\nm = lapinfer.load({str(checkpoint)!r})\n"
        "a = m.generate('hi', max_tokens=9, temperature=0).tokens\n"
        "if pid := os.fork():\n    _, status = os.waitpid(pid, 0)\n    raise SystemExit(status != 0)\n"
        "b = m.generate('hi', max_tokens=9, temperature=0).tokens\nos._exit(a != b)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr


def test_two_processes_on_an_empty_cache(checkpoint):
    both = [process("run", "-m", checkpoint, "-n", 9, "--temp", 0, "hi") for _ in range(2)]
    (code, out, err), other = (finished(p) for p in both)
    assert code == 0, err
    assert out.strip()
    assert other[:2] == (0, out)


# Ctrl-C and kill


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "bench"])
def test_ctrl_c_at_any_moment(checkpoint, home, command):
    arguments = (
        ("run", "-m", checkpoint, "-n", 480, "hi") if command == "run" else ("bench", "-m", checkpoint, "-r", 99)
    )
    expected = run(checkpoint).stdout
    moments = np.linspace(0.02, 1.5, 7)
    for delay in np.random.default_rng(0).uniform(moments[:-1], moments[1:]):  # bench/interruptions.py tries thousands
        started = process(*arguments)
        time.sleep(delay)
        started.send_signal(signal.SIGINT)
        code, _, err = finished(started)
        # Before our first line runs, Python itself answers: 1, with a traceback through none of our modules.
        of_python = code == 1 and "KeyboardInterrupt" in err and "/lapinfer/" not in err
        assert code in (0, 130, -signal.SIGINT) or of_python, (delay, code, err)
        assert "Traceback" not in err or "/lapinfer/" not in err, (delay, err)
    assert run(checkpoint).stdout == expected


@pytest.mark.slow
def test_kill_while_packing(checkpoint, home):
    expected = run(checkpoint).stdout
    for delay in (0.5, 0.7, 0.9):
        shutil.rmtree(home)
        started = process("run", "-m", checkpoint, "hi")
        time.sleep(delay)
        started.kill()
        finished(started)
        assert run(checkpoint).stdout == expected


# Experts


E, A = 4, 2
MOE = CONFIG | {"model_type": "mixtral", "num_local_experts": E, "num_experts_per_tok": A, "rms_norm_eps": 1e-5}
ROUTER = "model.layers.{}.block_sparse_moe.gate.weight"
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"


def moe_tensors():
    """The dense checkpoint with four experts in place of each feed-forward."""
    rng = np.random.default_rng(1)
    tensors = {name: array for name, array in stored_tensors().items() if ".mlp." not in name}
    for layer in range(LAYERS):
        tensors[ROUTER.format(layer)] = rng.standard_normal((E, D), np.float32)
        for e in range(E):
            for name, shape in (("w1", (F, D)), ("w2", (D, F)), ("w3", (F, D))):
                tensors[EXPERT.format(layer, e, name)] = rng.standard_normal(shape, np.float32) / 4
    return tensors


def make_moe(folder, tensors=None, **config):
    return make_checkpoint(folder, moe_tensors() if tensors is None else tensors, **MOE | config)


@pytest.fixture
def moe(tmp_path, home):
    return make_moe(tmp_path / "moe")


@pytest.fixture
def packed_moe(moe, tmp_path):
    assert invoke("convert", moe, tmp_path / "packed", "--quant", "f32").exit_code == 0
    return tmp_path / "packed"


def overwrite(folder, name, change):
    """Edit the stored numbers of one tensor of a packed folder, as float32."""
    path = folder / "model.safetensors"
    place = SafetensorsFile(path)[name]
    data = bytearray(path.read_bytes())
    change(np.frombuffer(data, np.float32, (place.stop - place.start) // 4, place.start))
    path.unlink()
    path.write_bytes(sealed(data))


def test_a_mixture_of_experts_runs(moe):
    assert run(moe).exit_code == 0
    assert run(moe, "--experts", 1).exit_code == 0


def test_an_experts_tensor_is_missing(tmp_path, home):
    missing = EXPERT.format(1, 2, "w3")
    tensors = moe_tensors()
    del tensors[missing]
    refused(run(make_moe(tmp_path / "moe", tensors)), missing)


@pytest.mark.parametrize("told", [True, False], ids=["in the index", "nowhere"])
def test_an_experts_tensor_is_missing_from_its_shard(tmp_path, home, told):
    missing = EXPERT.format(0, 3, "w2")
    folder, tensors = make_moe(tmp_path / "moe"), moe_tensors()
    (folder / "model.safetensors").unlink()
    shards = {name: f"part{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(shards.values()):
        part = {name: array for name, array in tensors.items() if shards[name] == shard and name != missing}
        safetensors.numpy.save_file(part, folder / shard)
    named = {name: shard for name, shard in shards.items() if told or name != missing}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    refused(run(folder), missing, *([shards[missing]] if told else []))


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"num_local_experts": E + 1}, "gate.weight"),
        ({"num_local_experts": E - 1}, f"experts.{E - 1}.w1.weight"),
        ({"num_local_experts": 1 << 20}, "num_local_experts"),
        ({"num_local_experts": 0}, "num_local_experts"),
        ({"num_experts_per_tok": E + 1}, "num_experts_per_tok"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ({"intermediate_size": F + 32}, "w1.weight"),
        ({"intermediate_size": F // 2}, "w1.weight"),
    ],
)
def test_another_number_of_experts_than_there_are(tmp_path, home, config, word):
    refused(run(make_moe(tmp_path / "moe", **config)), word)


@pytest.mark.parametrize("there", [E - 1, E + 1])
def test_another_number_of_experts_in_one_tensor(tmp_path, home, there):
    """As transformers 5 writes them; the router has as many as config.json says."""
    tensors = {name: array for name, array in moe_tensors().items() if ".experts." not in name}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.block_sparse_moe.experts."
        tensors[prefix + "gate_up_proj"] = np.ones((there, 2 * F, D), np.float32)
        tensors[prefix + "down_proj"] = np.ones((there, D, F), np.float32)
    refused(run(make_moe(tmp_path / "moe", tensors)), "gate_up_proj", str(there))


@pytest.mark.parametrize(
    ("matrix", "shape"),
    [("w1", (F + 1, D)), ("w3", (F - 1, D)), ("w1", (F, D + 32)), ("w2", (D, F // 2)), ("w2", (D + 1, F)),
     ("w2", (F, D)), ("w3", (F,)), ("w2", ()), ("w1", (0, D))],
)  # fmt: skip
def test_an_expert_of_another_shape(tmp_path, home, matrix, shape):
    tensors = moe_tensors()
    tensors[EXPERT.format(1, 2, matrix)] = np.ones(shape, np.float32)
    refused(run(make_moe(tmp_path / "moe", tensors)), f".{matrix}.weight", "layers.1")
    assert not list(home.rglob("model.safetensors"))


@pytest.mark.parametrize("name", [ROUTER.format(1), EXPERT.format(0, 3, "w2"), EXPERT.format(1, 0, "w3")])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_experts_and_routers_that_are_not_numbers(tmp_path, home, name, value):
    tensors = moe_tensors()
    tensors[name][1, 1] = value
    refused(run(make_moe(tmp_path / "moe", tensors)), name)
    assert not list(home.rglob("model.safetensors"))


def test_a_router_that_becomes_nan_is_one_error_each_time(packed_moe):
    def spoil(values):
        values[40] = np.nan

    overwrite(packed_moe, "layers.1.router", spoil)
    refused(run(packed_moe), "router of layer 1")
    with lapinfer.load(packed_moe, threads=2) as model:
        for ids in ([1, 2, 3], [4], list(range(50))):
            with pytest.raises(CheckpointError, match="router of layer 1 "):
                model.forward(ids)
        with pytest.raises(CheckpointError, match="router of layer 1 "):
            model.generate("hi", max_tokens=5)


def test_the_first_router_that_is_wrong_is_named(packed_moe):
    """What it spoils reaches the layers behind it."""

    def spoil(values):
        values[:] = np.nan

    overwrite(packed_moe, "layers.0.router", spoil)
    for threads in (1, 2):
        with lapinfer.load(packed_moe, threads=threads) as model:
            for ids in ([1], list(range(50))):
                with pytest.raises(CheckpointError, match="router of layer 0 "):
                    model.forward(ids)


def test_norm_weights_that_overflow_reach_a_router_as_an_error(tmp_path, home):
    tensors = moe_tensors()
    tensors["model.layers.1.post_attention_layernorm.weight"][:] = 1e38
    folder = make_moe(tmp_path / "moe", tensors)
    refused(run(folder), "router of layer 1")
    with lapinfer.load(folder) as model:
        for _ in range(2):
            with pytest.raises(CheckpointError, match="router of layer 1 "):
                model.generate("hi", max_tokens=5)


@pytest.mark.parametrize("experts", ["resident", "pool"])
def test_after_a_token_that_spoils_routers_others_are_right(tmp_path, home, experts):
    """An embedding of NaN: prompts with this token fail, also in the midst of an answer; all others are as before."""
    bad, packed_moe = 77, tmp_path / "packed"
    tensors = moe_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    untied = make_moe(tmp_path / "moe", tensors, tie_word_embeddings=False)
    assert invoke("convert", untied, packed_moe, "--quant", "f32").exit_code == 0
    options = {"threads": 2, "ctx": 64, "memory": 4 if experts == "pool" else None}
    with from_model(load_model(packed_moe, LoadOptions(**options))) as model:
        expected = model.generate("hello", max_tokens=9, temperature=0).tokens
        logits = model.forward([5, 6, 7, 8])

    def spoil(values):
        blocks = values.reshape(-1, D, 16)  # of row blocks [columns, 16 rows]
        blocks[bad // 16, :, bad % 16] = np.nan

    overwrite(packed_moe, "embed", spoil)
    assert read_packed(packed_moe)[1].format("embed") == "f32"
    with from_model(load_model(packed_moe, LoadOptions(**options))) as model:
        for ids in ([bad], [5, 6, bad, 8], [*range(20), bad], [5, 6, 7, bad]):
            with pytest.raises(CheckpointError, match=r"keys of layer 0 .* came from the embed"):
                model.forward(ids)
            np.testing.assert_array_equal(model.forward([5, 6, 7, 8]), logits)
        assert bad not in expected


def _experts_entry(change):
    def damage(header):
        tensors = json.loads(header["__metadata__"]["tensors"])
        change(tensors, header)
        header["__metadata__"]["tensors"] = json.dumps(tensors)

    return damage


def _more_experts(tensors, header):
    for part in ("gate_up", "down"):
        tensors[f"layers.1.experts.{part}"]["shape"][0] += 1


def _unequal_experts(tensors, header):
    tensors["layers.1.experts.down"]["shape"][0] -= 1


def _smaller_expert(tensors, header):
    tensors["layers.0.experts.down"]["shape"][2] //= 2


def _flat_expert(tensors, header):
    tensors["layers.0.experts.down"]["shape"] = tensors["layers.0.experts.down"]["shape"][1:]


def _another_format(tensors, header):
    tensors["layers.1.experts.gate_up"]["format"] = "q4"


def _one_part(tensors, header):
    del tensors["layers.1.experts.down"]


def _no_bank(tensors, header):
    header[".pad.999"] = header.pop("layers.1.experts")


def _fewer_stored(tensors, header):
    """As many bytes, in fewer and larger experts."""
    experts, size = header["layers.0.experts"]["shape"]
    header["layers.0.experts"]["shape"] = [experts // 2, 2 * size]


def _swapped_parts(tensors, header):
    """Down before gate_up: an expert of as many bytes, whose matrices would lie elsewhere."""
    parts = {part: tensors.pop(f"layers.1.experts.{part}") for part in ("gate_up", "down")}
    for part in ("down", "gate_up"):
        tensors[f"layers.1.experts.{part}"] = parts[part]


def _turned_matrices(tensors, header):
    for name in tensors:
        if name.startswith("layers.1.experts"):
            tensors[name]["shape"] = [E, *tensors[name]["shape"][1:][::-1]]


@pytest.mark.parametrize(
    "change",
    [_more_experts, _unequal_experts, _smaller_expert, _flat_expert, _another_format, _one_part, _no_bank,
     _fewer_stored, _swapped_parts, _turned_matrices],
)  # fmt: skip
def test_banks_that_contradict_themselves(packed_moe, change):
    damage_header(packed_moe / "model.safetensors", _experts_entry(change))
    refused(run(packed_moe), "model.safetensors", "layers.")


@pytest.mark.parametrize(
    "config",
    [MOE | {"num_local_experts": E - 1}, MOE | {"num_local_experts": E + 1}, MOE | {"intermediate_size": F + 16},
     MOE | {"num_hidden_layers": 1 + LAYERS}, CONFIG],
)  # fmt: skip
def test_banks_beside_another_config(packed_moe, config):
    (packed_moe / "config.json").write_text(json.dumps(config))
    refused(run(packed_moe), "model.safetensors")


@pytest.mark.parametrize("number", [E + 1, 1 << 40])
def test_more_experts_a_token_than_there_are(moe, number):
    refused(run(moe, "--experts", number), "experts", f"1 to {E}")


def test_no_experts_a_token(moe):
    assert invoke("run", "-m", moe, "--experts", 0, "hi").exit_code == 2
    with pytest.raises(InputError, match="experts: expected a whole number from 1, got 0"):
        lapinfer.load(moe, experts=0)


def test_experts_of_a_dense_model(checkpoint):
    refused(run(checkpoint, "--experts", 2), "no routed layers")


# Experts on disk


def test_memory_of_a_dense_model(checkpoint):
    refused(run(checkpoint, "--memory", 2), "no experts")


def test_too_little_memory(moe):
    refused(run(moe, "--memory", 0.01), "needs at least", "--memory", code=3)


@pytest.mark.parametrize("memory", [0, -1, "nan", "inf", 1e300])
def test_memory_that_is_no_amount(moe, memory):
    refused(run(moe, "--memory", memory), "memory")


def test_an_unknown_policy(moe):
    refused(run(moe, "--memory", 4, "--policy", "random"), "policy", "lru", code=2)
    refused(run(moe, "--policy", "random"), "policy", "lru", code=2)


def test_a_bound_with_the_policy_that_bounds_nothing(moe):
    both = ("--memory", 4, "--policy", "system")
    for result in (run(moe, *both), invoke("bench", "-m", moe, *both)):
        refused(result, "system bounds nothing", "leave out --memory", "lrfu")
    with pytest.raises(InputError, match="bounds nothing"):
        lapinfer.load(moe, memory=4, policy="system")


CUT_WHILE_IT_RUNS = """
import os, sys
import numpy as np
from lapinfer.packing.reader import read_packed
from lapinfer.errors import CheckpointError
from lapinfer.model import Model
from lapinfer.runtime.ops import Limits

spec, file = read_packed(sys.argv[1])
model = Model(spec, file, Limits(64, step=1, threads=2, experts="pool", slots_of_pool=2), name="moe")
logits = [model.step([i], [0], [i], [True]).values.copy() for i in range(20)]
bank = file._file["layers.1.experts"]
# Behind the last bank stands only the last norm, of which the model has a copy.
behind = {name for name, tensor in file._file.tensors.items() if tensor.start >= bank.stop}
assert {name for name in behind if not name.startswith(".pad.")} == {"norm.weight", ".digests"}
os.truncate(sys.argv[1], bank.start + (bank.stop - bank.start) // 3)
failed = fine = 0
for i in range(20):
    try:
        got = model.step([i], [0], [i], [True]).values
        assert failed or np.array_equal(got, logits[i])
        fine += 1
    except CheckpointError as error:
        assert str(error).startswith(sys.argv[1]) and "layer 1 " in str(error), error
        failed += 1
print(failed, fine)
model.close()
"""


def test_a_file_that_becomes_shorter_while_experts_are_read(packed_moe):
    path = packed_moe / "model.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", CUT_WHILE_IT_RUNS, str(path), str(Path(__file__).parent)],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    failed, fine = map(int, done.stdout.split())
    assert failed > 0
    assert failed + fine == 20


def test_a_file_that_is_removed_while_experts_are_read(packed_moe, tmp_path):
    with from_model(load_model(packed_moe, LoadOptions(ctx=64, memory=4))) as model:
        assert model.model.pool is not None
        model.model.pool.shrink(A)
        model.model.max_step = 1
        expected = model.forward(list(range(30)))
        shutil.rmtree(packed_moe)
        np.testing.assert_array_equal(model.forward(list(range(30))), expected)


# MXFP4


FP4 = {
    "model_type": "gpt_oss", "vocab_size": V, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128,
    "num_local_experts": 3, "num_experts_per_tok": 2, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
}  # fmt: skip
GATE_UP, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"


def fp4_tensors():
    rng, width, inner, experts = np.random.default_rng(2), 64, 32, 3
    floats = {
        "model.embed_tokens.weight": (V, width), "model.norm.weight": (width,),
        "model.layers.0.input_layernorm.weight": (width,), "model.layers.0.post_attention_layernorm.weight": (width,),
        "model.layers.0.self_attn.sinks": (2,), "model.layers.0.mlp.router.weight": (experts, width),
        "model.layers.0.mlp.router.bias": (experts,), f"{GATE_UP}_bias": (experts, 2 * inner),
        f"{DOWN}_bias": (experts, width),
    }  # fmt: skip
    for name, rows, columns in (("q", 32, width), ("k", 16, width), ("v", 16, width), ("o", width, 32)):
        floats |= {f"model.layers.0.self_attn.{name}_proj.weight": (rows, columns)}
        floats |= {f"model.layers.0.self_attn.{name}_proj.bias": (rows,)}
    tensors = {name: rng.standard_normal(shape, np.float32) / 8 for name, shape in floats.items()}
    for name, rows, columns in ((GATE_UP, 2 * inner, width), (DOWN, width, inner)):
        tensors[f"{name}_blocks"] = rng.integers(0, 256, (experts, rows, columns // 32, 16), np.uint8)
        tensors[f"{name}_scales"] = rng.integers(118, 124, (experts, rows, columns // 32), np.uint8)
    return tensors


def test_fp4_experts_run(tmp_path, home):
    folder = make_checkpoint(tmp_path / "fp4", fp4_tensors(), **FP4)
    assert run(folder).exit_code == 0
    with lapinfer.load(folder) as model:
        assert model.model.weights.format("layers.0.experts.down") == "mxfp4"


def _no_scales(tensors):
    del tensors[f"{DOWN}_scales"]


def _other_scales(tensors):
    tensors[f"{DOWN}_scales"] = tensors[f"{DOWN}_scales"][..., None]


def _few_scales(tensors):
    tensors[f"{DOWN}_scales"] = tensors[f"{DOWN}_scales"][:, :-1].copy()


def _float_scales(tensors):
    tensors[f"{DOWN}_scales"] = tensors[f"{DOWN}_scales"].astype(np.float32)


def _scale_of_nan(tensors):
    tensors[f"{DOWN}_scales"][2, 5, 0] = 255


def _flat_blocks(tensors):
    tensors[f"{DOWN}_blocks"] = tensors[f"{DOWN}_blocks"].reshape(3, 64, 16)


def _short_blocks(tensors):
    tensors[f"{DOWN}_blocks"] = tensors[f"{DOWN}_blocks"][..., :8].copy()


def _float_blocks(tensors):
    tensors[f"{DOWN}_blocks"] = tensors[f"{DOWN}_blocks"].astype(np.float32)


def _fewer_fp4_experts(tensors):
    for end in ("blocks", "scales"):
        tensors[f"{DOWN}_{end}"] = tensors[f"{DOWN}_{end}"][:2].copy()


def _no_blocks(tensors):
    del tensors[f"{DOWN}_blocks"]


@pytest.mark.parametrize(
    "change",
    [_no_scales, _other_scales, _few_scales, _float_scales, _scale_of_nan, _flat_blocks, _short_blocks, _float_blocks,
     _fewer_fp4_experts, _no_blocks],
)  # fmt: skip
def test_fp4_blocks_and_scales_that_do_not_fit(tmp_path, home, change):
    tensors = fp4_tensors()
    change(tensors)
    refused(run(make_checkpoint(tmp_path / "fp4", tensors, **FP4)), DOWN)
    assert not list(home.rglob("model.safetensors"))


# Convolutions


CONVOLUTION = "model.layers.2.conv.conv.weight"


def make_hybrid(folder, change=lambda tensors: None, **config):
    told, tensors, _, _ = tiny.read_golden(tiny.GOLDEN / "lfm2-plain.npz")
    change(tensors)
    return make_checkpoint(folder, tensors, **told | config)


def test_layers_of_convolutions_run(tmp_path, home):
    folder = make_hybrid(tmp_path / "hybrid")
    for name in ("tokenizer.json", "tokenizer_config.json"):  # more tokens than this tiny model has
        (folder / name).unlink()
    with lapinfer.load(folder, quant="f32") as model:
        assert len(model.generate([1, 2, 3], max_tokens=5, temperature=0).tokens) == 5


def _no_kernel(tensors):
    del tensors[CONVOLUTION]


def _longer_kernel(tensors):
    tensors[CONVOLUTION] = np.ones((48, 1, 4), np.float32)


def _full_convolution(tensors):
    tensors[CONVOLUTION] = np.ones((48, 48, 3), np.float32)


def _narrower_kernel(tensors):
    tensors[CONVOLUTION] = np.ones((47, 1, 3), np.float32)


def _flat_kernel(tensors):
    tensors[CONVOLUTION] = np.ones(144, np.float32)


def _kernel_of_nan(tensors):
    tensors[CONVOLUTION][7, 0, 1] = np.nan


@pytest.mark.parametrize(
    "change", [_no_kernel, _longer_kernel, _full_convolution, _narrower_kernel, _flat_kernel, _kernel_of_nan]
)
def test_kernels_of_convolutions_that_do_not_fit(tmp_path, home, change):
    refused(run(make_hybrid(tmp_path / "hybrid", change)), CONVOLUTION)
    assert not list(home.rglob("model.safetensors"))


def _two_gates(tensors):
    tensors["model.layers.0.conv.in_proj.weight"] = np.ones((96, 48), np.float32)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"conv_L_cache": 2}, "conv.conv.weight"),
        ({"conv_L_cache": 1 << 20}, "conv_L_cache"),
        ({"conv_bias": True}, "conv.in_proj.bias"),
        ({"layer_types": ["conv", "conv", "conv"]}, "layers.1.conv.in_proj.weight"),
        ({"layer_types": ["conv", "linear_attention", "conv"]}, "layer_types"),
        ({"layer_types": ["conv"]}, "layer_types"),
    ],
)
def test_convolutions_beside_another_config(tmp_path, home, config, word):
    refused(run(make_hybrid(tmp_path / "hybrid", **config)), word)


def test_a_convolution_with_too_few_gates(tmp_path, home):
    refused(run(make_hybrid(tmp_path / "hybrid", _two_gates)), "layers.0.conv.in_proj.weight", "(144, 48)")
