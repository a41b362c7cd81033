"""Nodes with experts as actors of Ray, and the model in front of them.

Requests and answers go through a graph that Ray compiles once: channels in shared memory between processes of one
computer, and messages between computers, without the scheduler's round trip for each call.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from lapinfer.cluster.expert_actor import Charge, ExpertActor
from lapinfer.cluster.shares import Range, shares
from lapinfer.cluster.start import LOCAL, Cluster, ClusterError, cluster, described, first_line, imported
from lapinfer.errors import InputError, LapinferError
from lapinfer.kernels.operands import TILE
from lapinfer.machine import default_threads
from lapinfer.model import Model
from lapinfer.progress import Notice, Phase, Progress, silent
from lapinfer.runtime.expert_nodes import Answer, Request
from lapinfer.runtime.ops import Limits, Weights
from lapinfer.runtime.placement import Placement, placed
from lapinfer.runtime.some_experts import Layout, layout_of, pieces_of
from lapinfer.spec import FeedForwardSpec, ModelSpec

OPTION = "--expert-nodes"
ADDRESS = "RAY_ADDRESS"
"""The variable in which Ray's own programs find a cluster."""
SECONDS = 600
"""In which a node must have answered: more than any step takes on a computer that works."""
STARTING = 120
"""In which nodes must have started: they may have to compile kernels."""
AGAIN = 0.5
"""Seconds between two looks whether a node is there again."""
MESSAGES = 96_000_000
"""Bytes that the answers of all nodes to one step may have together: they lie in shared memory."""


class RayNodes:
    """Actors with the experts of a model. `ask` is as in runtime/expert_nodes.py.

    A node that dies is started again by Ray, gets its experts again, and is asked again, once: answers have no memory.
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, limits: Limits, placement: Placement, *, own: bool,
        progress: Progress = silent,
    ):  # fmt: skip
        """own: whether the cluster is of this computer alone, whose CPUs need not be counted. ClusterError where a node
        does not start."""
        self._ray = ray = imported(OPTION)
        logging.getLogger("ray.dag").setLevel(logging.CRITICAL)  # or it prints what is told as an error here
        self.placement, self._weights, self._notice = placement, weights, progress
        self._layout: Layout = layout_of(spec, weights)
        self._experts = [placement.experts(node) for node in range(placement.nodes)]
        path, content = (weights.path, getattr(weights, "content", None)) if weights.path.is_file() else (None, None)
        made = ray.remote(ExpertActor).options(
            num_cpus=0 if own else limits.threads, max_restarts=-1, scheduling_strategy="SPREAD"
        )
        together = placement.nodes if own else 1
        charges = [Charge(spec, limits, experts, self._layout, path, content, together) for experts in self._experts]
        self._actors = [made.remote(charge) for charge in charges]
        self._graph: Any = None
        self._in_flight = False
        self.held = ExitStack()
        """What ends with the nodes."""
        self._at_exit = partial(_close, weakref.ref(self))
        atexit.register(self._at_exit)  # so before Ray's own, which takes the memory of answers away
        try:
            self._start(progress)
        except BaseException:
            self.close()
            raise

    def _start(self, progress: Progress) -> None:
        """See that all nodes have their experts and kernels, and compile the graph."""
        phase = Phase("starting", "nodes", said=f"starting {len(self._actors)} nodes with experts")
        until = time.monotonic() + STARTING
        try:
            for done, (actor, experts) in enumerate(zip(self._actors, self._experts, strict=True)):
                progress(phase, done, len(self._actors))
                if self._lacks_file(actor, until):
                    for piece in pieces_of(self._weights, self._layout, experts):
                        self._got(actor.take.remote(piece))
            self._got([actor.start.remote() for actor in self._actors])
            progress(phase, len(self._actors), len(self._actors))
            self._graph = self._compiled()
            self._ask({})  # the first time takes as long as some imports
        except self._ray.exceptions.GetTimeoutError as error:
            raise ClusterError(f"{OPTION}: a node did not start within {STARTING} s; ray status tells why") from error
        except self._ray.exceptions.RayError as error:
            raise _told(error, "a node did not start") from error

    def _lacks_file(self, actor: Any, until: float) -> bool:
        """Whether its experts must be sent; waits for Ray to find out that an actor is gone, and to start it again."""
        while True:
            try:
                return self._got(actor.lacks_file.remote())
            except self._ray.exceptions.ActorUnavailableError:
                if time.monotonic() > until:
                    raise
                time.sleep(AGAIN)

    def _got(self, refs: Any) -> Any:
        return self._ray.get(refs, timeout=STARTING)

    def _compiled(self) -> Any:
        from ray.dag import InputNode, MultiOutputNode

        with InputNode() as asked:
            answers = [actor.answer.bind(asked[node]) for node, actor in enumerate(self._actors)]
            graph = MultiOutputNode(answers)
        return graph.experimental_compile(_submit_timeout=SECONDS)

    def ask(self, requests: Mapping[int, Request]) -> Mapping[int, Answer]:
        """ClusterError where a node died again."""
        try:
            if self._graph is None or self._in_flight:  # Ctrl-C came while it was waited for
                self._start_again()
            return self._ask(requests)
        except self._ray.exceptions.RayError as error:
            if _raised(error) is not None:
                raise _told(error, "a node could not answer") from error
            self._notice("note: a node with experts died; it is started again")
        try:
            self._start_again()
            return self._ask(requests)
        except self._ray.exceptions.RayError as error:
            raise _told(error, "a node with experts died again") from error

    def _ask(self, requests: Mapping[int, Request]) -> Mapping[int, Answer]:
        nodes = range(len(self._actors))
        asked = [(r.position, r.rows, r.pairs) if (r := requests.get(node)) is not None else None for node in nodes]
        self._in_flight = True
        answers = self._ray.get(self._graph.execute(*asked), timeout=SECONDS)
        self._in_flight = False
        return {node: Answer(*answers[node]) for node in requests}

    def _start_again(self) -> None:
        self._tear_down()
        self._start(silent)

    def _tear_down(self) -> None:
        graph, self._graph, self._in_flight = self._graph, None, False
        if graph is not None:
            with suppress(Exception):
                graph.teardown()

    def usage(self) -> list[dict[str, Any]]:
        """Of each node: its process (`pid`), bytes that it takes (`resident`), whether its experts were sent (`sent`),
        and bytes of weights that it has touched since it began (`touched`)."""
        return self._got([actor.usage.remote() for actor in self._actors])

    def resident(self) -> list[int]:
        return [usage["resident"] for usage in self.usage()]

    def close(self) -> None:
        atexit.unregister(self._at_exit)
        self._tear_down()
        for actor in self._actors:
            with suppress(Exception):
                self._ray.kill(actor, no_restart=True)
        self._actors = []
        self.held.close()


def _close(nodes: weakref.ref[RayNodes]) -> None:
    if (alive := nodes()) is not None:
        alive.close()


def _raised(error: BaseException) -> BaseException | None:
    """What a node itself has raised; None where the node or the way to it is the trouble."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else None


