"""Checkpoints that are damaged, malicious, wrapped, or of another network."""

import gzip
import os
import pickle
import resource
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bfr.models.weights.checkpoint import check_layout, convert, load_into, load_state_dict
from bfr.runtime.errors import InputNotFound, InvalidCheckpoint, WriteFailed
from bfr.runtime.files import sha256_file


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(OrderedDict(first=nn.Linear(64, 64), norm=nn.BatchNorm1d(64), last=nn.Linear(64, 8)))


def weights() -> dict[str, Tensor]:
    return dict(network().state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pth"


class Payload:
    """What a malicious checkpoint holds: unpickled by Python's own pickle, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


# Files that hold the weights, whole.


def save_legacy(state: object, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_compressed(state: object, path: Path) -> None:
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_compressed])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "params_ema", "params", "model_ema", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module."])
def test_published_forms_are_read(
    path: Path, save: Callable[[object, Path], None], wrapper: str | None, prefix: str
) -> None:
    state: object = {prefix + key: value for key, value in weights().items()}
    save({"epoch": 3, wrapper: state} if wrapper else state, path)
    assert equal(load_state_dict(path), weights())


@pytest.mark.parametrize("plain", ["params", "state_dict", "model"])
@pytest.mark.parametrize(
    "averaged", ["params_ema", "ema", "g_ema", "state_dict_ema", "ema_model", "EMA", "model-ema", "modelEMA", "emaG"]
)
def test_averaged_weights_are_preferred(path: Path, plain: str, averaged: str) -> None:
    ones = {"a": torch.ones(1)}
    for held in (ones, {"module": ones, "updates": 3}, {"module.a": ones["a"], "n_averaged": torch.tensor(3)}):
        torch.save({plain: {"a": torch.zeros(1)}, averaged: held}, path)
        assert load_state_dict(path) == ones


SETTINGS: dict[str, Any] = {"decay": 0.99, "step": 3}
ENDLESS: dict[str, Any] = {}
ENDLESS["model"] = ENDLESS


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"ema": SETTINGS, "model": {"state_dict": weights()}}, None),
        ({"ema": SETTINGS}, "its 'decay' is float"),
        ({"ema": SETTINGS, "model": weights()}, None),
        ({"state_dict": {"params_ema": weights(), "epoch": 3}}, None),
        ({"generator": weights(), "epoch": 3, "optimizer": {"state": {0: {}}}}, None),
        ({"generator": weights(), "discriminator": {"a": torch.zeros(1)}}, "its 'generator' is dict"),
        (ENDLESS, "its 'model' is dict"),
    ],
)
def test_of_several_dicts_the_first_of_tensors_is_taken(path: Path, held: dict[str, Any], said: str | None) -> None:
    """Trainers keep the settings of their average beside the weights, and wrap what is wrapped."""
    torch.save(held, path)
    if said is None:
        assert equal(load_state_dict(path), weights())
        return
    with pytest.raises(InvalidCheckpoint, match=said):
        load_state_dict(path)


def prefixed(prefix: str, more: int = 0) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value + more for key, value in weights().items()}


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        *((prefix, {}) for prefix in ("model", "net_g", "params_ema", "state_dict.network")),
        ("params_ema", prefixed("params")),
    ],
)
def test_a_prefix_that_all_weights_have_is_dropped(path: Path, prefix: str, beside: dict[str, Tensor]) -> None:
    """As Lightning gives one to its modules, and safetensors files of wrapped dicts have it; an average comes first."""
    save_file(prefixed(prefix, 1) | beside, path)
    target = network()
    load_into(target, path)
    assert equal(dict(target.state_dict()), {key: value + 1 for key, value in weights().items()})


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (prefixed("a") | {"critic.weight": torch.zeros(3)}, r"as a\.\*, beside others: save those alone"),
        (prefixed("a") | prefixed("b"), r"as a\.\* and as b\.\*, beside others: save one of them alone"),
        (prefixed("model") | prefixed("ema_model"), "beside others"),
    ],
)
def test_beside_other_networks_weights_are_not_guessed(path: Path, held: dict[str, Tensor], said: str) -> None:
    save_file(held, path)
    with pytest.raises(InvalidCheckpoint, match=said):
        load_into(network(), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(path: Path, dtype: torch.dtype) -> None:
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights().items()}
    torch.save(half, path)
    state = load_state_dict(path)
    assert equal(state, {key: value.float() if value.is_floating_point() else value for key, value in half.items()})
    assert state["first.weight"].dtype == torch.float32
    assert state["norm.num_batches_tracked"].dtype == torch.int64
    load_into(network(), path)


@pytest.mark.parametrize("counter", [None, torch.tensor(7.0).half(), torch.tensor([7])])
def test_counters_of_training_do_not_matter(path: Path, counter: Tensor | None) -> None:
    """PyTorch before 0.4.1 has none; who casts a whole state dict to half casts them too."""
    changed = {key: value + 1 for key, value in weights().items() if not key.endswith("num_batches_tracked")}
    beside = {} if counter is None else {"norm.num_batches_tracked": counter}
    torch.save({f"net.{key}": value for key, value in (changed | beside).items()}, path)
    target = network()
    load_into(target, path)
    assert equal({key: value for key, value in target.state_dict().items() if key in changed}, changed)


def test_safetensors_round_trip(path: Path, tmp_path: Path) -> None:
    destination = tmp_path / "new" / "a.safetensors"
    shared = torch.arange(12.0).reshape(3, 4)
    state = weights() | {"tied": shared, "tied.too": shared, "transposed": shared.T}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    convert(path, destination)
    assert equal(load_state_dict(destination), state)
    with safetensors.safe_open(destination, "pt") as file:
        assert file.metadata() == {"format": "pt", "source": "a.pth", "source_sha256": sha256_file(path)}
    assert [entry.name for entry in destination.parent.iterdir()] == ["a.safetensors"]


# Files that must be refused.


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(name, b"a")


GOOGLE = b"\n <!DOCTYPE html><html><head><title>Google Drive - Virus scan\nwarning</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"
# What a file may be in the place of a checkpoint, and what must be said of it.
OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "a web page": (lambda path: path.write_bytes(GOOGLE), "is a web page, 'Google Drive - Virus scan warning'"),
    "a web page in capitals": (lambda path: path.write_bytes(b"<HTML>no"), "is a web page"),
    "an LFS pointer": (lambda path: path.write_bytes(POINTER), "is a Git LFS pointer"),
    "an index": (lambda path: path.write_bytes(b'{"weight_map": {"a": "a-1-of-2.bin"}}'), "is the index of weights in"),
    "an answer in JSON": (lambda path: path.write_bytes(b'{"error": "no such file"}'), "is a JSON text"),
    "a text": (lambda path: path.write_text("Access denied.\n"), "is a text of 15 bytes, 'Access denied.'"),
    "zeros": (lambda path: path.write_bytes(bytes(8192)), "zero bytes"),
    "random": (lambda path: path.write_bytes(bytes(range(200, 256)) * 9), "is no checkpoint of PyTorch"),
    "a zip of others": (lambda path: archive(path, "a.txt", "b.txt"), "zip archive of other files (a.txt, b.txt)"),
    "a NumPy archive": (lambda path: archive(path, "a.npy"), "is a NumPy archive"),
    "TorchScript": (
        lambda path: archive(path, "a/data.pkl", "a/constants.pkl", "a/code/a.py"),
        "is an archive of TorchScript",
    ),
    "torch.export": (lambda path: archive(path, "a/archive_format", "a/models/model.json"), "torch.export, a program"),
    "packed again": (lambda path: archive(path, "x/a/data.pkl", "x/a/data/0"), "is whole, and not as torch.save"),
    "a graph of OpenVINO": (lambda path: path.write_text('<?xml version="1.0"?>\n<net name="a">'), "of OpenVINO"),
    "a newer pickle": (lambda path: torch.save(weights(), path, pickle_protocol=4), "with a pickle_protocol above 3"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x" * 99)), "is a gzip archive"),
    "tar": (lambda path: path.write_bytes(bytes(257) + b"ustar" + bytes(250)), "is a tar archive"),
    "an old tar": (
        lambda path: path.write_bytes(b"sys_info".ljust(257, b"\0") + b"ustar" + bytes(250)),
        "is a checkpoint of PyTorch before 0.1.10",
    ),
    "a bomb": (lambda path: save_compressed({"a": torch.zeros(1 << 20)}, path), "claims 4,19"),
    "a traversal": (lambda path: archive(path, "a/data.pkl", "../../b"), "names '../../b', outside itself"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "is a PNG picture"),
    "pickled list": (lambda path: path.write_bytes(pickle.dumps([1, 2, 3], 2)), "is a Python pickle"),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), "is whole, and holds no state dict"),
    "an empty dict": (lambda path: torch.save({}, path), "is whole, and holds no state dict"),
    "an optimizer": (lambda path: torch.save({"state": {0: 3}, "param_groups": []}, path), "is whole, and its 'state'"),
    "nested": (lambda path: torch.save({"a": torch.zeros(1), "b": {"c": 1}}, path), "is whole, and its 'b' is dict"),
    "a number inside": (lambda path: torch.save({"state_dict": weights() | {"epoch": 3}}, path), "its 'epoch' is int"),
    "a key that is no name": (lambda path: torch.save({7: torch.zeros(1)}, path), "is whole, and its 7"),
    "a nested tensor": (lambda path: torch.save({"a": torch.nested.nested_tensor([torch.ones(1)])}, path), "its 'a'"),
    "a sparse tensor": (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "is whole, and its 'a'"),
    "a key twice": (
        lambda path: torch.save({"a": torch.zeros(1), "module.a": torch.ones(1)}, path),
        "'a' twice, the second time as 'module.a'",
    ),
    "a whole network": (
        lambda path: torch.save(network(), path),
        "is whole, and is one pickled object of class torch.nn",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_file_is_is_said(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    write, said = OTHERS[kind]
    write(path)
    with pytest.raises(InvalidCheckpoint) as error:
        load_state_dict(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert said in text
    assert "damaged" not in text


def test_a_folder_and_a_missing_file_are_named(path: Path) -> None:
    with pytest.raises(InputNotFound, match="is a folder"):
        load_state_dict(path.parent)
    with pytest.raises(InputNotFound, match=r"a\.pth"):
        load_state_dict(path)


@pytest.mark.parametrize(("name", "save"), [("a.safetensors", torch.save), ("a.pth", save_file)])
def test_the_content_decides_not_the_suffix(tmp_path: Path, name: str, save: Callable[..., None]) -> None:
    save(weights(), tmp_path / name)
    assert equal(load_state_dict(tmp_path / name), weights())


@pytest.mark.parametrize("percent", [1, 50, 99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, percent: int) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    saver: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
        "zip": torch.save,
        "legacy": save_legacy,
        "safetensors": save_file,
    }
    saver[kind](weights(), path)
    assert equal(load_state_dict(path), weights())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * percent // 100])
    target = network()
    with pytest.raises(InvalidCheckpoint, match=r"damaged|is empty") as error:
        load_into(target, path)
    assert str(path) in str(error.value)
    assert equal(dict(target.state_dict()), weights())


def test_a_header_of_brackets_is_damaged(tmp_path: Path) -> None:
    header = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InvalidCheckpoint, match="header is damaged"):
        load_state_dict(tmp_path / "a.safetensors")


def test_weights_that_changed_on_their_way_are_refused(path: Path) -> None:
    torch.save(weights(), path)
    data = bytearray(path.read_bytes())
    data[data.find(weights()["first.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidCheckpoint, match=r"is damaged: .* checksums"):
        load_state_dict(path)


class Greedy:
    """Unpickled, it takes memory that the file does not hold."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (1 << 20,)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_compressed])
def test_few_bytes_do_not_take_all_memory(path: Path, save: Callable[[object, Path], None]) -> None:
    save({"state_dict": weights(), "beside": Greedy()}, path)
    with pytest.raises(InvalidCheckpoint, match="bytearray, which takes any amount of memory"):
        load_state_dict(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "beside weights"])
