"""Identity guidance: its arithmetic against NumPy, its gradients under ONNX Runtime against autograd."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from near import assert_near
from safetensors.numpy import load_file
from small import AUTOENCODER, IRN, RECOGNIZER
from torch import Tensor

from bfr.export.onnx.graph import export_graph
from bfr.models.networks.clrface import clrface_guide, clrface_recoverer, identity_guide
from bfr.models.networks.vqgan import VQModel
from bfr.models.stages.gradient import move
from bfr.models.stages.guide import DecodeStage, EmbedStage, EncodeStage, GuideStage, RecoverStage, distance_gradient
from bfr.models.stages.stage import Stage
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.diffusion.solvers import Column

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def seeded(stage: Stage) -> Any:
    seed_weights(stage)
    return stage.eval()


def pixels(metric: Any = "mse", crop: Any = "arcface", **options: Any) -> GuideStage:
    network = identity_guide(recognizer=RECOGNIZER, image_size=32, metric=metric, crop=crop)
    return seeded(GuideStage(network, **options))  # type: ignore[no-any-return]


def latents(**options: Any) -> GuideStage:
    network = clrface_guide(recognizer=RECOGNIZER, autoencoder=AUTOENCODER, metric="cosine")
    return seeded(GuideStage(network, clipped=False, **options))  # type: ignore[no-any-return]


def inputs(batch: int, side: int = 32, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * batch + seed)
    return {
        "x_next": torch.randn(batch, 3, side, side, generator=generator),
        "x0": 2.0 * torch.rand(batch, 3, side, side, generator=generator) - 1.0,
        "row": torch.rand(batch, 8, generator=generator),
        "strength": torch.rand(batch, generator=generator) + 0.1,
        "target": torch.randn(batch, 6, generator=generator),
    }


def run(session: ort.InferenceSession, values: dict[str, Tensor]) -> list[Tensor]:
    return [torch.from_numpy(value) for value in session.run(None, {name: v.numpy() for name, v in values.items()})]


def session(stage: Stage, size: int, folder: Path, opset: int) -> ort.InferenceSession:
    graph, _ = export_graph(stage, stage.examples(size), stage.outputs, folder / f"{stage.kind}.onnx", opset=opset)
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


def check_weights(stage: GuideStage, path: Path) -> None:
    """Every weight lies in the file under the network's name for it, and no large one under another."""
    stored, own = load_file(path), stage.network.state_dict()
    for name, value in own.items():
        assert np.array_equal(stored[name].reshape(value.shape), value.numpy()), name
    assert {name for name, value in stored.items() if value.size >= 1024} <= own.keys()


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest relative error of an image."""
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return float(error.max())


@pytest.mark.parametrize(
    "options", [{}, {"clipped": False}, {"normalize": True}, {"normalize": True, "clipped": False}]
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_arithmetic_equals_numpys(options: dict[str, Any], masked: bool) -> None:
    stage = (latents if masked else pixels)()
    stage.normalize, stage.clipped = options.get("normalize", False), options.get("clipped", True)
    values = inputs(3, 16 if masked else 32)
    values["strength"] *= 5.0  # so that the clipping shows
    with torch.no_grad():
        x_next, x0 = (value.numpy() for value in stage(**values))
    g = distance_gradient(stage.network, values["x0"], values["target"]).double().numpy()
    arrays = {name: value.double().numpy() for name, value in values.items()}
    if stage.network.mask is not None:
        g = g * stage.network.mask.detach().double().numpy()
    if stage.normalize:
        length = np.linalg.norm((arrays["x_next"] - arrays["x0"]).reshape(3, -1), axis=1)
        g = g * (length / np.linalg.norm(g.reshape(3, -1), axis=1))[:, None, None, None]
    moved = arrays["x0"] - arrays["strength"][:, None, None, None] * g
    expected = np.clip(moved, -1.0, 1.0) if stage.clipped else moved
    c = arrays["row"][:, Column.C][:, None, None, None]
    following = arrays["x_next"] + c * (expected - arrays["x0"])
    for found, wanted in ((x0, expected), (x_next, following)):  # a few float32 roundings, of the largest summand
        assert np.abs(found - wanted).max() < 2e-6 * max(np.abs(moved).max(), np.abs(wanted).max())
    assert np.abs(expected - arrays["x0"]).max() > 1e-3
    if stage.clipped and stage.normalize:
        assert np.abs(moved).max() > 1.0


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_the_gradient_equals_finite_differences_in_float64(metric: str) -> None:
    network = pixels(metric).network.double()
    values = {name: value.double() for name, value in inputs(2).items()}
    direction = torch.randn(values["x0"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slope = (distance_gradient(network, values["x0"], values["target"]) * direction).sum((1, 2, 3))
    step = 1e-7
    with torch.no_grad():
        ahead, behind = (network(values["x0"] + side * step * direction, values["target"]) for side in (1, -1))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-8)


def test_a_small_step_brings_the_identity_nearer() -> None:
    stage, values = pixels("cosine", clipped=False), inputs(3)
    values["strength"] = torch.full((3,), 0.05)
    with torch.no_grad():
        before = stage.network(values["x0"], values["target"])
        after = stage.network(stage(**values)[1], values["target"])
    assert (after < before).all()


@pytest.mark.parametrize("options", [{}, {"normalize": True}])
def test_strength_0_changes_nothing_and_only_in_its_image(options: dict[str, Any]) -> None:
    stage, values = pixels(**options), inputs(3)
    values["x0"] *= 1.5  # beyond what clipping would leave
    values["strength"][1] = 0.0
    with torch.no_grad():
        x_next, x0 = stage(**values)
    assert torch.equal(x_next[1], values["x_next"][1])
    assert torch.equal(x0[1], values["x0"][1])
    assert not torch.equal(x0[0], values["x0"][0])


def test_a_recorded_gradient_moves_to_another_device() -> None:
    """Without a GPU the only other one is that of tensors without values: every constant of the graph must go along."""
    stage = pixels(normalize=True)
    recorded: Any = move(stage.traceable(32), torch.device("meta"))  # type: ignore[arg-type]
    made = recorded(**{name: value.to("meta") for name, value in stage.examples(32, 3).items()})
    assert [(value.device.type, value.shape) for value in made] == [("meta", (3, 3, 32, 32))] * 2


def test_the_mask_keeps_what_it_covers() -> None:
    stage, values = latents(), inputs(2, 16)
    assert stage.network.mask is not None
    with torch.no_grad():
        stage.network.mask.fill_(1.0)
        stage.network.mask[:, :, 8:] = 0.0
        stage.network.mask[:, 1] = 0.0
        _, x0 = stage(**values)
    kept = x0 == values["x0"]
    assert kept[:, :, 8:].all()
    assert kept[:, 1].all()
    assert not kept[:, 0, :8].all()


def test_guidance_works_where_gradients_are_off() -> None:
    stage, values = pixels(), inputs(2)
    expected = stage(**values)
    with torch.no_grad():
        again = stage(**values)
    with torch.inference_mode():
        third = stage(**{name: value.clone() for name, value in values.items()})
    for results in (again, third):
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
        assert not any(value.requires_grad for value in results)


CASES: list[tuple[Callable[..., GuideStage], int, int, dict[str, Any]]] = [
    (pixels, 32, 18, {"clipped": False}),
    (pixels, 32, 20, {"normalize": True, "crop": "whole", "metric": "cosine"}),
    (pixels, 32, 21, {}),
    (latents, 16, 21, {}),
]


# Exporting a gradient takes half a minute: one here, and those of the small systems in test_systems.py.
@pytest.mark.export
@pytest.mark.parametrize(
    ("make", "side", "opset", "options"),
    [case if case[2] == 20 else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_onnx_runtime_agrees_with_autograd_at_every_batch(
    make: Callable[..., GuideStage], side: int, opset: int, options: dict[str, Any], tmp_path: Path
) -> None:
    stage = make(**options)
    graph = session(stage, side, tmp_path, opset)
    assert [value.name for value in graph.get_inputs()] == [*stage.examples(side)]
    check_weights(stage, tmp_path / "guide.safetensors")
    for batch in (1, 2, 3):
        values = inputs(batch, side)
        found = run(graph, values)
        with torch.no_grad():
            expected = stage(**values)
        for name, a, b in zip(("x_next", "x0"), found, expected, strict=True):
            assert relative(a - values[name], b - values[name]) < 1e-4  # of what the gradient changed
        alone = [run(graph, {name: value[i : i + 1] for name, value in values.items()}) for i in range(batch)]
        for a, parts in zip(found, zip(*alone, strict=True), strict=True):
            assert_near(torch.cat(parts), a)
    values["strength"].zero_()
    assert all(torch.equal(a, values[name]) for name, a in zip(("x_next", "x0"), run(graph, values), strict=True))


def stages() -> dict[str, tuple[Stage, int]]:
    """Every other stage, and the side of what it works on."""
    embedder = identity_guide(recognizer=RECOGNIZER, image_size=32)
    recoverer = clrface_recoverer(recognizer=RECOGNIZER, autoencoder=AUTOENCODER, irn=IRN)
    return {
        "embedder": (EmbedStage(embedder), 32),
        "encoder": (EncodeStage(VQModel(**AUTOENCODER, parts="encoder")), 32),
        "recoverer": (RecoverStage(recoverer), 16),
        "decoder": (DecodeStage(VQModel(**AUTOENCODER, parts="decoder")), 16),
    }


# The small systems of test_systems.py export the others as well.
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("embedder", "recoverer", "decoder")]


@pytest.mark.export
@pytest.mark.parametrize("kind", ["encoder", *SLOW])
def test_the_other_stages_agree_under_onnx_runtime(kind: str, tmp_path: Path) -> None:
    stage, size = stages()[kind]
    seeded(stage)
    assert stage.kind == kind
    graph = session(stage, size, tmp_path, 21)
    assert [value.name for value in graph.get_outputs()] == list(stage.outputs)
    for batch in (1, 2, 3):
        generator = torch.Generator().manual_seed(batch)
        shapes = {name: value.shape[1:] for name, value in stage.examples(size).items()}
        values = {name: torch.rand(batch, *shape, generator=generator) for name, shape in shapes.items()}
        with torch.no_grad():
            results = stage(**values)
        expected = results if isinstance(results, tuple) else (results,)
        for a, b in zip(run(graph, values), expected, strict=True):
            assert a.shape == b.shape
            assert relative(a, b) < 1e-4


def test_the_identity_is_the_references_or_without_one_the_estimates() -> None:
    stage, _ = stages()["embedder"]
    seeded(stage)
    generator = torch.Generator().manual_seed(0)
    reference, estimate = torch.rand(3, 3, 32, 32, generator=generator), torch.rand(3, 3, 32, 32, generator=generator)
    reference[1] = 0.0
    embed: Any = stage.network
    with torch.no_grad():
        identity = stage(reference, estimate)
        assert_near(identity[[0, 2]], embed.embed(2.0 * reference - 1.0)[[0, 2]])
        assert_near(identity[1], embed.embed(estimate)[1])


def test_encoder_and_decoder_are_the_autoencoders_two_halves() -> None:
    whole = VQModel(**AUTOENCODER).eval()
    seed_weights(whole)
    encoder, decoder = (VQModel(**AUTOENCODER, parts=part).eval() for part in ("encoder", "decoder"))  # type: ignore[arg-type]
    for part in (encoder, decoder):
        part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        restored = DecodeStage(decoder)(EncodeStage(encoder)(image))
        expected = whole(2.0 * image - 1.0).clamp(-1.0, 1.0)
        assert_near(restored, expected)


@pytest.mark.export
@pytest.mark.slow
def test_r50_at_full_size(tmp_path: Path) -> None:
    stage = GuideStage(identity_guide(recognizer={"layers": 50}, image_size=512), clipped=False)
    seeded(stage)
    started = time.perf_counter()
    graph, _ = export_graph(stage, stage.examples(512), stage.outputs, tmp_path / "guide.onnx")
    seconds = time.perf_counter() - started
    nodes = len(onnx.load(graph, load_external_data=False).graph.node)
    runner = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    errors = []
    for batch in (1, 2, 3):
        values = {**inputs(batch, 512), "target": torch.randn(batch, 512, generator=torch.Generator().manual_seed(0))}
        gradient = distance_gradient(stage.network, values["x0"], values["target"])
        values["strength"] = 1e6 / gradient.abs().amax((1, 2, 3))  # so strong that the image itself is rounded away
        found = (values["x0"] - run(runner, values)[1]) / values["strength"][:, None, None, None]
        errors.extend(((found - gradient).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)).tolist())
    print(f"{nodes} nodes, exported in {seconds:.0f} s, relative errors {errors}")
    # Where an activation is 0 but for rounding, PReLU's gradient is of either side: a jump, in float64 too.
    assert float(np.median(errors)) < 1e-4
    assert max(errors) < 5e-3
    assert nodes < 500
