"""The interactive editor in a real browser: every signal, cancel, history, reload, and the saved edit made again."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fp_lightning.demo.examples import examples
from fp_lightning.media.edits import Edit, read_edit
from fp_lightning.signals.coarse import filled

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; `make chromium` installs Debian's")
DESKTOP, PHONE = (1280, 900), (390, 844)
PATIENCE = 120_000  # ms; machines are shared


@pytest.fixture(scope="module")
def server():
    from fp_lightning.demo.serve import served

    with served(port=0) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        yield browser
        browser.close()


class User:
    """Somebody with a browser of their own, who sees the page and knows nothing of the server."""

    def __init__(self, browser, server, size, shots: Path, steps: int = 4) -> None:
        width, height = size
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, has_touch=size == PHONE, accept_downloads=True
        )
        self.page, self.server, self.shots, self.errors = self.context.new_page(), server, shots, []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._seen)
        self.page.goto(server.url)
        self.wait_for_canvas()
        self.set("Steps", steps)

    def _seen(self, request) -> None:
        if not request.url.startswith((self.server.url, "data:", "blob:")):
            self.errors.append(f"asked {request.url}")

    def wait_for_canvas(self) -> None:
        self.page.wait_for_selector("#canvas canvas[data-ready]")
        self.page.wait_for_function("document.querySelector('#tree button')")

    def wait_for_another_photo(self, key: str) -> None:
        self.page.wait_for_function("key => document.querySelector('#canvas canvas').dataset.ready !== key", arg=key)

    @property
    def work(self):
        """What the server has of this browser: the work whose shown image is on the page."""
        (found,) = [work for work in self.server.page.works if self.key in work.nodes]
        return found

    @property
    def key(self) -> str:
        """Of the photo on the canvas."""
        return self.page.get_attribute("#canvas canvas", "data-ready")

    @property
    def drawing(self) -> dict:
        """As the browser keeps it."""
        return json.loads(self.page.evaluate("localStorage.getItem('fp_lightning drawings')"))[self.key]

    @property
    def status(self) -> str:
        return self.page.inner_text("#status")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A position in the photo, in pixels → on the screen."""
        self.page.locator("#canvas canvas").scroll_into_view_if_needed()
        box = self.page.locator("#canvas canvas").bounding_box()
        height, width = self.work.node(self.key).size
        return box["x"] + x / width * box["width"], box["y"] + y / height * box["height"]

    def pull(self, *points: tuple[float, float]) -> None:
        """Press at the first position of the photo, go through the others, release at the last."""
        first, *others = [self.place(*point) for point in points]
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for point in others:
            self.page.mouse.move(*point, steps=4)
        self.page.mouse.up()

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits for something that takes its time."""
        for _ in range(PATIENCE // 100):
            if holds():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError("it did not come to be")

    def press(self, text: str, inside: str = "#canvas") -> None:
        self.page.locator(inside).get_by_role("button", name=text, exact=True).or_(
            self.page.locator(inside).get_by_role("tab", name=text, exact=True)
        ).first.click()

    def set(self, label: str, value: int) -> None:
        self.page.get_by_label(f"number input for {label}").fill(str(value))
        self.page.get_by_label(f"number input for {label}").press("Enter")

    def wait_for_status(self, *texts: str) -> str:
        self.page.wait_for_function(
            "texts => texts.some(text => document.querySelector('#status').textContent.includes(text))", arg=list(texts)
        )
        return self.status

    def edit(self) -> str:
        """Press Edit and wait for its end."""
        self.page.click("#edit")
        self.page.wait_for_selector("#cancel:not([disabled])")
        self.page.wait_for_selector("#cancel[disabled]")
        return self.status

    def canvas_pixels(self, size: tuple[int, int]) -> np.ndarray:
        """What the canvas shows, RGB [h, w, 3] at `size` (width, height)."""
        url = self.page.evaluate("document.querySelector('#canvas canvas').toDataURL()")
        image = Image.open(io.BytesIO(b64decode(url.partition(",")[2]))).convert("RGB")
        return np.array(image.resize(size, Image.Resampling.BOX)).astype(int)

    def upload(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#upload")
        chooser.value.set_files(str(path))

    def shot(self, name: str) -> None:
        self.page.screenshot(path=str(self.shots / f"{name}.png"), full_page=True)


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def user(browser, server, request, tmp_path):
    user = User(browser, server, request.param, tmp_path)
    yield user
    user.context.close()
    assert not user.errors


@pytest.fixture
def desktop(browser, server, tmp_path):
    user = User(browser, server, DESKTOP, tmp_path)
    yield user
    user.context.close()
    assert not user.errors


def near(line, expected, within: float = 2.0) -> bool:
    return np.allclose(np.array(line), np.array(expected), atol=within)


def shown_edit(user: User):
    return read_edit(user.work.node(user.work.shown).edit)


def test_a_sketch_on_the_example_is_edited(user):
    assert user.drawing["strokes"], "the example comes with its sketch"
    user.shot("1-opened")
    user.press("Clear")
    user.pull((40, 60), (120, 60), (120, 140))
    assert near(user.drawing["strokes"][0]["points"][0], (40, 60)) and near(
        user.drawing["strokes"][0]["points"][-1], (120, 140)
    )
    user.press("Eraser")
    user.pull((40, 50), (40, 70))
    assert [stroke["erase"] for stroke in user.drawing["strokes"]] == [False, True]
    user.page.get_by_label("Outlines to trace").check()
    user.shot("2-sketch")
    assert "1 edit in " in user.edit()
    user.shot("3-edited")
    edit = shown_edit(user)
    marked = np.array(edit.sketch)[..., 3] > 0
    assert marked[60, 60:115].all() and marked[65:135, 120].all() and not marked[60, 38:42].any()
    assert edit.points is None and edit.coarse is None
    assert user.page.locator("#compare img").count() == 2
    result = user.work.node(user.work.shown).open()
    assert not np.array_equal(np.array(result), np.array(edit.image))


def test_arrows_are_pulled_moved_and_deleted(user):
    user.press("Clear")
    user.press("Drag")
    user.pull((60, 150), (100, 90))
    user.pull((150, 50), (200, 50))
    user.pull((200, 200), (220, 220))
    user.page.locator("#canvas canvas").press("Delete")  # the chosen one, which is the last
    assert near(user.drawing["arrows"], [[60, 150, 100, 90], [150, 50, 200, 50]])
    user.pull((200, 50), (200, 80))  # its end
    user.pull((80, 120), (85, 120))  # the first as a whole
    expected = [[65, 150, 105, 90], [150, 50, 200, 80]]
    assert near(user.drawing["arrows"], expected)
    user.press("Region")
    user.press("Box")
    user.pull((20, 20), (230, 200))
    user.press("Drag")
    user.shot("1-arrows")
    user.edit()
    user.shot("2-edited")
    edit = shown_edit(user)
    assert near(edit.points, expected)
    photo, result = np.array(edit.image), np.array(user.work.node(user.work.shown).open())
    assert np.array_equal(result[205:], photo[205:]) and not np.array_equal(result[100:150], photo[100:150])


def test_a_lassoed_part_is_moved_scaled_turned_mirrored_copied_and_deleted(user):
    user.press("Clear")
    user.press("Cut & paste")
    outline = [(30, 100), (90, 90), (130, 150), (100, 200), (30, 190), (30, 110)]
    user.pull(*outline)
    user.pull((80, 150), (130, 110))
    (piece,) = user.drawing["pieces"]
    assert near(piece["outline"][0], outline[0]) and near(piece["move"], (50, -40))
    left, top = np.min(piece["outline"], 0)
    right, bottom = np.max(piece["outline"], 0)
    centre = np.array([(left + right) / 2, (top + bottom) / 2]) + piece["move"]
    corner = np.array([right, bottom]) + piece["move"]
    user.pull(tuple(corner), tuple(centre + 1.5 * (corner - centre)))
    assert user.drawing["pieces"][0]["scale"] == pytest.approx(1.5, abs=0.08)
    user.press("Mirror")
    user.press("Duplicate")
    user.shot("1-cut")
    copies = user.drawing["pieces"]
    assert [p["copied"] for p in copies] == [False, True] and all(p["mirror"] for p in copies)
    user.press("Delete")
    assert len(user.drawing["pieces"]) == 1
    assert "1 edit in " in user.edit()
    user.shot("2-edited")
    edit = shown_edit(user)
    user.press("Region")  # where no frames are drawn
    coarse, photo = np.array(edit.coarse).astype(int), np.array(edit.image).astype(int)
    away = np.abs(user.canvas_pixels((256, 256)) - coarse).mean(-1)
    assert np.median(away) <= 1 and np.mean(away > 24) < 0.02, "what is shown live is what the model is given"
    assert np.abs(coarse - photo)[100:160, 60:100].mean() > 5  # the hole, and what came over it
    user.press("Cut & paste")
    user.pull((130, 110), (131, 110))  # choose it again
    user.press("Delete")
    assert user.drawing["pieces"][0]["gone"]
    user.press("Put back")
    assert not user.drawing["pieces"]


def test_an_edit_is_cancelled_and_the_drawing_kept(desktop):
    user = desktop
    drawing = user.drawing
    user.set("Steps", 100)
    user.set("Candidates", 4)
    user.page.click("#edit")
    user.page.wait_for_selector("#results img")
    user.shot("1-preview")
    user.page.click("#cancel")
    said = user.wait_for_status("Cancelled,")
    user.shot("2-cancelled")
    assert "of 4 made; your drawing is kept" in said
    assert user.drawing == drawing
    assert user.page.locator("#edit").is_enabled() and len(user.server.page.desk) == 0


def test_a_result_is_gone_on_with_and_the_history_is_a_tree(desktop):
    user = desktop
    user.set("Candidates", 2)
    assert "2 edits in " in user.edit()
    assert user.page.locator("#results button").count() == 2
    user.page.locator("#results button").first.click()
    user.page.wait_for_selector("#results button:first-child[aria-selected=true]")
    first = user.page.locator("#tree button").nth(1)
    user.page.wait_for_selector("#tree li li:first-child button[aria-selected=true]")
    photo = user.key
    user.page.click("#continue")
    user.wait_for_another_photo(photo)
    assert "on the canvas" in first.inner_text()
    assert user.drawing == {"strokes": [], "arrows": [], "pieces": [], "region": []}
    user.pull((50, 50), (150, 150))
    user.set("Candidates", 1)
    user.edit()
    user.shot("1-tree")
    work = user.work
    grandchild = work.node(work.shown)
    assert work.node(grandchild.parent).parent == photo
    assert user.page.locator("#tree li li li button").count() == 1
    user.page.click("#recall")
    user.wait_for_status("The drawing and its settings are back")
    assert user.key == grandchild.parent and len(user.drawing["strokes"]) == 1


def test_undo_redo_and_what_is_there_after_a_reload(user):
    user.press("Clear")
    user.pull((50, 50), (150, 50))
    user.pull((50, 100), (150, 100))
    two = user.drawing
    user.press("Undo")
    assert user.drawing["strokes"] == two["strokes"][:1]
    user.press("Redo")
    assert user.drawing == two
    user.page.locator("#canvas canvas").press("Control+z")
    user.press("Drag")
    user.pull((60, 60), (90, 90))
    before, key = user.drawing, user.key
    assert len(before["strokes"]) == len(before["arrows"]) == 1
    user.edit()
    nodes = list(user.work.nodes)
    user.page.reload()
    user.wait_for_canvas()
    user.shot("1-reloaded")
    assert user.key == key and user.drawing == before and list(user.work.nodes) == nodes
    assert user.page.locator("#tree button").count() == len(nodes)
    assert user.page.locator("#compare img").count() == 2
    assert user.page.get_by_label("number input for Steps").input_value() == "4", "settings are as they were"


def test_the_saved_edit_is_made_again_to_the_same_pixels_by_predict(desktop, tmp_path):
    user = desktop
    user.press("Drag")
    user.pull((60, 150), (100, 90))
    user.edit()
    files = {}
    for button, name in (("#image", "shown.png"), ("#json", "mine.edit.json")):
        with user.page.expect_download() as download:
            user.page.click(button)
        files[name] = tmp_path / "inputs" / name
        download.value.save_as(files[name])
    shown = files["shown.png"].rename(tmp_path / "shown.png")
    command = [sys.executable, "-m", "fp_lightning", "predict", "--config", "tiny", "--config", "signals/all"]
    options = {
        "model.editor.model": "tiny-editor",
        "data.inputs": tmp_path / "inputs",
        "trainer.default_root_dir": tmp_path,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it in the last bit
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=os.environ | threads)
    assert done.returncode == 0, done.stderr
    again = np.array(Image.open(tmp_path / "predictions" / "mine.png"))
    assert np.array_equal(again, np.array(Image.open(shown)))
    edit = read_edit(files["mine.edit.json"])
    assert (
        edit.sketch is not None
        and near(edit.points, [[60, 150, 100, 90]])
        and edit.settings["num_inference_steps"] == 4
    )
    # and it is opened on a page again, with its drawing and settings
    drawing, key = user.drawing, user.key
    user.upload(files["mine.edit.json"])
    user.wait_for_another_photo(key)
    assert user.drawing == drawing


def test_the_viewer_shows_where_a_place_comes_from(desktop):
    user = desktop
    user.edit()
    user.page.locator("#where > button").click()
    user.page.click("#look")
    user.page.wait_for_selector("#lookup canvas.edit[data-ready]")
    canvas = user.page.locator("#lookup canvas.edit")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    user.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.7)
    user.page.wait_for_selector("#lookup canvas.source[data-found]")
    assert 0 <= int(user.page.get_attribute("#lookup canvas.source", "data-found")) < 256
    user.shot("1-where")


def test_failures_are_sentences_and_the_drawing_stays(desktop, tmp_path):
    user = desktop
    user.press("Clear")
    user.page.click("#edit")
    assert "Draw first: a stroke, an arrow, or a part that is cut out and moved." in user.wait_for_status("Draw first")
    user.pull((50, 50), (150, 50))
    drawing = user.drawing
    (tmp_path / "holiday.png").write_text("this is no picture")
    user.upload(tmp_path / "holiday.png")
    assert "holiday.png is not an image" in user.wait_for_status("is not an image")
    assert user.drawing == drawing and user.page.locator("#status [role=alert]").count() == 1
    Edit(Image.new("RGB", (40, 30)), points=[[1, 1, 9, 9]], drawing={"strokes": 5}).save(tmp_path / "odd.edit.json")
    user.upload(tmp_path / "odd.edit.json")
    user.wait_for_status("Strokes of the drawing are no list")
    user.server.page.works._works.clear()
    user.page.click("#edit")
    assert "has expired; reload the page" in user.wait_for_status("expired")
    assert user.drawing == drawing


def test_an_example_is_as_new_when_it_is_pressed_and_undo_returns(desktop):
    user, new = desktop, desktop.drawing
    user.pull((50, 50), (150, 50))
    mine = user.drawing
    for _ in range(2):  # the second time nothing but the press is new
        user.page.locator("#examples button").first.click()
        user.until(lambda: user.drawing == new)
        user.press("Undo")
        assert user.drawing == mine
    user.page.locator("#examples button").nth(1).click()
    user.wait_for_another_photo(user.key)
    assert user.drawing["arrows"] and not user.drawing["strokes"]
    assert user.page.locator("#canvas [data-do=undo]").is_disabled(), (
        "what was drawn on another photo is not undone here"
    )


def test_every_example_is_edited_as_it_comes(desktop):
    user = desktop
    for number, example in enumerate(examples()):
        user.page.locator("#examples button").nth(number).click()
        user.page.wait_for_selector(f"#canvas [data-mode={example.mode}][aria-selected=true]")
        assert "1 edit in " in user.edit()
        user.shot(f"example-{number}")
        edit = shown_edit(user)
        given = {"sketch": edit.sketch, "drag": edit.points, "cut": edit.coarse}
        assert [name for name, value in given.items() if value is not None] == [example.mode]


def test_a_preview_comes_before_the_end(desktop):
    user = desktop
    user.set("Steps", 25)
    user.page.click("#edit")
    user.page.wait_for_selector("#results img")
    assert user.page.locator("#results [aria-selected=true]").count() == 0, "what is shown is not a result yet"
    assert "Step" in user.status
    user.page.wait_for_selector("#results [aria-selected=true] img")


def test_an_edit_under_way_is_followed_after_a_reload(desktop):
    user = desktop
    user.set("Steps", 100)
    user.page.click("#edit")
    user.page.wait_for_selector("#results img")
    user.page.reload()
    user.wait_for_canvas()
    user.wait_for_status("Step ")
    user.page.wait_for_selector("#results [aria-selected=true] img")
    assert "1 edit in " in user.wait_for_status("1 edit in ")
    assert user.page.locator("#tree button").count() == 2


def test_two_tabs_show_the_same_drawing(desktop):
    user, key = desktop, desktop.key
    other = user.context.new_page()
    other.goto(user.server.url)
    other.wait_for_selector("#canvas canvas[data-ready]")
    assert other.get_attribute("#canvas canvas", "data-ready") == key
    user.pull((50, 50), (150, 50))
    both = user.drawing
    assert (user.canvas_pixels((256, 256))[50, 100] > 200).all()  # white
    other.locator("#canvas").get_by_role("button", name="Clear").click()
    user.until(lambda: (user.canvas_pixels((256, 256))[50, 100] < 200).any())
    assert user.drawing["strokes"] == []
    user.press("Undo")  # here, too
    assert user.drawing == both


def test_a_new_seed_gives_another_edit(desktop):
    user = desktop
    user.edit()
    first = shown_edit(user).seed
    user.page.click("#new-seed")
    seed = user.page.get_by_label("Seed", exact=True)
    user.until(lambda: seed.input_value() != "0")
    user.edit()
    assert first == 0 and shown_edit(user).seed > 0


def test_two_browsers_see_their_own_work_alone(browser, server, tmp_path):
    one, other = (User(browser, server, DESKTOP, tmp_path) for _ in range(2))
    other.page.locator("#examples button").nth(1).click()
    other.page.wait_for_selector("#canvas [data-mode=drag][aria-selected=true]")
    one.page.click("#edit")
    other.edit()
    one.page.wait_for_selector("#results [aria-selected=true] img")
    assert one.work is not other.work
    assert shown_edit(one).sketch is not None and shown_edit(one).points is None
    assert shown_edit(other).sketch is None and shown_edit(other).points is not None
    for user in (one, other):
        user.context.close()
        assert not user.errors


def test_a_photo_that_is_dropped_is_opened(desktop):
    user, key = desktop, desktop.key
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    user.page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "mine.png", { type: "image/png" }));
            const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
            document.querySelector("#canvas .stage").dispatchEvent(drop);
        }""",
        b64encode(buffer.getvalue()).decode(),
    )
    user.wait_for_another_photo(key)
    assert np.array_equal(np.array(user.work.node(user.key).open()), np.array(photo))
    assert "mine.png is opened, 120 × 90 pixels" in user.wait_for_status("is opened")
    assert "mine.png" in user.page.inner_text("#tree")


def test_a_click_cuts_out_what_a_segmenter_finds(browser, sam_folder, tmp_path):
    from fp_lightning.demo.serve import served

    with served(port=0, segmenter=str(sam_folder)) as running:
        user = User(browser, running, DESKTOP, tmp_path)
        user.press("Clear")
        user.press("Cut & paste")
        user.press("Click")
        for x, y in ((60, 140), (128, 128), (200, 60), (30, 30)):  # a random one finds something at some of them
            user.page.mouse.click(*user.place(x, y))
            user.page.wait_for_function(
                "() => /Cut out|Nothing was found/.test(document.querySelector('#canvas .hint').textContent)"
            )
            if user.drawing["pieces"]:
                mask = filled(np.array(user.drawing["pieces"][0]["outline"]), (256, 256))
                assert mask[y - 3 : y + 3, x - 3 : x + 3].any()
                break
        assert user.drawing["pieces"]
        user.context.close()
        assert not user.errors
