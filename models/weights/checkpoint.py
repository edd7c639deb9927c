"""Read trained weights from files that may be damaged, of another network, or malicious.

Only tensors are read. PyTorch's restricted unpickler reads torch files. An object that is neither a tensor nor plain
data, such as a trainer's settings, becomes an inert stub (`bfr.models.weights.stubs`). No code of the file runs. All
names and shapes are compared with the network's before any weight is copied.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bfr.models.weights.identify import STATE_DICT, is_safetensors, is_whole_zip, no_checkpoint, read_head
from bfr.models.weights.stubs import Unreadable, is_stub, load_inert
from bfr.runtime.errors import InputNotFound, InvalidCheckpoint, WriteFailed
from bfr.runtime.files import atomic_path, sha256_file
from bfr.runtime.text import listed

# DifFace publishes its weights bare or under `state_dict`; the BasicSR family, SwinIR's own releases among them, under
# `params_ema` or `params`, and guided diffusion's trainers under `model_ema`. Averaged weights are the published ones.
WRAPPERS = ("params_ema", "model_ema", "ema", "g_ema", "state_dict", "params", "model")
# In other names of averaged weights, which go before all that are not averaged: model_ema_1, model-ema, EMA, emaG.
AVERAGES = re.compile(r"(?<![A-Za-z])ema(?![a-z])|E(ma|MA)(?![a-z])")
WRAPPED_TWICE = 2  # trainers of wrapped models wrap again
# Parts that distributed training, torch.compile and similar tools add to names.
PUT_IN = re.compile(r"^module\.|_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
COUNTER = "num_batches_tracked"  # of batch normalization: counts training, and changes no result
AVERAGED = "n_averaged"  # the counter of PyTorch's AveragedModel
CHOOSE = "choose the file of the weights alone, as `bfr fetch` downloads it"
# In names that a network lacks: what the file holds, and what to do.
FOREIGN = {
    r"\blora_|\.(lokr|hada)_": "They hold adapters, as LoRA does: merge them into the network, and save its weights",
    r"\.(absmax|quant_|qweight|qzeros|SCB|weight_scale|scale_weight|_packed)": "They are quantized: take others",
    r"\bweight_(g|v|orig)$|\bparametrizations\.": "They are normalized as in training: remove that from the network, "
    "with torch.nn.utils, and save its weights",
}
PART = re.compile(r"-\d+-of-\d+\.\w+$")  # at the end of a file's name


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file or a torch checkpoint.

    The content decides which it is, not the suffix. A dict under one of `WRAPPERS` is unwrapped, or the only dict of
    tensors under another name. `PUT_IN` is removed from names.

    Args:
        path: The file. torch files are mapped, not read: do not overwrite the file in place while the tensors live.

    Returns:
        Name -> tensor on the CPU, float16 and bfloat16 as float32.

    Raises:
        InputNotFound: There is no such file.
        InvalidCheckpoint: The file is no flat dict of tensors; the text says what it is.
    """
    if path.is_dir():
        raise InputNotFound(f"{path} is a folder, where a checkpoint is needed: name its file")
    if not path.is_file():
        raise InputNotFound(f"{path}: there is no such file; 'bfr fetch' downloads published weights")
    content = _unwrapped(_read(path), WRAPPED_TWICE)
    if is_stub(content):
        raise InvalidCheckpoint(
            f"{path} is whole, and is one pickled object of class {type(content).__name__}, not tensors: {STATE_DICT}"
        )
    if not isinstance(content, Mapping) or not content:
        raise InvalidCheckpoint(f"{path} is whole, and holds no state dict (name -> tensor): {CHOOSE}")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested
        if not isinstance(key, str) or not dense:
            raise InvalidCheckpoint(
                f"{path} is whole, and its {key!r} is {type(value).__name__}, where a state dict has dense tensors "
                f"only: {CHOOSE}"
            )
        if key == AVERAGED:
            continue
        _check_storage(path, key, value)
        name = PUT_IN.sub("", PUT_IN.sub("", key))
        if name in state:
            raise InvalidCheckpoint(f"{path} holds {name!r} twice, the second time as {key!r}: {CHOOSE}")
        half = value.dtype in {torch.float16, torch.bfloat16}
        state[name] = value.detach().float() if half else value.detach()
    return state


