"""Which detector is opened, and what is refused."""

import hashlib
import logging
from pathlib import Path

import pytest

from bfr.runtime.errors import BundleCorrupt, InputNotFound, InvalidOption
from bfr.runtime.faces import detect
from bfr.runtime.faces.detect import YUNET_FILE, open_detector


class Opened:
    """Stands in for both detectors."""

    def __init__(self, model: bytes | None = None) -> None:
        self.name = "haar" if model is None else "yunet"


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "YuNet", Opened)
    monkeypatch.setattr(detect, "Haar", Opened)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model file that is taken for the published one."""
    (tmp_path / YUNET_FILE).write_bytes(b"model")
    monkeypatch.setattr(detect, "YUNET_SHA256", hashlib.sha256(b"model").hexdigest())
    return tmp_path


class TestOpen:
    def test_an_unknown_name_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(InvalidOption, match="'mtcnn' is unknown: choose one of auto, yunet, haar"):
            open_detector("mtcnn")

    def test_auto_without_yunet_is_the_cascades_and_says_so_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            detector = open_detector(folder=tmp_path)
        assert detector.name == "haar"
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "`bfr fetch yunet`" in caplog.text
        caplog.clear()
        assert open_detector(folder=tmp_path).name == "haar"
        assert not caplog.records

    def test_who_asks_for_the_cascades_is_not_warned(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert open_detector("haar", folder=folder).name == "haar"
        assert not caplog.records

    def test_yunet_is_asked_for_and_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputNotFound, match="bfr fetch yunet") as caught:
            open_detector("yunet", folder=tmp_path)
        assert str(tmp_path / YUNET_FILE) in str(caught.value)

    @pytest.mark.parametrize("name", ["auto", "yunet"])
    def test_yunet_where_it_is(
        self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert open_detector(name, folder=folder).name == "yunet"
        cache = folder / "cache"
        (cache / "yunet").mkdir(parents=True)
        (folder / YUNET_FILE).rename(cache / "yunet" / YUNET_FILE)
        monkeypatch.setenv("BFR_HOME", str(cache))
        assert open_detector(name).name == "yunet"
        assert not caplog.records

    @pytest.mark.parametrize("name", ["auto", "yunet"])
    @pytest.mark.parametrize("content", [b"Model", b"mode", b"model ", b""])
    def test_a_changed_file_is_not_opened(
        self, name: str, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(detect, "YuNet", lambda _model: pytest.fail("the file was opened"))
        (folder / YUNET_FILE).write_bytes(content)
        found, published = hashlib.sha256(content).hexdigest(), detect.YUNET_SHA256
        with pytest.raises(BundleCorrupt, match=f"{found}.*{published}.*bfr fetch yunet"):
            open_detector(name, folder=folder)
