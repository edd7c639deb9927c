import shutil
from pathlib import Path
from typing import Any

import pytest
from bundles import edited

from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import BundleCorrupt, BundleInvalid, InvalidOption
from bfr.runtime.restore.restorer import Restorer


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "copy"))


def test_a_whole_bundle_passes(copy: Path) -> None:
    assert Bundle.open(copy).check_all() == 6  # the estimator in fp32, the denoiser in fp32 and fp16, two files each


@pytest.mark.parametrize("file", ["estimator.onnx", "denoiser.onnx", "denoiser.safetensors"])
@pytest.mark.parametrize("place", ["head", "middle", "tail", "cut", "empty", "gone"])
def test_a_damaged_file_never_reaches_the_backend(
    copy: Path, file: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray((copy / file).read_bytes())
    if place in ("head", "middle", "tail"):
        data[{"head": 0, "middle": len(data) // 2, "tail": -1}[place]] ^= 1
        (copy / file).write_bytes(data)
    elif place == "gone":
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(data[: len(data) // 2] if place == "cut" else b"")
    loaded: list[str] = []
    monkeypatch.setattr(
        "bfr.runtime.backends.onnxruntime.CpuDevice.load_graph", lambda _self, graph: loaded.append(graph.path.name)
    )
    with pytest.raises(BundleCorrupt, match=file) as caught:
        Restorer.open(copy, backend="onnxruntime-cpu")
    assert "bfr export" in str(caught.value)
    assert file not in loaded
    assert file.replace(".safetensors", ".onnx") not in loaded


def test_a_hash_is_named_found_and_expected(copy: Path) -> None:
    path = copy / "estimator.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    expected = Bundle.open(copy).network("estimator").variants["fp32"].graph.sha256
    with pytest.raises(BundleCorrupt, match=expected):
        Bundle.open(copy).check_all()


def edit(folder: Path, change: object) -> None:
    with edited(folder) as manifest:
        change(manifest)  # type: ignore[operator]


@pytest.mark.parametrize(
    "name",
    [
        *("../outside.onnx", "/etc/passwd", "a/../../b", "a\\b", "", "a//b", "a/", "a\n.onnx", "a\0b", "a?b"),
        *("C:evil.onnx", "C:/evil.onnx", "a.onnx:stream", "nul", "a/CON.onnx", "lpt1.onnx", "a. "),  # Windows
    ],
)
def test_a_file_outside_the_bundle_is_refused(copy: Path, name: str) -> None:
    edit(copy, lambda m: m["networks"]["denoiser"]["variants"]["fp32"]["graph"].update(path=name))
    with pytest.raises(BundleInvalid, match="relative"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["estimator.ort", "estimator", "estimator.ONNX", "estimator.onnx.ort"])
def test_a_graph_is_named_onnx_and_nothing_else(copy: Path, name: str) -> None:
    """The suffix chooses ONNX Runtime's loader."""
    edit(copy, lambda m: m["networks"]["denoiser"]["variants"]["fp32"]["graph"].update(path=name))
    with pytest.raises(BundleInvalid, match=r"\.onnx"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["../x", "a b", "$(id)", "", "a\x1b[2J", "x" * 101, "-rf", "a`id`"])
def test_names_that_a_shell_or_a_file_system_would_obey_are_refused(copy: Path, name: str) -> None:
    """They stand in remedies that people paste, and in the names of engines."""
    edit(copy, lambda m: m.update(system=name))
    with pytest.raises(BundleInvalid, match="system"):
        Bundle.open(copy)
    edit(copy, lambda m: (m.update(system="tiny"), m["networks"].update({name: m["networks"]["denoiser"]})))
    with pytest.raises(BundleInvalid, match="networks"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_size", 10**9), ("image_size", 0), ("batches", [10**9]), ("schedule", {"timesteps": 10**9})],
)
def test_sizes_that_no_machine_has_are_refused(copy: Path, key: str, value: object) -> None:
    edit(copy, lambda m: m.update({key: value}))
    with pytest.raises(BundleInvalid, match=key):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.update(image_size=16), r"reads degraded as \(3, 32, 32\), and it is \(3, 16, 16\)"),
        (lambda m: m["networks"]["estimator"]["inputs"][0].update(shape=["batch", 3, 8, 8]), "reads degraded as"),
        (lambda m: m["networks"]["estimator"]["outputs"][0].update(shape=["batch", 3, 8, 8]), "reads estimate as"),
        (lambda m: m["networks"]["denoiser"]["inputs"][0].update(name="y"), "network denoiser has no x"),
        (lambda m: m["stages"][2].update(strength=1.0), "network denoiser has no strength"),
        (lambda m: m["stages"][2].update(conditioner="estimator"), "network estimator has no t,"),
        (lambda m: m["stages"][2].update(guidance={"network": "estimator", "strength": 1}), "estimator has no x_next"),
        (lambda m: m.update(stages=[], result="degraded", presets={}), "calls no network"),
        (lambda m: m["presets"]["reference"].update(spacing="9" * 5000), "is unknown: choose time"),
        (lambda m: m["networks"]["denoiser"]["inputs"][1].update(shape=["batch", 4]), r"h1 as \(4,\), and its stage"),
        (lambda m: m["networks"]["denoiser"]["inputs"][3].update(shape=["batch", 4]), r"t as \(4,\), and its stage"),
        (lambda m: m["networks"]["denoiser"]["inputs"][5].update(shape=["batch", 4]), "denoiser.onnx has not.*'noise'"),
        (lambda m: m["networks"]["denoiser"]["outputs"][0].update(name="y"), "network denoiser has no x_next"),
        (lambda m: m["networks"]["denoiser"]["inputs"].pop(), "network denoiser has no noise"),
        (lambda m: m["networks"]["denoiser"]["inputs"][5].update(shape=["batch", 3, 33, 1]), "noise comes in fours"),
    ],
)
def test_networks_that_the_manifest_describes_otherwise_are_refused(copy: Path, change: Any, sentence: str) -> None:
    """Such a bundle opened, and ended in ONNX Runtime's own error at the first image."""
    edit(copy, change)
    with pytest.raises((BundleInvalid, InvalidOption), match=sentence):
        Restorer.open(copy, backend="onnxruntime-cpu", threads=1)


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "é" * 200])
def test_a_name_that_no_disk_takes_is_refused(copy: Path, name: str) -> None:
    edit(copy, lambda m: m["networks"]["denoiser"]["variants"]["fp32"]["graph"].update(path=f"{name}.onnx"))
    with pytest.raises(BundleInvalid, match="relative"):
        Bundle.open(copy)


