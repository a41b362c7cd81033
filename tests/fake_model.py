"""Stand-ins for the engine and for tokenizers, so that text, reports and the command line are tested alone."""

import importlib
import json
import sys
import threading
import time
import zlib
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lapinfer.checkpoint.hub import LocalModel
from lapinfer.kernels.operands import ONE, KernelId
from lapinfer.report.roofline import Roofline
from lapinfer.runtime.cost import Cost
from lapinfer.runtime.plan import Op
from lapinfer.runtime.runner import Runner
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RouterSpec
from lapinfer.tensors import tensors

LOADER = "lapinfer.loading"
"""The module that finds, packs and builds models."""

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def spec(vocab=258, window=None, routers=(None,)):
    """A layer for each router; None is a dense one."""
    norm = NormSpec("rms", 1e-5)
    attention = AttentionSpec(n_heads=1, n_kv_heads=1, k_dim=16, v_dim=16, scale=0.25, window=window)
    layers = tuple(LayerSpec(attention, FeedForwardSpec(32, "silu", router=r), norm, norm) for r in routers)
    return ModelSpec(family="fake", vocab=vocab, hidden=16, layers=layers, norm=norm, context=4096)


class FakeRunner(Runner):
    """Runs nothing; a meter that is told of steps counts 1,000 bytes per token."""

    def __init__(self):
        op = Op(KernelId("fake"), "fake", "head", -1, ONE, 1, {}, Cost(token_bytes=1000))
        self.plan: Any = SimpleNamespace(ops=[op])
        self.team: Any = SimpleNamespace(ns_per_tick=lambda: 1.0, attach=lambda *arguments: None)
        self.header = np.zeros(0, np.int64)
        self.meter = self.new_meter()


