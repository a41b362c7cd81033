"""lapinfer serve: models over HTTP, for programs that know OpenAI's or Anthropic's API."""

import os
import signal
from dataclasses import replace
from typing import Annotated, Any

import typer

from lapinfer.cli.bars import Progress
from lapinfer.cli.clusters import Ray, check_ray, engines, engines_option, joined, needs_ray, shared
from lapinfer.cli.complete import models as model_names
from lapinfer.cli.console import note
from lapinfer.cli.logs import tell_logs
from lapinfer.cli.models import default_name, open_model, pull_model
from lapinfer.cli.options import MODEL_NAMES, LoadingServed, Serving, Verbose, with_groups
from lapinfer.errors import InputError
from lapinfer.interrupts import KEYBOARD
from lapinfer.options import LoadOptions, ServeOptions


@with_groups
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODELS",
            help=MODEL_NAMES,
            show_default="all that lapinfer ls shows, but copies",
            autocompletion=model_names,
        ),
    ] = None,
    *,
    serving: Serving,
    loading: LoadingServed,
    ray: Ray = None,
    replicas: Annotated[str | None, engines_option("--replicas", "Replicas")] = None,
    verbose: Verbose = False,
) -> None:
    """Serve models over HTTP: OpenAI's and Anthropic's APIs, and a page to chat on at /.

    The first model is loaded at once, others when they are asked for; those used longest ago leave where --memory is
    full. Ctrl-C, or SIGTERM, ends it after the answers that run; a second one ends it at once. With --ray, replicas
    answer behind one endpoint, and prompts that begin alike go to the same one.
    """
    _check_installed()
    needs_ray(ray, replicas=replicas)
    from lapinfer.loading import memory_needed
    from lapinfer.machine import available_memory, keep_one_heap
    from lapinfer.serve.app import application
    from lapinfer.serve.models import Models
    from lapinfer.serve.server import address_of, listening, run
    from lapinfer.serve.state import State
    from lapinfer.text.language_model import open_model as open_quietly

    tell_logs(verbose)
    if ray is not None:
        _serve_on_cluster(ray, models, serving, loading, engines("--replicas", replicas))
        return
    keep_one_heap()
    paths = _paths(models)
    first, path = next(iter(paths.items()))
    listener = listening(serving.host, serving.port)
    memory = available_memory() if serving.memory is None else int(serving.memory * 1e9)
    if serving.memory is not None and len(paths) == 1 and memory_needed(path, loading) > serving.memory * 1e9:
        loading, memory = replace(loading, memory=serving.memory), None  # experts that do not fit stay on disk

    def open_later(path: str, options: LoadOptions) -> Any:
        note(f"loading {path}")
        return open_quietly(path, options, _notices)

    served = Models(
        paths, loading, open=open_later, size=memory_needed, memory=memory, queue=serving.queue, seconds=serving.timeout
    )
    model = open_model(path, loading, verbose)
    served.put(first, model)
    _warn_if_open(serving)
    room = "" if memory is None else f", of {memory / 1e9:,.1f} GB for models"
    about = f"{model.model.slots} slots of {model.model.ctx:,} positions, {_megabytes(path, loading)}{room}"
    note(f"serving {', '.join(paths)} at {address_of(listener)} ({first}: {about})")
    state = State(serving, served)
    with KEYBOARD.lent():
        ended = run(state, application(state), listener, told=_told)
    if ended == signal.SIGINT:
        raise KeyboardInterrupt


def _serve_on_cluster(
    address: str, models: list[str] | None, serving: ServeOptions, loading: LoadOptions, count: Any
) -> None:
    check_ray()
    from lapinfer.cluster.offers import offer_of
    from lapinfer.cluster.service import replicas, run_front
    from lapinfer.serve.server import address_of, listening

    paths = _paths(models or [default_name()])
    listener = listening(serving.host, serving.port)
    with joined(address) as cluster:
        count, loading = shared(cluster, count, loading, "--replicas")
        with Progress() as progress:
            offers = {name: offer_of(cluster, path, loading, progress) for name, path in paths.items()}
        note(f"starting {count} replicas of {loading.threads} threads on {cluster}")
        with replicas(offers, loading, serving, count) as handle:
            _warn_if_open(serving)
            about = f"{count} replicas of {loading.slots} slots, {loading.threads} threads each"
            note(f"serving {', '.join(paths)} at {address_of(listener)} ({about})")
            with KEYBOARD.lent():
                ended = run_front(handle, serving, listener, told=_told)
    if ended == signal.SIGINT:
        raise KeyboardInterrupt


def _warn_if_open(serving: ServeOptions) -> None:
    from lapinfer.serve.limits import is_local

    if serving.api_key is None and not is_local(serving.host):
        note("note: whoever reaches this address can use it; --api-key asks for a key")


def _check_installed() -> None:
    try:
        import prometheus_client  # noqa: F401
        import pydantic  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f'lapinfer serve needs {error.name}: pip install "lapinfer[serve]"') from error


def _paths(models: list[str] | None) -> dict[str, str]:
    """Where models are, by what clients call them; those that have to be fetched are."""
    from lapinfer.checkpoint import hub
    from lapinfer.serve.models import named

    if models:
        for name in models:
            if not hub.is_local(name):
                if not hub.can_be_pulled(name):
                    hub.resolve(name)  # tells what was expected
                note(f"pulling {name} (once)")
                pull_model(name)
        return named(models)
    first = default_name()
    found = {model.name: model.path for model in hub.list_local() if model.kind != "packed"}  # copies of others
    return {first: found.get(first, first)} | found


def _megabytes(path: str, options: LoadOptions) -> str:
    from lapinfer.loading import memory_needed

    return f"{memory_needed(path, options) / 1e6:,.0f} MB"


def _notices(what: str, *bar: object) -> None:
    """Notices of a model that is loaded while the server runs; bars are for starts."""
    if not bar:
        note(what)


def _told(number: int, before: int) -> None:
    """What a signal does: the first lets answers come to their end, the second does not."""
    if before:
        os._exit(128 + number)
    note("ending after the answers that run; once more ends at once")
