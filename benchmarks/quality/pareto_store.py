"""The Pareto benchmark's results on disk: written after each sampler, read again by a run that goes on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from bfr.benchmarks.quality.drift import LABELS
from bfr.benchmarks.quality.metrics import UInt8
from bfr.benchmarks.quality.pareto_results import Allowance, Candidate, Results, Sample, read_off
from bfr.benchmarks.quality.report import plain
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import write_bytes

FORMAT = 1
JSON, PICTURES = "pareto.json", "reference.npz"


def save(out: Path, results: Results, presets: Mapping[str, Allowance]) -> None:
    """Write pareto.json, whole or not at all. presets: to be read off the front."""
    chosen = {name: read_off(results, allowance) for name, allowance in presets.items()}
    content = {
        "format": FORMAT,
        **results.facts,
        "settings": results.settings,
        "reference": _as_dict(results.reference),
        "candidates": [
            {**_as_dict(c), "within_spread": results.within_spread(c), "difference_db": asdict(results.difference(c))}
            for c in results.candidates
        ],
        "front": [_preset(candidate) for candidate in results.front()],
        "read_off": {name: candidate and _preset(candidate) for name, candidate in chosen.items()},
    }
    write_bytes(out / JSON, json.dumps(plain(content), indent=1, allow_nan=False).encode() + b"\n")


def load(out: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Results | None:
    """What an earlier run left in `out`, None where there is nothing. Raises InvalidOption for other settings."""
    path = out / JSON
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        found = {"format": content["format"], **content["settings"]}
        wanted = {"format": FORMAT, **json.loads(json.dumps(settings))}
        different = [name for name in (wanted | found) if wanted.get(name) != found.get(name)]
        if not different:
            reference, candidates = _candidate(content["reference"]), [_candidate(c) for c in content["candidates"]]
            return Results(settings, facts, reference, candidates)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidOption(f"{path} is not what this benchmark writes: delete it, or name another --out") from error
    raise InvalidOption(
        f"{path} holds results of another {', '.join(different)}: name another --out, or delete it to start anew"
    )


def save_pictures(out: Path, pictures: Sequence[UInt8]) -> None:
    """Keep the reference's results, (S, S, 3) uint8 RGB each, which drift is measured from."""
    stream = BytesIO()
    np.savez_compressed(stream, results=np.stack(pictures))
    write_bytes(out / PICTURES, stream.getvalue())


def load_pictures(out: Path) -> list[UInt8]:
    """What `save_pictures` kept. Raises InvalidOption where it is gone."""
    path = out / PICTURES
    if not path.is_file():
        raise InvalidOption(f"{path} is gone, and {JSON} cannot go on without it: delete that to start anew")
    with np.load(path) as stored:
        return list(stored["results"])


def _preset(candidate: Candidate) -> dict[str, Any] | None:
    return candidate.preset.model_dump() if candidate.preset else None


def _as_dict(candidate: Candidate) -> dict[str, Any]:
    measures = candidate.samples[0].truth
    return {
        "preset": _preset(candidate),
        "calls": candidate.calls,
        "seconds_per_image": candidate.seconds,
        "drift": {measure: asdict(candidate.drift(measure)) for measure in LABELS},
        "truth": {measure: asdict(candidate.truth(measure)) for measure in measures},
        "images": [asdict(sample) for sample in candidate.samples],
    }


def _candidate(content: Mapping[str, Any]) -> Candidate:
    preset = None if content["preset"] is None else Preset.model_validate(content["preset"])
    return Candidate(preset, [Sample(**image) for image in content["images"]])
