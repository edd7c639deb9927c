"""What a run reads, and the names that it writes under."""

import errno
import os
import re
from pathlib import Path, PurePath
from unicodedata import normalize

import pytest

from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.jobs import store as store_module
from bfr.runtime.jobs.sources import Inputs, Item, check_found, choose_outputs, find_images, find_inputs, find_masks
from bfr.runtime.jobs.store import Store


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def below(folder: Path, item: Item) -> str:
    return Path(item.source).relative_to(folder).as_posix()


def found(folder: Path) -> list[str]:
    return [below(folder, item) for item in find_images([folder])]


def test_a_folder_is_listed_recursively_in_natural_order(tmp_path: Path) -> None:
    fill(tmp_path, "img10.png", "img2.png", "Img1.png", "b/x.jpg", "a/2.tif", "a/10.tif")
    assert found(tmp_path) == ["a/2.tif", "a/10.tif", "b/x.jpg", "Img1.png", "img2.png", "img10.png"]


def test_only_allowed_suffixes_in_any_case(tmp_path: Path) -> None:
    allowed = ["a.PNG", "b.jpg", "c.JPEG", "d.webp", "e.bmp", "f.tif", "g.Tiff", "h.jfif", "i.JPE", "j.jif"]
    fill(tmp_path, *allowed, "x.gif", "x.txt", "x", "x.png.part", ".hidden.png", ".x.png.7-0.part", ".git/y.png")
    assert found(tmp_path) == allowed


def test_videos_only_where_they_are_wanted(tmp_path: Path) -> None:
    wanted = ["a.mp4", "b.MOV", "c.mkv", "d.webm", "e.avi", "f.m4v", "g.png"]
    fill(tmp_path, *wanted, "x.mp3", "x.gif", ".y.mp4", "z.mp4.part")
    assert [Path(item.source).name for item in find_images([tmp_path], videos=True)] == wanted
    assert found(tmp_path) == ["g.png"]


def test_a_video_and_an_image_of_one_name_do_not_collide(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "a.jpg", "a.mov")
    assert [item.name for item in find_images([tmp_path], videos=True)] == ["a_jpg", "a_mov", "a_mp4"]


def test_results_of_an_earlier_run_are_not_read(tmp_path: Path) -> None:
    """Where the output folder lies in the input, however it is written; but where it is an input itself, it is read."""
    fill(tmp_path, "a.png", "out/b.png", "out/deep/c.png", "sub/out/d.png")
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path / "out", tmp_path / "sub" / ".." / "out", tmp_path / "link" / "out"):
        items = find_images([tmp_path], out=out)
        assert [below(tmp_path, item) for item in items] == ["a.png", "sub/out/d.png"]
    assert len(find_images([tmp_path], out=tmp_path / "new")) == 4
    assert len(find_images([tmp_path], out=tmp_path)) == 4
    assert len(find_images([tmp_path / "out"], out=tmp_path / "out")) == 2
    assert [item.name for item in find_images([tmp_path / "out/b.png"], out=tmp_path / "out")] == ["b"]
    assert len(find_images([tmp_path / "**/*.png"], out=tmp_path / "out")) == 2  # a pattern finds what a folder does
    assert len(find_images([tmp_path / "**/*.png"], out=tmp_path)) == 4
    assert len(find_images([tmp_path / "out/*.png"], out=tmp_path)) == 1


