"""How images are read and written where a system's authors do it otherwise than `bfr`."""

from pathlib import Path

import numpy as np
import pytest
from bundles import shared

from bfr.runtime.bundle.manifest import ImageInput, Pixels, Preset
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.inputs import ImageInputs, to_input, to_output
from bfr.runtime.restore.restorer import Restorer

PUBLISHED = Pixels(resize="corners", rounding="down", size="network")


def test_corners_keep_their_values_and_what_lies_between_is_linear() -> None:
    rows = np.array([0.0, 0.5, 0.1, 1.0], np.float32)
    image = np.repeat(np.repeat(rows[:, None, None], 4, axis=1), 3, axis=2)
    found = to_input(image, 7, PUBLISHED)
    np.testing.assert_allclose(found[0, :, 2], np.interp(np.linspace(0, 3, 7), range(4), rows), atol=1e-6)
    np.testing.assert_allclose(to_input(image.transpose(1, 0, 2), 7, PUBLISHED)[0], found[0].T, atol=1e-6)
    assert not np.allclose(found, to_input(image, 7), atol=0.01)
    np.testing.assert_array_equal(to_input(image, 4, PUBLISHED), to_input(image, 4))


def test_levels_are_cut_or_rounded_and_the_size_is_whose_it_is_said_to_be() -> None:
    face = np.full((3, 4, 4), 100.7 / 255, np.float32)
    image = np.zeros((4, 4, 3), np.uint8)
    assert np.unique(to_output(face, image)).tolist() == [101]
    assert np.unique(to_output(face, image, PUBLISHED)).tolist() == [100]
    assert to_output(face, np.zeros((9, 7, 3), np.uint8)).shape == (9, 7, 3)
    assert to_output(face, np.zeros((9, 7, 3), np.uint8), PUBLISHED).shape == (4, 4, 3)
    assert to_output(np.ones((3, 4, 4), np.float32), image, PUBLISHED).min() == 255


def test_a_preset_says_so_and_a_restorer_does_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = shared("osdface", tmp_path_factory)
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    found = {}
    for name, pixels in (("own", {}), ("published", PUBLISHED.model_dump())):
        options = {"backend": "onnxruntime-cpu", "precision": "fp32", "threads": 1, "pixels": pixels}
        with Restorer.open(Path(bundle.folder), **options) as restorer:
            (found[name],) = restorer.restore([image])
    assert found["own"].shape == (20, 20, 3)
    assert found["published"].shape == (32, 32, 3)
    assert "resize corners, rounding down, size network" in str(Preset(pixels=PUBLISHED))
    assert "resize" not in str(Preset())
    with pytest.raises(InvalidOption, match="mask"):
        ImageInputs("painter", 32, [ImageInput(name="mask", channels=1)], pixels=PUBLISHED)
