"""The published code of DifFace on the CPU, to be measured beside the runtime's backends.

It is imported from a clone of https://github.com/zsyOAOA/DifFace that the user names; this project holds nothing of it.
Its networks and its loop run as they are, in float32, with the bundle's weights and the runtime's noise, so that
results can be compared. The steps around them are those of `sample_func_ir_aligned` in its `sampler.py`, which itself
needs a GPU. `timm` need not be installed, and its import costs the published code no time: of its three functions that
the networks import, none computes anything once the weights are loaded (`HELPERS`).
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file

from bfr.benchmarks.environment import describe_commit
from bfr.benchmarks.speed.contender import Contender
from bfr.runtime.backends.device import Float32
from bfr.runtime.backends.host import HostDevice, HostNoise, HostStopwatch
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import BackendUnavailable
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.inputs import image_key
from bfr.runtime.restore.restorer import DEFAULT_SEED

CLASSES = {"unet": ("models.unet", "UNetModel"), "swinir": ("models.swinir", "SwinIR")}  # by our architecture's name
HELPERS = {
    "DropPath": torch.nn.Identity,  # as in every evaluation
    "to_2tuple": lambda side: side if isinstance(side, tuple) else (side, side),
    "trunc_normal_": torch.nn.init.trunc_normal_,
}
PACKAGE = "published_difface"  # the clone's modules are imported as its children: `models` may be somebody else's too


class PublishedDevice(HostDevice):
    """The CPU, for reports."""

    def __init__(self, name: str, commit: str | None) -> None:
        self.name, self._commit = name, commit

    @property
    def versions(self) -> dict[str, str]:
        """PyTorch's, and the clone's commit."""
        commit = self._commit and self._commit[:12] + self._commit[40:]  # perhaps with -dirty
        return {"torch": torch.__version__, "DifFace": commit or "of unknown commit"}


@dataclass(frozen=True, slots=True)
class PublishedContender(Contender):
    """The published networks with a bundle's weights.

    Attributes:
        estimator: Called with (B, 3, S, S) in [0, 1].
        denoiser: Called with the state and its timesteps.
        make_diffusion: `create_gaussian_diffusion` of the clone.
    """

    estimator: Any = None
    denoiser: Any = None
    make_diffusion: Any = None

    def restorer(self, bundle: Bundle, sampler: Preset, batch: int) -> Any:
        """What restores with a sampler. Raises BackendUnavailable for one that the published code does not have."""
        del batch
        if (sampler.solver, sampler.stop, sampler.steps, sampler.matched) != ("ddim", 0, None, False):
            raise BackendUnavailable(f"the published code has no sampler `{sampler}`: choose --preset reference")
        schedule = bundle.manifest.schedule
        diffusion = self.make_diffusion(
            steps=schedule.timesteps, noise_schedule="linear", learn_sigma=True, timestep_respacing=sampler.spacing
        )
        return PublishedRestorer(self, diffusion, int(sampler.start), sampler.eta)


class PublishedRestorer:
    """Restores batches as `Restorer.run` does, through the published loop."""

    def __init__(self, contender: PublishedContender, diffusion: Any, start: int, eta: float) -> None:
        """Use a `SpacedDiffusion` of the clone from index `start` on."""
        self.contender, self.diffusion, self.start, self.eta = contender, diffusion, start, eta

    def run(self, images: Sequence[Float32]) -> list[Restored]:
        """Restore (S, S, 3) float32 images in [0, 1], of the system's size."""
        clock = HostStopwatch()
        degraded = np.stack([image.transpose(2, 0, 1) for image in images])
        y0 = torch.from_numpy(degraded)
        with ExitStack() as owned:
            noise, drawn = HostNoise(owned, degraded.shape), 0
            # The loop draws for its last step too, and multiplies that by 0.
            noise.begin(DEFAULT_SEED, tuple(image_key(one) for one in degraded), last=self.start)

            def draw(like: Any) -> Any:
                nonlocal drawn
                noise.ready(drawn)
                drawn += 1
                return torch.from_numpy(noise.buffers[(drawn - 1) % 2]).to(like)

            owned.enter_context(patch.object(torch, "randn_like", draw))
            clock.mark("upload")
            estimate = _timed(clock, self.contender.estimator)(y0).clamp_(0.0, 1.0)
            clock.mark("estimate")
            state = self.diffusion.q_sample(estimate * 2.0 - 1.0, torch.tensor([self.start] * len(images)))
            clock.mark("diffuse")
            state = self.diffusion.ddim_sample_loop(
                _timed(clock, self.contender.denoiser),
                state.shape,
                noise=state,
                start_timesteps=self.start,
                device=state.device,
                eta=self.eta,
            )
            clock.mark("denoise")
        result = (state * 0.5 + 0.5).clamp(0.0, 1.0).permute(0, 2, 3, 1).numpy()
        clock.mark("download")
        seconds = {stage: value / len(images) for stage, value in clock.stop()().items()}
        return [
            Restored(pixels, seconds, "fp32")
            if np.isfinite(pixels).all()
            else Restored(None, seconds, "fp32", "the result holds NaN or Inf")
            for pixels in result
        ]

    def close(self) -> None:
        """Nothing to give back."""


