"""The torch modules behind a bundle, rebuilt from its weights as the reference for verification and benchmarks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bfr.models.catalog import ARCHITECTURES
from bfr.models.networks.unet import UNet
from bfr.models.stages.kinds import make_stage
from bfr.models.stages.step import ConditionerStage, cut_variance
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import BfrError, BundleInvalid

LARGER = 8  # times its weights: an encoder comes with a decoder at first, and channels are cut


def load_reference(bundle: Bundle) -> dict[str, nn.Module]:
    """Every network of a bundle as its float32 stage module, by name. The files are checked first."""
    return {name: load_stage(bundle, name) for name in bundle.manifest.networks}


def load_stage(bundle: Bundle, name: str) -> nn.Module:
    """One network of a bundle as its float32 stage module. Its files are checked first.

    Raises BundleInvalid if its entry in the manifest builds no module that the weights fill.
    """
    entry = bundle.network(name)
    try:
        return _build(bundle, name)
    except BfrError:
        raise
    except Exception as error:  # what modules make of other parameters has nearly any type
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BundleInvalid(
            f"{bundle.folder}: {name} cannot be built as {entry.kind} of {entry.architecture} with the manifest's "
            f"parameters ({reason}): export the bundle again"
        ) from error


def _build(bundle: Bundle, name: str) -> nn.Module:
    entry = bundle.network(name)
    if entry.kind == "conditioner":
        denoiser: Any = load_stage(bundle, bundle.denoise.network)
        return ConditionerStage(denoiser.denoiser).eval()
    path = bundle.graph(name, "fp32").with_suffix(".safetensors")
    if entry.architecture not in ARCHITECTURES:
        raise BundleInvalid(
            f"{bundle.folder}: architecture {entry.architecture!r} has no PyTorch modules here: choose a backend "
            "that runs the bundle's own graphs"
        )
    state = load_file(path)
    most = LARGER * sum(tensor.numel() for tensor in state.values())
    with _no_larger_than(most):
        module = ARCHITECTURES[entry.architecture](**entry.parameters)
    cut = entry.kind.startswith("step") and not entry.kind.startswith("step-learned")
    if cut and isinstance(module, UNet) and len(state["out.2.bias"]) < len(module.state_dict()["out.2.bias"]):
        cut_variance(module)
    # The file also holds what the exporter folded, under names of its own.
    module.load_state_dict({key: state[key].to(value.dtype) for key, value in module.state_dict().items()})
    return make_stage(entry.kind, module, entry.options)


@contextmanager
def _no_larger_than(numbers: int) -> Iterator[None]:
    """Refuse modules of more parameters, before their memory is touched: a manifest can name any size."""
    left = numbers

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter) -> None:
        nonlocal left
        left -= parameter.numel()
        if left < 0:
            raise ValueError("they make a network larger than its weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
