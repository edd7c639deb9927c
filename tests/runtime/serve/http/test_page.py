"""The page at `/`, used as people use it, in a browser against a server that keeps the contract."""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Fault, fake_server
from PIL import Image as Pillow

from bfr.runtime.serve.http.front import Visit
from bfr.runtime.serve.http.page import page as served_page

CHROMIUM = Path("/usr/bin/chromium")
PHOTOGRAPH = Path(__file__).parents[4] / "docs" / "images" / "photograph.jpg"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
KEY = "a-key-of-some-length"


def test_the_policy_allows_its_own_style_and_script_alone() -> None:
    data, headers = served_page()
    rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["form-action"] == rules["base-uri"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' blob: data:"
    for tag in ("style", "script"):
        ((body),) = re.findall(rf"<{tag}>(.*?)</{tag}>", data.decode(), re.DOTALL)
        assert rules[f"{tag}-src"] == f"'sha256-{b64encode(sha256(body.encode()).digest()).decode()}'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_the_page_names_no_other_host_and_puts_no_text_in_as_html() -> None:
    text = served_page()[0].decode().replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"innerHTML|insertAdjacentHTML|outerHTML|document\.write|eval\(|\bon[a-z]+=\"|style=", text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def opened(browser: Any, server: FakeServer) -> Iterator[Callable[..., Any]]:
    """Open the page. At the end: no script failed, the policy was kept, and nothing went to another host."""
    contexts, hosts, errors = [], [], []

    def make(*, wait: bool = True, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(8000)
        tab.on("request", lambda request: hosts.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda line: "Failed to load" in line.text or errors.append(line.text))
        tab.on("dialog", lambda box: (errors.append(f"dialog: {box.message}"), box.dismiss()))
        tab.on("filechooser", lambda _: None)  # from now on they are intercepted; later on a busy machine is too late
        tab.goto(server.url)
        if wait:
            tab.wait_for_selector(".preset", state="attached")
        return tab

    yield make
    for context in contexts:
        context.close()
    assert errors == []
    assert all(url.startswith((server.url, f"blob:{server.url}", "data:")) for url in hosts)


def drop(tab: Any, *files: tuple[str, str, bytes]) -> None:
    """Drop files, (name, type, bytes) each, onto the page."""
    listed = [[name, kind, b64encode(data).decode()] for name, kind, data in files]
    transfer = tab.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, type, data] of files) {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type }));
            }
            return transfer;
        }""",
        listed,
    )
    for event in ("dragenter", "dragover", "drop"):
        tab.dispatch_event("#drop", event, {"dataTransfer": transfer})


def tiny(path: Path, colour: tuple[int, int, int] = (90, 120, 60), **options: Any) -> tuple[str, str, bytes]:
    """A small picture, to be dropped."""
    Pillow.new("RGB", (64, 48), colour).save(path, **options)
    kind = {".png": "image/png", ".tiff": "image/tiff"}.get(path.suffix, "image/jpeg")
    return path.name, kind, path.read_bytes()


def done(tab: Any, nth: int = 0) -> Any:
    """The card, once its picture is restored."""
    card = tab.locator(".card").nth(nth)
    card.locator(".save").wait_for()
    return card


def until(tab: Any, selector: str, pattern: str) -> None:
    """Wait for a text; Playwright would evaluate a function, which the page's policy refuses."""
    tab.locator(selector).filter(has_text=re.compile(pattern)).wait_for()


def wait_for(tab: Any, condition: Callable[[], object]) -> None:
    """Let the page work until something is so, for five seconds at most."""
    for _ in range(100):
        if condition():
            return
        tab.wait_for_timeout(50)


def tab_to(tab: Any, expression: str, value: str) -> None:
    """Press the tabulator until the focus is where an expression has a value."""
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate(expression) == value:
            return
    raise AssertionError(f"{value} is not reached")