class FakeModel:
    """Logits are random numbers that depend on every token that the slot's cache holds up to the position."""

    name, load_s, pack_s, compile_s = "fake", 0.0, 0.0, 0.0

    def __init__(
        self, folder=None, vocab=258, ctx=64, slots=2, window=None, script=None, threads=1, delay=0.0, experts=0,
        top_k=2,
    ):  # fmt: skip
        routers = (None, RouterSpec(experts, top_k), RouterSpec(experts // 2, 1)) if experts else (None,)
        self.spec, self.texts, self.ctx, self.slots = spec(vocab, window, routers), folder, ctx, slots
        self.routing = self.best_blocks = None
        self.limits = SimpleNamespace(kv="f16")
        self.threads, self.lock = threads, threading.RLock()
        self.max_step = self.max_wanted = 16
        self.cache = np.full((slots, ctx), -1)
        self.script = script  # ids to say after a prompt, whatever it was: {position after the prompt: id}
        self.steps = []
        self.runner = FakeRunner()
        formats = {name: "q4" for name, tensor in tensors(self.spec).items() if tensor.is_matrix}
        self.weights = SimpleNamespace(
            tensor=lambda name: np.zeros(4, np.uint8), format=lambda name: "q4", formats=formats
        )
        self.closed, self.delay = False, delay
        self.prompt_end = 0

    @property
    def kv(self):
        return ["f16"] * len(self.spec.layers)

    @property
    def usage(self):
        return self.runner.meter

    def step(self, token, slot, pos, want, *, best=None, guessed=False, allowed=None):
        assert len(token) <= self.max_step
        self.steps.append(len(token))
        rows, hidden = [], []
        time.sleep(self.delay)
        for t, s, p, w in zip(token, slot, pos, want, strict=True):
            self.cache[s, p] = t
            if w:
                rows.append(self._logits(self.cache[s, : p + 1], p))
                hidden.append(rows[-1][: self.spec.hidden])
        if self.routing is not None:
            slot, pos = np.array(slot, np.int64), np.array(pos, np.int64)
            self.routing.record(slot, pos, *self._route(np.array(token)))
        nothing = np.zeros(1, np.int64)
        self.runner.meter.record(np.array(slot), np.array(pos), len(rows), 0, nothing, nothing)
        values = np.stack(rows) if rows else np.zeros((0, self.spec.vocab), np.float32)
        padded = np.pad(values, ((0, 0), (0, -values.shape[1] % 16)), constant_values=-np.inf)
        return SimpleNamespace(
            values=values,
            block_max=padded.reshape(len(values), padded.shape[1] // 16, 16).max(axis=2),
            hidden=np.stack(hidden) if hidden else np.zeros((0, self.spec.hidden), np.float32),
            masked=False,
        )

    def _route(self, token):
        """A token gets the experts that follow its id: chosen, weight [2, T, top_k], −1 where a layer has fewer."""
        (E, k), (E2, k2) = [(r.n_experts, r.top_k) for r in (x.feed_forward.router for x in self.spec.layers) if r]
        chosen = np.full((2, len(token), k), -1, np.int64)
        chosen[0] = (token[:, None] + np.arange(k)) % E
        chosen[1, :, :k2] = (token[:, None] + np.arange(k2)) % E2
        return chosen, np.where(chosen < 0, 0, 1 / (1 + np.arange(k))).astype(np.float32)

    def _logits(self, ids, pos):
        assert (ids >= 0).all(), "a position was never written"
        seed = zlib.crc32(ids.astype(np.int64).tobytes())
        values = np.random.default_rng(seed).standard_normal(self.spec.vocab).astype(np.float32)
        if self.script is not None:
            values[self.script[min(max(pos + 1 - self.prompt_end, 0), len(self.script) - 1)]] += 100
        return values

    def continues(self, slot, count):
        """As if a window were a ring of its own length."""
        end, window = int((self.cache[slot] >= 0).sum()), self.spec.layers[0].window
        return count <= end and (window is None or end <= window or count >= end - 1)

    def holds(self, slot, count):
        return count > 0 and self.continues(slot, count)

    def copy_slot(self, origin, target, count):
        self.cache[target], self.cache[target, :count] = -1, self.cache[origin, :count]

    def prefill(self, ids, slot=0, start=0, *, best=None, allowed=None):
        self.prompt_end = start + len(ids)
        logits = None
        for at in range(0, len(ids), self.max_step):
            part = ids[at : at + self.max_step]
            want = [at + i == len(ids) - 1 for i in range(len(part))]
            logits = self.step(part, [slot] * len(part), range(start + at, start + at + len(part)), want)
        return logits

    def forward(self, ids):
        return np.concatenate([self.step([t], [0], [p], [True]).values for p, t in enumerate(ids)])

    def buffer_bytes(self):
        return 0

    def close(self):
        self.closed = True


def byte_tokenizer_folder(folder: Path, chat: str | None = CHAT, adds_bos: bool = False, **config) -> Path:
    """One token a byte, ids 0 … 255 in the order of bytes, and 256 <|im_start|> (bos), 257 <|im_end|> (eos)."""
    tokenizer = Tokenizer(models.BPE(vocab={name: b for b, name in enumerate(byte_names())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="B $A", special_tokens=[("B", 256)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"} | config
    if chat is not None:
        config["chat_template"] = chat
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_names() -> list[str]:
    """GPT-2's printable names of the bytes 0 … 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {b: chr(b) for b in plain}
    for n, b in enumerate(b for b in range(256) if b not in names):
        names[b] = chr(256 + n)
    return [names[b] for b in range(256)]


def sentencepiece_folder(folder: Path) -> Path:
    """Pieces with ▁ for a space, bytes for the rest, as Llama 2 has them."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁Hello", "▁world", "a", "b", "c"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)}, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def install(monkeypatch, make, slow_load=0.0):
    """Put a fake engine, hub and doctor in the place of the real ones; returns the list of what they were asked."""
    asked = []

    def load_model(name, options, *, progress, beside=None):
        asked.append((name, asdict(options)))
        if slow_load:
            print("loading", file=sys.stderr, flush=True)
            time.sleep(slow_load)
        return make()

    def convert(source, target, quant, calibrate=None, lora=(), progress=None, force=False):
        asked.append(("convert", source, target, quant, calibrate))

    def pull(name, progress):
        asked.append(("pull", name))
        progress("pulling", 1, 2)
        return Path(name)

    modules = {
        LOADER: SimpleNamespace(load_model=load_model, convert=convert, memory_needed=lambda name, options: 1),
        "lapinfer.checkpoint.hub": SimpleNamespace(
            pull=pull,
            list_local=lambda: [LocalModel("smollm2", "pulled", "/x", 1)],
            is_local=lambda name: False,
            can_be_pulled=lambda name: True,
            ALIASES={"smollm2": "org/name"},
        ),
        "lapinfer.report.explain": SimpleNamespace(explain=lambda model, **options: f"plan, {options}"),
        "lapinfer.report.doctor": SimpleNamespace(doctor=lambda: {"cpu": "fast", "threads": [1, 2]}),
    }
    if monkeypatch is not None:
        monkeypatch.setattr(
            "lapinfer.report.roofline.measure",
            lambda threads, **options: Roofline(threads, {threads: 1e10}, {"int8": 1e11, "float32": 1e10}),
        )
        monkeypatch.setattr("lapinfer.report.roofline.bandwidth_now", lambda threads: 1e10)
    for name, module in modules.items():
        package, _, last = name.rpartition(".")
        if monkeypatch is None:
            sys.modules[name] = module
            setattr(importlib.import_module(package), last, module)
        else:
            monkeypatch.setitem(sys.modules, name, module)
            monkeypatch.setattr(importlib.import_module(package), last, module, raising=False)
    return asked
