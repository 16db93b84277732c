"""The page in a browser: progress, cancellation, history, files, reload and several tabs."""

from __future__ import annotations

import io
import sys
from base64 import b64encode

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from demo.user import DESKTOP, User, near, new_context
from fp_lightning.cli.main import main as cli
from fp_lightning.media.edits import Edit, read_edit


def test_an_edit_is_cancelled_and_the_drawing_kept(desktop):
    user = desktop
    drawing = user.drawing
    user.set("Steps", 100)
    user.set("Candidates", 4)
    user.page.click("#edit")
    user.page.wait_for_selector("#results img")
    user.shot("1-preview")
    user.page.click("#cancel")
    status = user.wait_for_status("Cancelled after")
    user.shot("2-cancelled")
    assert "of 4 candidates; your drawing is kept" in status
    assert user.drawing == drawing
    assert user.page.locator("#edit").is_enabled() and len(user.server.page.queue) == 0


def test_editing_continues_from_a_result_and_the_history_is_a_tree(desktop):
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
    keep = user.page.get_by_label("Keep unedited pixels")
    keep.uncheck()
    user.edit()
    keep.check()
    user.shot("1-tree")
    session = user.session
    grandchild = session.node(session.shown)
    assert session.node(grandchild.parent).parent == photo
    assert user.page.locator("#tree li li li button").count() == 1
    user.page.click("#restore")
    user.wait_for_status("Restored the drawing and its settings")
    assert user.key == grandchild.parent and len(user.drawing["strokes"]) == 1
    user.until(lambda: not keep.is_checked())  # the settings are saved with the edit


def test_undo_redo_and_reload(desktop):
    user = desktop
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
    nodes = list(user.session.nodes)
    user.page.reload()
    user.wait_for_canvas()
    user.shot("1-reloaded")
    assert user.key == key and user.drawing == before and list(user.session.nodes) == nodes
    assert user.page.locator("#tree button").count() == len(nodes)
    assert user.page.locator("#compare img").count() == 2
    assert user.page.get_by_label("number input for Steps").input_value() == "4", "the settings of the last edit"


def test_a_preset_sets_steps_guidance_and_solver(desktop):
    user = desktop
    for name, values in (("fast", ["12", "3", "dpmpp_2m"]), ("paper", ["25", "3", "euler"])):
        user.page.click(f"#preset-{name}")
        fields = [user.page.get_by_label(f"number input for {label}") for label in ("Steps", "Guidance scale")]
        for field, value in zip([*fields, user.page.get_by_label("Solver")], values, strict=True):
            expect(field).to_have_value(value, timeout=30_000)


def test_predict_reproduces_the_saved_edit_to_the_same_pixels(desktop, tmp_path, monkeypatch):
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
    options = {
        "model.editor.model": "tiny-editor",
        "data.inputs": tmp_path / "inputs",
        "trainer.default_root_dir": tmp_path,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = ["fp-lightning", "predict", "--config", "tiny", "--config", "signals/all"]
    monkeypatch.setattr(sys, "argv", [*command, *words])
    assert cli() == 0
    again = np.array(Image.open(tmp_path / "predictions" / "mine.png"))
    assert np.array_equal(again, np.array(Image.open(shown)))
    edit = read_edit(files["mine.edit.json"])
    assert (
        edit.sketch is not None
        and near(edit.points, [[60, 150, 100, 90]])
        and edit.settings["num_inference_steps"] == 4
    )
    # it opens on the page with its drawing
    drawing, key = user.drawing, user.key
    user.upload(files["mine.edit.json"])
    user.wait_for_another_photo(key)
    assert user.drawing == drawing


def test_the_viewer_shows_where_attention_looks(desktop):
    user = desktop
    user.edit()
    user.page.locator("#attention > button").click()
    user.page.click("#find-matches")
    user.page.wait_for_selector("#matches canvas.edit[data-ready]")
    canvas = user.page.locator("#matches canvas.edit")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    user.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.7)
    user.page.wait_for_selector("#matches canvas.source[data-found]")
    assert 0 <= int(user.page.get_attribute("#matches canvas.source", "data-found")) < 256
    user.shot("1-where")


