"""Bulk restoration where something dies: the driver, by kill -9, one of two nodes, and the cable between two."""

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from interpreter import python
from PIL import Image as Pillow

from bfr.runtime.cluster.bulk.table import read_entries
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.jobs.store import Store
from bfr.runtime.restore.restorer import Restorer

pytestmark = [pytest.mark.server, pytest.mark.slow]
BOTH = """
import sys, time, ray
ray.init(address=sys.argv[1])
while len(ray.nodes()) < 2:
    time.sleep(0.2)
"""
KINDS = 4  # different pictures
PORT = 6379
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",  # its workers would wait for everything else on the machine
    "OMP_NUM_THREADS": "1",
}
TOKEN = {
    **RAY,
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "5" * 64,
    "RAY_health_check_period_ms": "2000",  # nobody is told of a cut cable
    "RAY_health_check_timeout_ms": "4000",
}


def noise(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i % KINDS).integers(0, 256, (8, 8, 3), np.uint8)
        Pillow.fromarray(pixels).resize((64, 48), Pillow.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def expected(folder: Path, out: Path) -> list[bytes]:
    """What `bfr restore` makes of the pictures."""
    items = find_images([folder])[:KINDS]
    with Restorer.open(backend="onnxruntime-cpu", preset="fast", precision="fp32") as restorer:
        run_job(restorer, items, JobOptions(out))
    return [(out / f"{i}.png").read_bytes() for i in range(KINDS)]


def check(folder: Path, out: Path, count: int) -> list[dict[str, str]]:
    """Every input has one row and its own result."""
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == [str(folder / f"{i}.png") for i in range(count)]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["results.csv", "batch.json", *(f"{i}.png" for i in range(count))]
    )
    pictures = expected(folder, out.parent / "expected")
    assert all((out / f"{i}.png").read_bytes() == pictures[i % KINDS] for i in range(count))
    return rows


class Started:
    """A process in a session of its own, so that all of it can be killed at once, and what it said."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: IO[bytes]) -> None:
        self.process, self.output = process, output

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read().decode()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(*command: object, inside: str = "", **environment: str) -> Started:
    """inside: a network namespace."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603
            [*(["ip", "netns", "exec", inside] if inside else []), sys.executable, *map(str, command)],
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        return Started(process, os.fdopen(os.dup(said.fileno()), "rb"))


def batch(folder: Path, out: Path, *arguments: object, inside: str = "", **environment: str) -> Started:
    code = "from bfr.runtime.cli.main import main; main()"
    options = ("--aligned", "--preset", "fast", "--backend", "onnxruntime-cpu", *arguments)
    return start("-c", code, "batch", folder, "-o", out, *options, inside=inside, **environment)


