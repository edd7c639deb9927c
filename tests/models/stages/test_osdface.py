"""The stages around a latent one-step denoiser: exported, run by ONNX Runtime, and the whole chain by its formula."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from small import DENOISER, EMBEDDER, VAE
from torch import Tensor

from bfr.export.onnx.graph import export_graph
from bfr.models.networks.osdface import VisualEmbedder
from bfr.models.networks.sd import VaeDecoder, VaeEncoder, unet
from bfr.models.stages.osdface import LatentDecodeStage, LatentEncodeStage, PromptStage
from bfr.models.stages.stage import Stage
from bfr.models.stages.step import ContextStep
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.diffusion.solvers import Column

SIZE, LATENT, TOKENS, WIDTH = 16, 8, 7, 6  # of `small`
MAKERS = {
    "encoder": lambda: LatentEncodeStage(VaeEncoder(**VAE)),
    "prompt": lambda: PromptStage(VisualEmbedder(**EMBEDDER)),
    "step": lambda: ContextStep(unet(**DENOISER), context=(TOKENS, WIDTH), clipped=False, channels=4),
    "decoder": lambda: LatentDecodeStage(VaeDecoder(**VAE)),
}
SIZES = {"encoder": SIZE, "prompt": SIZE, "step": LATENT, "decoder": SIZE}
SHAPES = {
    "encoder": [(4, LATENT, LATENT)],
    "prompt": [(TOKENS, WIDTH)],
    "step": [(4, LATENT, LATENT)] * 2,
    "decoder": [(3, SIZE, SIZE)],
}


def make(name: str) -> Stage:
    stage: Stage = MAKERS[name]().eval()
    seed_weights(stage)
    return stage


def inputs(stage: Stage, name: str, batch: int) -> dict[str, Tensor]:
    """Other values than the export was traced with, each image its own."""
    generator = torch.Generator().manual_seed(7)
    shapes = {key: value.shape[1:] for key, value in stage.examples(SIZES[name]).items()}
    return {key: torch.rand(3, *shape, generator=generator)[:batch] for key, shape in shapes.items()}


def relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# The small system of test_systems.py exports the others as well, at opset 21 and batches 1 and 3.
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in MAKERS if name != "prompt"]


@pytest.mark.export
@pytest.mark.parametrize("name", ["prompt", *OTHERS])
def test_onnx_equals_eager_at_every_batch(name: str, tmp_path: Path) -> None:
    stage = make(name)
    path, _ = export_graph(stage, stage.examples(SIZES[name]), stage.outputs, tmp_path / f"{name}.onnx")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(stage.examples(SIZES[name]))
    assert [value.name for value in session.get_outputs()] == list(stage.outputs)

    def run(values: dict[str, Tensor]) -> list[NDArray[Any]]:
        return session.run(None, {key: value.numpy() for key, value in values.items()})

    whole = run(inputs(stage, name, 3))
    for batch in (1, 2, 3):
        values = inputs(stage, name, batch)
        with torch.no_grad():
            out = stage(**values)
        expected = [value.numpy() for value in (out if isinstance(out, tuple) else (out,))]
        for found, reference, three, shape in zip(run(values), expected, whole, SHAPES[name], strict=True):
            assert found.shape == reference.shape == (batch, *shape)
            assert relative(found, reference) < 1e-5
            assert relative(found, three[:batch]) < 1e-6
    last = run({key: value[2:] for key, value in inputs(stage, name, 3).items()})
    for found, three in zip(last, whole, strict=True):
        assert relative(found, three[2:]) < 1e-6  # alone it is what it is among others
        assert relative(three[1:2], three[2:]) > 1e-3  # and they are not all the same


def test_examples_are_of_the_size_of_the_image() -> None:
    assert make("encoder").examples(SIZE, 1)["degraded"].shape == (1, 3, SIZE, SIZE)
    assert make("decoder").examples(SIZE)["latent_state"].shape == (2, 4, LATENT, LATENT)
    assert make("decoder").examples(64)["latent_state"].shape == (2, 4, 32, 32)


def test_ranges() -> None:
    """Images come in [0, 1], go to the networks in [-1, 1], and leave the decoder clipped."""
    encode, prompt, decode = (make(name) for name in ("encoder", "prompt", "decoder"))
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(encode(image), encode.encoder(2 * image - 1))
        assert torch.equal(prompt(image), prompt.embedder(2 * image - 1))
        latent = 40 * torch.randn(2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(2))
        free, clipped = decode.decoder(latent), decode(latent)
    assert free.abs().max() > 1
    assert torch.equal(clipped, free.clamp(-1, 1))


def test_the_chain_is_the_published_formula() -> None:
    """Encode, make the prompt, one call at timestep 399, x0 of eps, decode; the scalars in float64 by NumPy."""
    encode, prompt, step, decode = (make(name) for name in ("encoder", "prompt", "step", "decoder"))
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[399]
    image = inputs(encode, "encoder", 3)["degraded"]
    row = torch.zeros(3, 8)
    row[:, Column.A], row[:, Column.B] = float(alpha_bar**-0.5), float((1 / alpha_bar - 1) ** 0.5)
    row[:, Column.C] = 1.0
    with torch.no_grad():
        z, context = encode(image), prompt(image)
        empty, t = torch.zeros_like(z), torch.full((3,), 399.0)
        x_next, x0 = step(z, empty, empty, t, row, empty, context)
        eps = step.denoiser(z, t, context).double().numpy()
        expected = (z.double().numpy() - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
        assert relative(x0.numpy(), expected) < 1e-5
        assert torch.equal(x_next, x0)
        restored = decode(x_next)
        free = decode.decoder.decoder(
            decode.decoder.post_quant_conv(torch.from_numpy(expected / 0.18215).float())
        ).numpy()
    assert restored.shape == image.shape
    assert relative(restored.numpy(), np.clip(free, -1, 1)) < 1e-5
    assert np.abs(expected).max() > 1  # clipping x0, as images are, would show
