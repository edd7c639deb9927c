"""The node of docs/comfyui, called as ComfyUI calls it."""

from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.images.decode import read_image
from bfr.runtime.restore.restorer import Restorer

ROOT = Path(__file__).parent.parent
NODE = ROOT / "docs" / "comfyui" / "bfr_faces" / "__init__.py"


@pytest.fixture(scope="module")
def mappings() -> Any:
    module = run_path(str(NODE))
    assert module["NODE_CLASS_MAPPINGS"].keys() == module["NODE_DISPLAY_NAME_MAPPINGS"].keys()
    return module["NODE_CLASS_MAPPINGS"]


def call(mappings: Any, image: Any, **options: Any) -> Any:
    """With the defaults of its widgets."""
    node = mappings["BfrRestoreFaces"]()
    widgets = node.INPUT_TYPES()["required"]
    defaults = {
        name: spec[0][0] if isinstance(spec[0], list) else spec[1]["default"]
        for name, spec in widgets.items()
        if name != "image"
    }
    (result,) = getattr(node, node.FUNCTION)(image=image, **{**defaults, "backend": "onnxruntime-cpu", **options})
    return result


def test_aligned_faces_are_restored_as_by_a_restorer(mappings: Any, tiny_bundle: Bundle) -> None:
    import torch

    faces = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    found = call(mappings, torch.from_numpy(faces), bundle=str(tiny_bundle.folder), aligned=True, seed=3)
    assert (found.shape, found.dtype) == (torch.Size(faces.shape), torch.float32)
    with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cpu") as restorer:
        levels = np.rint(faces * 65535).astype(np.uint16)
        expected = np.stack(restorer.restore(list(levels), seed=3)) / np.float32(65535)
    assert np.array_equal(found.numpy(), expected)


def test_a_photograph_is_enlarged_and_its_face_changed(mappings: Any) -> None:
    import torch

    pixels = np.asarray(read_image(ROOT / "docs" / "images" / "photograph.jpg").pixels, np.float32) / 255
    pixels = pixels.reshape(len(pixels) // 2, 2, -1, 2, 3).mean((1, 3))  # faces are found in a quarter of the time
    found = call(mappings, torch.from_numpy(pixels[None]), upscale=2)
    assert found.shape == (1, 2 * pixels.shape[0], 2 * pixels.shape[1], 3)
    assert 0.0 <= float(found.min()) <= float(found.max()) <= 1.0
