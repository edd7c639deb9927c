"""What a system is: its networks and where their weights are, its stages, its presets, its licence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Self

from bfr.models.discover import modules
from bfr.models.weights.fetch import Download
from bfr.runtime.bundle.manifest import (
    Denoise,
    Diffuse,
    Estimate,
    ImageInput,
    Licence,
    NoiseSchedule,
    Precision,
    Preset,
)
from bfr.runtime.errors import InvalidOption

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"none": nn.Identity}
for _module in (*modules("bfr.models.networks"), *modules("bfr.models.stages")):
    ARCHITECTURES |= getattr(_module, "ARCHITECTURES", {})
"""What builds a network from the parameters in its manifest: what the modules of networks and stages declare."""


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """One network of a system.

    Attributes:
        kind: Kind of the stage around it, see `bfr.models.stages.kinds`.
        architecture: The name in ARCHITECTURES of what builds it.
        parameters: The arguments of what builds it.
        weights: Its file, None for one without weights; or files, by the part of the network that they fill.
        options: Options of the stage around it, see `bfr.models.stages.kinds`.
        size: Size of the sides of what it works on, None for the system's images.
        learned_variance: Whether its output has variance channels after eps.
        half: The half precision that it bears, None if none is known to be safe; it then stays in float32 in a
            half-precision bundle.
        int8: Whether its own weights were measured with 8-bit convolutions (`bfr.export.onnx.quantize`) and bear them;
            else it stays in float32 in an int8 bundle.
    """

    kind: str
    architecture: str
    parameters: dict[str, Any]
    weights: Download | Mapping[str, Download] | None
    options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    learned_variance: bool = False
    half: Precision | None = "fp16"
    int8: bool = False

    def build(self) -> nn.Module:
        """Return a new module with these parameters, in float32, its weights random.

        Raises InvalidOption where nothing is known to build it.
        """
        if self.architecture not in ARCHITECTURES:
            raise InvalidOption(
                f"architecture {self.architecture!r} is unknown: add it to the ARCHITECTURES of a module of "
                f"models/networks, or choose one of {', '.join(sorted(ARCHITECTURES))}"
            )
        return ARCHITECTURES[self.architecture](**self.parameters)

    @property
    def files(self) -> dict[str, Download]:
        """Its files, by the part of the network that they fill, "" for all of it."""
        if self.weights is None:
            return {}
        return {"": self.weights} if isinstance(self.weights, Download) else dict(self.weights)


def own_file(name: str) -> Download:
    """The file of a network's weights that is nowhere to fetch: trained by its user, or converted."""
    return Download("", f"{name}.safetensors")


def guided_unet(
    size: int,
    channels: int,
    levels: list[int],
    attention: list[int],
    *,
    inputs: int = 3,
    outputs: int = 3,
    blocks: int | list[int] = 2,
    **more: Any,
) -> dict[str, Any]:
    """Parameters of a UNet with the options that guided diffusion's published networks have in common.

    Args:
        size: Side of the images or latents, in pixels.
        channels: Channels of the first level.
        levels: Each level's channels as multiples of `channels`; a level has half the side of the one before.
        attention: Sides that are attended to.
        inputs: Channels that it reads.
        outputs: Channels that it makes.
        blocks: Residual blocks, of every level or of each.
        more: Further options of UNet.
    """
    return {
        "image_size": size,
        "in_channels": inputs,
        "model_channels": channels,
        "out_channels": outputs,
        "attention_resolutions": attention,
        "channel_mult": levels,
        "num_res_blocks": blocks,
        "num_head_channels": 64,
        "use_scale_shift_norm": True,
        **more,
    }


def resize(source: int, target: int, low: float = 0.0) -> NetworkSpec:
    """A network that resizes images of `source` pixels a side to `target`.

    Args:
        source: S, in pixels.
        target: T, in pixels.
        low: Lower end of the image's range; [0, 1] is mapped to [-1, 1], [-1, 1] stays.
    """
    return NetworkSpec("resize", "none", {}, None, {"target": target, "source": source, "low": low}, half=None)


def unpublished(paper: str) -> Licence:
    """The licence of a system without published weights; paper: its number on arXiv."""
    return Licence(
        name="none: no weights are published",
        url=f"https://arxiv.org/abs/{paper}",
        notice="The weights in a bundle of this system are whoever's trained them; the method is the paper's.",
    )


DIFFACE_STAGES: tuple[Estimate | Diffuse | Denoise, ...] = (
    Estimate(network="estimator"),
    Diffuse(),
    Denoise(network="denoiser"),
)


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """A system: its networks by name, its stages, the settings that its makers published as presets.

    Attributes:
        inputs: See `bfr.runtime.bundle.manifest.Manifest`.
        result: See `bfr.runtime.bundle.manifest.Manifest`.
        packaged: The folder of its weights where they come with the package, else they are fetched.
        published: Whether there are weights to fetch.
        by_hand: Files that cannot be fetched, and where people find them.
        sources: The published files, if they are not one or more for each network.
        importer: Converts `sources` into the networks' own files: it takes their folder and the one that it writes
            into.
        default_preset: The one that is used if none is named.
    """

    name: str
    title: str
    image_size: int
    networks: dict[str, NetworkSpec]
    presets: dict[str, Preset]
    licence: Licence
    stages: tuple[Estimate | Diffuse | Denoise, ...] = DIFFACE_STAGES
    inputs: tuple[ImageInput, ...] = ()
    result: str = "state"
    packaged: Path | None = None
    published: bool = True
    by_hand: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[Download, ...] = ()
    importer: Callable[[Path, Path], object] | None = None
    default_preset: str = "reference"
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)

    def untrained(self) -> Self:
        """The same system, its title saying that its weights are made from their names."""
        licence = Licence(name="none", url="", notice="Weights made from their names: they restore nothing.")
        return replace(self, title=f"untrained, for tests and timings: {self.title}", licence=licence)

    @property
    def denoise(self) -> Denoise:
        """The first denoise stage."""
        return next(stage for stage in self.stages if isinstance(stage, Denoise))
