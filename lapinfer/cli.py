"""The command line: parse, call, print. Answers go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed (one line on stderr; -v shows the traceback), 2 wrong usage, 3 does not fit,
130 stopped by Ctrl-C. Commands import what they need when they run, so that --help answers at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from lapinfer import __version__
from lapinfer.errors import InputError, LapinferError

if TYPE_CHECKING:
    from lapinfer.text.generation import Token
    from lapinfer.text.language_model import LanguageModel
    from lapinfer.text.sampling import SamplingParams

CHAT_MODEL, SMALL_MODEL = "smollm2", "austen-fff"
"""What runs when no model is named: the first if it was pulled, else the other, which comes with the package."""
_NAMES = "Folder, .gguf file, org/name on the hub, smollm2, or the name of a model that lapinfer ls shows."


class _UsageError(InputError):
    """An option that no model accepts."""

    exit_code = 2


class _Commands(TyperGroup):
    """Runs a command and turns what it raises into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # so that a closed pipe is met here
            return result
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader (`| head`) has what it wanted; keep the last flush from failing too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except LapinferError as error:
            _fail(ctx, str(error), error.exit_code)
        except MemoryError as error:
            _fail(ctx, f"not enough memory{f': {error}' if str(error) else ''}; try --quant q4 or a smaller -c", 3)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _fail(ctx, f"{place}{error.strerror or error}", 1)


def _fail(ctx: Any, message: str, code: int) -> NoReturn:
    if ctx.meta.get("verbose"):
        traceback.print_exc()
    _note(f"error: {message}")
    raise typer.Exit(code) from None


