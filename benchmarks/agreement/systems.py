"""Whole systems as published, recorded with weights made from names, against these; see `benchmarks.agreement.golden`.

Each system is the one that ships, at the golden's size: exported as `bfr export` does, planned as `bfr restore` does.
The goldens hold pictures (8 bits), and of published states and last results every second pixel of each side. Noise is
drawn from a seed that is the golden's name.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bfr.benchmarks.agreement.replay import (
    Arrays,
    Config,
    Errors,
    GivenNetwork,
    ReplayedNoise,
    distance,
    on_both,
    parameters,
    read_config,
    recorded_noise,
    run_chain,
    unit_picture,
)
from bfr.export.bundle import export_system
from bfr.export.options import ExportOptions
from bfr.models.networks.arcface import IResNet
from bfr.models.networks.sparnet import SPARNet
from bfr.models.systems import dr2, osdface, pgdiff
from bfr.models.systems.difface import ARCFACE, DIFFACE, INPAINTING
from bfr.models.systems.system import SystemSpec
from bfr.models.weights.seeded import seed_weights, seeded_array, write_seeded
from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.restore.chain import Chain, to_unit
from bfr.runtime.restore.chains import load_networks
from bfr.runtime.restore.inputs import to_input, to_output
from bfr.runtime.restore.plan import ESTIMATE, Shape, make_plan


def run_system(
    system: SystemSpec,
    sampler: Preset,
    scratch: Path,
    compare: Callable[[Chain], float],
    *,
    noise: Mapping[Shape, Float32] | None = None,
    weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    estimator: Mapping[str, Float32] | None = None,
) -> Errors:
    """Run a system in eager PyTorch, and exported on ONNX Runtime.

    Args:
        system: The system, at the golden's size.
        sampler: The golden's.
        scratch: A folder for its checkpoints and its bundle.
        compare: Runs the chain; returns the largest error.
        noise: Draws (N, 1, *shape) by their shape; None if no noise is added.
        weights: Checkpoints by file, where they are not `bfr.models.weights.seeded`'s.
        estimator: What the network of that name is to return, by the names of its outputs; None lets it run.
    """
    checkpoints = scratch / "weights"
    write_seeded(system, checkpoints)
    for file, state in (weights or {}).items():
        torch.save(state, checkpoints / file)
    learned = sampler.solver == "ddpm-learned" and system.networks[system.denoise.network].kind == "step"
    options = ExportOptions(learned_variance=learned)
    bundle = export_system(system, checkpoints, scratch / "bundle", options, verified=False)
    plan = make_plan(bundle, sampler)

    def run(device: Any) -> float:
        networks = load_networks(bundle, device, "fp32")
        if estimator:
            networks["estimator"] = GivenNetwork(device, estimator)
        if noise:
            device.noise = lambda _owned, shape, _first: ReplayedNoise(device, noise[shape[1:]])
        return compare(Chain(device, networks, plan, batch=1))

    return on_both(run)


def run_loop(path: Path, arrays: Arrays, config: Config, scratch: Path) -> Errors:
    """DifFace's sampler: the largest error of the estimate, of the kept states and of the result.

    With guidance it is the inpainting system, and the estimate is the golden's.
    """
    y0, size, guided = arrays["y0"], int(arrays["y0"].shape[-1]), config["gamma"] > 0
    system = INPAINTING if guided else DIFFACE
    described = {"denoiser": config["model"].split()[0], "estimator": "tiny_lama" if guided else config["estimator"]}
    networks = {
        name: replace(system.networks[name], parameters=parameters(read_config(path.with_name(f"{one}.json")), size))
        for name, one in described.items()
    }
    sampler = Preset(
        solver="ddpm-learned" if config["sampler"] == "ddpm" else "ddim",
        spacing=config["timestep_respacing"],
        start=config["start_timesteps"],
        eta=config["eta"],
        guidance=config["gamma"] or None,
    )
    estimate = np.clip(arrays["estimate"], 0, 1)
    given = {"estimate": 2 * estimate - 1, "known": np.asarray(2 * y0 - 1, np.float32)}

    def compare(chain: Chain) -> float:
        result, errors = run_chain(chain, arrays, y0, inputs={"mask": arrays["mask"]} if guided else {})
        # Known pixels are put back.
        image = np.where(arrays["mask"] > 0, result.image, y0) if guided else result.image
        found = to_unit(chain.device.read(chain.values[ESTIMATE]))
        return max(*errors, distance(found, estimate), distance(image, arrays["final"]))

    return run_system(
        replace(system, image_size=size, networks=networks),
        sampler,
        scratch,
        compare,
        noise={(3, size, size): arrays["noise"]},
        estimator=given if guided else None,
    )


def run_pgdiff(path: Path, arrays: Arrays, config: Config, scratch: Path) -> Errors:
    """PGDiff, with a reference where the golden has one: the largest error of the kept states and of the result."""
    size, steps = int(config["size"]), int(config["steps"])
    image: Shape = (3, size, size)
    inputs = {key: unit_picture(arrays[key]) for key in ("degraded", "reference") if key in arrays}
    degraded = inputs.pop("degraded")
    denoiser = replace(DIFFACE.networks["denoiser"], parameters=config["denoiser"])
    networks, weights = pgdiff.networks(denoiser, config["restorer"], size), {}
    if inputs:
        networks = pgdiff.reference_networks(networks, config["recognizer"], size)
        recognizer = IResNet(**config["recognizer"])
        seed_weights(recognizer, config["recognizer_scale"])  # embeddings as long as trained ones
        weights = {ARCFACE.file: recognizer.state_dict()}
    sampler = Preset(solver="ddpm-learned", spacing=config["spacing"], start=steps, guidance=config["scale"])
    system = replace(pgdiff.REFERENCE if inputs else pgdiff.PGDIFF, image_size=size, networks=networks)

    def compare(chain: Chain) -> float:
        result, errors = run_chain(chain, arrays, degraded, every=2, inputs=inputs)
        return max(*errors, distance(result.state[..., ::2, ::2], arrays["final"]))

    noise = {image: recorded_noise(path.stem, steps + 1, image)}
    return run_system(system, sampler, scratch, compare, noise=noise, weights=weights)


def run_dr2(path: Path, arrays: Arrays, config: Config, scratch: Path) -> Errors:
    """DR2 and its enhancer: the largest error of the kept states, of x0 and of the result.

    Noise comes in the order of the published code: to diffuse, and for each step its own and the degraded image's.
    """
    size, sampler = int(config["unet"]["image_size"]), dr2.preset(config["factor"], config["stop"])
    system = replace(dr2.DR2, image_size=size, networks=dr2.networks(config["unet"], config["sparnet"]))
    weights = {system.networks["enhancer"].files[""].file: published_sparnet(SPARNet(**config["sparnet"]))}
    image: Shape = (3, size, size)
    wide: Shape = (6, size, size)
    drawn = recorded_noise(path.stem, 2 * sampler.calls, image)
    noise = {image: drawn[:1], wide: np.concatenate([drawn[1:-1:2], drawn[2::2]], axis=2)}
    states = {"kept": [*arrays["kept"], sampler.calls], "states": [*arrays["states"], arrays["x0"]]}

    def compare(chain: Chain) -> float:
        result, errors = run_chain(chain, states, unit_picture(arrays["degraded"]), every=2)
        return max(*errors, distance(result.state[..., ::2, ::2], np.clip(arrays["final"], -1.0, 1.0)))

    return run_system(system, sampler, scratch, compare, noise=noise, weights=weights)


def published_sparnet(network: SPARNet) -> dict[str, Tensor]:
    """The state that the golden was recorded with: seeded weights under spectral normalization, u and v of an SVD."""
    state: dict[str, Tensor] = {}
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
    size, kept = int(config["size"]), {"tokens": len(arrays["context"]), "latent": arrays["latent"].shape[-1]}
    sampler = osdface.OSDFACE.presets["published"]
    system = replace(
        osdface.OSDFACE,
        image_size=size,
        networks=osdface.networks(config["unet"], config["vae"], config["embedder"], **kept),
    )

    def compare(chain: Chain) -> float:
        face = to_input(arrays["image"], size, sampler.pixels)
        image = chain.run(face[None], seed=0, images=(0,)).image[0]
        found = {key: chain.device.read(chain.values[key])[0] for key in ("latent", "context")}
        found["final"] = image[:, ::2, ::2]
        levels = np.abs(to_output(image, arrays["image"], sampler.pixels).astype(int) - arrays["png"]).max()
        return max(*(distance(value, arrays[key]) for key, value in found.items()), float(levels) - 1, 0)

    return run_system(system, sampler, scratch, compare)
