"""The HTTP interface over replicas that are not there: who is let in, what is refused and how, what is counted."""

import asyncio
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml
from eventually import eventually
from PIL import Image as Pillow
from starlette.responses import FileResponse
from typer.testing import CliRunner

from bfr.benchmarks.end_to_end.server_process import total
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.cli.main import app
from bfr.runtime.errors import InvalidOption, MissingDependency
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve.engine import Engine
from bfr.runtime.serve.http import front as front_module
from bfr.runtime.serve.http import requests, traces
from bfr.runtime.serve.http.api import make_api
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.http.metrics import PoolCollector
from bfr.runtime.serve.http.problems import Problem
from bfr.runtime.serve.jobs.job import Job, Status
from bfr.runtime.serve.jobs.runner import JobRunner
from bfr.runtime.serve.jobs.store import JobStore
from bfr.runtime.serve.keys import hash_key
from bfr.runtime.serve.options import ServeOptions, check_host
from bfr.runtime.serve.orders import Answer, Group, Order, Progress, Refusal, Sender
from bfr.runtime.serve.workers.pool import Pool

PNG = {"Content-Type": "image/png"}
DEPLOY = Path(__file__).parents[4] / "docs" / "deploy"
KEY = "k" * 24


def picture(file_format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Pillow.new("RGB", (8, 8), (9, 99, 199)).save(stream, file_format)
    return stream.getvalue()


class FakeServer:
    """A server's interface on a fake of its workers: images come back as they are, once `go` is set."""

    def __init__(self, **options: Any) -> None:
        self.front = Front(ServeOptions(**options))
        self.go, self.entered = asyncio.Event(), asyncio.Event()
        self.go.set()
        self.orders: list[Order] = []
        self.left = 0
        self.answers: list[Progress | Answer | Refusal | Exception] | None = None
        self.engine = FakeEngine(self.front.options)
        self.front.open(self.restore, self.engine)
        self.api = make_api(lambda: self.front)
        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(self.api), base_url="http://localhost")

    async def restore(self, data: bytes, order: Order) -> AsyncGenerator[Progress | Answer | Refusal, None]:
        self.orders.append(order)
        finished = False
        try:
            yield Progress("restoring", 0.5)
            self.entered.set()
            await self.go.wait()
            for answer in self.answers or [
                Answer(data, order.suffix or ".png", 2, 1, {"network": 0.25}, ("of 2 pages one",))
            ]:
                if isinstance(answer, Exception):
                    raise answer
                finished = True
                yield answer
        finally:
            self.left += not finished

    async def post(self, path: str = "/restore", **more: Any) -> Any:
        headers = {**PNG, **more.pop("headers", {})}
        return await self.client.post(path, **{"content": picture(), **more}, headers=headers)

    @property
    def jobs(self) -> JobStore:
        assert self.engine.jobs is not None
        return self.engine.jobs

    async def metric(self, name: str, **labels: str) -> float:
        return total((await self.client.get("/metrics")).text, name, **labels)


class FakeEngine(Engine):
    """An engine whose workers are not started. missing: what `lacking` says."""

    def __init__(self, options: ServeOptions) -> None:
        super().__init__(options, Pool(options))
        self.missing: str | None = None
        self.in_flight = 0
        self.woken = 0

    @property
    def faces(self) -> int:
        return self.in_flight

    def wake(self) -> None:
        self.woken += 1

    def lacking(self) -> str | None:
        return self.missing


@asynccontextmanager
async def serving(*, jobs: bool = False, **options: Any) -> AsyncGenerator[FakeServer, None]:
    with TemporaryDirectory() as folder:
        server = FakeServer(backend="onnxruntime-cpu", jobs=Path(folder) if jobs else None, **options)
        async with server.client:
            yield server


async def test_an_image_comes_back_with_its_facts() -> None:
    async with serving() as server:
        response = await server.post("/restore?seed=7&preset=fast&faces=largest&upscale=2&blend=0.5&keep_colour=true")
        assert response.status_code == 200
        assert response.content == picture()
        found = response.headers
        assert found["content-type"] == "image/png"
        assert (found["x-bfr-faces"], found["x-bfr-faces-failed"], found["x-bfr-seed"]) == ("2", "1", "7")
        assert found["x-bfr-preset"] == "fast"
        assert found["x-bfr-bundle"] == server.front.systems["mini"].bundle.hash
        assert found["x-bfr-notes"] == "of%202%20pages%20one"
        assert found["x-bfr-seconds"] == "network=0.2500"
        assert found["server-timing"] == "network;dur=250.0"
        order = server.orders[0]
        assert (order.group, order.aligned) == (Group("mini", "fast", 7), False)
        assert order.photo == PhotoOptions(faces="largest", upscale=2, blend=0.5, keep_colour=True)
        assert abs(order.deadline - time.monotonic() - server.front.options.timeout) < 5


