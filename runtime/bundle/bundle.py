"""The deployment bundle: a folder with a manifest and the networks' files. Every file is checked before use."""

import hashlib
import json
import logging
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bfr.runtime.bundle.files import check_file, map_file, read_file
from bfr.runtime.bundle.hub import is_address, pull
from bfr.runtime.bundle.manifest import (
    FORMAT,
    MANIFEST,
    BundleFile,
    Denoise,
    Manifest,
    Network,
    Precision,
    Preset,
    Variant,
)
from bfr.runtime.bundle.onnx import OnnxFile, check_graph
from bfr.runtime.bundle.onnx_info import read_ends
from bfr.runtime.diffusion.schedule import GRIDS, parse_respacing
from bfr.runtime.diffusion.solvers import SOLVERS
from bfr.runtime.errors import BundleInvalid, InvalidOption
from bfr.runtime.files import sha256_file, write_bytes
from bfr.runtime.options import explain
from bfr.runtime.text import listed

LARGEST_MANIFEST = 16 << 20  # bytes
# By the suffix of a file that is named in the place of a bundle.
FILE_REMEDIES = {
    ".onnx": "`bfr wrap FILE -o BUNDLE` makes a bundle of it",
    **dict.fromkeys(
        (".pth", ".pt", ".ckpt", ".safetensors"), "`bfr export SYSTEM --weights FOLDER -o BUNDLE` makes one of weights"
    ),
    **dict.fromkeys((".engine", ".plan", ".trt"), "bfr runs no engines but those that `bfr build BUNDLE` makes"),
}
PACKAGED = "mini"  # the system whose bundle comes with the package
_log = logging.getLogger("bfr")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: Its folder.
        manifest: Its manifest.
        hash: Sha256 of the manifest's content, which holds those of all files, without the list of verifications.
    """

    folder: Path
    manifest: Manifest
    hash: str

    @classmethod
    def open(cls, folder: Path | str) -> "Bundle":
        """Read the manifest of a bundle.

        Engines in a bundle are machine code of its maker: bfr warns and never uses them.

        Args:
            folder: A folder, `mini`, or an address of the Hugging Face Hub as `hf://owner/name`.

        Raises:
            BundleInvalid: There is no bundle, or none of this format.
        """
        folder = pull(folder) if is_address(folder) else locate(folder)
        if not folder.exists():
            raise BundleInvalid(
                f"there is no folder {folder}: name a bundle, or make one by `bfr export SYSTEM -o {folder}`"
            )
        path = folder / MANIFEST
        if not path.is_file():
            if folder.is_file():
                remedy = FILE_REMEDIES.get(folder.suffix.lower(), "unpack an archive first")
                raise BundleInvalid(f"{folder} is a file: name the folder of the bundle; {remedy}")
            inner = next(folder.glob(f"*/{MANIFEST}"), None)
            remedy = f"name {inner.parent}" if inner else "`bfr export SYSTEM -o FOLDER` makes one"
            raise BundleInvalid(f"{folder} is no bundle: it has no {MANIFEST}. {remedy[0].upper()}{remedy[1:]}")
        if path.stat().st_size > LARGEST_MANIFEST:
            raise BundleInvalid(f"{path} has more than {LARGEST_MANIFEST:,} bytes: it is no manifest, export it again")
        data = path.read_bytes()
        try:
            found = json.loads(data)
            version = found.get("format") if isinstance(found, dict) else None
            if isinstance(version, int) and version > FORMAT:
                raise BundleInvalid(f"{path} has format {version}, this bfr reads up to {FORMAT}: upgrade bfr")
            if isinstance(found, dict) and found.pop("engines", None):
                _warn_of_engines(folder)
            manifest = Manifest.model_validate(found)
        except ValidationError as error:
            problems = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
            raise BundleInvalid(f"{path} is not a valid manifest:\n{problems}\nExport the bundle again.") from error
        except BundleInvalid:
            raise
        except (ValueError, RecursionError) as error:
            raise BundleInvalid(f"{path} is not JSON ({error}): the bundle is damaged, export it again") from error
        content = json.dumps({key: found[key] for key in sorted({*found} - {"verified"})}, sort_keys=True)
        return cls(folder, manifest, hashlib.sha256(content.encode()).hexdigest())

    @property
    def denoisers(self) -> tuple[Denoise, ...]:
        """The denoise stages."""
        return tuple(stage for stage in self.manifest.stages if isinstance(stage, Denoise))

    @property
    def denoise(self) -> Denoise:
        """The first denoise stage. Raises InvalidOption if there is none."""
        if not self.denoisers:
            raise InvalidOption(f"{self.manifest.system} has no denoising loop: it calls its networks once")
        return self.denoisers[0]

    @property
    def reference_preset(self) -> str | None:
        """The preset that a verification runs: `reference` if there is one, else the default; None without a loop."""
        known = self.manifest
        found = "reference" if "reference" in known.presets else known.default_preset
        return found if self.denoisers else None

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that at least one network was exported in."""
        return tuple(sorted({p for network in self.manifest.networks.values() for p in network.variants}))

    @property
    def wrapped(self) -> bool:
        """Whether `bfr wrap` made it: there are no PyTorch modules of its networks."""
        return any(network.kind == "wrapped" for network in self.manifest.networks.values())

    @property
    def made_by(self) -> str:
        """The command that makes such a bundle, without its options."""
        return "bfr wrap FILE" if self.wrapped else f"bfr export {self.manifest.system}"

    def precision(self, name: str) -> Precision:
        """Return `name`. Raises InvalidOption, with the precisions of the bundle, where no network has this one."""
        for precision in self.precisions:
            if precision == name:
                return precision
        raise InvalidOption(
            f"{self.folder} has no network in {name}, only {', '.join(self.precisions)}: "
            f"`{self.made_by} --precision {name} -o FOLDER` makes one where it is offered"
        )

    def preset(self, name: str | None = None, **overrides: Any) -> Preset:
        """Return a preset, the bundle's default for None, with some fields changed.

        A solver without eta sets eta to 0. A change between a grid and a respacing drops steps, adapt and stop. Raises
        InvalidOption if the bundle has no such preset, or the fields do not fit each other.
        """
        weight = overrides.get("weight")
        if weight is not None and self.manifest.weight is None:
            raise InvalidOption(f"{self.manifest.system} has no network with a weight: leave it out")
        if not self.denoisers:
            overrides.pop("weight", None)
            if name or overrides:
                given = ", ".join([*(["preset"] if name else []), *overrides])
                raise InvalidOption(f"{self.manifest.system} has no loop, so no {given}: leave it out")
            return Preset(solver=None, weight=weight)
        name = name or self.manifest.default_preset
        if name not in self.manifest.presets:
            raise InvalidOption(
                f"preset {name!r} is unknown: {self.manifest.system} has {_names(self.manifest.presets)}"
            )
        stored = self.manifest.presets[name].model_dump()
        spacing = overrides.get("spacing")
        if spacing is not None and spacing not in GRIDS:
            parse_respacing(spacing)
        if spacing is not None and (spacing in GRIDS) != (stored["spacing"] in GRIDS):
            if "start" not in overrides:
                raise InvalidOption(
                    f"preset {name!r} has the spacing {stored['spacing']!r}, and its start has another meaning in "
                    f"{spacing!r}: also give start, a timestep for {', '.join(GRIDS)}, an index for others"
                )
            stored["steps"], stored["adapt"], stored["stop"] = None, None, 0
        solver = SOLVERS.get(overrides.get("solver", stored["solver"]))
        if solver is None or not solver.with_eta:
            stored["eta"] = 0.0
        try:
            return Preset.model_validate({**stored, **overrides})
        except ValidationError as error:
            problems = explain(error.errors(), Preset.model_fields)
            raise InvalidOption(f"preset {name!r} does not allow this change: {problems}") from error

    def network(self, name: str) -> Network:
        """Return a network's entry by its name."""
        return self.manifest.networks[name]

    def graph(self, name: str, precision: Precision) -> Path:
        """Check the graph and the weights of a network, and return the path of the graph.

        Use it for libraries that open files themselves: they read the checked files again. See `open_graph`.

        Raises:
            InvalidOption: The precision was not exported.
            BundleCorrupt: A file is not the one that the manifest describes.
            BundleInvalid: The graph names a file or declares a size that it should not, see `check_graph`; or reads or
                makes other tensors than the manifest says.
        """
        variant = self._variant(name, precision)
        self._checked_graph(name, variant)
        for file in variant.weights:
            self.check(file)
        return self.folder / variant.graph.path

    def open_graph(self, name: str, precision: Precision) -> OnnxFile:
        """Check the graph and the weights of a network, and return the bytes that were checked. Raises as `graph`."""
        variant = self._variant(name, precision)
        data = self._checked_graph(name, variant)
        beside = posixpath.dirname(variant.graph.path) or "."
        weights = {
            posixpath.relpath(file.path, beside): map_file(self.folder, file, self._remedy) for file in variant.weights
        }
        return OnnxFile(self.folder / variant.graph.path, data, weights)

    def _checked_graph(self, name: str, variant: Variant) -> bytes:
        data = read_file(self.folder, variant.graph, self._remedy)
        beside = posixpath.dirname(variant.graph.path) or "."
        known = {posixpath.relpath(file.path, beside): file.bytes for file in variant.weights}
        path = self.folder / variant.graph.path
        check_graph(data, known, path)
        network, (inputs, outputs) = self.network(name), read_ends(data, path)
        unlike = inputs.keys() - {tensor.name for tensor in network.inputs}
        for tensors, there in ((network.inputs, inputs), (network.outputs, outputs)):
            unlike |= {one.name for one in tensors if not _alike(one.shape, there.get(one.name))}
        if unlike:
            raise BundleInvalid(
                f"{path} has not the manifest's name, shape or type of {listed(sorted(map(repr, unlike)))}: export the "
                "bundle again"
            )
        return data

    def _variant(self, name: str, precision: Precision) -> Variant:
        variants = self.network(name).variants
        if precision not in variants:
            raise InvalidOption(
                f"{name} was not exported in {precision}, only in {_names(variants)}: "
                f"`{self.made_by} --precision {precision} -o FOLDER` makes it"
            )
        return variants[precision]

    def check(self, file: BundleFile) -> None:
        """Raise BundleCorrupt unless the file has the size and the sha256 of its entry."""
        check_file(self.folder, file, self._remedy)

    @property
    def _remedy(self) -> str:
        return f"copy the bundle anew, or make it with `{self.made_by} -o FOLDER`"

    def check_all(self) -> int:
        """Check every file of the bundle; return their number."""
        files = [f for n in self.manifest.networks.values() for v in n.variants.values() for f in (v.graph, *v.weights)]
        for file in files:
            self.check(file)
        return len(files)