def test_code_in_a_pickle_does_not_run(path: Path, tmp_path: Path, form: str) -> None:
    marker = tmp_path / "marker"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(marker), 2))
    elif form == "beside weights":
        torch.save({"state_dict": weights(), "extra": Payload(marker)}, path)
    else:
        (torch.save if form == "zip" else save_legacy)(Payload(marker), path)
    with pytest.raises(InvalidCheckpoint, match="tensors"):
        load_state_dict(path)
    assert not marker.exists()
    if form == "bare pickle":  # the payload is a live one: Python's own pickle runs it
        pickle.loads(path.read_bytes())  # noqa: S301
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


class Callbacks(dict[str, Any]):
    """As trainers keep: a class of theirs that is a dict; its instances are filled by the unpickler."""


class Names(list[str]):
    """The same of lists."""


class Settings:
    """An object with a state."""

    def __init__(self) -> None:
        self.rate = 3


def running(marker: Path) -> Any:
    """An object whose unpickling runs Python."""
    made = type("Running", (), {"__reduce__": lambda _: (eval, (f"open({str(marker)!r}, 'w').close()",))})
    return made()


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_compressed])
def test_what_trainers_keep_beside_the_weights_is_left_out_and_none_of_it_runs(
    tmp_path: Path, save: Callable[[object, Path], None]
) -> None:
    """PyTorch Lightning 1.0 keys its callbacks by their class; others keep settings, paths and what they like."""
    marker, before = tmp_path / "marker", torch.serialization.get_safe_globals()
    kept: dict[str, Any] = {
        "callbacks": {Settings: {"best": torch.tensor(1.0)}},
        "state_dict": weights(),
        "hyper_parameters": Callbacks(rate=0.1, path=Path("/x"), counts=defaultdict(list, a=[1]), names=Names("ab")),
        "settings": Settings(),
        "namespace": Namespace(a=1),
        "numbers": np.float64(3.0),
        "running": running(marker),
    }
    save(kept, tmp_path / "a.ckpt")
    assert equal(load_state_dict(tmp_path / "a.ckpt"), weights())
    assert not marker.exists()
    assert set(torch.serialization.get_safe_globals()) == set(before)
    torch.load(tmp_path / "a.ckpt", weights_only=False)  # the payload is a live one
    assert marker.exists()