def _unwrapped(content: object, depth: int) -> object:
    """What lies under the first of `WRAPPERS` and `AVERAGES` that holds nothing but tensors, itself or inside.

    Where none does, it is what lies under the first.

    Where there is none of them, it is the only dict of nothing but tensors, unless tensors lie beside it.
    """
    if not isinstance(content, Mapping) or not depth:
        return content
    averages = [name for name in (*WRAPPERS, *content) if isinstance(name, str) and AVERAGES.search(name)]
    names = dict.fromkeys((*averages, *WRAPPERS))
    inner = (content[name] for name in names if isinstance(content.get(name), Mapping))
    found = [_unwrapped(one, depth - 1) for one in inner]
    bare = [one for one in found or content.values() if _is_bare(one)]
    if found or (len(bare) == 1 and not any(isinstance(value, Tensor) for value in content.values())):
        return (bare or found)[0]
    return content


def _is_bare(value: object) -> bool:
    """Whether it is a dict of tensors, one at least."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(one, Tensor) for one in value.values())


def _check_storage(path: Path, key: str, tensor: Tensor) -> None:
    """Refuse a tensor of more values than the file holds for it: a copy of it could fill the memory."""
    if tensor.is_quantized or tensor.device.type != "cpu":
        raise InvalidCheckpoint(f"{path}: {key!r} is quantized or has no values: {CHOOSE}")
    claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > stored:
        raise InvalidCheckpoint(
            f"{path}: {key!r} declares {claimed:,} bytes, {tuple(tensor.shape)}, of which the file holds {stored:,}. "
            "Download the file from its authors"
        )


def check_layout(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that weights are exactly those of a module.

    Args:
        module: The module.
        state: The weights by name.
        source: The file, for the message.

    Raises:
        InvalidCheckpoint: `state` lacks a key, has another one, or one of another shape or kind. The kind is floating
            point, integer or other; precision within a kind may differ.
    """
    own = module.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape or type": [
            f"{key} is {_describe(state[key])}, expected {_describe(tensor)}"
            for key, tensor in own.items()
            if key in state and (state[key].shape != tensor.shape or _kind(state[key]) != _kind(tensor))
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {word}: {listed(keys)}" for word, keys in problems.items() if keys)
        raise InvalidCheckpoint(
            f"{source}: not the weights of this {type(module).__name__} ({len(own)} tensors): {found}. "
            f"{_remedy(module, state, source, problems)}"
        )


def _remedy(module: nn.Module, state: Mapping[str, Tensor], source: str | Path, problems: dict[str, list[str]]) -> str:
    """What to do with a file of another layout."""
    if problems["missing"] and PART.search(str(source)):
        return "It is one part of several: join their tensors in one file"
    for name, remedy in FOREIGN.items():
        if any(re.search(name, key) for key in problems["unexpected"]):
            return remedy
    if problems["missing"] and (starts := _prefixes(module, state)):
        there = " and as ".join(f"{start}*" for start in starts)
        return f"They are there as {there}, beside others: save {'one of them' if starts[1:] else 'those'} alone"
    return "Choose the checkpoint that belongs to this configuration"


def load_into(module: nn.Module, path: Path) -> None:
    """Fill `module` from a checkpoint of exactly its layout; InvalidCheckpoint leaves it unchanged.

    Raises as `load_state_dict` and `check_layout` do.
    """
    state = own_weights(module, load_state_dict(path))
    check_layout(module, state, path)
    if broken := [name for name, tensor in state.items() if not tensor.float().isfinite().all()]:
        raise InvalidCheckpoint(f"{path} holds NaN or Inf in {listed(broken)}: choose an earlier checkpoint")
    module.load_state_dict(state, strict=True)