def wait_for(condition: Callable[[], bool], started: Started, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if started.process.poll() is not None or time.monotonic() > end:
            started.kill()
            pytest.fail(f"it ended too early, or took too long: {started.process.returncode}\n{started.said()}")
        time.sleep(0.1)


def finished(started: Started) -> str:
    wait_for(lambda: started.process.poll() is not None, started, 400)
    assert started.process.returncode == 0, started.said()
    return started.said()


def results(out: Path) -> int:
    return len([path for path in out.glob("*.png") if not path.name.startswith(".")])


def both_work(out: Path) -> bool:
    """Whether rows have come from two nodes."""
    parts = [path.name for path in out.glob("rows-*")]
    return len({row.node for row in read_entries(Store(str(out)), parts).values()}) == 2


def test_a_run_that_is_killed_is_resumed(tmp_path: Path) -> None:
    folder, out = noise(tmp_path / "in", 40), tmp_path / "out"
    process = batch(folder, out)
    wait_for(lambda: results(out) >= 8, process)
    process.kill()
    there = results(out)
    assert 8 <= there < 40
    assert not (out / "results.csv").exists()
    said = finished(batch(folder, out, "--resume"))
    skipped = re.search(r"40 images: (\d+) restored, (\d+) skipped", said)
    assert skipped, said
    assert there <= int(skipped[2]) < 40  # a worker outlives its driver by a moment
    check(folder, out, 40)


def node(*arguments: object, temporary: str, inside: str = "", **environment: str) -> Started:
    """A node of one core. temporary: a short path, for sockets lie in it. inside: a network namespace."""
    options = ("--num-cpus=1", "--object-store-memory=100000000", "--block", *arguments)
    return start(
        "-m", "ray.scripts.scripts", "start", *options, inside=inside, TMPDIR=temporary, **{**RAY, **environment}
    )


@contextmanager
def cluster() -> Iterator[tuple[str, Started]]:
    """Two nodes on this machine: the address of the first, and the second one."""
    ip = python("import ray; print(ray.util.get_node_ip_address())").stdout.strip()
    with socket.socket() as free, ExitStack() as stack:
        free.bind(("", 0))
        port = free.getsockname()[1]
        free.close()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
        head = node("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", temporary=folder)
        stack.callback(head.kill)
        wait_for(lambda: "Ray runtime started" in head.said(), head)
        second = node(f"--address={ip}:{port}", temporary=folder)
        stack.callback(second.kill)
        yield f"{ip}:{port}", second


def test_a_node_that_dies_loses_nothing(tmp_path: Path) -> None:
    """Both nodes work; one is killed; the other does the rest. Every input has one row and the right picture."""
    count = 96
    folder, out = noise(tmp_path / "in", count), tmp_path / "out"

    with cluster() as (address, second):
        finished(start("-c", BOTH, address, **RAY))
        begin = time.monotonic()
        process = batch(folder, out, "--address", address, **RAY)
        wait_for(lambda: both_work(out), process)
        there, seconds = results(out), time.monotonic() - begin
        second.kill()
        said = finished(process)
        total = time.monotonic() - begin
    assert there < count, "the node was killed too late"
    assert f"{count} images: {count} restored" in said
    nodes = Counter(row["node"] for row in check(folder, out, count))
    print(f"killed after {seconds:.0f} s with {there} of {count} results; {total:.0f} s in all; rows by node: {nodes}")
    assert len(nodes) == 2


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=30)  # noqa: S603, S607


@contextmanager
def machines() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, which reach nothing else. 10.77.0.1 and 10.77.0.2."""
    names = [f"bfr-{os.getpid()}-{k}" for k in range(2)]
    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for k, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{k}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2")
def test_a_machine_that_is_cut_off_loses_nothing(tmp_path: Path) -> None:
    """Two machines, as far as the network goes, with a token. The cable is cut: nothing answers, nothing is closed."""
    count = 96
    folder, out = noise(tmp_path / "in", count), tmp_path / "out"

    with machines() as (here, there), ExitStack() as stack:
        folders = [
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)) for _ in range(2)
        ]
        first = ("--head", f"--port={PORT}", "--include-dashboard=false", "--node-ip-address=10.77.0.1")
        head = node(*first, f"--temp-dir={folders[0]}", temporary=folders[0], inside=here, **TOKEN)
        stack.callback(head.kill)
        wait_for(lambda: "Ray runtime started" in head.said(), head)
        address = f"10.77.0.1:{PORT}"
        second = ("--address", address, "--node-ip-address=10.77.0.2")
        other = node(*second, temporary=folders[1], inside=there, **TOKEN)
        stack.callback(other.kill)
        finished(start("-c", BOTH, address, inside=here, **TOKEN))
        process = batch(folder, out, "--address", address, inside=here, **TOKEN)
        stack.callback(process.kill)
        wait_for(lambda: both_work(out), process, 400)
        done = results(out)
        ip("-n", here, "link", "set", "cable", "down")
        said = finished(process)
    assert done < count, "the cable was cut too late"
    assert f"{count} images: {count} restored" in said
    assert len(Counter(row["node"] for row in check(folder, out, count))) == 2
