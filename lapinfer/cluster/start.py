"""A cluster of Ray to work on: one that runs, or one of this computer that ends with what it was started for."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from lapinfer.errors import DoesNotFitError, InputError, LapinferError
from lapinfer.interrupts import KEYBOARD
from lapinfer.machine import default_threads

LOCAL, RUNNING = "local", "auto"
"""Addresses that are none: a cluster of our own on this computer, and the one that this computer is a node of."""
EXPECTED = "local, auto, or HOST:PORT of a cluster's head"
QUIET = {
    "RAY_AUTH_MODE": "disabled",  # else a token is written into the user's home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_worker_niceness": "0",  # else engines give way to every other process, and to Ray's own first
    "RAY_agent_register_timeout_ms": "120000",  # a busy computer takes longer than Ray waits
    "RAY_raylet_start_wait_time_s": "120",
}
"""The environment of a cluster of our own, where the user has not said otherwise."""
STORE = 200_000_000
"""Bytes of shared memory for objects on this computer: lines, answers, and packed weights piece by piece."""
SECONDS = 4.0
"""In which a cluster must answer."""
LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path, of which Ray needs about 60 in its own folder."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that this process is connected to. address: HOST:PORT of its head; own: whether it ends with us."""

    address: str
    own: bool
    cpus: tuple[int, ...]
    """CPUs of each node that has any, most first."""

    def __str__(self) -> str:
        nodes = "1 node" if len(self.cpus) == 1 else f"{len(self.cpus)} nodes"
        return f"{nodes} with {sum(self.cpus)} CPUs"


@contextmanager
def cluster(address: str) -> Iterator[Cluster]:
    """Connected to a cluster within the block; one of our own is stopped after it, and its files are removed.

    address: `local` starts one, `auto` is that of this computer, else HOST:PORT. InputError where there is none, or
    one of another version; UnsupportedError for addresses that this process cannot work on.
    """
    ray = imported()
    folder = None
    if address == LOCAL:
        folder = _folder()
        found: dict[str, Any] = {
            "address": LOCAL, "num_cpus": default_threads(), "object_store_memory": STORE, "include_dashboard": False,
            "_temp_dir": folder,
        }  # fmt: skip
    else:
        found = {"address": _answering(address)}
    before = KEYBOARD.before_end

    def remove() -> None:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def remove_first() -> None:
        remove()  # the processes end with this one
        if before is not None:
            before()

    KEYBOARD.before_end = remove_first
    try:
        _connect(ray, found, address)
        yield described(ray, own=folder is not None)
    finally:
        with suppress(Exception):
            ray.shutdown()
        remove()
        KEYBOARD.before_end = before


def imported(option: str = "--ray") -> Any:
    """The module ray, which finds our settings in the environment; InputError where it is not installed.

    option: what it is needed for.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InputError(f'{option} needs {error.name}: pip install "lapinfer[cluster]"') from error
    return ray


def _folder() -> str:
    """A folder for the files of a cluster: sockets, logs, and what does not fit into shared memory."""
    place = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="lapinfer-ray-", dir="/tmp" if len(place) > LONGEST_SOCKET - 80 else place)


def _answering(address: str) -> str:
    """HOST:PORT of a head that answers; InputError where none does. Ray itself looks for two minutes."""
    if address == RUNNING:
        from ray._private.services import canonicalize_bootstrap_address_or_die

        try:
            address = canonicalize_bootstrap_address_or_die(RUNNING)
        except ConnectionError:
            raise InputError(
                "--ray auto: no cluster of Ray runs on this computer; start one (ray start --head), or use --ray alone"
            ) from None
    host, separator, port = address.rpartition(":")
    if "://" in address or not separator or not host or re.fullmatch(r"\d{1,5}", port) is None:
        hint = "; a program on a node of the cluster can use it" if "://" in address else ""
        raise InputError(f"--ray {address}: expected {EXPECTED}{hint}")
    if not _answers(host, int(port)):
        raise InputError(f"--ray {address}: no cluster of Ray answers there; ray status tells where one runs")
    return address


def _answers(host: str, port: int) -> bool:
    """Whether a head of Ray is there. Ray's own client has no bound of time for this: a thread waits for it."""
    with suppress(OSError), socket.create_connection((host, port), timeout=SECONDS):
        from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] (a compiled module)

        found: list[object] = []
        asking = threading.Thread(target=lambda: found.append(GcsClient(address=f"{host}:{port}")), daemon=True)
        asking.start()
        asking.join(SECONDS)
        return bool(found)
    return False


def _connect(ray: Any, found: dict[str, Any], address: str) -> None:
    try:
        ray.init(
            **found, namespace="lapinfer", log_to_driver=False, logging_level=logging.ERROR, configure_logging=True
        )
    except Exception as error:  # Ray raises Exception itself, too
        told = first_line(error)
        if "Version mismatch" in str(error):
            versions = f"this is Ray {ray.__version__}, Python {platform.python_version()}"
            raise InputError(f"--ray {address}: the cluster runs another version: {versions}; {told}") from error
        if "timed out during startup" in told:
            told = "Ray did not start within its half a minute; try again when this computer has less to do"
        raise ClusterError(f"--ray {address}: cannot be used: {told}") from error
    for name in ("ray", "ray.data", "ray.serve", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with suppress(ImportError):
        from ray._private import worker

        worker.print_to_stdstream = _unheard


def _unheard(*lines: object, **more: object) -> None:
    """Ray tells drivers on stdout, among answers, of processes that died. Who needs them hears of that as errors."""


def described(ray: Any, *, own: bool) -> Cluster:
    """The cluster that this process is connected to; DoesNotFitError for one without CPUs."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    cpus = sorted((int(node["Resources"].get("CPU", 0)) for node in alive), reverse=True)
    if not any(cpus):
        raise DoesNotFitError("the cluster has no node with CPUs: start one with ray start --address HEAD --num-cpus N")
    return Cluster(ray.get_runtime_context().gcs_address, own, tuple(count for count in cpus if count))


class ClusterError(LapinferError):
    """A cluster cannot do what it was asked for: a process could not be started, or a node lacks something."""


def first_line(error: BaseException) -> str:
    """The words of an error of Ray's, whose messages have many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
