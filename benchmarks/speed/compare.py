"""`bfr bench --compare OLD.json`: what became faster or slower since another run, beyond what chance does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bfr.benchmarks.speed.results import FORMAT
from bfr.benchmarks.tables import page, table
from bfr.runtime.errors import InputNotFound, InvalidOption

RESAMPLED = 2000  # draws of the bootstrap
ALIKE = ("system", "bundle_sha256", "sampler", "threads", "warmup", "machine")  # else times differ for other reasons


def read_bench(path: Path) -> dict[str, Any]:
    """Read a `bench.json`. Raises InputNotFound if it cannot be, InvalidOption if it is something else."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputNotFound(f"{path} cannot be read ({error.strerror}): name a bench.json of `bfr bench`") from error
    except ValueError as error:
        raise InvalidOption(f"{path} is no JSON: name a bench.json of `bfr bench`") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("measurements"), list):
        raise InvalidOption(f"{path} is no bench.json of this version of bfr: run `bfr bench` again for it")
    return found


def as_table(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A Markdown table of medians then and now, and what differs between the runs beside them.

    The speed-up is the ratio of the medians, with the interval that it lies in with 95 % (bootstrap over the timed
    calls, percentiles); where that holds 1, chance alone may have made the difference.
    """
    rows: list[list[object]] = []
    then = {(one["backend"], one["batch"]): one for one in old["measurements"]}
    for one in new["measurements"]:
        known, now = then.pop((one["backend"], one["batch"]), None), f"{one['seconds']['p50']:.4g}"
        cells = [None, now]
        if known is not None:
            ratio, least, most = speed_up(known["samples"], one["samples"])
            verdict = "" if least > 1 or most < 1 else ", no difference"
            cells = [f"{known['seconds']['p50']:.4g}", now, f"{ratio:.3g}x ({least:.3g} to {most:.3g}{verdict})"]
        rows.append([one["backend"], one["batch"], *cells])
    rows += [[backend, batch, f"{one['seconds']['p50']:.4g}"] for (backend, batch), one in then.items()]
    parts = [table(("backend", "batch", "then, s", "now, s", "speed-up"), rows)]
    if other := [name for name in ALIKE if old.get(name) != new.get(name)]:
        parts.append(f"The runs differ in {', '.join(other)} too: the times do not compare the backends alone.")
    return page(*parts)


def speed_up(old: list[float], new: list[float]) -> tuple[float, float, float]:
    """The ratio of the medians, old over new, and the interval that it lies in with 95 %. Seconds, in any order."""
    rng = np.random.default_rng(0)
    then, now = (np.median(rng.choice(samples, (RESAMPLED, len(samples))), axis=1) for samples in (old, new))
    least, most = np.percentile(then / now, (2.5, 97.5))
    return float(np.median(old) / np.median(new)), float(least), float(most)
