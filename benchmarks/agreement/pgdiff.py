"""PGDiff's published loop, recorded with weights made from names, against this one; see `benchmarks.agreement.golden`.

A golden `pgdiff_*` holds the pictures (8 bits), and of the published states and its last result every second pixel of
each side. Its noise is drawn from a seed that is the golden's name.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.agreement.replay import ReplayedNoise, on_both, unit_picture
from bfr.models.stages.estimate import ResizeStage
from bfr.models.stages.pgdiff import IdentityGradient, ReferenceStage, ReferenceStep, SmoothStep, partial_guidance
from bfr.models.stages.stage import Stage
from bfr.models.weights.seeded import LOOP_SCALE, seed_weights
from bfr.runtime.backends.device import Buffer, Device, Network
from bfr.runtime.diffusion.schedule import linear_schedule
from bfr.runtime.diffusion.solvers import step_table
from bfr.runtime.restore.chain import Chain
from bfr.runtime.restore.plan import Call, Loop, Plan

Arrays = Mapping[str, NDArray[Any]]


def pgdiff_stages(config: Mapping[str, Any]) -> dict[str, Stage]:
    """The networks of a golden, by their names in the plan, with the weights that it was recorded with."""
    size, weights = config["size"], {name: config[name] for name in ("smooth_weight", "identity_weight")}
    network = partial_guidance(
        denoiser=config["denoiser"], restorer=config["restorer"], recognizer=config["recognizer"], image_size=size
    )
    seed_weights(network.denoiser, LOOP_SCALE)
    seed_weights(network.restorer)
    stages: dict[str, Stage] = {"signed": ResizeStage(target=size, source=size, low=0.0)}
    if network.identity is None:
        stages["denoiser"] = SmoothStep(network, smooth_weight=weights["smooth_weight"])
    else:
        distance = cast(IdentityGradient, network.identity).network
        seed_weights(distance.recognizer, config["recognizer_scale"])  # embeddings as long as trained ones
        stages |= {"embedder": ReferenceStage(distance), "denoiser": ReferenceStep(network, **weights)}
    return {name: stage.eval() for name, stage in stages.items()}


def pgdiff_plan(config: Mapping[str, Any], inputs: Arrays, embedding: int) -> Plan:
    """The chain of the systems `pgdiff` and `pgdiff-reference`, without a bundle."""
    image = (3, config["size"], config["size"])
    steps, table = config["steps"], {"solver": "ddpm-learned", "spacing": config["spacing"]}
    guided = {"identity": (embedding,)} if "reference" in inputs else {}
    loop = Loop(
        "denoise",
        "denoiser",
        step_table(linear_schedule(), start=steps, **table),
        image,
        source="signed",
        result="state",
        conditions={"signed": "signed", **{name: name for name in guided}},
        strength=config["scale"],
    )
    sign = Call("sign", "signed", {"image": "degraded"}, {"resized": "signed"})
    embed = Call("embed", "embedder", {"reference": "reference"}, {"identity": "identity"})
    shapes = dict.fromkeys(inputs, image)
    values = {**shapes, "signed": image, "state": image, **guided}
    return Plan(shapes, values, (sign, *([embed] if guided else []), loop), "state")


def replay_pgdiff(device: Device, networks: Mapping[str, Network], name: str, arrays: Arrays, config: Any) -> float:
    """The largest error of the kept states and of the last result."""
    inputs = {key: unit_picture(arrays[key]) for key in ("degraded", "reference") if key in arrays}
    plan = pgdiff_plan(config, inputs, 512)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name} noise".encode())))
    image = plan.values["state"]
    noise = generator.standard_normal((config["steps"] + 1, 1, *image)).astype(np.float32)
    chain = Chain(device, networks, plan, batch=1, noise=ReplayedNoise(device, noise))
    kept = {int(index): state for index, state in zip(arrays["kept"], arrays["states"], strict=True)}
    errors = []

    def compare(done: int, buffer: Buffer) -> None:
        if done in kept:
            errors.append(float(np.abs(device.read(buffer)[0, :, ::2, ::2] - kept[done]).max()))

    degraded = inputs.pop("degraded")
    result = chain.run(degraded, seed=0, images=(0,), on_step=compare, inputs=inputs)
    return max(*errors, float(np.abs(result.state[0, :, ::2, ::2] - arrays["final"]).max()))


def run_pgdiff(name: str, arrays: Arrays, config: Mapping[str, Any], scratch: Path) -> tuple[float, float]:
    """The largest error in eager PyTorch, and exported on ONNX Runtime."""
    stages = pgdiff_stages(config)
    sizes = dict.fromkeys(stages, int(config["size"]))
    return on_both(stages, sizes, scratch, lambda device, nets: replay_pgdiff(device, nets, name, arrays, config))
