"""`bfr serve`: one process for HTTP, and a Ray of its own for the rest, started and ended with it.

HTTP is answered here and not by Serve's proxy, so that a full house says so in a millisecond, whatever the replicas do.
"""

import asyncio
import gc
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from secrets import token_hex
from typing import Any, TypeVar

import uvicorn

from bfr.runtime.errors import InvalidOption, RestorationFailed
from bfr.runtime.serve.http.api import make_api
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.jobs.store import check_folder
from bfr.runtime.serve.options import CPU_BATCH, ServeOptions

APP = "bfr"  # the Serve application that answers requests
WATCH = 2.0  # seconds between two looks at the networks
PATIENCE = 5.0  # seconds that they may take to answer
COUNTED = 8  # every so many looks the replicas are counted
T = TypeVar("T")
SILENT = 10  # looks in vain after which Ray is given up
SHARED_MEMORY = 512 << 20  # bytes of Ray's object store: images on their way, which are encoded, and crops of faces
QUIETER = {  # what Ray reads when it is imported; for one machine, where an idle Ray took a third of a core
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",  # seconds between two looks at the replicas, of which there are few
    "RAY_enable_metrics_collection": "0",  # /metrics is ours
    "RAY_task_events_report_interval_ms": "0",  # for a dashboard that does not run
}
_log = logging.getLogger("bfr.serve")


