"""The command around the export of the published networks; the export itself takes minutes and is not run here."""

from pathlib import Path
from typing import Any

import pytest

from bfr.benchmarks.agreement import full_size
from bfr.runtime.bundle.bundle import Bundle


def test_export_only_verifies_and_reports_nothing(
    tiny_bundle: Bundle,
    tiny_system: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: dict[str, Any] = {}

    def export(system: Any, weights: Path, folder: Path, chosen: Any, **options: Any) -> Bundle:
        names = sorted(path.name for path in weights.iterdir())
        seen.update(options, folder=folder, precision=chosen.precision, weights=names)
        return tiny_bundle

    monkeypatch.setattr(full_size, "export_system", export)
    monkeypatch.setattr(full_size, "get_system", lambda _: tiny_system)
    assert full_size.main(["--export-only", "--keep", str(tmp_path / "kept"), "--precision", "fp16"]) == 0
    assert seen["verified"] is False
    assert seen["precision"] == ("fp32", "fp16")
    assert seen["folder"] == tmp_path / "kept"
    assert seen["weights"] == ["denoiser.pth", "estimator.pth"]
    assert "not verified" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "message"), [(["--export-only"], "--keep"), ([], "--out is needed")])
def test_a_folder_must_be_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        full_size.main(options)
    assert message in capsys.readouterr().err