@pytest.mark.browser
def test_a_dropped_photograph_is_restored_compared_and_saved(opened: Any, server: FakeServer) -> None:
    server.delay = 1.5
    tab = opened()
    drop(tab, ("holiday 1952.jpeg", "image/jpeg", PHOTOGRAPH.read_bytes()))
    until(tab, ".card:has(progress[value]) .status", "Restoring, step [1-4] of 4")
    card = done(tab)
    (sent,) = server.posts()
    assert sent.body == PHOTOGRAPH.read_bytes()
    assert sent.headers["content-type"] == "image/jpeg"
    assert re.fullmatch(r"[A-Za-z0-9_-]{8,64}", sent.headers["x-request-id"])
    expected = {"seed": "12345", "preset": "balanced", "mode": "photo", "faces": "all", "upscale": "1"}
    assert sent.query == {**expected, "blend": "1", "keep_colour": "false", "restore_sharp": "false"}
    assert any(seen.query == {"ids": sent.headers["x-request-id"]} for seen in server.seen if seen.path == "/requests")
    assert card.locator(".status").text_content() == "1 face restored"
    assert "512 × 512 · balanced · seed 12345" in card.locator(".about").text_content()  # noqa: RUF001
    card.locator(".numbers summary").click()
    assert "0.31 s" in card.locator(".numbers table").inner_text()
    boxes = [card.locator(f".{side} img").bounding_box() for side in ("before", "after")]
    assert boxes[0] == boxes[1]
    with tab.expect_download() as download:
        card.locator(".save").click()
    assert download.value.suggested_filename == "holiday 1952-restored.jpg"
    with Pillow.open(download.value.path()) as image:
        assert (image.format, image.size) == ("JPEG", (512, 512))


@pytest.mark.browser
def test_other_options_without_choosing_the_file_again(opened: Any, server: FakeServer) -> None:
    tab = opened()
    tab.set_input_files("#choose", PHOTOGRAPH)
    card = done(tab)
    assert card.locator(".again").text_content() == "Restore again"
    tab.get_by_label("best").check()
    tab.locator("#faces").select_option("largest")
    tab.locator("#upscale").select_option("2")
    tab.get_by_label("Strength").fill("70")
    tab.get_by_label("Keep the faces’ colours").check()  # noqa: RUF001
    tab.get_by_text("More options").click()
    tab.get_by_label("File format").select_option("image/webp")
    tab.get_by_label("Seed").fill("7")
    card.get_by_role("button", name="Restore with these options").click()
    until(tab, ".about", "^1024")
    sent = server.posts()[1]
    expected = {"seed": "7", "preset": "best", "mode": "photo", "faces": "largest", "upscale": "2"}
    assert sent.query == {**expected, "blend": "0.7", "keep_colour": "true", "restore_sharp": "false"}
    assert sent.headers["accept"] == "image/webp"
    boxes = [card.locator(f".{side} img").bounding_box() for side in ("before", "after")]
    assert boxes[0] == boxes[1]
    tab.get_by_label("The picture is").select_option("aligned")
    assert tab.get_by_label("Strength").is_disabled()
    card.locator(".again").click()
    until(tab, ".about", "^512")
    assert server.posts()[2].query == {"seed": "7", "preset": "best", "mode": "aligned"}


@pytest.mark.browser
def test_everything_by_keyboard(opened: Any, server: FakeServer) -> None:
    server.delay = 0.5
    tab = opened()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "choose"
    with tab.expect_file_chooser() as chooser:
        tab.keyboard.press("Space")
    chooser.value.set_files(PHOTOGRAPH)
    done(tab)
    tab_to(tab, "document.activeElement.type", "range")
    card, before = tab.locator(".card"), "getComputedStyle(document.querySelector('.frame')).getPropertyValue('--at')"
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
    assert tab.evaluate(before) == "55%"
    tab.keyboard.press("Home")
    assert tab.evaluate(before) == "0%"
    tab.keyboard.press("End")
    assert tab.evaluate(before) == "100%"
    assert card.locator(".frame").evaluate("(frame) => getComputedStyle(frame).outlineStyle") == "solid"
    tab_to(tab, "document.activeElement.textContent", "Restore again")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.className") == "cancel"  # the focus stays in the card
    done(tab)
    assert "save" in tab.evaluate("document.activeElement.className")
    with tab.expect_download():
        tab.keyboard.press("Enter")


