"""Requests to a real server, for tests."""

import io
import time
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
from PIL import Image as Pillow


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


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so; fail after so many seconds."""
    begin = time.monotonic()
    while not done():
        assert time.monotonic() - begin < seconds
        time.sleep(0.05)
