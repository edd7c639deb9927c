"""A server under load: `python -m bfr.benchmarks.end_to_end.serving --out DIR`.

Closed loop: each of 1 to 64 clients sends its next image when the last one is answered. The bare Restorer, at the
batch size that so many clients can fill and on the same images, is timed before and after each level, while the server
is idle. Then, with a queue that is full, how soon a request is refused; then photographs and portraits together. Linux
only. Long runs with faults: `bfr.benchmarks.end_to_end.faults`.
"""

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from bfr.benchmarks.end_to_end.server_process import ServerProcess
from bfr.benchmarks.environment import CpuWatch, resident_bytes
from bfr.benchmarks.publish import Command, Findings
from bfr.benchmarks.speed.interleave import synthetic_faces
from bfr.benchmarks.tables import page, table
from bfr.runtime.errors import RestorationFailed
from bfr.runtime.images.decode import decode_image
from bfr.runtime.images.encode import encode_image
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.workers.worker import MODULE

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
FACES = 16  # different portraits
REFUSALS = 1000
PROCESSES = {"front": "-c from bfr.runtime.cli.main", "workers": MODULE}


@dataclass(slots=True)
class Load:
    """What a level of load came to.

    Attributes:
        seconds: Seconds of each request, from the client's side.
        refused: Answers 503.
    """

    clients: int
    wall: float = 0.0
    seconds: list[float] = field(default_factory=list)
    faces: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One that is sent again and again."""

    body: bytes
    media_type: str
    query: tuple[tuple[str, str], ...]

    async def send(self, line: httpx2.AsyncClient, path: str = "/restore") -> httpx2.Response:
        """Return the answer, whatever its status."""
        headers = {"Content-Type": self.media_type}
        return await line.post(path, content=self.body, params=dict(self.query), headers=headers)


def open_line(url: str) -> httpx2.AsyncClient:
    """Connect to a server on this machine, over plain HTTP, as often as is asked for."""
    limits = httpx2.Limits(max_connections=None)
    return httpx2.AsyncClient(base_url=url, timeout=600, verify=False, limits=limits)


async def wait_as_told(refusal: httpx2.Response) -> None:
    """Wait as long as a 503 asks for."""
    await asyncio.sleep(float(refusal.headers["retry-after"]))


def portraits(size: int, preset: str) -> list[Request]:
    """Aligned faces as JPEG."""
    query, faces = (("mode", "aligned"), ("preset", preset)), synthetic_faces(FACES, size)
    images = (np.rint(255 * face).astype(np.uint8) for face in faces)
    return [Request(encode_image(image, ".jpg"), "image/jpeg", query) for image in images]


async def drive(url: str, requests: Sequence[Request], *, clients: int, seconds: float) -> Load:
    """So many clients for so long; each sends its next request when the last one is answered."""
    load, begin = Load(clients), time.perf_counter()

    async def client(number: int) -> None:
        async with open_line(url) as line:
            for k in count(number, clients):
                if (sent := time.perf_counter()) >= begin + seconds:
                    return
                answer = await requests[k % len(requests)].send(line)
                if answer.status_code == 503:
                    load.refused += 1
                    await wait_as_told(answer)
                elif answer.status_code == 200:
                    load.seconds.append(time.perf_counter() - sent)
                    load.faces += int(answer.headers["x-bfr-faces"])
                else:
                    raise RestorationFailed(f"the server answered {answer.status_code}: {answer.text}")

    await asyncio.gather(*(client(number) for number in range(clients)))
    load.wall = time.perf_counter() - begin
    return load


async def refusals(url: str, request: Request, *, queue: int) -> list[float]:
    """Seconds until a server with a full queue refused a request, REFUSALS times."""
    found: list[float] = []
    gc.collect()
    gc.freeze()  # else a full collection of this process, 40 ms, is counted as the server's
    async with open_line(url) as line:

        async def fill() -> None:
            while len(found) < REFUSALS:
                if (await request.send(line)).status_code == 503:
                    await asyncio.sleep(0.1)

        async def ask() -> None:
            begin = time.perf_counter()
            if (await request.send(line)).status_code == 503:
                found.append(time.perf_counter() - begin)

        sent = [asyncio.create_task(fill()) for _ in range(queue + 4)]
        await asyncio.sleep(2)
        while len(found) < REFUSALS:  # at a steady rate, whether the one before was refused or let in
            sent.append(asyncio.create_task(ask()))
            await asyncio.sleep(0.02)
        await asyncio.gather(*sent)
    return found


def bare(restorer: Restorer, requests: Sequence[Request], size: int, seconds: float) -> float:
    """Faces a second of the Restorer alone, in batches of this size."""
    images = [decode_image(one.body).pixels for one in requests]
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        chosen = [images[(done + i) % len(images)] for i in range(size)]
        restorer.restore(chosen)
        done += len(chosen)
    return done / (time.perf_counter() - begin)


def memory(server: ServerProcess) -> dict[str, float]:
    """Resident MiB of the server's own processes, by what they do."""
    found = dict.fromkeys(PROCESSES, 0.0)
    for pid, title in server.processes():
        for name, begin in PROCESSES.items():
            if begin in title:
                found[name] += (resident_bytes(pid) or 0) / 2**20
    return found