@pytest.mark.browser
def test_the_slider_follows_mouse_and_finger(opened: Any) -> None:
    tab = opened(has_touch=True)
    tab.set_input_files("#choose", PHOTOGRAPH)
    done(tab)
    box = tab.locator(".frame").bounding_box()
    at = "parseFloat(getComputedStyle(document.querySelector('.frame')).getPropertyValue('--at'))"
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] / 2, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 4, middle)
    tab.mouse.up()
    assert abs(tab.evaluate(at) - 25) < 1.5
    tab.touchscreen.tap(box["x"] + box["width"] * 0.75, middle)
    assert abs(tab.evaluate(at) - 75) < 1.5


@pytest.mark.browser
def test_cancel(opened: Any, server: FakeServer) -> None:
    server.delay = 20
    server.front.visits["earlier"] = Visit("earlier")
    tab = opened()
    tab.set_input_files("#choose", PHOTOGRAPH)
    until(tab, ".status", "^Waiting for its turn, 1")
    tab.get_by_role("button", name="Cancel").click()
    assert tab.locator(".status").text_content() == "Cancelled"
    wait_for(tab, lambda: server.cancelled)
    assert server.cancelled == 1  # the server knows that nobody waits
    server.delay = 0
    tab.get_by_role("button", name="Restore again").click()
    done(tab)


@pytest.mark.browser
def test_a_busy_server_is_asked_once_more(opened: Any, server: FakeServer) -> None:
    server.faults = [Fault(503, "64 requests wait: try again in 2 s", "2")]
    tab = opened()
    tab.set_input_files("#choose", PHOTOGRAPH)
    tab.locator(".clock:visible").wait_for()
    assert re.fullmatch(r"Trying again in [12] s", tab.locator(".clock").text_content())
    assert "64 requests wait" in tab.locator(".status").text_content()
    done(tab)
    first, second = server.posts()
    assert second.at - first.at >= 1.9
    server.faults = [Fault(503, "still busy: come back later", "1")] * 2
    tab.locator(".again").click()
    tab.locator(".error:visible").wait_for()
    assert tab.locator(".error").text_content() == "Still busy: come back later"
    assert tab.locator(".save").is_visible()  # of the earlier result
    server.faults = [Fault(503, "busy", "60")]
    tab.get_by_role("button", name="Try again").click()
    tab.locator(".clock:visible").wait_for()
    tab.get_by_role("button", name="Cancel").click()
    until(tab, ".status", "^Cancelled$")


@pytest.mark.browser
def test_the_api_key_is_asked_for_and_kept_for_this_tab(opened: Any, server: FakeServer) -> None:
    server.key = KEY
    tab = opened()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_label("Key", exact=True).fill("a wrong key of some length")
    tab.keyboard.press("Enter")
    tab.set_input_files("#choose", PHOTOGRAPH)
    dialog.get_by_text("The server refused the key").wait_for()
    dialog.get_by_label("Key", exact=True).fill(KEY)
    dialog.get_by_role("button", name="Use this key").click()
    done(tab)
    assert server.posts()[-1].headers["authorization"] == f"Bearer {KEY}"
    assert tab.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    tab.reload()
    tab.wait_for_selector(".preset")
    assert not dialog.is_visible()


@pytest.mark.browser
def test_a_browser_that_stores_nothing(browser: Any, server: FakeServer, tmp_path: Path) -> None:
    """With all cookies blocked, even to name the storage is an error."""
    context = browser.new_context()
    context.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    server.key = KEY
    tab = context.new_page()
    tab.goto(server.url)
    tab.fill("#key", KEY)
    tab.click("text=Use this key")
    drop(tab, tiny(tmp_path / "a.png"))
    tab.wait_for_selector(".save:not([hidden])")
    context.close()


