"""Replicas behind one endpoint: puts models on a cluster by Ray Serve, and serves until a signal comes."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray import serve
from ray.serve.config import ProxyLocation, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from lapinfer.cluster.copies import Offer
from lapinfer.cluster.front import Front
from lapinfer.cluster.replica import Owner, Replica
from lapinfer.cluster.shares import Range
from lapinfer.cluster.start import ClusterError
from lapinfer.options import LoadOptions, ServeOptions
from lapinfer.serve.server import run

ROUTER: Any = "lapinfer.cluster.routing.PrefixRouter"
AT_ONCE = 100_000
"""Requests that a replica takes from Ray, which would hold back others without a word: ours says when it is busy."""
SECONDS_TO_END = 10.0


@contextmanager
def replicas(
    offers: Mapping[str, Offer], loading: LoadOptions, serving: ServeOptions, count: Range,
) -> Iterator[Any]:  # fmt: skip
    """Ray Serve's handle of so many replicas within the block, each with `loading.threads` CPUs.

    What a replica raises while it loads is raised here. Of a cluster that was there before, nothing is left at the end.
    """
    service = f"lapinfer-{os.getpid()}-{secrets.token_hex(4)}"
    owner = ray.remote(Owner).options(num_cpus=0, max_concurrency=1000).remote()
    before = _running()
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=_quiet())
    scaled: dict[str, Any] = {"num_replicas": count.most}
    if count.least < count.most:
        scaled = {"autoscaling_config": {
            "min_replicas": count.least, "max_replicas": count.most, "target_ongoing_requests": loading.slots,
        }}  # fmt: skip
    made: Any = serve.deployment(Replica)
    deployment = made.options(
        name="replica", ray_actor_options={"num_cpus": loading.threads}, max_ongoing_requests=AT_ONCE,
        graceful_shutdown_timeout_s=SECONDS_TO_END, logging_config=_quiet(),
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER, request_router_kwargs={"slots": loading.slots}
        ),
        **scaled,
    )  # fmt: skip
    try:
        app = deployment.bind(service, dict(offers), loading, serving, owner)
        try:
            handle = serve.run(app, name=service, route_prefix=None)
        except (RuntimeError, TimeoutError) as error:
            raise ClusterError(f"replicas could not be started: {str(error).splitlines()[0]}") from error
        for error in handle.broadcast("failure").results(timeout_s=60):
            if error is not None:
                raise error
        yield handle
    finally:
        with suppress(Exception):
            if before is None:
                serve.shutdown()
            else:
                serve.delete(service)


def _running() -> Any:
    """What Ray Serve runs on this cluster already, which stays; None where it does not run."""
    with suppress(Exception):
        return serve.status().applications or None
    return None


def _quiet() -> LoggingConfig:
    return LoggingConfig(log_level=logging.ERROR, enable_access_log=False)


def run_front(
    handle: Any, serving: ServeOptions, listener: socket.socket, *, told: Callable[[int, int], object]
) -> int | None:
    """Serve until a signal comes, as serve/server.py's `run` does."""
    front = Front(serving, handle)
    return run(front, front.application(), listener, told=told)
