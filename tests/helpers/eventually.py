"""Waiting for other tasks of an event loop."""

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], object]) -> None:
    """Let the other tasks work until something is so; a test that hangs ends by the limit of its event loop."""
    while not condition():
        await asyncio.sleep(0.01)
