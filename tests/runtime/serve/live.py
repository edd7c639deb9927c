"""A real server, started as a user would, for tests: `bfr serve` in a process of its own."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image as Pillow

START = 120.0  # seconds; a server needs 10 to 20 on two idle cores


class Server:
    """`bfr serve` on a free port, with its files below `home`."""

    def __init__(self, home: Path, *flags: str, wait: bool = True, environment: dict[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.home = home
        command = [sys.executable, "-c", "from bfr.runtime.cli import main; main()", "serve", "--port", str(self.port)]
        self.process = subprocess.Popen(  # noqa: S603
            [*command, *flags],
            env={**os.environ, "BFR_HOME": str(home), **(environment or {})},
            stdout=(home / "stdout.txt").open("w"),
            stderr=(home / "stderr.txt").open("w"),
            start_new_session=True,
        )
        if wait:
            self.wait_ready()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its standard output, every line of which is JSON."""
        return [json.loads(line) for line in (self.home / "stdout.txt").read_text().splitlines()]

    def wait_ready(self, seconds: float = START) -> float:
        """Until `/ready` says so; returns the seconds it took."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if self.process.poll() is not None:
                break
            if self.ready():
                return time.monotonic() - begin
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.process.poll()}, {self.log}, {self.errors()[-3000:]}")

    def ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def errors(self) -> str:
        return (self.home / "stderr.txt").read_text()

    def replicas(self, name: str) -> list[int]:
        """Processes of a deployment, of this server's own Ray."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                title = (path / "cmdline").read_bytes().split(b"\0")[0].decode()
                session = os.getsid(int(path.name))
            except (OSError, ValueError):
                continue
            if title.startswith(f"ray::ServeReplica:bfr:{name}") and session == self.process.pid:
                found.append(int(path.name))
        return found

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal and wait for the end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return status

    def kill(self) -> None:
        """End it and its Ray, whatever state they are in."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(path.name)) == self.process.pid:
                    os.kill(int(path.name), signal.SIGKILL)
            except (OSError, ValueError):
                continue
        self.process.wait()

    def metric(self, name: str, **labels: str) -> float:
        """One value of /metrics, summed over the labels that are not given."""
        from prometheus_client.parser import text_string_to_metric_families

        text = httpx2.get(f"{self.url}/metrics", timeout=10).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
        )


def face(seed: int = 0, size: int = 256) -> bytes:
    """A PNG of an image that no other seed gives; nothing in it is a face."""
    rng = np.random.default_rng(seed)
    small = Pillow.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    stream = io.BytesIO()
    small.resize((size, size), Pillow.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def restore(
    url: str, image: bytes, *, timeout: float = 120, headers: dict[str, str] | None = None, **query: Any
) -> Any:
    """POST /restore of a PNG."""
    return httpx2.post(
        f"{url}/restore",
        content=image,
        params=query,
        headers={"Content-Type": "image/png", **(headers or {})},
        timeout=timeout,
    )