async def test_a_form_is_read_too() -> None:
    async with serving() as server:
        response = await server.client.post("/restore", files={"image": ("me.png", picture(), "image/png")})
        assert response.status_code == 200
        assert response.content == picture()
        assert (await server.client.post("/restore", files={"photo": ("me.png", b"x")})).status_code == 422


@pytest.mark.parametrize(
    ("accept", "suffix"),
    [
        (None, None),
        ("*/*", None),
        ("image/*", None),
        ("image/webp", ".webp"),
        ("image/avif, image/webp;q=0.8, image/jpeg;q=0.9, */*;q=0.1", ".jpg"),
        ("image/png;q=0, image/jpeg", ".jpg"),
        ("text/html, */*;q=0.8", None),
    ],
)
async def test_accept_chooses_the_format(accept: str | None, suffix: str | None) -> None:
    async with serving() as server:
        headers = {} if accept is None else {"Accept": accept}
        if accept is None:
            server.client.headers.pop("accept")
        response = await server.post(headers=headers)
        assert response.status_code == 200
        assert server.orders[0].suffix == suffix


@pytest.mark.parametrize(
    ("path", "more", "status", "word"),
    [
        ("/restore", {"headers": {"Accept": "text/html"}}, 406, "image/webp"),
        ("/restore", {"headers": {"Content-Type": "text/plain"}}, 415, "image/png"),
        ("/restore", {"headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 415, "multipart/form-data"),
        ("/restore", {"headers": {"Content-Encoding": "gzip"}}, 415, "Content-Encoding gzip is not read: send it as"),
        ("/restore", {"headers": {"Content-Type": "multipart/form-data"}}, 422, "form"),
        ("/restore", {"content": b""}, 422, "no body"),
        ("/restore", {"content": b"x" * 2001}, 413, "2000"),
        ("/restore?seed=-1", {}, 422, "seed"),
        ("/restore?seed=4294967296", {}, 422, "seed"),
        ("/restore?upscale=3", {}, 422, "upscale"),
        ("/restore?blend=2", {}, 422, "choose between 0 and 1"),
        ("/restore?blend=nan", {}, 422, "blend"),
        ("/restore?preset=nothing", {}, 422, "balanced"),
        ("/restore?sede=1", {}, 422, "there is no option 'sede': choose among seed, bundle"),
        ("/restore?mode=aligned&upscale=2", {}, 422, "aligned"),
        ("/restore?seed=1&seed=2", {}, 422, "more than once"),
        ("/restore?a0=1&a1=1&a2=1&a3=1&a4=1&a5=1&a6=1", {}, 422, "there is no option 'a4'"),
        ("/restore", {"headers": {"Sec-Fetch-Site": "cross-site"}}, 403, "other sites"),
        ("/jobs", {}, 404, "--jobs"),
        ("/restore", {"headers": {"Origin": "http://[evil"}}, 403, "other sites"),
        ("/restore", {"headers": {"Transfer-Encoding": "chunked", "Content-Length": "9"}}, 400, "one of both"),
        ("/restore", {"headers": {"Content-Type": f"multipart/form-data; boundary={'b' * 9000}"}}, 422, "form"),
        ("/restore/", {}, 404, "openapi"),
        ("/nothing", {}, 404, "openapi"),
        ("/health", {}, 405, "openapi"),
    ],
)
async def test_what_is_refused_says_how_to_mend_it(path: str, more: dict[str, Any], status: int, word: str) -> None:
    async with serving(body_bytes=2000) as server:
        response = await server.post(path, **more)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["status"] == status
        assert word in problem["detail"]
        assert problem["detail"].count("there is no option") <= 5
        assert problem["request_id"] == response.headers["x-request-id"]
        assert server.orders == []
        assert server.front.visits == {}


async def test_the_event_loop_goes_on_while_a_form_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, goes_on = asyncio.get_running_loop(), threading.Event()

    def parse(_body: bytes, _kind: str) -> bytes:
        loop.call_soon_threadsafe(goes_on.set)
        assert goes_on.wait(20)
        return picture()

    monkeypatch.setattr(requests, "form_image", parse)
    async with serving() as server:
        answer = await server.client.post("/restore", files={"image": ("me.png", picture(), "image/png")})
        assert answer.status_code == 200


async def test_a_body_without_a_length_is_counted_as_it_comes() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(100):
            yield b"x" * 1000

    async with serving(body_bytes=2000) as server:
        assert (await server.post(content=chunks())).status_code == 413


async def test_a_slow_body_is_given_up() -> None:
    async def slow() -> AsyncGenerator[bytes, None]:
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.1)

    async with serving(body_seconds=0.2) as server:
        response = await server.post(content=slow())
        assert response.status_code == 408
        assert server.front.visits == {}


async def test_past_the_queue_requests_are_refused_and_taken_again_later() -> None:
    async with serving(queue=2) as server:
        server.go.clear()
        first = [asyncio.create_task(server.post()) for _ in range(2)]
        await eventually(lambda: len(server.orders) == 2)
        refused = await server.post()
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert await server.metric("bfr_requests_in_flight") == 2
        server.go.set()
        assert [(await task).status_code for task in first] == [200, 200]
        assert (await server.post()).status_code == 200
        assert await server.metric("bfr_requests_total", code="503", reason="overload") == 1


async def test_a_full_queue_of_one_key_keeps_no_other_key_out() -> None:
    async with serving(queue=2, keys=(hash_key(KEY), hash_key("another" * 4))) as server:
        busy, other = ({"Authorization": f"Bearer {key}"} for key in (KEY, "another" * 4))
        server.go.clear()
        tasks = []
        for headers in (busy, busy, other):
            tasks.append(asyncio.create_task(server.post(headers=headers)))
            await eventually(lambda: len(server.orders) == len(tasks))
        for headers in (busy, other):
            assert (await server.post(headers=headers)).status_code == 503
        server.go.set()
        assert [(await task).status_code for task in tasks] == [200, 200, 200]


def test_a_pause_says_nothing_of_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e6
    monkeypatch.setattr(front_module, "time", SimpleNamespace(monotonic=lambda: now))
    front = Front(ServeOptions(backend="onnxruntime-cpu"))
    front.state = "ready"
    for _ in range(2):
        now += 3600
        with front.admit("first") as first, front.admit("second") as second:
            front.place(first)
            front.place(second)
            now += 0.5
            front._answered()
            assert front.retry_after() == 1  # two requests, one in half a second


async def test_a_request_that_takes_too_long_is_refused_and_its_work_ends() -> None:
    async with serving(timeout=0.2) as server:
        server.go.clear()
        response = await server.post()
        assert response.status_code == 503
        assert "0.2 s" in response.json()["detail"]
        assert int(response.headers["retry-after"]) >= 1
        assert server.left == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Refusal("invalid", "the image is empty: copy it again"), 422),
        (Refusal("expired", "waited"), 503),
        (Refusal("failed", "the result holds NaN"), 503),
        (Refusal("overload", "257 faces"), 503),
        (Refusal("lost", "twice"), 503),
        (ZeroDivisionError("a bug"), 500),
    ],
)
async def test_what_the_workers_say_becomes_a_problem(answer: Any, status: int) -> None:
    async with serving() as server:
        server.answers = [answer]
        response = await server.post()
        assert response.status_code == status
        assert response.json()["detail"]
        assert "a bug" not in response.text  # what is not the sender's business stays in the log
        assert server.front.visits == {}


