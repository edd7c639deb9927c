"""The machines of a bulk run: an existing cluster or a local Ray; and how many workers fit."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from bfr.runtime.errors import BackendUnavailable, InvalidOption, MissingDependency
from bfr.runtime.install import install_command

_STORE_BYTES = 200 << 20  # of a local Ray's memory: nothing goes through it but names and rows
_TOKEN = secrets.token_hex(32)  # of the local Ray's ports; a process reads it once, for every Ray that it starts
_ANSWER = 10.0  # seconds that a cluster may take to accept a connection


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers of a run.

    Attributes:
        workers: How many.
        cpus: Cores of each.
        gpus: GPUs of each; a fraction where several share one.
        threads: Threads of a CPU backend; None if a GPU is used and the user chose none.
    """

    workers: int
    cpus: int
    gpus: float
    threads: int | None


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to a Ray cluster, and yield the module `ray`. A connection that this process has is used, and stays.

    Args:
        address: Address of a cluster; None starts a local one, which ends with the block.

    Raises:
        MissingDependency: Ray is not installed.
        BackendUnavailable: No cluster answers.
    """
    if address is None:  # before Ray is imported: it reads them once
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Python reports the errors
        if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & os.environ.keys():
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency(f"`bfr batch` needs Ray: {install_command('cluster')} ({error})") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as ending:
        try:
            if address is None:
                # Ray's own folder is readable by everybody: what it spills and logs is this user's alone here.
                private = TemporaryDirectory(prefix="bfr-ray-", ignore_cleanup_errors=True)
                quiet |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
                quiet |= {"_temp_dir": ending.enter_context(private), "_node_ip_address": "127.0.0.1"}
            else:
                _reach(address)
            ray.init(address=address or "local", **quiet)
        except Exception as error:  # Ray raises plain ones too, where a busy machine starts it too slowly
            raise BackendUnavailable(
                f"Ray cannot be reached at {address} ({error}): check --address, and `ray status` there"
                if address
                else f"Ray does not start on this machine ({error}): free some memory and cores and run it again, or "
                "use `bfr restore`"
            ) from error
        ending.callback(ray.shutdown)
        yield ray


def size_pool(
    nodes: Sequence[dict[str, Any]], *, backend: str, workers: int | None = None, threads: int | None = None
) -> Pool:
    """Choose the workers for a cluster.

    One for each GPU. Without any, or for `onnxruntime-cpu`, workers of as many cores as the smallest machine has: one a
    machine where all are alike.

    Args:
        nodes: As `ray.nodes()` returns them.
        backend: Name of the backend.
        workers: How many workers share the hardware; None chooses.
        threads: Threads of a CPU backend in each worker; None for its cores.

    Raises:
        InvalidOption: So many do not fit, or no machine has a core.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if workers is not None and workers < 1:
        raise InvalidOption(f"{workers} workers are out of range: choose 1 or more")
    gpus = int(sum(node.get("GPU", 0) for node in alive))
    if gpus and backend != "onnxruntime-cpu":
        count = workers or gpus
        return Pool(count, 0, 1 / -(-count // gpus), threads)
    cores = [int(node["CPU"]) for node in alive if node.get("CPU", 0) >= 1]
    if not cores:
        raise InvalidOption("the cluster has no CPU to run a worker on: check `ray status`")
    if workers is None:
        share = min(cores)
        workers = sum(one // share for one in cores)
    else:
        share = next((n for n in range(max(cores), 0, -1) if sum(one // n for one in cores) >= workers), 0)
        if not share:
            raise InvalidOption(f"{workers} workers do not fit: there are {sum(cores)} cores. Choose at most as many")
    return Pool(workers, share, 0, threads or share)


def _reach(address: str) -> None:
    """Raise ConnectionError if nothing answers: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        if address == "auto":
            return
        raise ValueError("an address is auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except OSError as error:
        raise ConnectionError(str(error)) from error
