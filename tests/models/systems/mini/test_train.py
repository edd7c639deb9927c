import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bfr.models.systems.mini import train as training
from bfr.models.systems.mini.critic import Critic
from bfr.models.systems.mini.judge import in_one_step, judge
from bfr.models.systems.mini.losses import PLAIN_SHARE, Batch, denoiser_loss
from bfr.models.systems.mini.networks import build
from bfr.models.systems.mini.optimizer import Optimizer, orthogonal
from bfr.runtime.diffusion.schedule import linear_schedule


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (320, 320, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.GaussianBlur(noise, (0, 0), 6))
    return folder


def options(faces: Path, out: Path, **changes: Any) -> argparse.Namespace:
    out.mkdir(exist_ok=True)
    values = {"role": "denoiser", "faces": faces, "out": out, "steps": 3, "batch": 1, "lr": 1e-3, "ema": 0.9}
    values |= {"last_timestep": 400, "init": None, "seed": 0, "device": "cpu", "workers": 0, "log_every": 1}
    values |= {"judge_every": 2, "judged": 1, "compile": False, "adversarial": 0.0, "features": 0.0, "estimator": None}
    values |= {"bfloat16": False}
    return argparse.Namespace(**(values | changes))


def test_an_interrupted_run_continues_as_if_it_had_not_been(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.train(options(faces, tmp_path / "whole"))
    batches = training.batches

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for step, batch in enumerate(batches(*arguments)):
            if step == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(training, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(training, "batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(options(faces, tmp_path / "parts"))
    monkeypatch.setattr(training, "batches", batches)
    training.train(options(faces, tmp_path / "parts"))
    whole, parts = (load_file(tmp_path / name / "denoiser.safetensors") for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-5)
    assert max(float(value.float().abs().max()) for key, value in whole.items() if key.startswith("out.2")) > 0


def test_a_batch_is_a_function_of_the_seed_and_the_step(faces: Path) -> None:
    pictures, _ = training.read_faces(faces)
    data = training.FaceBatches(pictures, batch=2, seed=1, degrade=True)
    for a, b in zip(data[5], data[5], strict=True):
        assert torch.equal(a, b)
        assert a.shape == (2, 256, 256, 3)
    assert not torch.equal(data[5][0], data[6][0])
    assert not torch.equal(*data[5])
    assert torch.equal(*training.FaceBatches(pictures, batch=2, seed=1, degrade=False)[5])


def test_new_networks_change_nothing_yet() -> None:
    x = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        assert torch.equal(build("estimator")(x), x)
        assert not build("denoiser")(x, torch.tensor([10.0])).any()


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [training.learning_rate(step, 1000, 1.0) for step in (0, 99, 500, 850, 1000)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 0.5, 0.0])


def test_faces_of_another_size_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"\.webp"):
        training.read_faces(tmp_path)
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(SystemExit, match="320x320"):
        training.read_faces(tmp_path)


def test_the_estimator_is_trained_and_judged_on_faces_kept_aside(faces: Path, tmp_path: Path) -> None:
    training.train(options(faces, tmp_path, role="estimator", steps=2))
    entries = [json.loads(line) for line in (tmp_path / "estimator.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2]
    assert set(entries[1]["gain"]) == {"clean", "mild", "medium", "severe"}
    assert set(entries[1]["sharpness"]) == set(entries[1]["gain"])
    assert entries[1]["sharpness"]["clean"] == pytest.approx(1.0, abs=0.2)  # a new estimator changes little
    assert "gain" not in entries[0]


def test_a_run_against_a_critic_goes_on_with_its_critic(faces: Path, tmp_path: Path) -> None:
    against = {"role": "estimator", "adversarial": 0.1, "features": 1.0, "judge_every": 9, "seed": 1}
    training.train(options(faces, tmp_path, steps=1, **against))
    before = torch.load(tmp_path / "estimator.pt", weights_only=True)["critic"]
    training.train(options(faces, tmp_path, steps=2, **against))
    after = torch.load(tmp_path / "estimator.pt", weights_only=True)["critic"]
    steps = [{int(entry["step"]) for entry in state["optimizer"]["state"].values()} for state in (before, after)]
    assert steps == [{1}, {2}]


def test_a_denoiser_is_trained_and_judged_on_estimates(faces: Path, tmp_path: Path) -> None:
    weights = tmp_path / "estimator.safetensors"
    save_file(build("estimator").state_dict(), weights)
    training.train(options(faces, tmp_path, steps=2, batch=4, estimator=weights, adversarial=0.1, features=1.0))
    entries = [json.loads(line) for line in (tmp_path / "denoiser.jsonl").read_text().splitlines()]
    assert set(entries[1]["gain"]) == {"clean", "mild", "medium", "severe"}
    assert torch.load(tmp_path / "denoiser.pt", weights_only=True)["critic"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["denoiser", "--estimator=one", "--batch=3"], "--batch 4 or more"),
        (["estimator", "--estimator=one"], "is for the denoiser"),
        (["denoiser", "--adversarial=0.1"], "need --estimator"),
    ],
)
def test_options_that_do_not_fit(
    given: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", *given, "--faces=f", "--out=o"])
    with pytest.raises(SystemExit):
        training.main()
    assert message in capsys.readouterr().err


def test_a_denoiser_that_finds_the_clean_face_in_an_estimate_has_no_loss() -> None:
    torch.manual_seed(0)
    faces = 16
    plain = int(PLAIN_SHARE * faces)
    batch = Batch(torch.rand(faces, 3, 16, 16), torch.rand(faces, 3, 16, 16), torch.ones(faces, dtype=torch.bool))
    alpha_bar = torch.from_numpy(linear_schedule().alpha_bar).float()
    noisiest = []

    def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal = alpha_bar[t].view(-1, 1, 1, 1)
        noisiest.extend(t[plain:].tolist())
        distance = (x - signal.sqrt() * (2 * batch.clean - 1))[plain:].abs().mean(dim=(1, 2, 3))
        assert (distance > 0.1).any()  # starts: they are near the estimate, not near the clean face
        return (x - signal.sqrt() * (2 * batch.clean - 1)) / (1 - signal).sqrt()

    args = argparse.Namespace(seed=0, last_timestep=400, estimator="one", adversarial=0.0, features=0.0)
    assert float(denoiser_loss(denoiser, batch, 0, args, None)) < 1e-4  # type: ignore[arg-type]
    assert 1 <= max(noisiest) <= 10


def test_one_step_with_a_denoiser_that_finds_nothing_returns_the_noised_estimate() -> None:
    face = torch.rand(1, 3, 256, 256)
    result = in_one_step(torch.nn.Identity(), lambda x, _t: torch.zeros_like(x))(face)  # type: ignore[arg-type]
    signal = float(linear_schedule().alpha_bar[1])
    noise = torch.randn(face.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(result, face + 0.5 * ((1 - signal) / signal) ** 0.5 * noise, rtol=1e-4, atol=1e-5)


def test_faces_of_one_colour_are_judged_too() -> None:
    gains, sharpness = judge(torch.nn.Identity(), np.full((1, 320, 320, 3), 90, np.uint8), torch.device("cpu"))
    assert gains["clean"] == pytest.approx(100.0)
    assert all(np.isfinite(list(gains.values()) + list(sharpness.values())))


def test_a_critic_learns_to_tell_blurred_faces_from_clean_ones() -> None:
    torch.manual_seed(0)
    critic = Critic(width=4, lr=5e-3)
    clean = torch.rand(2, 3, 32, 32)
    restored = torch.nn.functional.avg_pool2d(clean, 3, stride=1, padding=1)
    for _ in range(20):
        critic.learn(restored, clean)
    with torch.no_grad():
        assert float(critic(clean)[0].mean()) > float(critic(restored)[0].mean()) + 0.5
    told, features = critic.losses(restored.requires_grad_(), clean)
    (told + features).backward()
    assert restored.grad is not None
    assert restored.grad.any()
    assert not any(p.requires_grad for p in critic.parameters())
    assert float(critic.losses(clean, clean)[1]) == 0.0


def test_faces_kept_aside_are_not_trained_on(faces: Path) -> None:
    trained, aside = training.read_faces(faces)
    assert (len(trained), len(aside)) == (1, 1)
    assert not np.array_equal(trained[0], aside[0])


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_muon_steps_are_nearly_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert 0.3 < float(values.min()) <= float(values.max()) < 1.4


def test_muon_lowers_a_loss_that_adamw_alone_would_lower_too() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3))
    x, y = torch.randn(4, 3, 12, 12), torch.randn(4, 3, 8, 8)
    optimizer, losses = Optimizer(network, 1e-2), []
    for _ in range(20):
        loss = torch.nn.functional.mse_loss(network(x), y)
        loss.backward()
        optimizer.step(1e-2)
        losses.append(float(loss.detach()))
        assert all(p.grad is None for p in network.parameters())
    assert losses[-1] < 0.95 * losses[0]