async def left(server: FakeServer, path: str, *bodies: dict[str, Any], gone: asyncio.Event) -> list[Any]:
    """What a client is sent that leaves, by the event of ASGI, after these parts of its body and once `gone` is set."""
    events, sent = list(bodies), []

    async def receive() -> Any:
        if events:
            return {"type": "http.request", **events.pop(0)}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"image/png")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    await server.api(scope, receive, send)
    return sent


async def test_a_client_that_leaves_ends_its_work() -> None:
    async with serving() as server:
        server.go.clear()
        gone = asyncio.Event()
        task = asyncio.create_task(left(server, "/restore", {"body": picture(), "more_body": False}, gone=gone))
        await server.entered.wait()
        assert len(server.front.visits) == 1
        gone.set()
        assert await task == []
        assert server.left == 1
        assert server.front.visits == {}
        assert await server.metric("bfr_requests_total", code="499", reason="client gone") == 1


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_bug() -> None:
    gone = asyncio.Event()
    gone.set()
    async with serving(jobs=True) as server:
        for path in ("/restore", "/jobs"):
            assert await left(server, path, {"body": b"half", "more_body": True}, gone=gone) == []
        assert await server.metric("bfr_requests_total", code="499") == 2
        assert server.front.visits == {}
        assert [path for path in server.jobs.folder.rglob("*") if path.is_file()] == []


async def test_progress_can_be_asked_for_by_request_id() -> None:
    async with serving() as server:
        server.go.clear()
        task = asyncio.create_task(server.post(headers={"X-Request-Id": "mine-12345"}))
        await server.entered.wait()
        found = (await server.client.get("/requests/mine-12345")).json()
        assert found == {"state": "restoring", "share": 0.5, "ahead": 0}
        assert (await server.post(headers={"X-Request-Id": "mine-12345"})).status_code == 422  # two of one name
        server.go.set()
        assert (await task).headers["x-request-id"] == "mine-12345"
        assert (await server.client.get("/requests/mine-12345")).status_code == 404
        strange = await server.post(headers={"X-Request-Id": "no/../id"})
        assert strange.headers["x-request-id"] != "no/../id"


