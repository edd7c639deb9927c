"""DR2's published loop and enhancer, recorded with weights made from names, against these.

A golden `dr2_*` holds the picture (8 bits), and of the published states, x0 and enhanced picture every second pixel of
each side. Its noise is drawn from a seed that is the golden's name, in the order of the published code: to diffuse, and
for each step its own and the degraded image's.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bfr.benchmarks.agreement.replay import ReplayedNoise, on_both, unit_picture
from bfr.models.networks.sparnet import SPARNet
from bfr.models.networks.unet import UNet
from bfr.models.stages.dr2 import EnhanceStage, RefinedStep
from bfr.models.stages.estimate import ResizeStage
from bfr.models.stages.stage import Stage
from bfr.models.weights.seeded import LOOP_SCALE, seed_weights, seeded_array
from bfr.runtime.backends.device import Buffer, Network
from bfr.runtime.diffusion.schedule import linear_schedule
from bfr.runtime.diffusion.solvers import step_table
from bfr.runtime.restore.chain import Chain
from bfr.runtime.restore.plan import Call, Loop, Plan

Arrays = Mapping[str, NDArray[Any]]


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


def dr2_stages(config: Mapping[str, Any]) -> dict[str, Stage]:
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


def dr2_plan(config: Mapping[str, Any]) -> Plan:
    """The chain of the system `dr2`, without a bundle."""
    image, large = (3,) + 2 * (config["unet"]["image_size"],), (3,) + 2 * (config["sparnet"]["size"],)
    where = {name: config[name] for name in ("spacing", "start", "stop")}
    loop = Loop(
        "denoise",
        "denoiser",
        step_table(linear_schedule(), solver="ddpm-learned", matched=True, **where),
        image,
        source="signed",
        result="state",
        conditions={"signed": "signed"},
        strength=float(config["factor"]),
        wide=(2 * image[0], *image[1:]),
    )
    sign = Call("sign", "signed", {"image": "degraded"}, {"resized": "signed"})
    enhance = Call("enhance", "enhancer", {"state": "state"}, {"restored": "restored"})
    values = {"degraded": image, "signed": image, "state": image, "restored": large}
    return Plan({"degraded": image}, values, (sign, loop, enhance), "restored")


def run_dr2(name: str, arrays: Arrays, config: Mapping[str, Any], scratch: Path) -> tuple[float, float]:
    """The largest error of the kept states, of x0 and of the result, in eager PyTorch and exported on ONNX Runtime."""
    stages, plan = dr2_stages(config), dr2_plan(config)
    sizes = dict.fromkeys(stages, int(config["unet"]["image_size"]))
    return on_both(stages, sizes, scratch, lambda device, nets: _replay(device, nets, plan, name, arrays))


def _replay(device: Any, networks: Mapping[str, Network], plan: Plan, name: str, arrays: Arrays) -> float:
    image, steps = plan.values["state"], plan.steps
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name} noise".encode())))
    drawn = generator.standard_normal((2 * steps, 1, *image)).astype(np.float32)
    noise = {image: drawn[:1], (2 * image[0], *image[1:]): np.concatenate([drawn[1:-1:2], drawn[2::2]], axis=2)}
    device.noise = lambda shape, _: ReplayedNoise(device, noise[shape[1:]])
    chain = Chain(device, networks, plan, batch=1)
    kept = {int(index): state for index, state in zip(arrays["kept"], arrays["states"], strict=True)}
    kept[steps] = arrays["x0"]
    errors = []

    def compare(done: int, buffer: Buffer) -> None:
        if done in kept:
            errors.append(float(np.abs(device.read(buffer)[0, :, ::2, ::2] - kept[done]).max()))

    result = chain.run(unit_picture(arrays["degraded"]), seed=0, images=(0,), on_step=compare)
    if len(errors) != len(kept):
        raise RuntimeError(f"{name}: {len(errors)} of {len(kept)} states were compared")
    return max(*errors, float(np.abs(result.state[0, :, ::2, ::2] - np.clip(arrays["final"], -1.0, 1.0)).max()))