def own_weights(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a checkpoint is the module's.

    A module that is published together with others chooses by its method `own_weights`. Else a prefix that all names
    of the file have is dropped; where the file holds several such networks, all whole and under `WRAPPERS`, the first
    of these is taken: averaged weights go before others. Counters that the file lacks, or has as no whole number, are
    the module's.
    """
    if choose := getattr(module, "own_weights", None):
        return dict(choose(state))
    starts = _prefixes(module, state)
    several = len(starts) > 1 and any(start.removesuffix(".") not in WRAPPERS for start in starts)
    if starts and not several and all(name.startswith(tuple(starts)) for name in state):
        state = {name.removeprefix(starts[0]): value for name, value in state.items() if name.startswith(starts[0])}
    counters = {name: value for name, value in module.state_dict().items() if name.endswith(COUNTER)}
    return counters | {
        name: value
        for name, value in state.items()
        if name not in counters or (value.shape == () and not value.is_floating_point())
    }


def _prefixes(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which a file has every weight of a module, those of `WRAPPERS` first."""
    own = [name for name in module.state_dict() if not name.endswith(COUNTER)]
    found = [name.removesuffix(own[0]) for name in state if own and name.endswith(f".{own[0]}")]
    whole = [start for start in found if all(start + name in state for name in own)]
    order = [f"{name}." for name in WRAPPERS]
    return sorted(whole, key=lambda start: order.index(start) if start in order else len(order))


def convert(path: Path, destination: Path) -> None:
    """Write a checkpoint's tensors as safetensors, in float32 where they were half precision.

    Raises as `load_state_dict` and `write_safetensors` do.
    """
    write_safetensors(destination, load_state_dict(path), path)


def write_safetensors(destination: Path, state: Mapping[str, Tensor], *sources: Path) -> None:
    """Write tensors whole or not at all; the header keeps the names and sha256 of the files that they come from.

    Needs about their size of memory more. Raises WriteFailed, which names the folder.
    """
    # Copies: safetensors refuses tensors that share memory, and a checkpoint's may.
    copies = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
    hashes = " ".join(sha256_file(source) for source in sources)
    metadata = {"format": "pt", "source": " ".join(source.name for source in sources), "source_sha256": hashes}
    with atomic_path(destination) as temporary:
        try:
            safetensors.torch.save_file(copies, temporary, metadata)
        except SafetensorError as error:  # not an OSError, also where the disk is full
            raise WriteFailed(f"cannot write {destination.absolute()} ({error}): free some space there") from error


def _read(path: Path) -> object:
    if problem := no_checkpoint(path):
        raise InvalidCheckpoint(f"{path} {problem}")
    if (whole := zipfile.is_zipfile(path)) and not is_whole_zip(path):  # PyTorch does not look at the checksums
        raise InvalidCheckpoint(
            f"{path} is damaged: what it holds has not the checksums that it names. Download it again; `bfr fetch` "
            "checks what it downloads. If PyTorch saved it without checksums (set_crc32_options), save it with them"
        )
    try:
        if is_safetensors(read_head(path)):
            return safetensors.torch.load_file(path)
        return load_inert(path, mmap=_mappable(path))
    except Unreadable as error:
        raise InvalidCheckpoint(f"{path} holds more than tensors: {error}. {STATE_DICT.capitalize()}") from error
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly any type
        text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
        reason = f"{type(error).__name__}: {text.strip().split(chr(10), 1)[0][:160]}"
        problem = (
            f"is whole, and not as torch.save writes tensors ({reason}): {STATE_DICT}, or download it from its authors"
            if whole
            else f"is damaged: its tensors cannot be read ({reason}). Download it again; `bfr fetch` checks what it "
            "downloads"
        )
        raise InvalidCheckpoint(f"{path} {problem}") from error


def _mappable(path: Path) -> bool:
    """Whether torch may map the file: a zip archive, as written since PyTorch 1.6, and not compressed."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "float"
    return "other" if tensor.is_complex() or tensor.dtype == torch.bool else "int"


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
