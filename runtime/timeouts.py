"""`asyncio.timeout`, which Python 3.10 has not. What it raises is `asyncio.TimeoutError`, on every version."""

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["timeout"]
