"""The command line in this process, with networks and detectors that cost nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.restore.restorer import Restorer


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, small: Callable[..., Any], fakes: Any) -> list[dict[str, Any]]:
    """What `Restorer.open` was called with; it gives a small Restorer, and detectors find squares."""
    calls: list[dict[str, Any]] = []

    def open_small(opened: OpenOptions, **changes: Any) -> Any:
        calls.append({**dict(opened), **changes})
        return small(opened.batch)

    monkeypatch.setattr(Restorer, "open", open_small)
    monkeypatch.setattr("bfr.runtime.faces.photo.YuNet", fakes.Squares)
    return calls