@cache
def _warn_of_engines(folder: Path) -> None:
    """Warn once for each folder."""
    _log.warning(
        "%s contains engines, which are machine code of the bundle's maker: bfr does not use them. "
        "`bfr build %s` makes this machine's own",
        folder,
        folder,
    )


def locate(name: Path | str | None) -> Path:
    """Return the folder of a bundle: the package's for None, and for `mini` where no folder has that name."""
    if name is None or (str(name) == PACKAGED and not Path(name).exists()):
        return default_bundle()
    return Path(name)


def default_bundle() -> Path:
    """Return the folder of the bundle that is installed with the package: the system `mini`."""
    spec = find_spec("bfr.models")
    folder = Path(spec.origin).parent / "systems" / "mini" / "bundle" if spec and spec.origin else None
    if folder is None or not (folder / MANIFEST).is_file():
        raise BundleInvalid("the default bundle is not installed: reinstall bfr, or name one with --bundle")
    return folder


def describe_file(folder: Path, path: Path) -> BundleFile:
    """Return the manifest's entry of a file inside `folder`."""
    return BundleFile(path=path.relative_to(folder).as_posix(), sha256=sha256_file(path), bytes=path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, whole or not at all."""
    write_bytes(folder / MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")


def _alike(shape: Sequence[int | str], sizes: Sequence[int] | None) -> bool:
    """Whether a graph's tensor has the shape that the manifest says. Sizes that either leaves open fit."""
    declared = [size if isinstance(size, int) else 0 for size in shape]
    return (
        sizes is not None
        and len(sizes) == len(declared)
        and all(a in (0, b) or b == 0 for a, b in zip(declared, sizes, strict=True))
    )


def _names(mapping: Mapping[Any, object]) -> str:
    return ", ".join(sorted(mapping)) or "none"
