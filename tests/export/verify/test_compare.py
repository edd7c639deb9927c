"""How much a verification runs, and that what it leaves out cannot hide an error."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bfr.export.verify import compare as comparing
from bfr.export.verify.compare import BATCHES, QUICK_STEPS, open_reference, verify
from bfr.export.verify.walk import Reference
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset, Sampler
from bfr.runtime.errors import VerificationFailed
from bfr.runtime.restore.plan import make_plan

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def reference(tiny_bundle: Bundle) -> Reference:
    return open_reference(tiny_bundle)


def test_quick_runs_every_network_at_both_batches_and_a_few_steps_of_the_loop(
    tiny_bundle: Bundle, reference: Reference
) -> None:
    checks = verify(tiny_bundle, reference, "fp32", extent="quick")
    names = [f"{name}, batch {batch}" for batch in BATCHES for name in tiny_bundle.manifest.networks]
    loop = f"loop, preset reference, ddim, {QUICK_STEPS} steps from t = 20, spaced in time, eta 0.5"
    assert [check.what for check in checks] == [*names, loop]
    assert {check.extent for check in checks} == {"quick"}


def test_without_a_reference_the_default_preset_is_compared(tiny_bundle: Bundle, reference: Reference) -> None:
    presets = {"mine": tiny_bundle.manifest.presets["short"]}
    manifest = tiny_bundle.manifest.model_copy(update={"presets": presets, "default_preset": "mine"})
    *_, loop = verify(replace(tiny_bundle, manifest=manifest), reference, "fp32")
    assert loop.what.startswith("loop, preset mine, ddim, 2 of ddim50")


def test_full_runs_all_steps_and_says_so(tiny_bundle: Bundle, reference: Reference) -> None:
    *_, loop = verify(tiny_bundle, reference, "fp32")
    assert loop.what == "loop, preset reference, ddim, 6 of ddim250, eta 0.5"
    assert loop.extent == "full"


@pytest.mark.parametrize(
    ("preset", "starts"),
    [
        (Preset(spacing="ddim250", start=100, eta=0.5), {"": 396.0}),
        (Preset(solver="dpmpp-2m", spacing="log-snr", start=400, steps=20), {"": 400.0}),
        (Preset(spacing="ddim250", start=3), {}),  # no more than QUICK_STEPS are left as they are
        (Preset(spacing="ddim250", start=3, stages={"denoise": Sampler(spacing="250", start=250)}), {"denoise": 999.0}),
    ],
)
def test_the_few_steps_start_where_all_of_them_do(
    tiny_bundle: Bundle, preset: Preset, starts: dict[str, float]
) -> None:
    few = comparing._spread(tiny_bundle, preset)
    for name, sampler in {"": few, **few.stages}.items():
        if name in starts:
            assert (sampler.start, sampler.calls) == (starts[name], QUICK_STEPS)
        else:
            assert sampler.calls <= QUICK_STEPS
    (loop,) = make_plan(tiny_bundle, few).loops
    assert len(loop.table) <= QUICK_STEPS


def test_quick_finds_an_error_late_in_the_loop(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser that is wrong at its last timesteps alone: the networks are compared from the middle on."""
    reference = open_reference(tiny_bundle)
    network: Any = reference.networks["denoiser"]
    forward = type(network.module).forward

    def wrong(self: Any, x: Any, h1: Any, h2: Any, t: Any, row: Any, noise: Any) -> Any:
        x_next, x0 = forward(self, x, h1, h2, t, row, noise)
        return x_next + 0.2 * (t < 6)[:, None, None, None], x0

    monkeypatch.setattr(type(network.module), "forward", wrong)
    monkeypatch.setattr(comparing, "walk", lambda *_: iter(()))
    with pytest.raises(VerificationFailed, match="loop, preset reference"):
        verify(tiny_bundle, reference, "fp32", extent="quick")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_proves_nothing(value: float) -> None:
    good = np.ones((1, 4), np.float32)
    bad = good.copy()
    bad[0, 1] = value
    with pytest.raises(VerificationFailed, match="the reference, eager float32, holds NaN or Inf"):
        comparing.compare("x", bad, good, device="d", precision="fp32", batch=1, floor=40.0)
