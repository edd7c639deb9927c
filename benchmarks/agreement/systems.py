"""Whole systems as published, recorded with weights made from names, against these; see `benchmarks.agreement.golden`.

The goldens hold pictures (8 bits), and of published states and last results every second pixel of each side. Noise is
drawn from a seed that is the golden's name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from bfr.benchmarks.agreement.replay import (
    Arrays,
    Config,
    Errors,
    ReplayedNoise,
    distance,
    on_both,
    recorded_noise,
    run_chain,
    unit_picture,
)
from bfr.models.networks.sparnet import SPARNet
from bfr.models.networks.unet import UNet
from bfr.models.stages.dr2 import EnhanceStage, RefinedStep
from bfr.models.stages.estimate import ResizeStage
from bfr.models.stages.kinds import make_stage
from bfr.models.stages.pgdiff import IdentityGradient, ReferenceStage, ReferenceStep, SmoothStep, partial_guidance
from bfr.models.stages.stage import Stage
from bfr.models.systems.osdface import OSDFACE, PUBLISHED_PIXELS, networks
from bfr.models.weights.seeded import LOOP_SCALE, seed_weights, seeded_array
from bfr.runtime.backends.device import Network
from bfr.runtime.diffusion.schedule import linear_schedule, scaled_linear_schedule
from bfr.runtime.diffusion.solvers import step_table
from bfr.runtime.restore.chain import Chain
from bfr.runtime.restore.inputs import to_input, to_output
from bfr.runtime.restore.plan import Call, Loop, Plan

SIGN = Call("sign", "signed", {"image": "degraded"}, {"resized": "signed"})


def run_pgdiff(path: Path, arrays: Arrays, config: Config, scratch: Path) -> Errors:
    """PGDiff, with a reference where the golden has one: the largest error of the kept states and of the result."""
    stages, size, steps = pgdiff_stages(config), int(config["size"]), config["steps"]
    inputs = {key: unit_picture(arrays[key]) for key in ("degraded", "reference") if key in arrays}
    degraded, image = inputs.pop("degraded"), (3, size, size)
    identity = {"identity": (512,)} if inputs else {}
    loop = Loop(
        "denoise",
        "denoiser",
        step_table(linear_schedule(), solver="ddpm-learned", spacing=config["spacing"], start=steps),
        image,
        source="signed",
        result="state",
        conditions={name: name for name in ("signed", *identity)},
        strength=config["scale"],
    )
    embed = Call("embed", "embedder", {"reference": "reference"}, {"identity": "identity"})
    shapes = dict.fromkeys(("degraded", *inputs), image)
    values = {**shapes, "signed": image, "state": image, **identity}
    plan = Plan(shapes, values, (SIGN, embed, loop) if identity else (SIGN, loop), "state")

    def run(device: Any, networks: Mapping[str, Network]) -> float:
        noise = ReplayedNoise(device, recorded_noise(path.stem, steps + 1, image))
        chain = Chain(device, networks, plan, batch=1, noise=noise)
        result, errors = run_chain(chain, arrays, degraded, every=2, inputs=inputs)
        return max(*errors, distance(result.state[..., ::2, ::2], arrays["final"]))

    return on_both(stages, dict.fromkeys(stages, size), scratch, run)


def pgdiff_stages(config: Config) -> dict[str, Stage]:
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
        known = cast(IdentityGradient, network.identity).network
        seed_weights(known.recognizer, config["recognizer_scale"])  # embeddings as long as trained ones
        stages |= {"embedder": ReferenceStage(known), "denoiser": ReferenceStep(network, **weights)}
    return {name: stage.eval() for name, stage in stages.items()}


def run_dr2(path: Path, arrays: Arrays, config: Config, scratch: Path) -> Errors:
    """DR2 and its enhancer: the largest error of the kept states, of x0 and of the result.

    Noise comes in the order of the published code: to diffuse, and for each step its own and the degraded image's.
    """
    stages, size = dr2_stages(config), int(config["unet"]["image_size"])
    image, wide, large = (3, size, size), (6, size, size), (3,) + 2 * (config["sparnet"]["size"],)
    where = {name: config[name] for name in ("spacing", "start", "stop")}
    table = step_table(linear_schedule(), solver="ddpm-learned", matched=True, **where)
    loop = Loop(
        "denoise",
        "denoiser",
        table,
        image,
        source="signed",
        result="state",
        conditions={"signed": "signed"},
        strength=float(config["factor"]),
        wide=wide,
    )
    enhance = Call("enhance", "enhancer", {"state": "state"}, {"restored": "restored"})
    values = {"degraded": image, "signed": image, "state": image, "restored": large}
    plan = Plan({"degraded": image}, values, (SIGN, loop, enhance), "restored")
    drawn = recorded_noise(path.stem, 2 * plan.steps, image)
    noise = {image: drawn[:1], wide: np.concatenate([drawn[1:-1:2], drawn[2::2]], axis=2)}
    states = {"kept": [*arrays["kept"], plan.steps], "states": [*arrays["states"], arrays["x0"]]}

    def run(device: Any, networks: Mapping[str, Network]) -> float:
        device.noise = lambda _owned, shape, _first: ReplayedNoise(device, noise[shape[1:]])
        chain = Chain(device, networks, plan, batch=1)
        result, errors = run_chain(chain, states, unit_picture(arrays["degraded"]), every=2)
        return max(*errors, distance(result.state[..., ::2, ::2], np.clip(arrays["final"], -1.0, 1.0)))

    return on_both(stages, dict.fromkeys(stages, size), scratch, run)


def dr2_stages(config: Config) -> dict[str, Stage]:
    """The networks of a golden, by their names in the plan, with the weights that it was recorded with."""
    size, target = config["unet"]["image_size"], config["sparnet"]["size"]
    denoiser, enhancer = UNet(**config["unet"]), SPARNet(**config["sparnet"])
    seed_weights(denoiser, LOOP_SCALE)
    enhancer.load_state_dict(enhancer.own_weights(published_sparnet(enhancer)))
    stages: dict[str, Stage] = {
        "signed": ResizeStage(target=size, source=size, low=0.0),
        "denoiser": RefinedStep(denoiser, size=size),
        "enhancer": EnhanceStage(enhancer, source=size, target=target),
    }
    return {name: stage.eval() for name, stage in stages.items()}


def published_sparnet(network: SPARNet) -> dict[str, torch.Tensor]:
    """The state that the golden was recorded with: seeded weights under spectral normalization, u and v of an SVD."""
    state: dict[str, torch.Tensor] = {}
    for name, value in network.state_dict().items():
        if value.ndim < 4:
            state[name] = torch.from_numpy(seeded_array(name, tuple(value.shape)))
            continue
        weight = torch.from_numpy(seeded_array(f"{name}_orig", tuple(value.shape)))
        u, _, v = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
        state |= {f"{name}_orig": weight, f"{name}_u": u[:, 0].float(), f"{name}_v": v[0].float()}
    return state


def run_osdface(path: Path, arrays: Arrays, config: Config, scratch: Path) -> Errors:
    """OSDFace, its latent the mean of the encoder's distribution: the largest error of latent, context, result and PNG.

    The PNG's is in levels of 255; a level is none, since a value beside a whole number may be cut to either side.
    """
    del path
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
        return max(*(distance(value, arrays[key]) for key, value in found.items()), levels - 1, 0)

    return on_both(stages, sizes, scratch, run)