def _told(error: BaseException, what: str) -> LapinferError:
    """An error in our words, of the kind that the node has raised."""
    own = _raised(error)
    kind = type(own) if isinstance(own, LapinferError) else ClusterError
    return kind(f"{OPTION}: {what}: {first_line(own or error)}")


class _Connection:
    """How many models of this process have nodes on the cluster that one of them has started. Ray's connection belongs
    to the process, and so does this."""

    models = 0
    joined: Cluster
    ending: ExitStack
    lock = threading.Lock()


@contextmanager
def _joined() -> Iterator[Cluster]:
    """The cluster that this process works on already, else that of RAY_ADDRESS, else one of this computer."""
    ray = imported(OPTION)
    with _Connection.lock:
        if _Connection.models == 0:
            _Connection.ending = ExitStack()
            if ray.is_initialized():
                _Connection.joined = described(ray, own=False)
            else:
                address = os.environ.get(ADDRESS, LOCAL)
                _Connection.joined = _Connection.ending.enter_context(cluster(address))
        _Connection.models += 1
    try:
        yield _Connection.joined
    finally:
        with _Connection.lock:
            _Connection.models -= 1
            if _Connection.models == 0:
                _Connection.ending.close()


def routed_layers(spec: ModelSpec) -> list[FeedForwardSpec]:
    """The feed-forwards of routed layers; InputError if their experts cannot be elsewhere."""
    routed = [layer.feed_forward for layer in spec.layers if layer.feed_forward.router is not None]
    if not routed:
        raise InputError("expert_nodes: this model has no experts that could be on nodes; leave the option out")
    if any(ff.narrow for ff in routed):
        raise InputError(
            "expert_nodes: leaves of a few neurons are read in less time than a message takes; leave the option out"
        )
    return routed


def fitted_limits(limits: Limits, routed: Sequence[FeedForwardSpec], hidden: int) -> Limits:
    """Steps so short that their answers fit into shared memory; logits do not depend on it."""
    of_a_token = max(ff.active for ff in routed) * 4 * hidden
    return replace(limits, step=max(min(limits.step, MESSAGES // of_a_token // TILE * TILE), TILE, limits.slots))


def apart_model(
    spec: ModelSpec, weights: Weights, limits: Limits, nodes: int, *, threads: int | None = None,
    notice: Notice | None = None, progress: Progress = silent, **options: Any,
) -> Model:  # fmt: skip
    """A model whose experts are on so many nodes, each with `threads` threads (None: as many as there are).

    InputError for a model without experts, or with fewer than nodes; ClusterError where nodes do not start.
    """
    routed = routed_layers(spec)
    placement = placed(routed, nodes)
    limits = fitted_limits(limits, routed, spec.hidden)
    with ExitStack() as stack:
        joined = stack.enter_context(_joined())
        if joined.own:
            threads = threads or max(default_threads() // nodes, 1)
        else:
            _, threads = shares(joined.cpus, Range(nodes, nodes), threads, OPTION)
        of_nodes = replace(limits, threads=threads)
        others = RayNodes(spec, weights, of_nodes, placement, own=joined.own, progress=progress)
        try:
            model = Model(spec, weights, limits, notice=notice, progress=progress, nodes=others, **options)
        except BaseException:
            others.close()
            raise
        others.held = stack.pop_all()
    return model
