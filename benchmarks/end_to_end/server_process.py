"""`bfr serve` in a separate process, started as a user would, for measurements and tests. Linux only."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from bfr.runtime.errors import ServerUnavailable
from bfr.runtime.serve.workers.worker import MODULE

START = 180.0  # seconds; two idle cores need 2 to 3
COMMAND = (sys.executable, "-c", "from bfr.runtime.cli.main import main; main()", "serve")


def total(metrics: str, name: str, **labels: str) -> float:
    """A value of Prometheus's text, summed over the labels that are not given."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
    )


class ServerProcess:
    """A server on a free port of this machine, with its files below `home`."""

    def __init__(self, home: Path, *flags: str, wait: bool = True, **environment: str) -> None:
        """Start it, and wait until it is ready.

        Args:
            home: Folder of the server's files and of what it prints.
            flags: Flags of `bfr serve`.
            wait: Whether to wait.
            environment: Variables of its environment beside this process's.

        Raises:
            ServerUnavailable: It is not ready after START seconds.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.home, self.url = home, f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(  # noqa: S603
            [*COMMAND, "--port", str(port), *flags],
            env={"BFR_HOME": str(home), **os.environ, **environment},
            stdout=(home / "stdout.txt").open("w"),
            stderr=(home / "stderr.txt").open("w"),
            start_new_session=True,
        )
        self.session = self.process.pid
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its standard output, every line of which is JSON."""
        return [json.loads(line) for line in (self.home / "stdout.txt").read_text().splitlines()]

    def errors(self) -> str:
        """Its standard error."""
        return (self.home / "stderr.txt").read_text()

    def ready(self) -> bool:
        """Whether it takes work."""
        try:
            return bool(httpx2.get(f"{self.url}/ready", timeout=5).status_code == 200)
        except httpx2.TransportError:
            return False

    def wait_ready(self) -> None:
        """Wait until it takes work. Raises ServerUnavailable if it ended, or takes longer than START."""
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            if self.ready():
                return
            time.sleep(0.1)
        raise ServerUnavailable(f"the server is not ready, status {self.process.poll()}: {self.errors()[-2000:]}")

    def processes(self) -> Iterator[tuple[int, str]]:
        """Number and title of the server and all that it started."""
        return session_processes(self.session)

    def workers(self) -> list[int]:
        """The processes that run the networks."""
        return [pid for pid, title in self.processes() if MODULE in title]

    def metric(self, name: str, **labels: str) -> float:
        """A value of `/metrics`, summed over the labels that are not given."""
        return total(httpx2.get(f"{self.url}/metrics", timeout=30).text, name, **labels)

    def stop(self) -> int:
        """SIGTERM, and wait a minute for the end; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it and all that it started, whatever state they are in."""
        kill_session(self.session)
        self.process.wait()


def session_processes(session: int) -> Iterator[tuple[int, str]]:
    """Number and title of the processes of a session."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session:
                title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                yield int(path.name), title
        except OSError:
            continue  # it has ended


def kill_session(session: int) -> None:
    """Kill every process of a session."""
    for pid, _ in list(session_processes(session)):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
