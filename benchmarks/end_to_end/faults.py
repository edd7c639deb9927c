"""A server under mixed load and faults: `python -m bfr.benchmarks.end_to_end.faults --minutes 30 --out DIR`.

Clients send portraits and photographs, jobs, and nonsense; some leave before they are answered. Every `--kill` seconds
a worker is killed. Every answer is compared with the first one to the same request, given before the faults. Ends with
status 1 for a wrong answer, an unexpected status, work that is left over, or growth. Linux only.
"""

import argparse
import asyncio
import math
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import cycle, takewhile
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from bfr.benchmarks.end_to_end.endurance import growth
from bfr.benchmarks.end_to_end.server_process import ServerProcess
from bfr.benchmarks.end_to_end.serving import PROCESSES, Request, memory, open_line, portraits, wait_as_told
from bfr.benchmarks.environment import CpuWatch
from bfr.benchmarks.publish import Command, Findings
from bfr.benchmarks.tables import page, table

FRONT_GROWTH = 0.05  # of the front's memory from the first half to the second; workers are new after each kill
NO_FAULTS = "Every answer was correct or a 503, and nothing grew."
LOOKS = 60  # looks at memory in all
IMPATIENT = (0.0, 0.05, 0.3, 1.0)  # seconds after which a client leaves
NONSENSE = (
    (Request(b"no image", "image/png", (("mode", "aligned"),)), 422),
    (Request(b"x", "image/png", (("mode", "sideways"),)), 422),
    (Request(b"x", "image/png", (("nonsense", "1"),)), 422),
    (Request(b"x", "text/plain", ()), 415),
    (Request(b"", "image/jpeg", ()), 422),
)
Item = TypeVar("Item")


@dataclass(slots=True)
class Seen:
    """What clients saw.

    Attributes:
        answers: Kind of request and status, or the name of an error, -> how many.
    """

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    wrong: int = 0
    kills: int = 0
    looks: list[dict[str, float]] = field(default_factory=list)

    def note(self, kind: str, status: int | str, *expected: int) -> None:
        """Count an answer; 503 is expected of every request."""
        self.answers[kind, str(status)] += 1
        if status not in (503, *expected):
            self.unexpected.append(f"{kind}: {status}")


class Traffic:
    """The clients of one run."""

    def __init__(self, server: ServerProcess, seconds: float) -> None:
        """`seconds`: how long they send requests, from the end of `learn` on."""
        self.server, self.seconds, self.seen, self.end = server, seconds, Seen(), math.inf
        self.known: dict[Request, str] = {}

    def turns(self, items: Sequence[Item]) -> Iterator[Item]:
        """The items over and over, until no further request is to be sent."""
        return takewhile(lambda _: time.monotonic() < self.end, cycle(items))

    async def learn(self, requests: list[Request]) -> None:
        """Take the answers to come from a server without faults."""
        async with open_line(self.server.url) as line:
            for one in requests:
                self.known[one] = _digest((await one.send(line)).raise_for_status().content)
        self.end = time.monotonic() + self.seconds

    async def restore(self, kind: str, requests: list[Request]) -> None:
        """A client that sends one request after the other."""
        async with open_line(self.server.url) as line:
            for one in self.turns(requests):
                try:
                    answer = await one.send(line)
                except httpx2.HTTPError as error:
                    self.seen.note(kind, type(error).__name__)
                    continue
                self.seen.note(kind, answer.status_code, 200)
                if answer.status_code == 503:
                    await wait_as_told(answer)
                elif answer.status_code == 200:
                    self.seen.wrong += _digest(answer.content) != self.known[one]

    async def leave(self, requests: list[Request]) -> None:
        """A client that does not wait for its answers."""
        for one, patience in zip(self.turns(requests), cycle(IMPATIENT), strict=False):
            async with open_line(self.server.url) as line:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(one.send(line), patience)
            self.seen.answers["left early", ""] += 1
            await asyncio.sleep(0.5)

    async def confuse(self) -> None:
        """A client whose requests are to be refused."""
        async with open_line(self.server.url) as line:
            for one, status in self.turns(NONSENSE):
                self.seen.note("nonsense", (await one.send(line)).status_code, status)
                await asyncio.sleep(0.5)

    async def work(self, request: Request) -> None:
        """A client that sends jobs, fetches their results and deletes them."""
        async with open_line(self.server.url) as line:
            for one in self.turns([request]):
                answer = await one.send(line, "/jobs")
                self.seen.note("job", answer.status_code, 202)
                if answer.status_code == 503:
                    await wait_as_told(answer)
                    continue
                where = answer.headers["location"]
                while (state := (await line.get(where)).json()["state"]) in ("queued", "running"):
                    await asyncio.sleep(0.5)
                if state != "done":
                    self.seen.unexpected.append(f"job: {state}")
                else:
                    self.seen.wrong += _digest((await line.get(f"{where}/result")).content) != self.known[one]
                await line.delete(where)

    async def kill(self, every: float) -> None:
        """Kill a worker now and then."""
        while time.monotonic() + every < self.end:
            await asyncio.sleep(every)
            for pid in self.server.workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                self.seen.kills += 1

    async def look(self, every: float) -> None:
        """Note memory and open files of the server's processes."""
        begin = time.monotonic()
        for pid in self.turns([self.server.process.pid]):
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            found = {"second": round(time.monotonic() - begin, 1), **memory(self.server), "front_files": files}
            self.seen.looks.append(found)
            await asyncio.sleep(every)