def test_a_stub_in_the_place_of_a_tensor_is_no_weight(tmp_path: Path) -> None:
    torch.save({"state_dict": weights() | {"first.weight": Settings()}}, tmp_path / "a.ckpt")
    with pytest.raises(InvalidCheckpoint, match=r"is whole, and its 'first.weight' is .*Settings"):
        load_state_dict(tmp_path / "a.ckpt")


@pytest.mark.parametrize("half", [False, True])
def test_a_tensor_larger_than_its_storage_is_refused_before_it_grows(path: Path, half: bool) -> None:
    one = torch.zeros(1, dtype=torch.float16 if half else torch.float32)
    torch.save({"a": one.expand(1 << 40)}, path)  # as float32 4 TiB
    assert path.stat().st_size < 4096
    with pytest.raises(InvalidCheckpoint, match=r"'a' declares .* bytes, .* of which the file holds"):
        load_state_dict(path)


# Weights of another network.


def test_layout_problems_are_named_and_counted() -> None:
    state = weights()
    check_layout(network(), state, "a.pth")
    del state["norm.weight"], state["norm.bias"]
    state["last.weight"] = torch.zeros(9, 64)
    state["norm.num_batches_tracked"] = torch.tensor(0.0)
    state |= {f"extra.{index}": torch.zeros(1) for index in range(7)}
    with pytest.raises(InvalidCheckpoint) as error:
        check_layout(network(), state, "a.pth")
    text = str(error.value)
    assert text.startswith("a.pth: ")
    assert "2 missing: norm.weight, norm.bias" in text
    assert "7 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more" in text
    assert "2 of another shape or type: " in text
    assert "last.weight is (9, 64) float32, expected (8, 64) float32" in text
    assert "norm.num_batches_tracked is () float32, expected () int64" in text


