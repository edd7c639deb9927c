"""The authors' folders, old names, and the trees of hubs; what is missing, or there twice, is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bfr.models.catalog import get_system
from bfr.models.systems.system import SystemSpec
from bfr.models.weights.locate import find_weights, locate, usable_weights
from bfr.models.weights.osdface import EMBEDDER, UNET, VAE
from bfr.runtime.errors import InputNotFound, InvalidOption

DIFFACE = get_system("difface")
ESTIMATOR = DIFFACE.networks["estimator"].files[""]
DENOISER = DIFFACE.networks["denoiser"].files[""]
ARCFACE = get_system("difface-identity").networks["embedder"].files["recognizer"]


def put(folder: Path, name: str, content: str = "x") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


TREES = {
    "flat": (ESTIMATOR, "swinir_restoration512_L1.pth"),
    "a safe copy": (ESTIMATOR, "swinir_restoration512_L1.safetensors"),
    "DifFace's clone": (ESTIMATOR, "weights/estimator/swinir_restoration512_L1.pth"),
    "DifFace's weights": (DENOISER, "diffusion/iddpm_ffhq512_ema500000.pth"),
    "DifFace's of 2022": (ESTIMATOR, "weights/SwinIR/General_Face_ffhq512.pth"),
    "its trainer's": (DENOISER, "pretrained_zoo/iddpm_ffhq512/ema0999_model_500000.pth"),
    "PGDiff's": (DENOISER, "models/iddpm_ffhq512_ema500000.pth"),
    "insightface's": (ARCFACE, "arcface_torch/ms1mv3_arcface_r50_fp16/backbone.pth"),
    "OSDFace's": (EMBEDDER, "pretrained/associate_2.ckpt"),
    "diffusers'": (UNET, "stable-diffusion-2-1-base/unet/diffusion_pytorch_model.safetensors"),
    "ModelScope's": (VAE, "AI-ModelScope/stable-diffusion-2-1-base/vae/diffusion_pytorch_model.bin"),
    "Hugging Face's cache": (VAE, "models--a--b/snapshots/0123/vae/diffusion_pytorch_model.safetensors"),
    "in half": (UNET, "sd/unet/diffusion_pytorch_model.fp16.safetensors"),
}


@pytest.mark.parametrize("tree", TREES)
def test_a_file_is_found_where_its_authors_put_it(tree: str, tmp_path: Path) -> None:
    download, name = TREES[tree]
    put(tmp_path, "weights/facelib/detection_Resnet50_Final.pth")
    put(tmp_path, "text_encoder/diffusion_pytorch_model.safetensors")
    assert locate(tmp_path, download) is None
    path = put(tmp_path, name)
    assert locate(tmp_path, download) == path
    assert find_weights(tmp_path, download, DIFFACE) == path


def test_the_newer_name_the_safe_copy_and_the_nearer_file_come_first(tmp_path: Path) -> None:
    put(tmp_path, "General_Face_ffhq512.pth")
    assert locate(tmp_path, ESTIMATOR) == tmp_path / "General_Face_ffhq512.pth"
    deep = put(tmp_path / "other", "swinir_restoration512_L1.pth", "deep")
    shutil.move(tmp_path / "General_Face_ffhq512.pth", tmp_path / "other")
    assert locate(tmp_path, ESTIMATOR) == deep
    near = put(tmp_path, "swinir_restoration512_L1.pth", "near")
    assert locate(tmp_path, ESTIMATOR) == near
    safe = put(tmp_path, "swinir_restoration512_L1.safetensors", "safe")
    assert locate(tmp_path, ESTIMATOR) == safe


def test_a_link_and_a_copy_are_one_file_and_others_are_not_guessed(tmp_path: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    first = put(tmp_path / "a", name)
    put(tmp_path / "b", name)
    (tmp_path / "c/unet").mkdir(parents=True)
    (tmp_path / "c" / name).symlink_to(first)
    assert locate(tmp_path, UNET) == first
    put(tmp_path / "b", name, "y")
    with pytest.raises(InvalidOption, match=r"a/unet.* and b/unet.* which differ"):
        locate(tmp_path, UNET)


def test_what_is_missing_is_named_with_what_is_there(tmp_path: Path) -> None:
    for name in ("weights/diffusion/iddpm_ffhq512_ema500000.pth", "readme.md", "a.PTH", "b.pth.crdownload"):
        put(tmp_path, name)
    with pytest.raises(InputNotFound) as caught:
        find_weights(tmp_path, ESTIMATOR, DIFFACE)
    text = str(caught.value)
    for part in (
        "swinir_restoration512_L1.pth of difface",
        "which has a.PTH, b.pth.crdownload, weights/diffusion/iddpm_ffhq512_ema500000.pth",
        "or General_Face_ffhq512.pth",
        "bfr fetch difface",
        "--weights",
    ):
        assert part in text
    assert "readme" not in text
    with pytest.raises(InputNotFound, match="does not exist"):
        find_weights(tmp_path / "no", ESTIMATOR, DIFFACE)
    with pytest.raises(InputNotFound, match="give its folder"):
        find_weights(tmp_path / "readme.md", ESTIMATOR, DIFFACE)


def test_what_cannot_be_fetched_is_not_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="PGDiff's README") as caught:
        find_weights(tmp_path, ARCFACE, get_system("difface-identity"))
    assert "bfr fetch" not in str(caught.value)
    clrface = get_system("clr-face")
    with pytest.raises(InputNotFound, match="authors did not publish it"):
        find_weights(tmp_path, clrface.networks["encoder"].files[""], clrface)


def osdface(made: list[tuple[Path, Path]]) -> SystemSpec:
    """With an importer that only remembers."""
    return replace(get_system("osdface"), importer=lambda *folders: made.append(folders))


def test_published_files_are_converted_on_the_way(tmp_path: Path) -> None:
    made: list[tuple[Path, Path]] = []
    system, scratch, folder = osdface(made), tmp_path / "scratch", tmp_path / "authors"
    put(folder, "pretrained/associate_2.ckpt")
    assert usable_weights(system, folder, scratch) == scratch
    assert made == [(folder, scratch)]
    for name in ("encoder", "embedder", "denoiser", "decoder"):
        put(folder, f"converted/{name}.safetensors")
    assert usable_weights(system, folder, scratch) == folder
    assert len(made) == 1
    assert usable_weights(DIFFACE, tmp_path, scratch) == tmp_path


def test_a_folder_of_neither_kind_is_told_both(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound) as caught:
        usable_weights(osdface([]), tmp_path, tmp_path / "scratch")
    for part in ("unet/diffusion_pytorch_model.safetensors", "associate_2.ckpt", "denoiser.safetensors", "bfr fetch"):
        assert part in str(caught.value)