@pytest.mark.browser
def test_without_the_key_nothing_is_sent_again(opened: Any, server: FakeServer) -> None:
    tab = opened()
    server.key = KEY
    tab.set_input_files("#choose", PHOTOGRAPH)
    tab.get_by_role("dialog").wait_for()
    tab.keyboard.press("Escape")
    assert "needs an API key" in tab.locator(".error:visible").text_content()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 320])
def test_a_phone(opened: Any, server: FakeServer, width: int) -> None:
    tab = opened(viewport={"width": width, "height": 640}, has_touch=True, is_mobile=True)
    assert tab.get_by_text("Take a picture").is_visible()
    assert tab.locator("#camera").get_attribute("capture") == "environment"
    server.faults = [Fault(500, "x" * 300)]
    drop(tab, ("a-very-long-name-" * 12 + ".jpg", "image/jpeg", PHOTOGRAPH.read_bytes()))
    tab.locator(".error:visible").wait_for()
    tab.locator(".again").tap()
    done(tab)
    tab.locator("#options > summary").tap()
    tab.get_by_text("More options").tap()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    small = tab.evaluate(
        """[...document.querySelectorAll("button, .button, select, #options > summary")]
        .map((e) => e.getBoundingClientRect()).filter((box) => box.width && box.height < 32).length"""
    )
    assert small == 0