def open_published(bundle: Bundle, name: str, folder: Path, *, threads: int | None) -> PublishedContender:
    """Import the published code, make its networks and load the bundle's weights.

    Args:
        bundle: DifFace, restoration of faces.
        name: The contender's.
        folder: The clone.
        threads: PyTorch's; None leaves them as they are.

    Raises:
        BackendUnavailable: The bundle is no DifFace, or the clone holds other code.
    """
    # The conditioner is a part of the denoiser that bundles have apart.
    kinds = {role: entry.kind for role, entry in bundle.manifest.networks.items() if entry.kind != "conditioner"}
    unknown = {bundle.network(role).architecture for role in kinds} - CLASSES.keys()
    if kinds != {"estimator": "estimator", "denoiser": "step"} or unknown:
        raise BackendUnavailable(f"{bundle.manifest.system} is not DifFace as it was published")
    if threads is not None:
        torch.set_num_threads(threads)
    package, timm = ModuleType(PACKAGE), ModuleType("timm")
    package.__path__ = [str(folder)]
    vars(timm).update(HELPERS)
    sys.modules[PACKAGE] = package
    try:
        with patch.dict(sys.modules, dict.fromkeys(("timm", "timm.models", "timm.models.layers"), timm)):
            make_diffusion = import_module(f"{PACKAGE}.models.script_util").create_gaussian_diffusion
            begin = time.perf_counter()
            estimator, denoiser = (_load(bundle, role) for role in ("estimator", "denoiser"))
    except (ImportError, AttributeError) as error:
        raise BackendUnavailable(f"--published is no clone of DifFace as it is known: {error}") from error
    # Another checkout may hold the folder: its commit is not the clone's.
    device = PublishedDevice(name, describe_commit(folder) if (folder / ".git").exists() else None)
    seconds = time.perf_counter() - begin
    return PublishedContender(name, device, {}, "fp32", seconds, None, estimator, denoiser, make_diffusion)


def _load(bundle: Bundle, role: str) -> Any:
    """A published network with the bundle's weights. Variance channels, which bundles drop, are 0: DDIM reads none."""
    entry = bundle.network(role)
    module, made = CLASSES[str(entry.architecture)]
    make = getattr(import_module(f"{PACKAGE}.{module}"), made)
    try:
        network = make(**entry.parameters)
    except TypeError as error:
        system = bundle.manifest.system
        raise BackendUnavailable(f"{system} is not DifFace as it was published: its {role}, {error}") from error
    stored, state = load_file(bundle.graph(role, "fp32").with_suffix(".safetensors")), network.state_dict()
    for name, value in state.items():
        weight = stored[name].to(value.dtype)
        state[name] = torch.cat([weight, weight.new_zeros(len(value) - len(weight), *value.shape[1:])])
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()


def _timed(clock: HostStopwatch, network: Callable[..., Any]) -> Callable[..., Any]:
    """The network, whose calls are timed."""

    def call(*inputs: Any) -> Any:
        made: list[Any] = []
        clock.call(lambda: made.append(network(*inputs)))
        return made.pop()

    return call