async def test_the_progress_of_a_request_is_its_keys_alone() -> None:
    async with serving(keys=(hash_key(KEY), hash_key("another" * 4))) as server:
        mine, theirs = ({"Authorization": f"Bearer {key}"} for key in (KEY, "another" * 4))
        server.go.clear()
        task = asyncio.create_task(server.post(headers={**mine, "X-Request-Id": "mine-12345"}))
        await server.entered.wait()
        for path in ("/requests/mine-12345", "/requests?ids=mine-12345"):
            assert "restoring" in (await server.client.get(path, headers=mine)).text
            assert "restoring" not in (await server.client.get(path, headers=theirs)).text
        server.go.set()
        assert (await task).status_code == 200


async def test_draining_finishes_requests_in_flight_and_takes_no_more() -> None:
    async with serving() as server:
        server.go.clear()
        accepted = asyncio.create_task(server.post())
        await server.entered.wait()
        draining = asyncio.create_task(server.front.drain(10))
        await asyncio.sleep(0)
        assert (await server.client.get("/ready")).status_code == 503
        health = await server.client.get("/health")
        assert (health.status_code, health.headers["connection"]) == (200, "close")
        refused = await server.post()
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        server.go.set()
        assert (await accepted).status_code == 200
        assert await draining

        server.front.state = "ready"
        server.go.clear()
        late = asyncio.create_task(server.post())
        await eventually(lambda: server.front.placed)
        assert not await server.front.drain(0.05)
        answer = await late
        assert answer.status_code == 503
        assert answer.headers["connection"] == "close"
        assert answer.json()["detail"]


async def test_draining_waits_for_a_job_that_is_being_sent() -> None:
    more = asyncio.Event()

    async def half_of_it() -> AsyncGenerator[bytes, None]:
        yield picture()[:9]
        await more.wait()
        yield picture()[9:]

    async with serving(jobs=True) as server:
        sending = asyncio.create_task(server.post("/jobs", content=half_of_it()))
        await eventually(lambda: server.front.job_uploads)
        draining = asyncio.create_task(server.front.drain(100))
        await asyncio.sleep(0)
        assert (await server.post("/jobs")).status_code == 503
        assert not draining.done()
        more.set()
        assert (await sending).status_code == 202
        assert await draining


async def a_job(server: FakeServer) -> Job:
    """A job that is done and has not moved yet."""
    answer = await server.post("/jobs")
    assert answer.status_code == 202
    job = server.jobs.get(answer.json()["id"])
    assert job is not None
    job.out.mkdir()
    (job.out / "result.png").write_bytes(b"result")
    job.write(Status("done", 1.0, result="result.png"))
    return job


async def test_a_result_is_sent_while_its_job_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(jobs=True) as server:
        job, store = await a_job(server), server.jobs

        def found_before(_name: str) -> Job:
            if job.folder.exists():
                store.end(job, job.status)
            return job

        monkeypatch.setattr(store, "get", found_before)
        answer = await server.client.get(f"/jobs/{job.id}/result")
        assert (answer.status_code, answer.content) == (200, b"result")
        assert (await server.client.get(f"/jobs/{job.id}")).json()["state"] == "done"

        def full(_job: Job, name: str) -> Any:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as scarce:
            scarce.setattr(Job, "result", "out/result.png")
            scarce.setattr(Job, "open", full)
            assert (await server.client.get(f"/jobs/{job.id}/result")).status_code == 503
        store.remove(job.id)
        assert (await server.client.get(f"/jobs/{job.id}/result")).status_code in (404, 409)


async def test_a_result_is_sent_whole_though_its_job_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(jobs=True) as server:
        job, store = await a_job(server), server.jobs
        sent = FileResponse.__call__

        async def deleted_before(*arguments: Any) -> None:
            store.remove(job.id)
            await sent(*arguments)

        monkeypatch.setattr(FileResponse, "__call__", deleted_before)
        answer = await server.client.get(f"/jobs/{job.id}/result")
        assert (answer.status_code, answer.content) == (200, b"result")
        assert (answer.headers["content-type"], answer.headers["content-length"]) == ("image/png", "6")


async def test_the_head_of_a_result_reads_nothing_of_it() -> None:
    async with serving(jobs=True) as server:
        answer = await server.client.head(f"/jobs/{(await a_job(server)).id}/result")
        assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "6", b"")


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=2-", 206, b"sult"),
        ("bytes=-2", 206, b"lt"),
        ("bytes=0-1,4-5", 200, b"result"),
        ("items=0-1", 200, b"result"),
        ("bytes=x", 200, b"result"),
        ("bytes=9-", 416, None),
        ("bytes=3-2", 416, None),
    ],
)
async def test_a_part_of_a_result(asked: str, status: int, content: bytes | None) -> None:
    async with serving(jobs=True) as server:
        answer = await server.client.get(f"/jobs/{(await a_job(server)).id}/result", headers={"Range": asked})
        assert answer.status_code == status
        if content is None:
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
        else:
            assert answer.content == content


async def test_a_fault_of_the_jobs_ends_the_server_on_a_cluster_too() -> None:
    async def fault() -> None:
        raise ZeroDivisionError

    async with serving(jobs=True) as server:
        server.engine.check()
        server.engine._working = asyncio.create_task(fault())
        with pytest.raises(ZeroDivisionError):
            await server.engine.failed()
        with pytest.raises(ZeroDivisionError):
            server.engine.check()