@pytest.mark.browser
def test_what_is_shown_first_is_in_sight_and_a_refused_file_is_small(opened: Any, server: FakeServer) -> None:
    server.delay = 2
    tab = opened(viewport={"width": 1280, "height": 860})
    tab.set_input_files("#choose", PHOTOGRAPH)
    until(tab, ".status", "Restoring")
    for selector in (".card progress", ".card .cancel", ".card .status"):
        box = tab.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= 860, selector
    done(tab)
    assert tab.locator(".card .save").bounding_box()["y"] < 860
    server.delay = 0
    server.faults = [Fault(422, "the image is damaged: copy it again")]
    tab.set_input_files("#choose", {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": PHOTOGRAPH.read_bytes()})
    refused = tab.locator(".card").nth(1)
    refused.locator(".error:visible").wait_for()
    assert not refused.locator(".frame").is_visible()
    assert refused.bounding_box()["height"] < 150
    assert not refused.locator(".again").is_visible()  # the same would be refused again
    tab.get_by_label("best").check()
    refused.get_by_role("button", name="Restore with these options").click()
    done(tab, 1)


@pytest.mark.browser
def test_labels_lie_on_a_portrait(opened: Any, tmp_path: Path) -> None:
    tab = opened()
    Pillow.new("RGB", (300, 900), (90, 120, 60)).save(tmp_path / "tall.png")
    tab.set_input_files("#choose", tmp_path / "tall.png")
    card = done(tab)
    picture = card.locator(".after img").bounding_box()
    assert abs(picture["width"] / picture["height"] - 1 / 3) < 0.01
    for side in ("before", "after"):
        label = card.locator(f".{side} figcaption").bounding_box()
        assert picture["x"] <= label["x"]
        assert label["x"] + label["width"] <= picture["x"] + picture["width"]


@pytest.mark.browser
def test_all_results_are_downloaded_at_once(opened: Any, tmp_path: Path) -> None:
    tab = opened()
    assert not tab.locator("#fetch-all").is_visible()
    drop(tab, *(tiny(tmp_path / f"{n}.png", (40 * n, 90, 90)) for n in range(3)))
    for n in range(3):
        done(tab, n)
    names: list[str] = []
    tab.on("download", lambda download: names.append(download.suggested_filename))
    tab.get_by_role("button", name="Download all 3").click()
    wait_for(tab, lambda: len(names) == 3)
    assert names == [f"{n}-restored.png" for n in range(3)]
    for n in (2, 1):
        tab.get_by_role("button", name=f"Remove {n}.png").click()
    assert not tab.locator("#fetch-all").is_visible()


@pytest.mark.browser
@pytest.mark.parametrize("key", [None, KEY])
def test_a_video_is_a_job_which_survives_a_reload(opened: Any, server: FakeServer, key: str | None) -> None:
    server.key = key
    tab = opened()
    failures: list[str] = []
    tab.on("response", lambda answer: answer.status == 404 and failures.append(answer.url))
    if key:
        tab.keyboard.press("Escape")
        tab.evaluate("(key) => sessionStorage.setItem('bfr-api-key', key)", key)
    tab.get_by_text("More options").click()
    tab.get_by_label("every Nth frame").fill("4")
    drop(tab, ("film.mp4", "video/mp4", b"moving"))
    wait_for(tab, lambda: server.posts("/jobs"))
    until(tab, ".status", "Waiting for its turn|Restoring")
    wait_for(tab, lambda: tab.evaluate("sessionStorage.getItem('bfr-jobs')"))
    tab.reload()
    tab.locator(".fetch:visible").wait_for()
    assert tab.locator(".name").text_content() == "film.mp4"
    assert "3 frames" in tab.locator(".about").text_content()
    (sent,) = server.posts("/jobs")
    assert (sent.headers["content-type"], sent.body) == ("video/mp4", b"moving")
    assert sent.query["key_frames"] == "4"
    with tab.expect_download() as download:
        tab.locator(".fetch").click()
    assert download.value.suggested_filename == "film-restored.mp4"
    assert Path(download.value.path()).read_bytes() == b"gnivom"
    tab.get_by_role("button", name="Remove film.mp4").click()
    wait_for(tab, lambda: server.deleted)
    assert len(server.deleted) == 1
    tab.reload()
    tab.wait_for_selector(".preset", state="attached")
    assert tab.locator(".card").count() == 0
    assert failures == []


@pytest.mark.browser
def test_presets_are_told_in_words_of_speed_and_quality(opened: Any) -> None:
    tab = opened()
    texts = tab.locator(".preset").all_inner_texts()
    assert ["Best quality" in text for text in texts] == [False, True, False]
    assert "20 times as fast" in texts[2]
    assert "5 times as fast" in texts[0]
    assert not any(re.search(r"unipc|ddim|t = |steps", text) for text in texts)


@pytest.mark.browser
def test_hostile_names_and_details_are_text(opened: Any, server: FakeServer) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    server.faults = [Fault(422, hostile)]
    tab = opened()
    drop(tab, (f"{hostile}.jpg", "image/jpeg", PHOTOGRAPH.read_bytes()))
    tab.locator(".error:visible").wait_for()
    assert tab.locator(".error").text_content() == hostile
    assert tab.locator(".name").text_content() == f"{hostile}.jpg"
    assert tab.locator("body script, img[src=x]").count() == 0


@pytest.mark.browser
def test_several_files_each_get_a_card(opened: Any, server: FakeServer, tmp_path: Path) -> None:
    server.delay = 0.3
    tab = opened()
    drop(tab, *(tiny(tmp_path / f"{n}.png", (40 * n, 90, 90)) for n in range(4)), ("notes.txt", "text/plain", b"no"))
    for nth in range(4):
        assert done(tab, nth).locator(".name").text_content() == f"{nth}.png"
    notes = tab.locator(".card").nth(4)
    assert "no picture" in notes.locator(".error").text_content()
    assert not notes.locator(".again").is_visible()  # other options would change nothing
    assert server.most_at_once <= 2
    assert len(server.posts()) == 4
    tab.get_by_role("button", name="Remove 0.png").click()
    assert tab.locator(".name").first.text_content() == "1.png"
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove 1.png"


@pytest.mark.browser
def test_what_a_browser_cannot_show_has_a_result_alone(opened: Any, tmp_path: Path) -> None:
    tab = opened()
    drop(tab, tiny(tmp_path / "scan.tiff"))
    card = done(tab)
    assert "cannot show the file itself" in card.locator(".note").text_content()
    assert card.locator(".after img").is_visible()
    assert not card.locator(".before").is_visible()
    assert not card.locator("[type=range]").is_visible()


@pytest.mark.browser
def test_a_turned_photograph_has_one_box(opened: Any, server: FakeServer, tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    turned = tiny(tmp_path / "turned.jpg", exif=exif)
    upright = tmp_path / "upright.png"
    Pillow.new("RGB", (48, 64), (90, 120, 60)).save(upright)
    server.result = upright.read_bytes()
    tab = opened()
    drop(tab, turned)
    card = done(tab)
    for side in ("before", "after"):
        assert card.locator(f".{side} img").evaluate("(i) => [i.naturalWidth, i.naturalHeight]") == [48, 64]


@pytest.mark.browser
def test_a_server_without_jobs_takes_no_videos(opened: Any, server: FakeServer) -> None:
    server.jobs = False
    tab = opened()
    tab.get_by_text("More options").click()
    assert not tab.get_by_label("every Nth frame").is_visible()
    drop(tab, ("film.mp4", "video/mp4", b"moving"))
    assert "takes no videos" in tab.locator(".error:visible").text_content()


@pytest.mark.browser
def test_a_system_without_a_loop_has_no_presets(opened: Any, server: FakeServer) -> None:
    server.presets = {}
    tab = opened(wait=False)
    tab.set_input_files("#choose", PHOTOGRAPH)
    done(tab)
    assert not tab.get_by_text("Preset").is_visible()
    assert "preset" not in server.posts()[0].query


@pytest.mark.browser
def test_of_several_bundles_one_is_chosen(opened: Any, server: FakeServer) -> None:
    server.second = True
    tab = opened()
    assert tab.locator(".preset").count() == 3
    tab.locator("#bundle").select_option("second")
    assert tab.locator(".preset b span").all_inner_texts() == ["Only"]
    tab.set_input_files("#choose", PHOTOGRAPH)
    done(tab)
    assert (server.posts()[0].query["bundle"], server.posts()[0].query["preset"]) == ("second", "only")


@pytest.mark.browser
def test_pasted_pictures_are_restored(opened: Any, server: FakeServer) -> None:
    tab = opened()
    tab.evaluate("delete Crypto.prototype.randomUUID")  # as at an address without https
    tab.evaluate(
        """async () => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
            canvas.getContext("2d").fillRect(0, 0, 8, 8); // an empty context is no picture
            const blob = await new Promise((made) => canvas.toBlob(made));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([blob], "image.png", { type: "image/png" }));
            dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }"""
    )
    done(tab)
    assert server.posts()[0].headers["content-type"] == "image/png"
    assert re.fullmatch("[0-9a-f]{32}", server.posts()[0].headers["x-request-id"])


def test_contrast() -> None:
    """WCAG AA: 4.5 for text, 3 for the edges of controls, in both schemes."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def ratio(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    schemes = re.findall(r":root \{(.*?)\}", served_page()[0].decode(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for ground in ("paper", "mat"):
            assert min(ratio(colours[text], colours[ground]) for text in ("ink", "soft", "bad")) >= 4.5
            assert min(ratio(colours[edge], colours[ground]) for edge in ("edge", "focus")) >= 3


@pytest.mark.browser
def test_quiet_where_less_motion_is_wanted(opened: Any) -> None:
    tab = opened(reduced_motion="reduce", color_scheme="dark")
    tab.set_input_files("#choose", PHOTOGRAPH)
    card = done(tab)
    assert card.locator(".frame").evaluate("(frame) => getComputedStyle(frame).animationName") == "none"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 21, 20)"
