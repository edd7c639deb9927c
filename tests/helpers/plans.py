"""DifFace's plan without a bundle."""

from collections.abc import Mapping
from typing import Any

from bfr.runtime.diffusion.solvers import StepTable
from bfr.runtime.restore.plan import DEGRADED, ESTIMATE, Call, Loop, Plan, Shape


def difface_plan(
    table: StepTable, size: int, *, truncate: Any = None, conditions: Mapping[str, Shape] | None = None, **loop: Any
) -> Plan:
    """The plan of one `estimator` and one `denoiser` on images of `size` pixels a side.

    `conditions` are inputs that every step reads under the same names, `loop` further fields of `Loop`.
    """
    image = (3, size, size)
    inputs = {DEGRADED: image, **(conditions or {})}
    same = {name: name for name in conditions or {}}
    return Plan(
        inputs=inputs,
        values={**inputs, ESTIMATE: image, "state": image},
        stages=(
            Call("estimate", "estimator", {DEGRADED: DEGRADED}, {ESTIMATE: ESTIMATE}),
            Loop("denoise", "denoiser", table, image, source=ESTIMATE, result="state", conditions=same, **loop),
        ),
        result="state",
        truncate=truncate,
    )