def _note(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


app = typer.Typer(
    cls=_Commands,
    help="Run language models on this computer's CPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lapinfer {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def _remember_verbose(ctx: typer.Context, verbose: bool) -> bool:
    ctx.meta["verbose"] = verbose
    return verbose


def _comma_list(text: str) -> str:
    """Checks 512 or 128,512; the numbers are read by `_numbers`."""
    try:
        _numbers(text)
    except ValueError:
        raise typer.BadParameter(f"expected numbers from 0 with commas between them, got {text!r}") from None
    return text


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise ValueError
    return numbers


def _some_threads(threads: int | None) -> int | None:
    if threads is not None and threads < 1:
        raise _UsageError(f"--threads: expected a number from 1, got {threads}")
    return threads


Name = Annotated[str | None, typer.Option("-m", "--model", help=_NAMES)]
NameArgument = Annotated[str | None, typer.Argument(metavar="[MODEL]", help=_NAMES)]
QUANTS = ("auto", "q4", "q4_1", "q6", "q8", "mxfp4", "f16", "bf16", "f32")
SIZES = ("100m", "1b", "7b")


def _one_of(*choices: str) -> Callable[[typer.CallbackParam, Any], Any]:
    """An option's callback: its values are among these, in any case."""

    def check(param: typer.CallbackParam, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [check(param, each) for each in value]
        if value is not None and value.lower() not in choices:
            raise _UsageError(f"{param.opts[0]}: expected one of {', '.join(choices)}, got {value}")
        return value and value.lower()

    return check


_quant, _size = _one_of(*QUANTS), _one_of(*SIZES)
_FORMATS, _SIZES = f"[{'|'.join(QUANTS)}]", f"[{'|'.join(SIZES)}]"
Quant = Annotated[str, typer.Option("--quant", metavar=_FORMATS, callback=_quant, help="Weights' format.")]
KV = Annotated[str, typer.Option("--kv", metavar="[f16|q8]", callback=_one_of("f16", "q8"), help="KV cache's format.")]
Activations = Annotated[
    str,
    typer.Option(
        "--activations",
        metavar="[auto|q8|q16]",
        callback=_one_of("auto", "q8", "q16"),
        help="Multiply quantized weights with q8 or q16 (more exact, slower) numbers.",
    ),
]
Threads = Annotated[
    int | None, typer.Option("-t", "--threads", callback=_some_threads, help="Threads; all cores when not given.")
]
Context = Annotated[int | None, typer.Option("-c", "--ctx-size", min=1, help="Tokens that fit into the context.")]
Experts = Annotated[
    int | None, typer.Option("--experts", min=1, help="Experts a token gets, instead of the model's own number.")
]
Memory = Annotated[
    float | None,
    typer.Option(
        "--memory", help="GB that the process may take; experts that do not fit are read when they are chosen."
    ),
]
Policy = Annotated[
    str,
    typer.Option(
        "--policy",
        callback=_one_of("lru", "lfu", "lrfu", "system"),
        help="Which experts stay in memory: lru, lfu, lrfu (both); or, without --memory, as the system likes: system.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", callback=_remember_verbose, help="Say more; show tracebacks.")
]


class _Progress:
    """progress("packing", done, total) moves a bar on stderr, when that is a terminal; progress("…") says a line."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: float | None = None, total: float | None = None) -> None:
        if done is None:
            _note(what)
        elif self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()


def _load(name: str, verbose: bool = False, **options: Any) -> LanguageModel:
    from lapinfer.checkpoint import hub
    from lapinfer.text.language_model import load

    if name in hub.ALIASES and not hub.is_local(name):
        _note(f"pulling {name} (once)")
        _pull(name)
    with _Progress() as progress:
        model = load(name, progress=progress, **options)
    if model.model.ctx > model.spec.context:
        _note(f"note: this model was made for {model.spec.context:,} positions; behind them it may write nonsense")
    if verbose:
        m = model.model
        _note(f"{m.name}: loaded {m.load_s:.2f} s, packed {m.pack_s:.2f} s, compiled {m.compile_s:.2f} s")
    return model


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on stdin is not UTF-8 text: {error}") from error


@app.command()
def run(
    prompt: Annotated[str | None, typer.Argument(help="What to say; - reads it from stdin. None: a chat.")] = None,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help=f"{_NAMES}  [{CHAT_MODEL} if it was pulled, else {SMALL_MODEL}]"),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("-n", "--max-tokens", min=1, help="Longest answer.")] = None,
    temp: Annotated[float | None, typer.Option("--temp", help="Temperature; 0: the likeliest token. [0.8]")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Keep the k likeliest tokens; 0: all. [40]")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Keep this share of probability. [0.95]")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", help="Keep this fraction of the best's. [0.05]")] = None,
    repeat_penalty: Annotated[float | None, typer.Option("--repeat-penalty", help="Penalty on repetition. [1]")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text (repeatable).")] = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="The system message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt, without the chat template.")] = False,
    threads: Threads = None,
    ctx_size: Context = None,
    quant: Quant = "auto",
    kv: KV = "f16",
    activations: Activations = "auto",
    experts: Experts = None,
    memory: Memory = None,
    policy: Policy = "lrfu",
    experts_report: Annotated[
        Path | None, typer.Option("--experts-report", help="Write which experts were used: .html, .json or .npz.")
    ] = None,
    json: Json = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
    verbose: Verbose = False,
) -> None:
    """Answer a prompt, or chat when there is none and stdin is a terminal.

    Sampling options that are not given are those that the model's makers recommend, else the ones in brackets.
    """
    if raw and system is not None:
        raise typer.BadParameter("--system needs the chat template that --raw turns off")
    chatting = prompt is None and sys.stdin.isatty()
    if prompt == "-" or (prompt is None and not chatting):
        prompt = _read_stdin()
    if not (prompt or chatting or raw):
        raise InputError("the prompt is empty")
    if chatting and json:
        raise typer.BadParameter("--json needs a prompt")
    given = {
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repeat_penalty,
        "seed": seed,
    }
    sampling = {name: value for name, value in given.items() if value is not None}
    _check_sampling(sampling)
    if experts_report is not None:
        from lapinfer.report.experts import check_path

        check_path(experts_report)
    name = _default_model() if model is None else model
    shape = {"quant": quant, "kv": kv, "activations": activations, "threads": threads, "ctx": ctx_size}
    with (
        _load(name, verbose, experts=experts, memory=memory, policy=policy, **shape) as loaded,
        nullcontext() if experts_report is None else _experts_written(loaded, experts_report),
    ):
        if not raw and loaded.template is None:
            _note("note: this model has no chat template; the prompt is continued as plain text")
            raw = True
        if raw and system is not None:
            raise InputError("this model has no chat template, which --system needs")
        options = {"max_tokens": max_tokens, "stop": stop or [], **sampling}
        messages = [] if system is None else [{"role": "system", "content": system}]
        if chatting:
            _chat(loaded, messages, options, raw, verbose)
            return
        messages.append({"role": "user", "content": prompt or ""})
        events = _answer(loaded, messages, options, raw)
        if json:
            _print_json({"model": loaded.model.name} | _completion(events))
            return
        _print_answer(loaded, events, not no_stream, verbose)


@contextmanager
def _experts_written(model: LanguageModel, path: Path) -> Iterator[None]:
    """Records which experts tokens get, and writes that at the end, however the block ends."""
    from lapinfer.report.experts import write

    with model.watch_experts() as routing:
        try:
            yield
        finally:
            if routing.tokens:
                write(path, routing, model.model.name)
                _note(f"wrote {path}")
            else:
                _note(f"{path}: not written, no tokens were run")


def _check_sampling(sampling: dict[str, Any]) -> SamplingParams:
    """Refuse a bad option before a model is loaded for it."""
    from lapinfer.text.sampling import SamplingParams

    try:
        return SamplingParams(**sampling)
    except InputError as error:
        raise _UsageError(str(error)) from None


def _default_model() -> str:
    """The chat model where it was pulled, else a small one that comes with the package: there is always an answer."""
    from lapinfer.checkpoint import hub

    if hub.is_local(CHAT_MODEL):
        _note(f"no -m given: running {CHAT_MODEL}; others: lapinfer ls")
        return CHAT_MODEL
    _note(f"no -m given: running {SMALL_MODEL}, which continues novels; for answers: lapinfer run -m {CHAT_MODEL} …")
    return SMALL_MODEL


def _answer(
    model: LanguageModel, messages: list[dict[str, str]], options: dict[str, Any], raw: bool
) -> Iterator[Token]:
    return model.stream(messages[-1]["content"], **options) if raw else model.stream_chat(messages, **options)


def _completion(events: Iterator[Token]) -> dict[str, Any]:
    from dataclasses import asdict

    from lapinfer.text.language_model import completed

    return asdict(completed(events))


def _print_answer(model: LanguageModel, events: Iterator[Token], streaming: bool, verbose: bool) -> str:
    """Write the answer to stdout as it grows, then a line of figures to stderr; returns the answer."""
    texts, last, prompt_bytes = [], None, 0
    try:
        for last in events:
            prompt_bytes = prompt_bytes if texts else model.usage.totals()["bytes"]
            texts.append(last.text)
            if streaming:
                sys.stdout.write(last.text)
                sys.stdout.flush()
        if not streaming:
            sys.stdout.write("".join(texts))
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if last is not None and (verbose or sys.stderr.isatty()):
        t, read = last.timings, last.timings.prompt_tokens - last.timings.reused_tokens
        touched = (model.usage.totals()["bytes"] - prompt_bytes) / max(len(texts) - 1, 1)
        _note(
            f"prompt {read} tokens, {t.prompt_per_second:.1f} tok/s, first token {t.ttft_ms:.0f} ms; "
            f"answer {len(texts)} tokens, {t.tokens_per_second:.1f} tok/s; {touched / 1e6:.1f} MB touched a token"
        )
        if (pool := getattr(model.model, "pool", None)) is not None:
            _note(pool.line(last.timings.prompt_tokens + len(texts)))
    return "".join(texts)


def _chat(
    model: LanguageModel, messages: list[dict[str, str]], options: dict[str, Any], raw: bool, verbose: bool
) -> None:
    """A conversation until /exit or Ctrl-D; Ctrl-C stops an answer, and at the prompt ends the chat."""
    import contextlib

    with contextlib.suppress(ImportError):  # line editing, where the platform has it
        import readline  # noqa: F401
    _note("Ctrl-C stops an answer; /exit or Ctrl-D ends the chat.")
    while True:
        if not sys.stdout.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = input("> " if sys.stdout.isatty() else "")
        except EOFError:
            _note("")
            return
        if line.strip() == "/exit":
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        said: list[str] = []
        try:
            events = _recorded(_answer(model, messages, options, raw), said)
            _print_answer(model, events, True, verbose)
        except KeyboardInterrupt:
            pass
        except InputError as error:  # the context is full, say: the conversation is still there
            _note(f"error: {error}")
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": "".join(said)})


def _recorded(events: Iterator[Token], said: list[str]) -> Iterator[Token]:
    for event in events:
        said.append(event.text)
        yield event


@app.command()
def info(
    model: NameArgument = None,
    quant: Annotated[
        str | None,
        typer.Option("--quant", metavar=_FORMATS, callback=_quant, help="Packed as this alone.  [q4, q8 and f16]"),
    ] = None,
    kv: KV = "f16",
    ctx_size: Context = None,
    memory: Annotated[
        float | None, typer.Option("--memory", min=0.001, help="GB to fit into (else exit 3).  [what is free]")
    ] = None,
    threads: Threads = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What a model is, what it takes in memory, and how fast it will be here; reads no weights.

    Of org/name that is not on this computer, only the config.json is fetched.
    """
    from lapinfer.machine import default_threads
    from lapinfer.report.info import info
    from lapinfer.report.roofline import weights_bandwidth

    told, fitting = info(
        model or _default_model(), ctx=ctx_size, kv=kv, quant=quant, memory=memory,  # type: ignore[arg-type]
        bandwidth=lambda format: weights_bandwidth(format, threads or default_threads()),
    )  # fmt: skip
    fits = told.pop("fit")
    _print_dict(told | ({"fit": fits} if json else {}), json)
    if memory is not None and not fitting:
        raise typer.Exit(3)


@app.command()
def explain(
    model: NameArgument = None,
    analyze: Annotated[bool, typer.Option("--analyze", help="Run it, and add measured time and bandwidth.")] = False,
    quant: Quant = "auto",
    kv: KV = "f16",
    activations: Activations = "auto",
    threads: Threads = None,
    ctx_size: Context = None,
    experts: Experts = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer's ops instead of their sums.")] = False,
    verbose: Verbose = False,
) -> None:
    """The ops of a step, with predicted bytes and operations."""
    from lapinfer.report.explain import explain

    options = {"quant": quant, "kv": kv, "activations": activations, "threads": threads, "ctx": ctx_size}
    with _load(model or _default_model(), verbose, experts=experts, **options) as loaded:
        print(explain(loaded.model, analyze=analyze, layers=layers))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help=_NAMES)],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    quant: Quant = "q4",
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", help="A text whose activations weigh the quantization error.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write a packed checkpoint, which starts without packing."""
    from lapinfer.loading import convert

    with _Progress() as progress:
        convert(source, target, quant, calibrate=calibrate, progress=progress)
    _note(f"wrote {target}")


@app.command()
def bench(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODELS...]", help=f"{_NAMES}  [those that come with lapinfer]")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("-m", "--model", help="The same, as llama-bench has it; repeatable.")
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            "--shapes", metavar=_SIZES, callback=_size, help="Random weights instead, dense and routed, of this size."
        ),
    ] = None,
    n_prompt: Annotated[str, typer.Option("-p", "--n-prompt", callback=_comma_list, help="Prompt lengths.")] = "512",
    n_gen: Annotated[str, typer.Option("-n", "--n-gen", callback=_comma_list, help="Tokens to generate.")] = "128",
    depth: Annotated[str, typer.Option("-d", "--n-depth", callback=_comma_list, help="Tokens before the test.")] = "0",
    threads: Annotated[str | None, typer.Option("-t", "--threads", help="Threads.  [default: all cores]")] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Repetitions of a test.")] = 5,
    output: Annotated[str, typer.Option("-o", "--output", help="md, csv, json or jsonl.")] = "md",
    text: Annotated[Path | None, typer.Option("--text", help="A text to measure perplexity on, too.")] = None,
    compare: Annotated[Path | None, typer.Option("--compare", help="Older rows (-o json) to compare with.")] = None,
    quant: Quant = "auto",
    kv: KV = "f16",
    activations: Activations = "auto",
    experts: Experts = None,
    memory: Memory = None,
    policy: Policy = "lrfu",
    verbose: Verbose = False,
) -> None:
    """Measure prompts and generation as llama-bench does, and what they touch; comma lists make a grid.

    Several models are set side by side; without any, the small ones that come along: dense, experts, and trees.
    """
    from lapinfer.report import bench, bench_tables

    if output not in bench_tables.WRITERS:
        raise typer.BadParameter(f"-o: expected one of {', '.join(bench_tables.WRITERS)}, got {output}")
    names = [*(models or []), *(model or [])]
    if shapes is not None and (names or memory):
        raise typer.BadParameter("--shapes: random weights in memory go with neither models nor --memory")
    counts: list[int | None] = [None]
    if threads is not None:
        counts = [*_numbers(_comma_list(threads))]
        for count in counts:
            _some_threads(count)
    tests = bench.Tests(_numbers(n_prompt), _numbers(n_gen), _numbers(depth), repetitions, text)
    old = None if compare is None else bench_tables.read_rows(compare)
    write = bench_tables.WRITERS[output]
    rows, failed, stopped = [], 0, False
    with _Progress() as progress:
        if shapes is not None:
            opened = bench.of_shapes(shapes, quant)
            _note("random weights: speed and bytes are measured, quality is not")
        else:
            options = {"quant": quant, "kv": kv, "activations": activations, "experts": experts, "memory": memory,
                       "policy": policy}  # fmt: skip
            opened = bench.of_names(names or _shipped_models(), progress, **options)
        try:
            for row in bench.bench(opened, tests, counts, progress):
                if isinstance(row, bench.Failure):
                    if len(opened) == 1:
                        raise row.error
                    said = str(row.error) or "not enough memory"
                    _note(f"error: {row.model}: {said.removeprefix(f'{row.model}: ')}")
                    failed += 1
                    continue
                rows.append(row)
                if output == "jsonl":
                    print(write([row]), flush=True)
        except KeyboardInterrupt:
            stopped = True
    if output != "jsonl" and (rows or not stopped):
        print(write(rows))
    if old is not None:  # beside rows for programs, for people
        print(f"\n{bench_tables.compared(rows, old)}", file=sys.stdout if output == "md" else sys.stderr)
    if stopped:
        _note(f"stopped; {len(rows)} finished tests are shown")
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def _shipped_models() -> list[str]:
    from lapinfer.checkpoint.shipped import SHIPPED, shipped_model

    if found := [name for name in SHIPPED if shipped_model(name) is not None]:
        return found
    raise InputError("no model was named, and this installation has none of its own; name one with -m")


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(help=_NAMES)],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The text to score.")],
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=4, help="Tokens of a chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option("--chunks", min=1, help="Chunks to score; all when not given.")] = None,
    against: Annotated[str | None, typer.Option("--against", help="A reference model: adds KL divergence.")] = None,
    quant: Quant = "auto",
    against_quant: Annotated[str, typer.Option("--against-quant", help="--quant of the reference.")] = "auto",
    kv: KV = "f16",
    activations: Activations = "auto",
    experts: Experts = None,
    threads: Threads = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity of a text by llama-perplexity's method, and KL divergence from a reference.

    With --experts the reference, where none is named, is the model with its own number of experts.
    """
    from lapinfer.report import perplexity
    from lapinfer.report.experts import experts_a_token

    text = perplexity.read_text(file)
    options = {"kv": kv, "activations": activations, "threads": threads, "ctx": ctx_size}
    own: dict[str, int] = {}
    with _load(model, verbose, quant=quant, experts=experts, **options) as scored:
        reference = None
        if against is not None:
            reference = _load(against, verbose, quant=against_quant, **options)
        elif experts is not None:
            reference = _load(model, verbose, quant=quant, **options)
            own = {"experts": experts, "reference_experts": experts_a_token(reference.spec)}
        try:
            result = None
            for result in perplexity.perplexity(scored, text, ctx_size, chunks, reference):
                if sys.stderr.isatty() or verbose:
                    _note(f"[{result.chunks}] {result.ppl:.4f}")
        finally:
            if reference is not None:
                reference.close()
    if result is not None and json:
        _print_json(result.as_dict() | own)
    elif result is not None:
        if own:
            print(f"{experts} experts a token; the reference is the model with its own {own['reference_experts']}")
        print(result)


@app.command()
def experts(
    model: Annotated[str, typer.Argument(help=_NAMES)],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The texts to read.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the report, too: .html, .json or .npz.")
    ] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=1, help="Tokens of a chunk.")] = 512,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Chunks of each text; all when not given.")
    ] = None,
    experts: Experts = None,
    quant: Quant = "auto",
    kv: KV = "f16",
    activations: Activations = "auto",
    threads: Threads = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Which experts the tokens of texts are routed to: load, reuse, and different experts in a step."""
    from lapinfer.report import experts as report
    from lapinfer.report.perplexity import read_text

    if output is not None:
        report.check_path(output)
    texts = [read_text(file) for file in files]
    options = {"quant": quant, "kv": kv, "activations": activations, "threads": threads, "ctx": ctx_size}
    with _load(model, verbose, experts=experts, **options) as loaded, loaded.watch_experts() as routing:
        with _Progress() as progress:
            report.run_texts(loaded, texts, ctx_size, chunks, progress)
        _print_json(routing.summary()) if json else print(report.text_table(routing))
        if output is not None:
            report.write(output, routing, loaded.model.name)
            _note(f"wrote {output}")


@app.command()
def report(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODELS...]", help=f"{_NAMES}  [those that come with lapinfer]")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("report.html"),
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shapes", metavar=_SIZES, callback=_size, help="Add four models with random weights (repeatable)."
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="For perplexity and routing.  [a passage that comes with lapinfer]")
    ] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=2, help="Positions a decoded token sees.")] = 512,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FOLDER", help="Write pictures, too (needs matplotlib).")
    ] = None,
    data: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was measured, too.")] = None,
    quant: Quant = "auto",
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """What dense models, experts and trees cost in memory and in compute: one page, without a network.

    A model that fails is named in the page, and the exit code is 1. Ctrl-C writes what was measured so far.
    """
    from lapinfer.report import collect
    from lapinfer.report.perplexity import read_text

    collect.check_outputs(output, data, png)
    options = collect.Options(quant, threads, ctx_size, *(("", "") if text is None else (read_text(text), text.name)))
    with _Progress() as progress:
        found = collect.collect(models or [], shapes or [], options, progress)
    if found.models:
        for path in collect.write_report(found, output, data, png):
            _note(f"wrote {path}")
    elif not found.interrupted:
        _note("error: no model could be measured; nothing was written")
    if found.interrupted:
        _note("stopped" if found.models else f"stopped before a model was measured: {output} was not written")
        raise KeyboardInterrupt
    if found.failures:
        raise typer.Exit(1)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Sizes and options: docs/training.md.")],
    files: Annotated[list[Path], typer.Argument(metavar="DATA...", help="The texts to train on.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The run's folder.  [CONFIG's name]")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the configuration's seed.")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a small language model (needs the extra `train`); the same command goes on with a run that was stopped."""
    from dataclasses import replace

    try:
        from lapinfer import train as training
    except ImportError as error:
        raise InputError(str(error)) from error
    made = training.Config.from_toml(config)
    if seed is not None:
        made = replace(made, training=replace(made.training, seed=seed))
    texts = training.read_texts(files)
    with _Progress() as progress:
        result = training.train(made, texts, Path(config.stem) if output is None else output, progress=progress)
    figures = {
        "checkpoint": str(result.checkpoint),
        "parameters": result.parameters,
        "active_parameters": result.active_parameters,
        "loss": result.loss,
        **{name: value for name, value in result.validation.items() if json or name != "layers"},
    }
    _print_dict(figures, json)