def test_an_empty_folder_has_no_images_and_a_missing_input_is_an_error(tmp_path: Path) -> None:
    assert find_images([tmp_path]) == []
    for name in ("nowhere", "nowhere.png", "*.png"):
        with pytest.raises(InputNotFound, match=re.escape(name)):
            find_images([str(tmp_path / name)])


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path) -> None:
    inside, outside = fill(tmp_path / "in", "a.png"), fill(tmp_path / "out", "secret.png")
    (inside / "file.png").symlink_to(outside / "secret.png")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "broken.png").symlink_to(inside / "nothing.png")
    (inside / "same.png").symlink_to(inside / "a.png")
    assert found(inside) == ["a.png", "same.png"]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jpg"], ["a"]),
        (["a.b.jpg", "a.c.jpg"], ["a.b", "a.c"]),
        (["a.jpg", "a.png"], ["a_jpg", "a_png"]),
        (["a.JPG", "A.png"], ["a_JPG", "A_png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a", "y/a"]),
        # What the suffix would give is taken by another image.
        (["a.jpg", "a.png", "a_jpg.bmp"], ["a_jpg_2", "a_png", "a_jpg"]),
        (["a.jpg", "a.png", "a_jpg.bmp", "a_jpg.png"], ["a_jpg", "a_png", "a_jpg_bmp", "a_jpg_png"]),
        (["a.jpg", "a.png", "a_jpg.bmp", "a_jpg_2.bmp"], ["a_jpg_3", "a_png", "a_jpg", "a_jpg_2"]),
        (["e\u0301.jpg", "\xe9.jpg"], ["e\u0301_jpg", "\xe9_jpg_2"]),
    ],
)
def test_names_do_not_collide(tmp_path: Path, files: list[str], names: list[str]) -> None:
    fill(tmp_path, *files)
    items = {below(tmp_path, item): item.name for item in find_images([tmp_path])}
    assert items == dict(zip(files, names, strict=True))
    assert len({normalize("NFC", name.casefold()) for name in items.values()}) == len(files)


def test_a_mask_has_the_name_of_its_picture(tmp_path: Path) -> None:
    pictures, masks = ["in/img.1.png", "in/img.2.png", "in/img.png", "in/b.jpg", "in/b.png"], tmp_path / "masks"
    fill(tmp_path, *pictures, *(f"masks/{name}.png" for name in ("img", "img.1", "img.2", "b")))
    found = {
        PurePath(key).name: mask.name for key, mask in find_masks(find_images([tmp_path / "in"]), str(masks)).items()
    }
    assert found == {
        "img.1.png": "img.1.png", "img.2.png": "img.2.png", "img.png": "img.png", "b.jpg": "b.png", "b.png": "b.png"
    }  # fmt: skip


def test_inputs_keep_their_order_and_are_read_once(tmp_path: Path) -> None:
    fill(tmp_path, "z.png", "f/a.png", "g/a.png", "odd.name")
    inputs = [tmp_path / "z.png", tmp_path / "f", tmp_path / "g", tmp_path / "z.png", tmp_path / "odd.name"]
    assert find_images(inputs) == [
        Item(tmp_path / "z.png", "z"),
        Item(tmp_path / "f/a.png", "a_png"),
        Item(tmp_path / "g/a.png", "a_png_2"),
        Item(tmp_path / "odd.name", "odd"),
    ]


@pytest.mark.parametrize("name", ["in", "[1]"])  # brackets of a folder that is there are no pattern
def test_a_folder_may_be_a_path_a_text_an_address_or_a_pattern(tmp_path: Path, name: str) -> None:
    folder = fill(tmp_path / name, "a.jpg", "a.png", "img10.png", "img2.png", ".hidden.png", "out/x.png", "sub/a.jpg")
    expected = find_images([folder], out=folder / "out")
    assert [item.name for item in expected] == ["a_jpg", "a_png", "img2", "img10", "sub/a"]
    patterns = [] if name == "[1]" else [f"{folder}/**/*", f"{folder}/**"]
    for given in (str(folder), [folder.as_uri()], *([one] for one in patterns)):
        assert find_images(given, out=str(folder / "out")) == expected