async def test_a_deleted_job_is_gone_before_its_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(jobs=True) as server:
        job, store = await a_job(server), server.jobs
        left: list[Job | None] = []

        async def cancel(name: str) -> None:
            left.append(store.get(name))

        monkeypatch.setattr(server.engine, "cancel", cancel)
        answer = await server.client.delete(f"/jobs/{job.id}")
        assert (answer.status_code, "connection" in answer.headers) == (204, False)  # there is no body to be read
        assert left == [None]  # else it would be begun again


async def test_a_server_is_not_ready_before_its_workers_are_and_while_a_part_is_missing() -> None:
    async with serving() as server:
        server.front.state = "starting"
        assert (await server.client.get("/ready")).status_code == 503
        assert (await server.post()).status_code == 503
        server.front.open(server.restore, server.engine)
        assert (await server.client.get("/ready")).status_code == 200
        server.engine.missing = "no worker runs the networks just now: ask again"
        assert (await server.client.get("/ready")).status_code == 503
        assert (await server.post()).status_code == 200  # it waits for the new one


async def test_metrics_parse_and_add_up() -> None:
    async with serving() as server:
        for _ in range(3):
            await server.post()
        await server.post(content=b"")
        server.answers = [Refusal("invalid", "bad")]
        await server.post()
        assert await server.metric("bfr_requests_total", route="/restore") == 5
        assert await server.metric("bfr_requests_total", route="/restore", code="200") == 3
        assert await server.metric("bfr_request_seconds_count", route="/restore") == 5
        assert await server.metric("bfr_images_total", result="restored") == 3
        assert await server.metric("bfr_images_total", result="failed") == 1
        results = [Restored(None if i == 4 else np.zeros((1, 1, 3)), {}, "fp32", None) for i in range(5)]
        for part in (results[:3], results[3:]):
            server.front.metrics.batch(part, [0.5] * len(part), True)
        assert await server.metric("bfr_faces_total", result="restored", of="requests") == 4
        assert await server.metric("bfr_faces_total", result="failed") == 1
        assert await server.metric("bfr_batch_size_sum") == 5
        assert await server.metric("bfr_batch_size_count") == 2
        assert await server.metric("bfr_queue_seconds_sum", of="requests") == 2.5
        assert await server.metric("bfr_body_bytes") == 0
        assert await server.metric("bfr_requests_in_flight") == 0
        assert await server.metric("bfr_queue_length") == 0
        assert await server.metric("bfr_ready") == 1


async def test_an_api_key_opens_all_but_what_every_visitor_may_see() -> None:
    async with serving(keys=(hash_key("another" * 4), f"{hash_key(KEY)} name=me")) as server:
        for path in ("/health", "/ready", "/info", "/openapi.json", "/"):
            assert (await server.client.get(path)).status_code == 200, path
        for path in ("/metrics", "/requests/12345678", "/jobs/1"):
            assert (await server.client.get(path)).status_code == 401, path
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}, {"X-Api-Key": KEY}):
            response = await server.post(headers=given)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await server.post(headers={"Authorization": f"bearer {KEY}"})).status_code == 200
        assert (await server.post(headers={"Authorization": "Bearer \xfck".encode("latin-1")})).status_code == 401
        assert len(server.orders) == 1
        assert (await server.client.get("/info")).json()["api_key"] is True


async def test_below_a_prefix_the_same_is_open() -> None:
    """As Ray Serve passes it, for a `route_prefix`."""
    async with serving(keys=(hash_key(KEY),)) as server:
        transport = httpx2.ASGITransport(server.api, root_path="/faces")
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost/faces") as client:
            for path in ("/health", "/ready", "/info", "/"):
                assert (await client.get(path)).status_code == 200, path
            assert (await client.get("/metrics")).status_code == 401


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("box.local", False)],  # noqa: S104
)
def test_beyond_this_machine_a_key_is_needed(host: str, local: bool) -> None:
    check_host(host, True)
    if local:
        check_host(host, False)
    else:
        with pytest.raises(InvalidOption, match="--api-key-file"):
            check_host(host, False)


@pytest.mark.parametrize("host", ["", "http://127.0.0.1", "127.0.0.1:8000", "localhost:", "unix:/run/x", "a b"])
def test_what_is_no_address_is_said(host: str) -> None:
    for keyed in (True, False):
        with pytest.raises(InvalidOption, match="is no address: give a name or an IP address, and the port with"):
            check_host(host, keyed)


def test_a_preset_that_the_bundle_lacks_is_named() -> None:
    options = ServeOptions(presets=("nothing",))
    with pytest.raises(InvalidOption, match="preset"):
        Front(options)