def measure(args: argparse.Namespace) -> Findings:
    """Run the server and its clients; figures and Markdown."""
    others = CpuWatch()
    photograph = Request(args.photograph.read_bytes(), "image/jpeg", (("preset", args.preset),))
    with tempfile.TemporaryDirectory() as home:
        flags = ["--preset", args.preset, "--jobs", str(Path(home) / "jobs"), "--queue", str(2 * args.clients)]
        server = ServerProcess(Path(home), *flags)
        try:
            size = httpx2.get(f"{server.url}/info").json()["image_size"]
            traffic = Traffic(server, 60 * args.minutes)
            asyncio.run(_drive(traffic, portraits(size, args.preset), photograph, args))
            left = _left_over(server)
            restarts = server.metric("bfr_worker_restarts_total")
            status = server.stop()
        finally:
            server.kill()
    seen = traffic.seen
    settled = seen.looks[len(seen.looks) // 5 :]  # the first fifth is the warm-up
    grown = {name: growth([look[name] for look in settled]) for name in (*PROCESSES, "front_files")}
    faults = [
        *seen.unexpected,
        *([f"{seen.wrong} wrong answers"] if seen.wrong else []),
        *([f"left over: {left}"] if left else []),
        *([f"{seen.kills} kills and {restarts:g} restarts"] if seen.kills != restarts else []),
        *([f"exit status {status}"] if status else []),
        *([f"the front's memory grew by {grown['front']:.1%}"] if grown["front"] > FRONT_GROWTH else []),
    ]
    figures = {
        "minutes": args.minutes,
        "answers": {f"{kind} {status}".strip(): number for (kind, status), number in sorted(seen.answers.items())},
        "kills": seen.kills,
        "faults": faults,
        "memory": seen.looks,
        "growth": grown,
        "others_cores": others.others(),
    }
    return figures, as_markdown(figures)


async def _drive(traffic: Traffic, faces: list[Request], photograph: Request, args: argparse.Namespace) -> None:
    await traffic.learn([*faces, photograph])
    await asyncio.gather(
        *(traffic.restore("portrait", faces[k:] + faces[:k]) for k in range(args.clients)),
        traffic.restore("photograph", [photograph]),
        traffic.leave([*faces, photograph]),
        traffic.confuse(),
        traffic.work(photograph),
        traffic.kill(args.kill),
        traffic.look(60 * args.minutes / LOOKS),
    )


def _left_over(server: ServerProcess) -> dict[str, float]:
    """The gauges of work in flight that are above zero a minute after the last client left."""
    names = ("bfr_requests_in_flight", "bfr_faces_in_flight", "bfr_faces_waiting", "bfr_body_bytes", "bfr_jobs")
    end = time.monotonic() + 60
    server.wait_ready()
    while (left := {name: value for name in names if (value := server.metric(name))}) and time.monotonic() < end:
        time.sleep(0.5)
    return left


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def as_markdown(figures: dict[str, Any]) -> str:
    """The tables and what they say."""
    looks, faults = figures["memory"], figures["faults"]
    picked = [looks[round(i * (len(looks) - 1) / 6)] for i in range(7)]
    columns = (*PROCESSES, "front_files")
    rows = [[f"{one['second'] / 60:.1f}", *(f"{one[name]:.0f}" for name in columns)] for one in picked]
    grown = ", ".join(f"{name.replace('_', ' ')} {value:+.1%}" for name, value in figures["growth"].items())
    return page(
        f"# A server under faults for {figures['minutes']:g} minutes",
        f"A worker was killed {figures['kills']} times. Other processes kept {figures['others_cores']:.1f} cores busy. "
        + "\n".join(["FAULTS:", *(f"- {fault}" for fault in faults[:20])] if faults else [NO_FAULTS]),
        table(["answer", "number"], figures["answers"].items()),
        f"Resident MiB, and open files of the front. Growth of the maximum from the first half to the second half, "
        f"without the first fifth: {grown}.",
        table(["minute", *(name.replace("_", " ") for name in columns)], rows),
    )


main = Command("bfr.benchmarks.end_to_end.faults", __doc__, measure, lambda figures: bool(figures["faults"]))
main.add_argument("--minutes", type=float, default=30.0)
main.add_argument("--kill", type=float, default=60.0, help="seconds between two kills of a worker")
main.add_argument("--photograph", type=Path, default=Path("docs/images/photograph.jpg"), help="a JPEG")
main.add_argument("--preset", default="fast")
main.number("--clients", 4, "that send portraits")

if __name__ == "__main__":
    sys.exit(main())