def test_a_link_into_a_folder_that_is_closed_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Path.is_file` raises there; whoever runs the tests may be let in everywhere."""

    def refuse(path: Path) -> bool:
        if path.name == "closed.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return os.path.isfile(path)  # noqa: PTH113

    fill(tmp_path, "in/a.png")
    (tmp_path / "in/closed.png").symlink_to(tmp_path / "elsewhere.png")
    monkeypatch.setattr(Path, "is_file", refuse)
    inputs = find_inputs([tmp_path / "in"])
    assert [item.name for item in inputs.items] == ["a"]
    assert list(inputs.passed_over) == [str(tmp_path / "in/closed.png")]
    assert [item.name for item in find_images([tmp_path / "in/*.png"])] == ["a"]


def test_a_file_beside_the_folders_of_a_pattern_is_no_folder_that_fails(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "in/b.png", "in/deep/c.png")
    inputs = find_inputs([tmp_path / "*/**/*.png"])
    assert [item.name for item in inputs.items] == ["in/b", "in/deep/c"]
    assert inputs.passed_over == {}


def test_a_file_is_one_by_whatever_way_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png", "in/b.png")
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    names = ["a.png", tmp_path / "a.png", f"{tmp_path}/*.png", "in/../a.png", "in", "link", "link/b.png"]
    assert find_images(names) == [Item(Path("a.png"), "a"), Item(Path("in/b.png"), "b")]


@pytest.mark.parametrize("name", ["a", "sub/v1.2 é..", "A: beach 10:30"])
def test_a_store_takes_names_that_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    items = [Item(tmp_path / "a.png", name)]
    assert choose_outputs(items, Store(tmp_path / "not made yet"), ".jpg")[0] == {items[0].key: f"{name}.jpg"}


@pytest.mark.parametrize(
    "name",
    [
        *("", "..", ".", "../a", "a/../../b", "a/..", "/etc/a", "//a", "a//b", "a/"),
        *("a\0b", "a\nb", "..\\a", "a\\b", "C:a", "C:/a"),
    ],
)
def test_a_store_refuses_names_that_leave_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(store_module, "_DRIVES", True)
    with pytest.raises(InvalidOption, match="rename the image"):
        Store(tmp_path).check(name, ".png")


@pytest.mark.parametrize("suffix", ["/../../a", "\\a", ".p\0ng"])
def test_a_store_refuses_such_suffixes(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InvalidOption):
        Store(tmp_path).check("a", suffix)


def test_a_store_refuses_a_linked_folder_below(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (out / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("link/a", "link/deep/a", "link/new/a"):
        with pytest.raises(InvalidOption, match="remove the link"):
            Store(out).check(name, ".png")
    (tmp_path / "alias").symlink_to(out)  # the output folder itself may be a link
    Store(tmp_path / "alias").check("sub/a", ".png")


def test_outputs_and_names_that_have_none(tmp_path: Path) -> None:
    items = [Item(tmp_path / "a.JPG", "sub/a"), Item(tmp_path / "b.jpg", "../b"), Item(tmp_path / "gone.bmp", "c")]
    outputs, refused = choose_outputs(items, Store(tmp_path / "out"), "same")
    assert outputs == {str(tmp_path / "a.JPG"): "sub/a.jpg", str(tmp_path / "gone.bmp"): "c.png"}
    assert list(refused) == [str(tmp_path / "b.jpg")]
    assert "rename" in refused[str(tmp_path / "b.jpg")]


def test_a_result_that_is_any_input_is_refused(tmp_path: Path) -> None:
    """By a link too; a result that replaces some other file is not."""
    fill(tmp_path, "a.png", "b.png", "out/old.png")
    items, store = [Item(tmp_path / "a.png", "old"), Item(tmp_path / "b.png", "new")], Store(tmp_path / "out")
    assert len(choose_outputs(items, store, ".png")[0]) == 2
    (tmp_path / "out/new.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(InvalidOption, match=r"new\.png"):
        choose_outputs(items, store, ".png")
    with pytest.raises(InvalidOption, match="overwritten"):
        choose_outputs(find_images([tmp_path / "a.png"], out=tmp_path), Store(tmp_path), "same")


def begins(folder: Path, **contents: bytes) -> Path:
    """Files by their names, `_` for the dot, that begin so."""
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_bytes(content.ljust(700, b"\0"))
    return folder


PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"
MP4, HEIC = b"\0\0\0\x18ftypisom", b"\0\0\0\x18ftypheic"


class TestContent:
    """What a file begins with decides what it is; its name does where that says nothing."""

    def test_in_a_folder(self, tmp_path: Path) -> None:
        begins(tmp_path, a_dat=JPEG, b_jpg=PNG, c_png=b"words", d_mp4=JPEG, e_png=MP4, f_jpg=HEIC, g=PNG, h_HEIC=HEIC)
        found = find_inputs([tmp_path], videos=True)
        assert {Path(item.source).name: (item.suffix, item.is_video) for item in found.items} == {
            "a.dat": (".jpg", False),
            "b.jpg": (".png", False),
            "c.png": (".png", False),
            "d.mp4": (".jpg", False),
            "e.png": (".mp4", True),
            "f.jpg": (".jpg", False),
            "g": (".png", False),
        }
        assert [Path(name).name for name in found.passed_over] == ["h.HEIC"]
        outputs, _ = choose_outputs(found.items, Store(tmp_path / "out"), "same")
        assert sorted(outputs.values()) == ["a.jpg", "b.png", "c.png", "d.jpg", "e.mp4", "f.jpg", "g.png"]

    def test_a_video_is_not_taken_for_an_image(self, tmp_path: Path) -> None:
        begins(tmp_path, a_png=MP4, b_mp4=MP4, c_mp4=PNG)
        found = find_inputs([tmp_path])
        assert [Path(item.source).name for item in found.items] == ["c.mp4"]
        assert set(found.passed_over.values()) == {"a video, which is not taken here"}

    def test_a_video_keeps_the_container_of_its_name(self, tmp_path: Path) -> None:
        begins(tmp_path, a_mov=MP4, b_mkv=b"\x1a\x45\xdf\xa3\x01webm")
        assert [item.suffix for item in find_images([tmp_path], videos=True)] == [".mov", ".mkv"]


class TestPassedOver:
    def test_every_file_that_is_not_hidden_is_taken_or_named(self, tmp_path: Path) -> None:
        begins(tmp_path, a_png=PNG, b_gif=b"GIF89a", c_txt=b"", d_part=PNG)
        (tmp_path / ".hidden").touch()
        elsewhere = fill(tmp_path.parent / f"{tmp_path.name}-elsewhere", "x.png")
        (tmp_path / "e.png").symlink_to(elsewhere / "x.png")
        (tmp_path / "f.png").symlink_to(tmp_path / "gone")
        (tmp_path / "g").symlink_to(elsewhere)
        found = find_inputs([tmp_path])
        assert [Path(item.source).name for item in found.items] == ["a.png"]
        assert {Path(name).name: reason.split(":")[0] for name, reason in found.passed_over.items()} == {
            "b.gif": "not an image of PNG, JPEG, WEBP, BMP, TIFF",
            "c.txt": "not an image of PNG, JPEG, WEBP, BMP, TIFF",
            "d.part": "a download that is not finished",
            "e.png": "a link out of the folder, or to nothing",
            "f.png": "a link out of the folder, or to nothing",
            "g": "a link to a folder",
        }

    def test_what_names_tell_better(self, tmp_path: Path) -> None:
        """Raw files begin as TIFF does, songs as films do."""
        begins(tmp_path, a_NEF=b"II*\0", b_dng=b"II*\0", c_tif=b"II*\0", d_m4a=MP4, e_wma=b"words")
        found = find_inputs([tmp_path], videos=True)
        assert [Path(item.source).name for item in found.items] == ["c.tif"]
        assert [reason.split(":")[0] for reason in found.passed_over.values()] == [
            "a camera's raw file", "a camera's raw file", "sound alone", "sound alone"
        ]  # fmt: skip

    def test_a_path_that_is_too_long_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        try:
            for _ in range(20):
                Path("d" * 250).mkdir()
                os.chdir("d" * 250)
                Path("a.png").write_bytes(PNG)
        except OSError:
            pytest.skip("this system has no such paths")
        finally:
            os.chdir(tmp_path)
        found = find_inputs([tmp_path])
        assert len(found.items) >= 14
        assert len(found.passed_over) >= 1

    def test_a_glob_names_them_too(self, tmp_path: Path) -> None:
        begins(tmp_path, a_png=PNG, b_txt=b"words")
        found = find_inputs([str(tmp_path / "*")])
        assert ([item.name for item in found.items], list(found.passed_over)) == (["a"], [str(tmp_path / "b.txt")])

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        for i in range(12):
            (tmp_path / f"{i}.txt").touch()
        with pytest.raises(InputNotFound, match=r"12 files were passed over:\n.*0\.txt") as caught:
            check_found(find_inputs([tmp_path]), [tmp_path])
        assert str(caught.value).endswith("and 2 more")
        with pytest.raises(InputNotFound, match=r"TIFF and videos are looked for$"):
            check_found(Inputs([]), ["x"], videos=True)

    @pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
    def test_a_name_that_cannot_be(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputNotFound):
            find_images([tmp_path / name])