@app.command("fff-sizes")
def fff_sizes(
    width: Annotated[int, typer.Option("--width", min=4, help="Neurons of all leaves together, a power of 2.")] = 128,
    json: Json = False,
) -> None:
    """Sizes of fast feedforward layers of one width: neurons in all, and those that a token computes."""
    from dataclasses import asdict

    from lapinfer.layers.sizes import size_table, table_3

    if width & (width - 1):
        raise InputError(f"--width: expected a power of 2, got {width}")
    _print_json([asdict(sizes) for sizes in table_3(width)]) if json else print(size_table(width))


@app.command()
def pull(name: Annotated[str, typer.Argument(help="smollm2, or org/name.")], verbose: Verbose = False) -> None:
    """Download a model."""
    print(_pull(name))


def _pull(name: str) -> Path:
    from lapinfer.checkpoint import hub

    with _Progress() as progress:
        return hub.pull(name, lambda done, total: progress(f"pulling {name}", done, total))


@app.command()
def ls(json: Json = False, verbose: Verbose = False) -> None:
    """List the models on this computer."""
    from dataclasses import asdict

    from lapinfer.checkpoint import hub

    models = hub.list_local()
    if json:
        _print_json([asdict(model) for model in models])
        return
    for line in models:
        print(line)
    if not models:
        _note(f"no models yet; get one with: lapinfer pull {CHAT_MODEL}")


