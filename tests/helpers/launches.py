"""The order in which the host launches batches on the GPU made of NumPy, and waits for them."""

from typing import Any

from bfr.runtime.restore.restorer import Restorer


def launches(restorer: Restorer, log: list[tuple[str, Any]]) -> str:
    """L where a batch is launched, W where the host waits for a result."""
    device: Any = restorer.device
    buffers: Any = restorer.chains.buffers
    fetched = {event for _, event in buffers.output._slots}
    main = int(device.stream)
    found = ""
    for name, what in log:
        if name == "graph":
            found += "L"
        elif name == "wait" and what in fetched:
            found += "W"
        assert (name, what) != ("wait", main), "the host waits for the whole stream"
    return found