async def test_the_description_is_whole() -> None:
    async with serving() as server:
        schema = (await server.client.get("/openapi.json")).json()
        restore = schema["paths"]["/restore"]["post"]
        assert {"image/png", "multipart/form-data"} <= set(restore["requestBody"]["content"])
        assert {"200", "401", "406", "408", "413", "415", "422", "503"} <= set(restore["responses"])
        assert set(restore["responses"]["200"]["content"]) == {"image/png", "image/jpeg", "image/webp"}
        parameters = {one["name"]: one for one in restore["parameters"]}
        assert parameters["upscale"]["schema"]["enum"] == [1, 2, 4]
        assert all("description" in one or "description" in one["schema"] for one in parameters.values())
        assert "HTTPValidationError" not in json.dumps(schema)
        info = (await server.client.get("/info")).json()
        assert info["presets"]["balanced"]["steps"] == Bundle.open(default_bundle()).preset("balanced").steps
        assert info["default_preset"] == "balanced"


async def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    async with serving() as server:
        await server.post()
        server.front.metrics.registry.register(PoolCollector(server.engine.pool))
        server.front.metrics.batch([Restored(None, {}, "fp32", "x")], [0.1], True)
        server.front.metrics.jobs_ended.labels("done").inc()
        text = (await server.client.get("/metrics")).text
        there = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        dashboard = json.loads((DEPLOY / "grafana.json").read_text())
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        asked = set(re.findall(r"bfr_\w+", " ".join(queries)))
        assert len(asked) > 8
        for name in asked:
            assert name in there or re.sub("_(bucket|sum|count)$", "", name) in there, name