def test_a_graph_is_no_larger_than_protobuf_allows(copy: Path) -> None:
    """It is read into memory before its hash is compared."""
    edit(copy, lambda m: m["networks"]["denoiser"]["variants"]["fp32"]["graph"].update(bytes=1 << 31))
    with pytest.raises(BundleInvalid, match="at most 2,147,483,647 bytes"):
        Bundle.open(copy)


def test_manifests_of_strangers_are_errors_of_ours(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / "manifest.json"
    whole = path.read_text()
    for text in ("[" * 100_000, '{"a":' * 100_000, whole.replace('"beta_end": 0.02', '"beta_end": NaN')):
        assert text != whole
        path.write_text(text)
        with pytest.raises(BundleInvalid):
            Bundle.open(copy)
    path.write_text(whole)
    monkeypatch.setattr("bfr.runtime.bundle.bundle.LARGEST_MANIFEST", len(whole) - 1)
    with pytest.raises(BundleInvalid, match="no manifest"):
        Bundle.open(copy)


def test_manifests_that_cannot_be_read(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="bfr export"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(BundleInvalid, match=r"json is a file: name the folder of the bundle; unpack an archive"):
        Bundle.open(copy / "manifest.json")
    for name, remedy in (("a.ONNX", "bfr wrap"), ("a.pth", "bfr export"), ("a.engine", "bfr build")):
        (copy / name).touch()
        with pytest.raises(BundleInvalid, match=f"{name} is a file: .*{remedy}"):
            Bundle.open(copy / name)
    with pytest.raises(BundleInvalid, match=f"it has no manifest.json. Name {copy}$"):
        Bundle.open(tmp_path)
    edit(copy, lambda m: m.update(format=99))
    with pytest.raises(BundleInvalid, match=r"^[^(]*upgrade bfr$"):
        Bundle.open(copy)
    edit(copy, lambda m: m.update(format=1, surprise=True))
    with pytest.raises(BundleInvalid, match="surprise"):
        Bundle.open(copy)
    for text in ("", "{", "[]", "\0"):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(BundleInvalid):
            Bundle.open(copy)


def test_unknown_names_are_answered_with_the_known_ones(tiny_bundle: Bundle) -> None:
    with pytest.raises(InvalidOption, match="reference, short"):
        tiny_bundle.preset("best")
    with pytest.raises(InvalidOption, match="fp16, fp32"):
        tiny_bundle.precision("bf16")
    with pytest.raises(InvalidOption, match="solver"):
        tiny_bundle.preset("reference", solver="euler")
    assert tiny_bundle.preset("reference", start=2).start == 2
    grid = tiny_bundle.preset("reference", spacing="log-snr", start=40.5, steps=3, solver="unipc-2")
    assert (grid.calls, str(grid)) == (3, "unipc-2, 3 steps from t = 40.5, spaced in log-snr")
    assert str(tiny_bundle.preset("reference")) == "ddim, 6 of ddim250, eta 0.5"
    with pytest.raises(InvalidOption, match=r"start.*time, log-snr, quadratic"):
        tiny_bundle.preset("reference", spacing="time", steps=3)


def test_who_made_a_bundle_says_how_it_is_made_anew(copy: Path) -> None:
    edit(copy, lambda m: m["networks"]["estimator"].update(kind="wrapped"))
    (copy / "estimator.onnx").write_bytes(b"")
    bundle = Bundle.open(copy)
    with pytest.raises(BundleCorrupt, match="or make it with `bfr wrap FILE -o FOLDER`"):
        bundle.check_all()
    with pytest.raises(InvalidOption, match="`bfr wrap FILE --precision bf16 -o FOLDER`"):
        bundle.precision("bf16")


def test_a_preset_shortened_keeps_its_spacing(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.preset("reference").shortened(2).start == 2
    grid = tiny_bundle.preset("reference", spacing="time", start=40, steps=9).shortened(2)
    assert (grid.start, grid.steps, grid.calls) == (40, 2, 2)


def test_the_default_bundle_is_installed_and_whole() -> None:
    bundle = Bundle.open(default_bundle())
    assert bundle.check_all() == 6  # graph and weights of the estimator in two precisions, of the denoiser in one
    assert bundle.manifest.system == "mini"
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) < 20e6
    assert {check.what.split(",")[0] for check in bundle.manifest.verified} == {"estimator", "denoiser", "loop"}
