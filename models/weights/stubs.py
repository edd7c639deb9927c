"""Read torch checkpoints that hold more than tensors, without running code from them.

Trainers store other objects beside the weights: PyTorch Lightning its callbacks and its settings. PyTorch's restricted
unpickler refuses a file with such a class. This module replaces each class by an inert stub, which accepts any
arguments and any state and keeps none. PyTorch's own functions rebuild tensors, and no module that a file names is
imported.
"""

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import safe_globals

LEGACY_PICKLES = 5  # one after the other in files of before PyTorch 1.6: magic, version, system, content, keys
# PyTorch's unpickler refuses these modules whatever replaces them.
BLOCKED = re.compile(r"GLOBAL (\S+) whose module \S+ is blocked")
# Its complaints where a stub is filled as a dict or a list: that class then stands for an empty one.
FILLED = re.compile(r"Can only (SETITEMS?|append|extend)\b.*<class '([^']+)'>", re.DOTALL)
GREEDY = "builtins.bytearray"  # PyTorch allows it: a few bytes ask for all memory
OURS = f"{__name__}."


class Unreadable(Exception):
    """The file is complete, and holds an object that no stub can replace."""


class _Stub:
    """Replaces an object that is no tensor: accepts any state, keeps nothing, does nothing."""

    def __new__(cls, *_: Any) -> "_Stub":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def is_stub(value: object) -> bool:
    """Whether a value of a checkpoint, or a class, stands for something that was not read."""
    return isinstance(value, _Stub) or (isinstance(value, type) and issubclass(value, _Stub))


def load_inert(path: Path, *, mmap: bool) -> object:
    """What `torch.load` makes of a file in its restricted way, names that it does not know as stubs.

    Args:
        path: A file that `torch.save` wrote.
        mmap: Whether the tensors are mapped; not for compressed archives and old files.

    Raises:
        Unreadable: The file is whole, and holds what cannot be left out.
        Exception: Nearly any type, if the file is damaged.
    """
    names = _named(path)
    if GREEDY in names:
        raise Unreadable(f"it names {GREEDY}, which takes any amount of memory")
    try:
        return _load(path, mmap)
    except pickle.UnpicklingError as error:
        if not names:
            raise _refused(error) or error from None
    kinds: dict[str, type] = dict.fromkeys(names, object)
    while True:
        stubs: list[Any] = [(_stub(name, kind), name) for name, kind in kinds.items()]
        try:
            with safe_globals(stubs):
                return _load(path, mmap)
        except pickle.UnpicklingError as error:
            found = FILLED.search(str(error))
            name = found[2].removeprefix(OURS) if found else ""
            if found is None or kinds.get(name) is not object:
                raise _refused(error) or error from None
            kinds[name] = dict if found[1].startswith("SETITEM") else list


def _load(path: Path, mmap: bool) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of it refuses next
        if path.suffix != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        with path.open("rb") as file:  # of a path, PyTorch goes by the suffix
            return torch.load(file, map_location="cpu", weights_only=True)


def _stub(name: str, kind: type) -> type:
    """Make an inert class of a name; where it is filled, making an instance gives an empty dict or list."""
    made: dict[str, Any] = {"__module__": __name__, "__qualname__": name}
    if kind is not object:
        made["__new__"] = lambda _cls, *_: kind()
    return type(name, (_Stub,), made)


def _refused(error: Exception) -> Unreadable | None:
    """What a file asked for that its reader does not do; None if it is damaged."""
    text = str(error)
    if found := BLOCKED.search(text):
        return Unreadable(f"it names {found[1]}, which would run code")
    if "Unsupported operand 149" in text:
        return Unreadable("it was saved with a pickle_protocol above 3")
    for refusal in ("Trying to call reduce", "Can only ", "Unsupported global", "TorchScript"):
        if refusal in text:
            text = re.sub(r"<(\S+) object at \w+>", r"\1", text).replace(OURS, "")
            return Unreadable(text[text.index(refusal) :].split("\n", 1)[0][:160])
    return None


def _named(path: Path) -> list[str]:
    """What the pickles of a file name, each once, as `module.name`; PyTorch's own allowed names take precedence."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # by which PyTorch tells them apart
            file.seek(0)
            return list(dict.fromkeys(_names(file, LEGACY_PICKLES)))
    with zipfile.ZipFile(path) as archive:
        pickles = [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("data.pkl")]
    return list(dict.fromkeys(name for one in pickles for name in _names(one, 1)))


def _names(file: IO[bytes], pickles: int) -> Iterable[str]:
    """What pickles name, without unpickling them."""
    with suppress(ValueError):  # not a pickle to its end: loading it raises the error
        for _ in range(pickles):
            for operation, argument, _place in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    module, name = str(argument).split(" ", 1)
                    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                    yield f"{module}.{name}"
