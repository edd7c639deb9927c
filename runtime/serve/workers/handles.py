"""Calls between the processes of a server: streamed, cancelled with their caller, made again where a replica died."""

import logging
from collections.abc import AsyncGenerator
from typing import Any

ATTEMPTS = 2
_log = logging.getLogger("bfr.serve")


class ReplicaLost(Exception):
    """A replica died while it worked on a call, and so did the one that was given it then."""


async def stream(streaming: Any, *arguments: Any) -> AsyncGenerator[Any, None]:
    """What a method of a deployment yields, `streaming` being its handle with `stream=True`.

    Closed or cancelled, it cancels the call. Where the replica dies the call is made again, once: results depend on the
    arguments alone, and what kills two replicas would kill a third. Raises ReplicaLost.
    """
    from ray.exceptions import RayActorError  # Ray reads its settings when it is imported: `bfr serve` makes them first

    for attempt in range(ATTEMPTS):
        response = streaming.remote(*arguments)
        try:
            async for item in response:
                yield item
            response = None
        except RayActorError as error:
            _log.warning("a replica was lost: %s", error)
            if attempt == ATTEMPTS - 1:
                raise ReplicaLost("the process that worked on it was lost, twice") from error
        else:
            return
        finally:
            if response is not None:
                response.cancel()