def measure(args: argparse.Namespace) -> Findings:
    """All parts; figures and Markdown."""
    others = CpuWatch()
    photograph = Request(args.photograph.read_bytes(), "image/jpeg", (("preset", args.preset),))
    with tempfile.TemporaryDirectory() as home, Restorer.open(preset=args.preset, batch=args.batch) as restorer:
        faces = portraits(restorer.size, args.preset)
        restorer.warm_up()
        flags = ["--preset", args.preset, "--batch", str(args.batch), "--queue", str(args.queue), "--no-jobs"]
        flags += ["--precision", restorer.precision]  # of `auto` a server with a cache of its own might choose another
        begin = time.perf_counter()
        server = ServerProcess(Path(home), *flags, "--timeout", "600")
        start = time.perf_counter() - begin
        idle = memory(server)
        try:
            asyncio.run(drive(server.url, faces, clients=2 * args.batch, seconds=5))
            loads = []
            for clients in args.clients:
                size = min(clients, args.batch)
                before = bare(restorer, faces, size, args.seconds / 2)
                load = asyncio.run(drive(server.url, faces, clients=clients, seconds=args.seconds))
                after = bare(restorer, faces, size, args.seconds / 2)
                loads.append(
                    {**asdict(load), "bare": {"batch": size, "per_second_before": before, "per_second_after": after}}
                )
            batches = server.metric("bfr_batch_size_sum") / max(1.0, server.metric("bfr_batch_size_count"))
            refused = asyncio.run(refusals(server.url, faces[0], queue=args.queue))
            inside = [line["seconds"] for line in server.log if line.get("reason") == "overload"]
            few = [*faces[:3], photograph]
            mixed = asyncio.run(drive(server.url, few, clients=2 * args.batch, seconds=args.seconds))
            status = server.stop()
        finally:
            server.kill()
    figures = {
        "preset": args.preset,
        "batch": args.batch,
        "precision": restorer.precision,
        "queue": args.queue,
        "start_seconds": start,
        "idle_memory": idle,
        "loads": loads,
        "mean_batch": batches,
        "refusal_seconds": refused,
        "refusal_seconds_inside": inside,
        "mixed": {
            "per_second": mixed.faces / mixed.wall,
            **{name: float(np.quantile(mixed.seconds, share)) for name, share in (("p50", 0.5), ("p99", 0.99))},
        },
        "exit_status": status,
        "others_cores": others.others(),
    }
    return figures, as_markdown(figures)


def as_markdown(figures: dict[str, Any]) -> str:
    """The tables."""
    rows = []
    for load in figures["loads"]:
        rate, bare = load["faces"] / load["wall"], load["bare"]
        near = (bare["per_second_before"] + bare["per_second_after"]) / 2
        quantiles = (f"{np.quantile(load['seconds'], share):.2f}" for share in (0.5, 0.9, 0.99))
        speed = (f"{rate:.2f}", f"{near:.2f}", f"{rate / near:.0%}")
        rows.append([load["clients"], *speed, *quantiles, len(load["seconds"]), load["refused"]])
    refused, inside, mixed = (figures[name] for name in ("refusal_seconds", "refusal_seconds_inside", "mixed"))
    return page(
        f"# A server under load: mini, {figures['preset']}, {figures['precision']}, batches of {figures['batch']}",
        "Aligned faces as JPEG in and out, closed loop; clients, server and all its processes on one machine. "
        "The bare Restorer runs in the largest batches that this number of clients can fill. It is timed right before "
        "and right after each level, while the server is idle. "
        f"Ready after {figures['start_seconds']:.1f} s, with "
        f"{sum(figures['idle_memory'].values()):.0f} MiB of memory ("
        f"{', '.join(f'{name} {value:.0f}' for name, value in figures['idle_memory'].items())}); "
        f"{figures['mean_batch']:.1f} faces per batch on average. "
        f"Other processes kept {figures['others_cores']:.1f} cores busy.",
        "## Closed loop\n"
        + table(["clients", "faces/s", "bare faces/s", "share", "p50 s", "p90 s", "p99 s", "answers", "refused"], rows),
        "## A full queue\n"
        f"Latency of a 503 with Retry-After under full load, {len(refused)} of them at the client: "
        f"{_latency(refused)}. Inside the server, {len(inside)} of them: {_latency(inside)}.",
        "## Photographs and portraits\n"
        f"One photograph for three portraits, {2 * figures['batch']} clients: {mixed['per_second']:.2f} faces/s, "
        f"p50 {mixed['p50']:.2f} s, p99 {mixed['p99']:.2f} s.",
    )


def _latency(seconds: Sequence[float]) -> str:
    p50, p99, late, largest = (1000 * np.quantile(seconds, share) for share in (0.5, 0.99, 0.999, 1.0))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, p99.9 {late:.1f} ms, largest {largest:.1f} ms"


main = Command("bfr.benchmarks.end_to_end.serving", __doc__, measure)
main.add_argument("--photograph", type=Path, default=Path("docs/images/photograph.jpg"), help="a JPEG")
main.add_argument("--preset", default="balanced")
main.number("--batch", 2)
main.number("--queue", 64)
main.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
main.add_argument("--seconds", type=float, default=20.0, help="of each level")

if __name__ == "__main__":
    sys.exit(main())