def serve_forever(options: ServeOptions, *, host: str, port: int, drain: float) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    On the first signal no new work is taken, and what is in the house is finished within `drain` seconds; a second one
    ends at once. Raises InvalidOption where the address is in use, and what `Front` raises.
    """
    if options.jobs:
        check_folder(options.jobs)
    listening = _listen(host, port)
    return asyncio.run(_Server(options, listening, drain).run())


class _Http(uvicorn.Server):
    """The HTTP server; what signals mean is ours to say."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server:
    def __init__(self, options: ServeOptions, listening: socket.socket, drain: float) -> None:
        self.options, self.listening, self.drain = options, listening, drain
        self.signals = 0
        self.told: dict[str, str] = {}  # what was logged of each deployment last
        self.failure: BaseException | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self.ending, self.front = asyncio.Event(), Front(self.options)
        http = _Http(
            uvicorn.Config(
                make_api(lambda: self.front),
                log_config=None,
                access_log=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=5,
            )
        )
        answering = asyncio.create_task(http.serve(sockets=[self.listening]))
        answering.add_done_callback(lambda _: self.ending.set())
        self._catch(loop)
        engine = asyncio.create_task(self._run_engine(loop))
        status = 1
        try:
            await self.ending.wait()
            if self.failure is None:
                _log.info("ending: no new work is taken, %d requests are in the house", len(self.front.visits))
                done = await self._drained()
                _log.info("all requests were answered" if done else "ended before all requests were answered")
                status = 0 if done else 1
        finally:
            http.should_exit = True
            engine.cancel()
            await asyncio.wait({engine, answering})
            await asyncio.to_thread(_stop)
        if self.failure is not None:
            raise self.failure
        return status

    async def _run_engine(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bring Ray and the replicas up and watch them; what fails for good ends the server."""
        begin = time.perf_counter()
        try:
            photos, networks, facts, jobs = await _to_the_end(_start, self.options)
            self._catch(loop)  # Ray sets handlers of its own
            from bfr.runtime.cluster.app import streaming

            gc.collect()
            gc.freeze()  # what was imported stays: looking through it again and again costs answers a tenth of a second
            self.front.backend = facts["backend"]
            await self._count()
            if self.front.state == "starting":
                self.front.open(streaming(photos))
                _log.info("ready on %s after %.1f s", facts["backend"], time.perf_counter() - begin)
            watching = asyncio.create_task(self._watch(networks))
            try:
                if jobs is not None:  # until then they wait on disk
                    await _to_the_end(_start_jobs, jobs)
                    await self._count()
                await watching
            finally:
                watching.cancel()
        except Exception as error:
            self.failure = error
            self.ending.set()

    async def _drained(self) -> bool:
        task = asyncio.create_task(self.front.drain(self.drain))
        while not task.done():
            if self.signals > 1:
                task.cancel()
                return False
            await asyncio.wait({task}, timeout=0.1)
        return task.result()

    def _catch(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        self.signals += 1
        if self.front.state != "draining":
            self.front.state = "draining"  # at once, before anything else is done
        self.ending.set()

    async def _watch(self, networks: Any) -> None:
        """Follow whether the networks can be reached, and how many replicas there are: Serve's status is not cheap."""
        silent = 0
        for look in count(1):  # who started this has just counted
            try:
                await asyncio.wait_for(networks.describe.remote(), PATIENCE)
                self.front.lacking = None
            except Exception:  # dead, or nobody there: Serve starts a new one
                self.front.lacking = "no process runs the networks just now: ask again"
            if look % COUNTED == 0 or self.front.lacking:
                try:
                    await self._count()
                    silent = 0
                except Exception as error:
                    silent += 1
                    if silent == SILENT:
                        raise RestorationFailed(f"Ray does not answer ({error}): start the server anew") from error
            await asyncio.sleep(WATCH)

    async def _count(self) -> None:
        """Note how many replicas run, and log what Serve says of them where that is new."""
        for name, (running, message) in (await asyncio.to_thread(_replicas)).items():
            self.front.metrics.replicas.labels(name).set(running)
            if message and self.told.get(name) != message:
                _log.warning("%s: %s", name, message)
            self.told[name] = message


async def _to_the_end(work: Callable[..., T], *arguments: Any) -> T:
    """The result of a function in a thread; cancelled, it waits for it: a half-started Ray cannot be stopped."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _start(options: ServeOptions) -> tuple[Any, Any, dict[str, Any], Any]:
    """Start Ray and what a request needs.

    Returns handles of the photographs and of the networks, what these say of themselves, and the application of the
    jobs, which can be started later.
    """
    for name, value in QUIETER.items():
        os.environ.setdefault(name, value)
    # Ray's ports carry pickles. They take only calls with this token, and most listen on the loopback alone.
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", token_hex(32)
    import ray
    from ray import serve

    from bfr.runtime.cluster.app import FACES, PHOTOS, deployments

    ray.init(
        address="local",
        num_cpus=max(8, os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=SHARED_MEMORY,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    # Whatever connects again, to look or to stop, must not find somebody else's Ray on this machine.
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    gpus = 0 if options.backend == "onnxruntime-cpu" else int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if gpus and options.replicas is None:
        options = options.model_copy(update={"replicas": gpus})
    if not gpus and options.batch is None:
        options = options.model_copy(update={"batch": CPU_BATCH})
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
    photos, jobs = deployments(options, gpus=bool(gpus), app=APP)
    try:
        serve.run(photos, name=APP, route_prefix=None)
    except RuntimeError as error:
        raise RestorationFailed(f"the networks could not be started: {_why(error)}") from error
    networks = serve.get_deployment_handle(FACES, APP)
    return serve.get_deployment_handle(PHOTOS, APP), networks, networks.describe.remote().result(), jobs


def _start_jobs(jobs: Any) -> None:
    from ray import serve

    serve.run(jobs, name=f"{APP}-jobs", route_prefix=None)


def _replicas() -> dict[str, tuple[int, str]]:
    """Deployment -> how many replicas run, and what Serve says of it where it is not well."""
    import ray
    from ray import serve

    found: dict[str, tuple[int, str]] = {}
    if not ray.is_initialized():
        return found
    for app in serve.status().applications.values():
        for name, one in app.deployments.items():
            running = sum(count for state, count in one.replica_states.items() if str(state).endswith("RUNNING"))
            found[name] = (running + found.get(name, (0, ""))[0], one.message)
    return found


def _stop() -> None:
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _why(error: Exception) -> str:
    """What stopped the replicas: of the tracebacks that Serve passes on, the error of ours, else all."""
    told = "\n".join(message for _, message in _replicas().values() if message) or str(error)
    ours = re.findall(r"^(?:ray\S* )?bfr\.runtime\.errors\.\w+: (.+)$", told, re.MULTILINE)
    return str(ours[-1]) if ours else told.strip()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise InvalidOption(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose another with --port"
        ) from None
    return listening
