"""The ONNX files of OSDFace that VisoMaster-Fusion runs: small ones of the same names, inputs and outputs, wrapped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from bfr.export.onnx.wrap import wrap
from bfr.export.options import WrapOptions
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.onnx_info import read_metadata
from bfr.runtime.cli.main import app
from bfr.runtime.diffusion.schedule import scaled_linear_schedule
from bfr.runtime.errors import InputNotFound, InvalidCheckpoint, InvalidOption
from bfr.runtime.restore.restorer import Restorer

SIDE, LATENT, TOKENS, WIDTH = 16, 4, 5, 6
RNG = np.random.default_rng(0)
ALPHA_BAR = scaled_linear_schedule(1000, 0.00085, 0.012).alpha_bar


def weight(name: str, *shape: int) -> TensorProto:
    scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
    return numpy_helper.from_array((RNG.standard_normal(shape) * scale).astype(np.float32), name)


def write(
    path: Path, nodes: Sequence[Any], weights: Sequence[TensorProto], inputs: dict[str, Any], output: str, shape: Any
) -> None:
    """An ONNX file; int64 for `timestep`, float32 for others."""
    kinds = {name: TensorProto.INT64 if name == "timestep" else TensorProto.FLOAT for name in inputs}
    graph = helper.make_graph(
        list(nodes),
        path.stem,
        [helper.make_tensor_value_info(name, kinds[name], size) for name, size in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    external = path.name == "unet.onnx"
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=90)


def write_release(folder: Path, batch: int | str = 1, timestep: int | str | None = None) -> Path:
    """The four graphs and the schedule. batch: that the graphs fix, or a name. timestep: the size of that input."""
    folder.mkdir()
    image, latent, context = [batch, 3, SIDE, SIDE], [batch, 4, LATENT, LATENT], [batch, TOKENS, WIDTH]
    fold, spread = SIDE // LATENT, helper.make_node("DepthToSpace", ["deep"], ["pixels"], blocksize=SIDE // LATENT)
    write(
        folder / "vae_encoder.onnx",
        [
            helper.make_node("SpaceToDepth", ["lq_neg1_1"], ["deep"], blocksize=fold),
            helper.make_node("Conv", ["deep", "w"], ["latent"]),
        ],
        [weight("w", 4, 3 * fold**2, 1, 1)],
        {"lq_neg1_1": image},
        "latent",
        latent,
    )
    write(
        folder / "prompt_encoder.onnx",
        [
            helper.make_node("ReduceMean", ["lq_0_1"], ["mean"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["mean", "w"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["prompt_embeds"]),
        ],
        [weight("w", 3, TOKENS * WIDTH), numpy_helper.from_array(np.array([-1, TOKENS, WIDTH]), "shape")],
        {"lq_0_1": image},
        "prompt_embeds",
        context,
    )
    write(
        folder / "unet.onnx",
        [
            helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["time", "thousandth"], ["small"]),
            helper.make_node("Reshape", ["small", "column"], ["wide"]),
            helper.make_node("ReduceMean", ["prompt_embeds"], ["told"], axes=[1, 2], keepdims=1),
            helper.make_node("Unsqueeze", ["told", "last"], ["shift"]),
            helper.make_node("Conv", ["latent", "w"], ["mixed"]),
            helper.make_node("Sum", ["mixed", "wide", "shift"], ["noise_pred"]),
        ],
        [
            weight("w", 4, 4, 1, 1),
            numpy_helper.from_array(np.float32(1e-3), "thousandth"),
            numpy_helper.from_array(np.array([-1, 1, 1, 1]), "column"),
            numpy_helper.from_array(np.array([3]), "last"),
        ],
        {"latent": latent, "timestep": [timestep or batch], "prompt_embeds": context},
        "noise_pred",
        latent,
    )
    write(
        folder / "vae_decoder.onnx",
        [
            helper.make_node("Conv", ["x0_latent", "w"], ["deep"]),
            spread,
            helper.make_node("Sigmoid", ["pixels"], ["image_0_1"]),
        ],
        [weight("w", 3 * fold**2, 4, 1, 1)],
        {"x0_latent": latent},
        "image_0_1",
        image,
    )
    (folder / "scheduler.json").write_text(json.dumps({"alphas_cumprod": ALPHA_BAR.tolist()}))
    return folder


def published(folder: Path, face: np.ndarray[Any, Any], timestep: int = 399) -> np.ndarray[Any, Any]:
    """What that program makes of one face, (3, S, S) in [0, 1]: its own order of calls and arithmetic, in NumPy."""

    def run(name: str, **inputs: Any) -> Any:
        session = ort.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        return session.run(None, inputs)[0]

    prompt = run("prompt_encoder.onnx", lq_0_1=face[None])
    latent = run("vae_encoder.onnx", lq_neg1_1=2 * face[None] - 1)
    noise = run("unet.onnx", latent=latent, timestep=np.array([timestep]), prompt_embeds=prompt)
    alpha = ALPHA_BAR[timestep]
    x0 = (latent - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha)
    return np.asarray(run("vae_decoder.onnx", x0_latent=x0.astype(np.float32))[0])


@pytest.mark.parametrize("batch", [1, "batch"])
def test_the_bundle_makes_what_the_program_makes(batch: int | str, tmp_path: Path) -> None:
    folder, said = write_release(tmp_path / "osdface", batch), list[str]()
    bundle = wrap(folder, tmp_path / "bundle", WrapOptions(licence="mine"), threads=1, say=said.append)
    assert bundle.manifest.batches == ((1,) if batch == 1 else None)
    assert bundle.manifest.licence.name == "mine"
    assert bundle.network("denoiser").source.file == "unet.onnx"
    checks = {check.what for check in bundle.manifest.verified}
    assert len(checks) == 4 * (1 if batch == 1 else 2)
    assert any("unet.onnx" in line for line in said)
    faces = np.random.default_rng(5).random((3, 3, SIDE, SIDE), dtype=np.float32)
    pixels = [np.ascontiguousarray(face.transpose(1, 2, 0)) for face in faces]
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu", precision="fp32", batch=3, threads=1) as restorer:
        found = restorer.restore(pixels)
    for face, result in zip(faces, found, strict=True):
        np.testing.assert_allclose(result, published(folder, face).transpose(1, 2, 0), rtol=0, atol=2e-5)
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu", precision="fp32", threads=1, start=250) as restorer:
        (other,) = restorer.restore(pixels[:1])
    expected = published(folder, faces[0], 250).transpose(1, 2, 0)
    np.testing.assert_allclose(other, expected, rtol=0, atol=2e-5)
    assert np.abs(expected - found[0]).max() > 1e-3  # the time of the step is told


def test_the_weights_are_those_of_the_file_beside_the_graph(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "osdface")
    (folder / "unet.onnx.data").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"unet.onnx"):
        wrap(folder, tmp_path / "bundle", threads=1)
    assert not (tmp_path / "bundle").exists()


def test_what_is_not_the_release_is_refused(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "osdface")
    with pytest.raises(InvalidOption, match=r"--size, --colour|--colour, --size"):
        wrap(folder, tmp_path / "bundle", WrapOptions(size=512, colour="bgr"), threads=1)
    (folder / "scheduler.json").write_text(json.dumps({"alphas_cumprod": np.linspace(1, 0, 1000).tolist()}))
    with pytest.raises(InvalidCheckpoint, match="schedule"):
        wrap(folder, tmp_path / "bundle", threads=1)
    (folder / "scheduler.json").write_text("{}")
    with pytest.raises(InvalidCheckpoint, match="alphas_cumprod"):
        wrap(folder, tmp_path / "bundle", threads=1)
    (tmp_path / "other").mkdir()
    (folder / "vae_decoder.onnx").rename(tmp_path / "other" / "model.onnx")
    with pytest.raises(InputNotFound, match=r"not OSDFace's: name the ONNX file, as .*model.onnx"):
        wrap(tmp_path / "other", tmp_path / "bundle", threads=1)
    (tmp_path / "other" / "model.onnx").rename(folder / "unet.onnx")
    with pytest.raises(InputNotFound, match=r"vae_decoder.onnx"):
        wrap(folder, tmp_path / "bundle", threads=1)
    (folder / "vae_decoder.onnx").write_bytes((folder / "unet.onnx").read_bytes())
    (folder / "scheduler.json").write_text(json.dumps({"alphas_cumprod": ALPHA_BAR.tolist()}))
    with pytest.raises(InvalidCheckpoint, match="timestep"):
        wrap(folder, tmp_path / "bundle", threads=1)


def test_the_command_takes_the_folder_and_the_graphs_say_what_they_are(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "osdface")
    done = CliRunner().invoke(app, ["wrap", str(folder), "-o", str(tmp_path / "bundle"), "--threads", "1"])
    assert done.exit_code == 0, done.output
    bundle = Bundle.open(tmp_path / "bundle")
    path = bundle.folder / "encoder.onnx"
    told = read_metadata(path.read_bytes(), path)
    assert told["bfr.system"] == "osdface-onnx"
    assert (told["bfr.size"], told["bfr.batches"], told["bfr.range"]) == (str(SIDE), "1", "degraded 0..1")
    assert told["bfr.sha256"] == bundle.network("encoder").source.sha256
    shown = CliRunner().invoke(app, ["info", str(path), "--json"])
    assert json.loads(shown.stdout) == told
