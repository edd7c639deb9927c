import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plans import difface_plan
from safetensors.torch import save_file

from bfr.benchmarks.agreement import golden, systems
from bfr.benchmarks.agreement.golden import main, run_golden
from bfr.benchmarks.agreement.replay import Errors, GivenNetwork, ReplayedNoise
from bfr.export import bundle as exporting
from bfr.export.pytorch.eager import EagerDevice, EagerNetwork
from bfr.models.stages.step import LinearStep, cut_variance
from bfr.models.weights.seeded import LOOP_SCALE, seed_weights
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.diffusion.schedule import linear_schedule
from bfr.runtime.diffusion.solvers import Solver, step_table
from bfr.runtime.restore.chain import Chain

GOLDEN = Path(__file__).parents[2] / "golden"


LONG = ["loop_ddim250_n10_eta05", "loop_ddpm250_n10", "loop_inpaint_ddim250_n12_eta10"]
WHOLE = ["pgdiff_ref_restoration", "dr2_n4", "dr2_n1", "osdface_forward"]
SLOW = [*LONG, *WHOLE, "pgdiff_restoration"]


@pytest.mark.export
@pytest.mark.parametrize("name", ["tiny_swinir", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_published_code_is_met_by_both_backends(name: str, tmp_path: Path) -> None:
    errors = run_golden(GOLDEN / f"{name}.npz", tmp_path)
    assert errors.worst < 1e-4


@pytest.fixture
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the half minute that an export takes: eager PyTorch alone, in the place of both."""

    def alone(run: Any) -> Errors:
        return Errors(*[run(EagerDevice())] * 2)

    def weights(stage: Any, _inputs: Any, _outputs: Any, path: Path, **_: Any) -> tuple[Path, Path]:
        state = {name.removeprefix(f"{stage.wraps}."): value for name, value in stage.state_dict().items()}
        path.write_bytes(b"")
        save_file({name: value.contiguous() for name, value in state.items()}, path.with_suffix(".safetensors"))
        return path, path.with_suffix(".safetensors")

    def network(module: Any, inputs: Any, _scratch: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            return (module.eval()(*map(torch.from_numpy, inputs.values())).numpy(),) * 2

    monkeypatch.setattr(systems, "on_both", alone)
    monkeypatch.setattr(golden, "run_network", network)
    monkeypatch.setattr(exporting, "export_graph", weights)
    monkeypatch.setattr(Bundle, "graph", lambda bundle, name, _: bundle.folder / f"{name}.onnx")


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize(
    "name",
    [
        *LONG,
        *(pytest.param(name, marks=pytest.mark.export) for name in WHOLE),
        pytest.param("pgdiff_restoration", marks=pytest.mark.slow),
    ],
)
def test_these_are_met_by_eager(name: str, tmp_path: Path) -> None:
    assert run_golden(GOLDEN / f"{name}.npz", tmp_path).worst < 1e-4


@pytest.mark.usefixtures("_eager")
def test_a_wrong_result_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("npz", "json"):
        shutil.copy(GOLDEN / f"tiny_swinir.{suffix}", tmp_path)
    with np.load(GOLDEN / "tiny_swinir.npz") as file:
        arrays = dict(file)
    arrays["y"][0, 0, 0, 0] += 1e-3
    np.savez(tmp_path / "tiny_swinir.npz", **arrays)
    assert main([str(tmp_path / "tiny_swinir.npz")]) == 1
    assert "TOO LARGE" in capsys.readouterr().out


def test_what_is_no_golden_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    assert main([str(tmp_path / "other.npz"), str(tmp_path / "missing.npz")]) == 2
    out = capsys.readouterr().out
    assert "begins with none of" in out
    assert "missing.npz does not exist" in out


@pytest.mark.slow
def test_at_100_steps_every_solver_agrees_with_ddim_at_every_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the golden's network, estimate and noise, eta 0, nothing clipped, as name-seeded x0 would be.

    DDIM as published keeps the network's eps where x0 is clipped, the others step from the clipped x0: another flow.
    """
    monkeypatch.setattr("bfr.models.stages.step.clip", lambda x: x)
    with np.load(GOLDEN / "loop_ddim250_n100_eta05.npz") as file:
        recorded = dict(file)
    denoiser = golden._network(json.loads((GOLDEN / "tiny_unet.json").read_text()), 32)
    seed_weights(denoiser, LOOP_SCALE)
    cut_variance(denoiser)
    device, step = EagerDevice(), EagerNetwork(LinearStep(denoiser))

    def run(**sampler: Any) -> np.ndarray:
        table = step_table(linear_schedule(), **sampler)
        draws = np.repeat(recorded["noise"][:1], len(table) + 1, axis=0)  # the first diffuses, eta 0 uses no other
        monkeypatch.setattr(device, "noise", lambda *_: ReplayedNoise(device, draws))
        estimate = {"estimate": 2 * np.clip(recorded["estimate"], 0, 1) - 1}
        networks = {"estimator": GivenNetwork(device, estimate), "denoiser": step}
        chain = Chain(device, networks, difface_plan(table, 32), batch=1)
        return chain.run(recorded["y0"], seed=0, images=(0,)).state

    published = run(solver="ddim", spacing="ddim1000", start=401, matched=True)
    assert np.sqrt(np.mean(published**2)) > 0.5
    solvers: tuple[Solver, ...] = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2")
    for solver in solvers:
        found = run(solver=solver, spacing="log-snr", start=400, steps=100)
        assert np.sqrt(np.mean((found - published) ** 2)) < 8e-3, solver
