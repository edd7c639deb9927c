"""OSDFace's published forward, recorded with weights made from names, against this one.

The golden `osdface_*` holds a picture (8 bits), the published latent, context and result, and the PNG that is written.
The latent is the mean of the encoder's distribution, whose draw was left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.agreement.replay import on_both
from bfr.models.stages.kinds import make_stage
from bfr.models.systems.osdface import OSDFACE, PUBLISHED_PIXELS, networks
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.backends.device import Network
from bfr.runtime.diffusion.schedule import scaled_linear_schedule
from bfr.runtime.diffusion.solvers import step_table
from bfr.runtime.restore.chain import Chain
from bfr.runtime.restore.pixels import to_input, to_output
from bfr.runtime.restore.plan import Call, Loop, Plan

Arrays = Mapping[str, NDArray[Any]]


def run_osdface(name: str, arrays: Arrays, config: Mapping[str, Any], scratch: Path) -> tuple[float, float]:
    """The largest error of latent, context, result and PNG, in eager PyTorch and exported on ONNX Runtime.

    The PNG's is in levels of 255; a level is none, since a value beside a whole number may be cut to either side.
    """
    del name
    image, latent = (3, config["size"], config["size"]), arrays["latent"].shape
    tokens = len(arrays["context"])
    made = networks(config["unet"], config["vae"], config["embedder"], tokens=tokens, latent=latent[-1])
    stages, sizes = {}, {key: spec.size or config["size"] for key, spec in made.items()}
    for key, spec in made.items():
        module = spec.build()
        seed_weights(module)
        stages[key] = make_stage(spec.kind, module, spec.options)
    schedule = OSDFACE.schedule
    table = step_table(
        scaled_linear_schedule(schedule.timesteps, schedule.beta_start, schedule.beta_end),
        solver="ddim",
        spacing="time",
        start=config["timestep"],
        steps=1,
    )
    context = arrays["context"].shape
    plan = Plan(
        {"degraded": image},
        {"degraded": image, "latent": latent, "context": context, "state": latent, "restored": image},
        (
            Call("encode", "encoder", {"degraded": "degraded"}, {"latent": "latent"}),
            Call("prompt", "embedder", {"degraded": "degraded"}, {"context": "context"}),
            Loop("denoise", "denoiser", table, latent, "latent", "state", None, {"context": "context"}),
            Call("decode", "decoder", {"latent_state": "state"}, {"restored": "restored"}),
        ),
        "restored",
    )

    def run(device: Any, nets: Mapping[str, Network]) -> float:
        chain = Chain(device, nets, plan, batch=1)
        face = to_input(arrays["image"], config["size"], PUBLISHED_PIXELS)
        result = chain.run(face[None], seed=0, images=(0,))
        found = {key: device.read(chain.values[key])[0] for key in ("latent", "context")}
        found["final"] = result.image[0, :, ::2, ::2]
        png = to_output(result.image[0], arrays["image"], PUBLISHED_PIXELS)
        levels = int(np.abs(png.astype(int) - arrays["png"]).max())
        return max(*(float(np.abs(value - arrays[key]).max()) for key, value in found.items()), levels - 1, 0)

    return on_both(stages, sizes, scratch, run)