@pytest.mark.parametrize(
    ("name", "file", "remedy"),
    [
        ("norm.lora_down.weight", "a.pth", "merge them"),
        ("norm.weight.absmax", "a.pth", "are quantized"),
        ("last.weight_g", "a.pth", "are normalized"),
        ("last.parametrizations.weight.original0", "a.pth", "are normalized"),
        ("norm.extra", "a-00001-of-00002.safetensors", "one part of several"),
    ],
)
def test_what_weights_of_another_form_are_is_said(name: str, file: str, remedy: str) -> None:
    state = weights() | {name: torch.zeros(1)}
    del state["norm.weight"]
    with pytest.raises(InvalidCheckpoint, match=remedy):
        check_layout(network(), state, file)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_another_precision_of_the_same_kind_is_no_problem(dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value.int() for key, value in weights().items()}
    check_layout(network(), state, "a.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_a_training_that_diverged_are_refused(path: Path, dtype: torch.dtype) -> None:
    """Also those that float32 cannot hold; quantizing them to int8 would fail much later, and not say why."""
    number = 1e300 if dtype == torch.float64 else float("nan")
    torch.save(weights() | {"last.bias": torch.full((8,), number, dtype=dtype)}, path)
    target = network()
    with pytest.raises(InvalidCheckpoint, match=r"holds NaN or Inf in last.bias: choose an earlier checkpoint"):
        load_into(target, path)
    assert equal(dict(target.state_dict()), weights())


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen", "complex"])
def test_a_network_is_not_filled_by_another_layout(path: Path, change: str) -> None:
    state = {key: value + 1 for key, value in weights().items()}
    if change == "missing":
        del state["last.bias"]
    elif change == "unexpected":
        state["other"] = torch.zeros(1)
    else:
        state["last.bias"] = torch.zeros(1) if change == "misshapen" else torch.zeros(8, dtype=torch.complex64)
    torch.save(state, path)
    target = network()
    with pytest.raises(InvalidCheckpoint, match="Sequential"):
        load_into(target, path)
    assert equal(dict(target.state_dict()), weights())


# Writing.


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    torch.save(weights(), path)
    folder = tmp_path / "out"
    with largest_file(4096), pytest.raises(WriteFailed, match="out"):
        convert(path, folder / "a.safetensors")
    assert list(folder.iterdir()) == []


def test_a_failed_conversion_keeps_the_old_file(path: Path, tmp_path: Path) -> None:
    torch.save(weights(), path)
    destination = tmp_path / "out" / "a.safetensors"
    convert(path, destination)
    before = destination.read_bytes()
    with largest_file(4096), pytest.raises(WriteFailed):
        convert(path, destination)
    path.write_bytes(b"damaged")
    with pytest.raises(InvalidCheckpoint):
        convert(path, destination)
    assert destination.read_bytes() == before
