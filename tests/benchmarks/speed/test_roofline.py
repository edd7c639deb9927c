"""Ceilings, what a call costs at least, and the limit that follows."""

from dataclasses import replace

import pytest
import torch

from bfr.benchmarks.speed import roofline as r
from bfr.runtime.bundle.bundle import Bundle, default_bundle


def test_the_limit_is_the_larger_of_the_two() -> None:
    cost = r.Cost(1, flop=100.0, bytes=10, layer_bytes=50)
    assert cost.intensity == 10.0
    assert cost.limit_seconds(r.Ceilings("chip", "float16", 10.0, 5.0)) == 10.0
    assert cost.limit_seconds(r.Ceilings("chip", "float16", 100.0, 1.0)) == 10.0


def test_the_fewest_bytes_are_weights_and_state_once() -> None:
    bundle = Bundle.open(default_bundle())
    entry = bundle.network(bundle.denoise.network)
    one, four = r.count_cost(bundle, (1, 4), half=False)
    image = 4 * 3 * 256 * 256
    state = 6 * image + 4 + 4 * 8  # x, h1, h2, noise, and both outputs; t; row
    assert one.bytes == 4 * entry.parameter_count + state
    assert four.bytes - one.bytes == 3 * state
    assert (one.flop, four.flop) == (1e9 * entry.gflop, 4e9 * entry.gflop)
    half = r.count_cost(bundle, (1,), half=True)[0]
    assert (one.bytes - state) / 2 < half.bytes - state < one.bytes - state  # norms and embeddings stay in float32
    assert one.bytes < half.layer_bytes < one.layer_bytes


def test_every_layer_counts_what_it_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Dropout(), torch.nn.SiLU())

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    bundle = Bundle.open(default_bundle())
    monkeypatch.setattr("bfr.models.catalog.ARCHITECTURES", {"unet": lambda **_: Small()})
    pixels = 256 * 256
    assert r._count_layers(bundle, half=False) == (4 * (3 * 8 + 8), 4 * pixels * (3 + 8 + 8 + 8))


def test_without_an_operation_count_there_is_no_cost() -> None:
    bundle = Bundle.open(default_bundle())
    networks = {name: entry.model_copy(update={"gflop": None}) for name, entry in bundle.manifest.networks.items()}
    without = replace(bundle, manifest=bundle.manifest.model_copy(update={"networks": networks}))
    assert r.count_cost(without, (1,), half=False) == []


def test_ceilings_are_what_the_calls_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(r, "CPU_SIDE", 64)
    monkeypatch.setattr(r, "CPU_COPY", 1 << 16)
    monkeypatch.setattr(r, "median_seconds", lambda call, *_: (call(), 0.5)[1])
    found = r.measure_ceilings(None)
    assert found == r.Ceilings("CPU", "float32", 2 * 64**3 / 0.5, 2 * (1 << 16) / 0.5)


def test_a_median_is_of_the_calls_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 0.0, 1.0, 0.0, 2.0, 0.0, 50.0])  # the first call is the warm-up
    monkeypatch.setattr(r.time, "perf_counter", lambda: next(clock))
    assert r.median_seconds(lambda: None, torch.device("cpu"), 3) == 2.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_ceilings_of_a_gpu() -> None:
    found = r.measure_ceilings(0, repeats=5)
    assert found.dtype == "float16"
    assert found.flop_per_second > 1e12
    assert found.bytes_per_second > 1e10