@app.command()
def doctor(json: Json = False, verbose: Verbose = False) -> None:
    """What this computer can do, and what lapinfer makes of it."""
    from lapinfer.report.doctor import doctor

    _print_dict(doctor(), json)


def _print_json(value: Any) -> None:
    from json import dumps

    print(dumps(value, ensure_ascii=False, indent=1, default=str))


def _print_dict(value: dict[str, Any], json: bool) -> None:
    if json:
        _print_json(value)
        return
    width = max(map(len, value), default=0)
    for key, entry in value.items():
        shown = [f"{k} {v}" for k, v in entry.items()] if isinstance(entry, dict) else entry
        if isinstance(shown, int) and not isinstance(shown, bool):
            shown = f"{shown:,}"
        _print_wrapped(
            f"{key:<{width}}  ", ", ".join(map(str, shown)) if isinstance(shown, list | tuple) else str(shown)
        )


def _print_wrapped(first: str, text: str) -> None:
    """At a terminal, lines that are too long go on below the first one's text."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if len(first) + len(text) <= columns or columns < len(first) + 20:
        print(first + text)
        return
    print(textwrap.fill(text, columns, initial_indent=first, subsequent_indent=" " * len(first)))


def main() -> None:
    """The `lapinfer` command."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a '?' instead of an error.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    app(prog_name="lapinfer")
