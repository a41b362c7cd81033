"""What a model makes of texts: perplexity, experts, embeddings."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lapinfer.cli.bars import Progress
from lapinfer.cli.console import note, note_replaced, print_json, say
from lapinfer.cli.models import open_model
from lapinfer.cli.options import Force, Json, LoadingChunks, Model, Verbose, load_option, with_groups
from lapinfer.progress import Phase

TOGETHER = 8
"""Texts that are read in the same steps."""
EMBEDDING = Phase("embedding", "texts")


@with_groups
def perplexity(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The text to score.")],
    *,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=4, help="Tokens per chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option("--chunks", min=1, help="Chunks to score.", show_default="all")] = None,
    against: Annotated[str | None, typer.Option("--against", help="A reference model: adds KL divergence.")] = None,
    loading: LoadingChunks,
    against_quant: Annotated[str, load_option("quant", "--against-quant", help="--quant of the reference.")] = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity of a text by llama-perplexity's method, and KL divergence from a reference.

    With --experts the reference, where none is named, is the model with its own number of experts.
    """
    from lapinfer.report.experts import experts_a_token
    from lapinfer.report.perplexity import perplexity
    from lapinfer.texts import read_text

    text, loading = read_text(file), replace(loading, ctx=ctx_size)
    own_experts = against is None and loading.experts is not None
    with open_model(model, loading, verbose) as scored:
        if against is not None:
            reference = open_model(against, replace(loading, quant=against_quant, experts=None, lora=()), verbose)
        elif own_experts:
            reference = open_model(model, replace(loading, experts=None), verbose)
        else:
            reference = None
        result, experts = None, {}
        with nullcontext() if reference is None else reference:
            if reference is not None and own_experts:
                experts = {"experts": loading.experts, "reference_experts": experts_a_token(reference.spec)}
            with Progress() as progress:
                for result in perplexity(scored, text, ctx_size, chunks, reference, progress):
                    if verbose:
                        note(f"[{result.chunks}] {result.ppl:.4f}")
    if result is None:
        return
    if json:
        print_json(result.as_dict() | experts)
        return
    if experts:
        say(
            f"{experts['experts']} experts per token; "
            f"the reference is the model with its own {experts['reference_experts']}"
        )
    say(str(result))


@with_groups
def embed(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Texts, one a line; -: from stdin.")],
    *,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=1, help="Most tokens of a text.")] = 512,
    pooling: Annotated[
        str, typer.Option("--pooling", help="mean of all positions, or last: of the last one.")
    ] = "mean",
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Whether vectors have a length of 1.")
    ] = True,
    loading: LoadingChunks,
    verbose: Verbose = False,
) -> None:
    """A vector for each line of a text that is not empty, as lines of JSON: its number (from 1), and the embedding."""
    from lapinfer.cli.prompts import prompt_of
    from lapinfer.text.embedding import checked_pooling
    from lapinfer.texts import read_text

    pooled = checked_pooling(pooling)
    text = prompt_of("-") or "" if str(file) == "-" else read_text(file)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line]
    with open_model(model, replace(loading, ctx=ctx_size, slots=TOGETHER), verbose) as loaded, Progress() as progress:
        for at in range(0, len(lines), TOGETHER):
            progress(EMBEDDING, at, len(lines))
            some = lines[at : at + TOGETHER]
            vectors = loaded.embed([line for _, line in some], pooling=pooled, normalize=normalize)
            for (number, _), vector in zip(some, vectors, strict=True):
                numbers = [float(f"{value:.9g}") for value in vector.tolist()]  # as many digits as float32 has
                print_json({"line": number, "embedding": numbers}, on_one_line=True)
        progress(EMBEDDING, len(lines), len(lines))


@with_groups
def experts(
    model: Model,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="The texts to read.")],
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the report, too: .html, .json or .npz.")
    ] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=1, help="Tokens per chunk.")] = 512,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Chunks of each text.", show_default="all")
    ] = None,
    force: Force = False,
    loading: LoadingChunks,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Which experts the tokens of texts are routed to: load, reuse, and different experts in a step."""
    from lapinfer.report import experts as report
    from lapinfer.texts import read_text

    if output is not None:
        note_replaced(report.check_path(output, force=force))
    texts = [read_text(file) for file in files]
    with (
        open_model(model, replace(loading, ctx=ctx_size), verbose) as loaded,
        loaded.watch_experts() as routing,
    ):
        with Progress() as progress:
            report.run_texts(loaded, texts, ctx_size, chunks, progress)
        print_json(routing.summary()) if json else say(report.text_table(routing))
        if output is not None:
            report.write(output, routing, loaded.model.name, force=force)
            note(f"wrote {output}")
