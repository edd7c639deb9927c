"""One face through a chain: its picture at each stage, and what each took."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bfr.benchmarks.quality.levels import Face
from bfr.benchmarks.quality.metrics import UInt8
from bfr.runtime.errors import RestorationFailed
from bfr.runtime.restore.batch import choose_bucket, image_key
from bfr.runtime.restore.pixels import to_input, to_output
from bfr.runtime.restore.restorer import Restorer


@dataclass(frozen=True, slots=True)
class Pictures:
    """One face at each stage (input, estimate, result), (S, S, 3) uint8 RGB, and its truth where that is known.

    seconds: of the whole chain. estimate_seconds: of the estimator alone.
    """

    name: str
    stages: Mapping[str, UInt8]
    truth: UInt8 | None
    seconds: float
    estimate_seconds: float


def restore(restorer: Restorer, face: Face, seed: int) -> Pictures:
    """Restore one face. Its noise depends on its pixels and the seed alone. Raises RestorationFailed for NaN or Inf."""
    degraded = to_input(face.degraded, restorer.size)
    batch = choose_bucket(1, restorer.device.buckets)
    chain = restorer.chain(batch)
    begin = time.perf_counter()
    outcome = chain.run(np.stack([degraded] * batch), seed=seed, images=(image_key(degraded),) * batch)
    seconds = time.perf_counter() - begin
    if not (np.isfinite(outcome.image[0]).all() and np.isfinite(outcome.estimate[0]).all()):
        raise RestorationFailed(f"{face.name}: the result holds NaN or Inf; `bfr verify` checks the bundle")
    estimate, result = (to_output(x[0], face.degraded) for x in (outcome.estimate, outcome.image))
    stages = {"input": face.degraded, "estimate": estimate, "result": result}
    return Pictures(face.name, stages, face.truth, seconds, outcome.seconds["estimate"])