def test_the_files_for_deployment_name_options_that_there_are() -> None:
    flags = set(re.findall(r"--[a-z][a-z-]+", CliRunner().invoke(app, ["serve", "--help"], terminal_width=200).output))
    for name in ("Dockerfile", "bfr.service"):
        command = next(
            line for line in (DEPLOY / name).read_text().splitlines() if re.match("ENTRYPOINT|ExecStart", line)
        )
        assert set(re.findall(r"--[a-z][a-z-]+", command)) <= flags, command
    config = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    service = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text())
    for one in (config, yaml.safe_load(service["spec"]["serveConfigV2"])):
        [application] = one["applications"]
        options = ServeOptions(**{**application["args"], "keys": ()})
        assert application["import_path"] == "bfr.runtime.cluster.app:build"
        assert {deployment["name"] for deployment in application["deployments"]} == {"Server"}
        assert options.batch_size >= 1
    deployment, service, claim = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert {one for one in container["args"] if one.startswith("--")} <= flags
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert claim["metadata"]["name"] in str(pod["volumes"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in ("/ready", "/health")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(compose["services"]) == {"bfr", "prometheus", "grafana"}
    mounted = [text.split(":")[0] for one in compose["services"].values() for text in one["volumes"]]
    files = [DEPLOY / name for name in mounted if name.startswith("./") and "key" not in name]
    assert len(files) == 4
    assert all(file.is_file() for file in files)
    dashboards = yaml.safe_load((DEPLOY / "grafana-dashboards.yaml").read_text())
    assert any(
        dashboards["providers"][0]["options"]["path"] in text for text in compose["services"]["grafana"]["volumes"]
    )
    [source] = yaml.safe_load((DEPLOY / "grafana-datasource.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    for name, one in compose["services"].items():  # what serves strangers has no more of the machine than it needs
        assert (one["cap_drop"], one["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name
        assert one["mem_limit"]
        assert "build" in one or re.search(r":v?\d+\.\d+\.\d+$", one["image"]), name
    assert compose["services"]["bfr"]["read_only"]


@pytest.mark.parametrize("name", ["Dockerfile", "rayservice.yaml"])
def test_probes_of_containers_go_through_no_proxy(name: str) -> None:
    """Docker gives containers the proxies of its own configuration."""
    commands = re.findall(r'"(import urllib.*?)"', (DEPLOY / name).read_text())
    assert commands
    with socket.create_server(("127.0.0.1", 0)) as bound, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            line, _ = bound.accept()
            with line:
                line.recv(1000)
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        for command in commands:
            answered = pool.submit(answer)
            here = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{bound.getsockname()[1]}", command)
            environment = {**os.environ, "http_proxy": "http://127.0.0.1:1"}
            ended = subprocess.run([sys.executable, "-c", here], env=environment, capture_output=True, check=False)  # noqa: S603
            if ended.returncode:
                socket.create_connection(bound.getsockname()).close()
            assert ended.returncode == 0, ended.stderr
            answered.result()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "localhost.:8000"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "box.example"}, 200),  # one of the server's names
        ({"Host": "evil.example"}, 403),  # made to point here
        ({"Host": "[::1].evil.example"}, 403),
        ({"Host": "localhost.evil.example:8000"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 200),  # behind a proxy of another name
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
async def test_without_a_key_only_the_servers_own_names_and_pages_reach_it(
    headers: dict[str, str], status: int
) -> None:
    async with serving() as server:
        server.front.names = ("box.example",)
        assert (await server.post(headers=headers)).status_code == status
        read = 403 if status == 403 and "Host" in headers else 200
        assert (await server.client.get("/info", headers=headers)).status_code == read


async def test_with_a_key_any_name_does() -> None:
    async with serving(keys=(f"{hash_key(KEY)} name=me priority=3",)) as server:
        headers = {"Host": "proxy.example", "Origin": "https://page.example", "Authorization": f"Bearer {KEY}"}
        assert (await server.post(headers=headers)).status_code == 200
        assert server.orders[0].sender == Sender("me", 3.0)


async def test_a_key_has_a_rate() -> None:
    async with serving(keys=(f"{hash_key(KEY)} rate=2",)) as server:
        headers = {"Authorization": f"Bearer {KEY}"}
        statuses = [(await server.post(headers=headers)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        refused = await server.post(headers=headers)
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert (await server.client.get("/requests/12345678", headers=headers)).status_code == 404  # reading is free


@pytest.mark.parametrize("path", ["/health", "/ready", "/info", "/metrics", "/", "/openapi.json"])
async def test_probes_may_ask_with_head(path: str) -> None:
    async with serving() as server:
        answer = await server.client.head(path)
        assert answer.status_code == 200
        assert (await server.client.head("/nothing")).status_code == 404


async def test_faces_and_bytes_in_flight_are_refused_before_the_body_is_read() -> None:
    async def unread() -> AsyncGenerator[bytes, None]:
        raise AssertionError("the body was asked for")
        yield b""

    async with serving(face_queue=5, upload_bytes=1000) as server:
        server.engine.in_flight = 5
        refused = await server.post(content=unread())
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.headers["connection"] == "close"  # the rest of the body is nobody's
        server.engine.in_flight = 0
        with server.front.uploads.admit(0) as other:
            server.front.uploads.add(other, 900)
            refused = await server.post(content=unread(), headers={"Content-Length": "200"})
            assert refused.status_code == 503
        assert (await server.post(content=b"x" * 200)).status_code == 200


async def test_a_full_server_refuses_before_it_looks_at_the_options() -> None:
    async with serving(face_queue=5) as server:
        assert (await server.post("/restore?nonsense=1")).status_code == 422
        server.engine.in_flight = 5
        refused = await server.post("/restore?nonsense=1", headers={"Content-Type": "text/plain"})
        assert refused.status_code == 503
        assert "5 faces are in flight" in refused.json()["detail"]
        assert await server.metric("bfr_requests_total", route="/restore", code="503", reason="overload") == 1
        assert (await server.client.get("/health")).status_code == 200


async def test_a_slow_upload_holds_no_place() -> None:
    sending = asyncio.Event()

    async def slow() -> AsyncGenerator[bytes, None]:
        yield b"x"
        await sending.wait()
        yield b"y"

    async with serving(queue=1) as server:
        slow_ones = [asyncio.create_task(server.post(content=slow())) for _ in range(4)]
        await eventually(lambda: len(server.front.visits) == 4)
        assert (await server.post()).status_code == 200
        server.go.clear()
        running = asyncio.create_task(server.post())
        await eventually(lambda: server.front.placed)
        sending.set()
        assert {(await task).status_code for task in slow_ones} == {503}  # when it has arrived the queue is full
        server.go.set()
        assert (await running).status_code == 200


class TestJobs:
    """The routes of jobs, which nobody works on here."""

    async def test_jobs_belong_to_a_key_and_are_listed_for_it(self) -> None:
        other = "o" * 24

        async with serving(jobs=True, keys=(f"{hash_key(KEY)} name=anna", hash_key(other))) as server:
            mine, theirs = ({"Authorization": f"Bearer {key}"} for key in (KEY, other))
            made = await server.post("/jobs?mode=aligned&seed=5&key_frames=4", headers=mine)
            assert made.status_code == 202
            assert server.engine.woken == 1
            where = made.headers["location"]
            assert [job.request.key_frames for job in server.jobs.waiting()] == [4]
            assert [one["id"] for one in (await server.client.get("/jobs", headers=mine)).json()] == [made.json()["id"]]
            assert (await server.client.get("/jobs", headers=theirs)).json() == []
            for path in (where, f"{where}/result"):
                assert (await server.client.get(path, headers=theirs)).status_code == 404
            assert (await server.client.delete(where, headers=theirs)).status_code == 404
            assert (await server.client.get(f"{where}/result", headers=mine)).status_code == 409
            assert (await server.client.delete(where, headers=mine)).status_code == 204
            assert (await server.client.get(where, headers=mine)).status_code == 404

    async def test_a_key_may_keep_so_many_and_the_queue_takes_so_many(self) -> None:
        async with serving(jobs=True, job_quota=2) as server:
            for expected in (202, 202, 403):
                answer = await server.post("/jobs")
                assert answer.status_code == expected
            assert "DELETE" in answer.json()["detail"]
        async with serving(jobs=True, queue=1) as server:
            for expected in (202, 503):
                assert (await server.post("/jobs")).status_code == expected
        for options, expected in (({"job_quota": 2}, 403), ({"queue": 2}, 503)):
            async with serving(jobs=True, **options) as server:
                answers = await asyncio.gather(*(server.post("/jobs") for _ in range(4)))  # none is on disk yet
                assert sorted(answer.status_code for answer in answers) == sorted([202, 202, expected, expected])

    async def test_slow_uploads_of_some_keys_keep_no_other_out(self) -> None:
        async with serving(jobs=True) as server:
            with ExitStack() as held:
                for owner in "aaaabbbbc":
                    held.enter_context(server.front.job_place(owner))
                for owner in "abc":
                    with pytest.raises(Problem), server.front.job_place(owner):
                        pass
                held.enter_context(server.front.job_place("d"))

    async def test_a_full_disk_is_said_without_a_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with serving(jobs=True) as server:
            store = server.jobs

            async def full(*_: Any) -> Any:
                raise OSError(28, "No space left on device", str(store.folder))

            monkeypatch.setattr(store, "add", full)
            answer = await server.post("/jobs")
            assert answer.status_code == 507
            assert str(store.folder) not in answer.text
            assert "No space left" in answer.json()["detail"]
            monkeypatch.setattr(store, "free", lambda: -1)
            monkeypatch.setattr(FakeEngine, "lacking", Engine.lacking)
            monkeypatch.setattr(Pool, "running", 1)
            server.engine.runner = JobRunner(server.front.options, store, server.engine.pool.restore, {}, batch=1)
            server.engine._working = asyncio.create_task(asyncio.sleep(10))
            assert (await server.post("/jobs")).status_code == 507
            ready = await server.client.get("/ready")
            assert ready.status_code == 503
            assert "disk" in ready.json()["detail"]
            monkeypatch.setattr(store, "free", lambda: 10**9)
            assert (await server.client.get("/ready")).status_code == 200
            server.engine._working.cancel()
            await asyncio.wait({server.engine._working})
            assert "jobs" in (await server.client.get("/ready")).json()["detail"]

    async def test_an_image_whose_result_is_too_large_is_no_job(self) -> None:
        async with serving(jobs=True, max_pixels=500) as server:
            refused = await server.post("/jobs?upscale=4")
            assert refused.status_code == 422
            assert "enlarge less" in refused.json()["detail"]
            assert (await server.post("/jobs?upscale=2")).status_code == 202
            assert len((await server.client.get("/jobs")).json()) == 1

    async def test_what_is_no_job_is_refused(self) -> None:
        async with serving(jobs=True, job_bytes=1000) as server:
            for query, more, status in (
                ("", {"headers": {"Content-Type": "text/plain"}}, 415),
                ("", {"content": b""}, 422),
                ("", {"content": b"x" * 2000}, 413),
                ("?mode=aligned", {"headers": {"Content-Type": "video/mp4"}}, 422),
                ("?upscale=2&upscale=2", {}, 422),
            ):
                assert (await server.post(f"/jobs{query}", **more)).status_code == status
            assert (await server.client.get("/jobs")).json() == []


async def test_traces_of_callers_go_into_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    monkeypatch.setattr(logging.getLogger("bfr"), "propagate", True)
    with caplog.at_level(logging.INFO, "bfr.serve.access"):
        async with serving() as server:
            await server.post(headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
            await server.post(headers={"traceparent": "nonsense"})
    first, second = (record.__dict__["fields"] for record in caplog.records if "fields" in record.__dict__)
    assert first["trace_id"] == trace
    assert "trace_id" not in second
    assert first["client"] == "127.0.0.1"
    assert first["faces"] == 2


async def test_a_request_is_a_span_with_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    exports = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(exports.SimpleSpanProcessor(memory))
    monkeypatch.setattr(traces, "tracer", lambda: provider.get_tracer("test"))
    trace = "0af7651916cd43dd8448eb211c80319c"

    async with serving() as server:
        server.answers = [Answer(b"", ".png", 1, 0, {"read": 0.5, "align": 0.25, "network": 9.0, "write": 1.0})]
        await server.post(headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    *stages, request = memory.get_finished_spans()
    assert [span.name for span in stages] == ["read", "align", "write"]
    assert request.name == "POST /restore"
    assert f"{request.context.trace_id:032x}" == trace
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert all(span.parent.span_id == request.context.span_id for span in stages)
    assert request.attributes["status"] == 200
    assert stages[0].end_time - stages[0].start_time == 500_000_000


def test_traces_without_their_extra_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv(traces.ENDPOINT, "http://localhost:4318")
    traces.tracer.cache_clear()
    with pytest.raises(MissingDependency, match="otel"):
        traces.tracer()
    monkeypatch.delenv(traces.ENDPOINT)
    assert traces.tracer() is None
    traces.tracer.cache_clear()
