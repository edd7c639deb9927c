"""The training schedule of a bundle, and the step tables of its denoise stages under a preset."""

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Denoise, NoiseSchedule, Preset
from bfr.runtime.diffusion.schedule import Schedule, linear_schedule, scaled_linear_schedule
from bfr.runtime.diffusion.solvers import SOLVERS, StepTable, step_table
from bfr.runtime.errors import InvalidOption


def sampler_table(bundle: Bundle, preset: Preset, stage: Denoise | None = None) -> StepTable:
    """Return the step table of a denoise stage, the bundle's first by default.

    Raises InvalidOption if the preset does not fit the stage, or the bundle has no denoise stage.
    """
    stage = stage or bundle.denoise
    sampler = preset.sampler(stage.name)
    learned = bundle.network(stage.network).kind.startswith("step-learned")
    fitting = [name for name, solver in SOLVERS.items() if solver.learned == learned]
    if sampler.solver is None or sampler.solver not in fitting:
        raise InvalidOption(
            f"solver {sampler.solver} does not fit the exported step graph: it runs {', '.join(fitting)}"
        )
    return step_table(
        noise_schedule(bundle.manifest.schedule),
        solver=sampler.solver,
        spacing=sampler.spacing,
        start=sampler.start,
        steps=sampler.steps,
        eta=sampler.eta,
        matched=sampler.matched,
        stop=sampler.stop,
        prediction=stage.prediction,
    )


def noise_schedule(spec: NoiseSchedule) -> Schedule:
    """Return the training schedule of a manifest."""
    make = linear_schedule if spec.betas == "linear" else scaled_linear_schedule
    return make(spec.timesteps, spec.beta_start, spec.beta_end)