def test_failures_are_sentences_and_the_drawing_is_kept(desktop, tmp_path):
    user = desktop
    user.press("Clear")
    user.page.click("#edit")
    assert "Draw first: add a stroke, an arrow, or a cut-out that is moved." in user.wait_for_status("Draw first")
    user.pull((50, 50), (150, 50))
    drawing = user.drawing
    (tmp_path / "holiday.png").write_text("this is no picture")
    user.upload(tmp_path / "holiday.png")
    assert "holiday.png is not an image" in user.wait_for_status("is not an image")
    assert user.drawing == drawing and user.page.locator("#status [role=alert]").count() == 1
    Edit(Image.new("RGB", (40, 30)), points=[[1, 1, 9, 9]], drawing={"strokes": 5}).save(tmp_path / "odd.edit.json")
    user.upload(tmp_path / "odd.edit.json")
    user.wait_for_status("Strokes in the drawing must be a list")
    user.server.page.sessions._sessions.clear()
    user.page.click("#edit")
    assert "has expired; reload the page" in user.wait_for_status("expired")
    assert user.drawing == drawing


def test_a_pressed_example_resets_its_drawing_and_undo_returns(desktop):
    user, new = desktop, desktop.drawing
    user.pull((50, 50), (150, 50))
    mine = user.drawing
    for _ in range(2):  # the second time, only the press is new
        user.page.locator("#examples button").first.click()
        user.until(lambda: user.drawing == new)
        user.press("Undo")
        assert user.drawing == mine
    key = user.key
    user.page.locator("#examples button").nth(1).click()
    user.wait_for_another_photo(key)
    assert user.drawing["arrows"] and not user.drawing["strokes"]
    assert user.page.locator("#canvas [data-do=undo]").is_disabled(), "strokes on another photo are not undone here"


def test_a_preview_comes_before_the_end(desktop):
    user = desktop
    user.set("Steps", 25)
    user.page.click("#edit")
    user.page.wait_for_selector("#results img")
    assert user.page.locator("#results [aria-selected=true]").count() == 0, "a preview is not a result"
    assert "Step" in user.status
    user.page.wait_for_selector("#results [aria-selected=true] img")


def test_a_running_edit_is_followed_after_a_reload(desktop):
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
    user.press("Undo")  # in this tab, too
    assert user.drawing == both


def test_a_new_seed_gives_another_edit(desktop):
    user = desktop
    user.edit()
    first = user.shown_edit.seed
    user.page.click("#new-seed")
    seed = user.page.get_by_label("Seed", exact=True)
    user.until(lambda: seed.input_value() != "0")
    user.edit()
    assert first == 0 and user.shown_edit.seed > 0


def test_two_browsers_see_only_their_own_session(browser, server, tmp_path):
    one, other = (User(new_context(browser, DESKTOP), server, tmp_path) for _ in range(2))
    other.page.locator("#examples button").nth(1).click()
    other.page.wait_for_selector("#canvas [data-mode=drag][aria-selected=true]")
    one.page.click("#edit")
    other.edit()
    one.page.wait_for_selector("#results [aria-selected=true] img")
    assert one.session is not other.session
    assert one.shown_edit.sketch is not None and one.shown_edit.points is None
    assert other.shown_edit.sketch is None and other.shown_edit.points is not None
    for user in (one, other):
        user.context.close()
        assert not user.errors


def test_a_dropped_photo_opens(desktop):
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
    assert np.array_equal(np.array(user.session.node(user.key).open()), np.array(photo))
    assert "Opened mine.png, 120 × 90 pixels" in user.wait_for_status("Opened mine.png")
    assert "mine.png" in user.page.inner_text("#tree")
