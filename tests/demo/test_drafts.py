"""Drafts while a piece is moved: which machines and editors have them, what they show, and that they give way."""

from __future__ import annotations

import io
import threading
from base64 import b64decode

import numpy as np
import pytest
from conftest import make_editor
from PIL import Image

from demo.inputs import picture
from demo.user import DESKTOP, User
from fp_lightning.demo import drafts as drafts_module
from fp_lightning.demo.drafts import Drafts
from fp_lightning.demo.editing import EditService
from fp_lightning.demo.queue import EditQueue
from fp_lightning.demo.serve import served
from fp_lightning.demo.session import Sessions
from fp_lightning.inference.pipeline import FramePainterPipeline

ARROW = {"arrows": [[10, 10, 40, 30]]}


@pytest.fixture(scope="module")
def pipe() -> FramePainterPipeline:
    return FramePainterPipeline.from_editor(make_editor(distilled_steps=2), (64, 64))


@pytest.fixture
def made(pipe, tmp_path):
    """Drafts, their queue, and the key of a photo."""
    queue, sessions = EditQueue(), Sessions(tmp_path)
    key = sessions.new().add_photo(picture(80, 60), "photo").key
    yield Drafts(EditService(pipe, "test"), queue, sessions, slowest=1e9), queue, key
    queue.close()


def test_a_draft_is_the_edit_of_one_step(made, pipe):
    drafts, _, key = made
    found = drafts.draft({"key": key, **ARROW})
    image = Image.open(io.BytesIO(b64decode(found["src"].partition(",")[2])))
    edit = drafts.service.prepare(
        drafts_module.Edit(picture(80, 60), points=ARROW["arrows"], settings=drafts_module.ONE_STEP)
    )
    assert np.array_equal(np.array(image), np.array(pipe(**edit.arguments()).images[0]))


@pytest.mark.parametrize(("distilled", "slowest", "live"), [(2, 1e9, True), (2, 0.0, False), (None, 1e9, False)])
def test_only_a_distilled_editor_on_a_fast_machine_has_drafts(distilled, slowest, live, tmp_path):
    service = EditService(FramePainterPipeline.from_editor(make_editor(distilled_steps=distilled), (64, 64)), "test")
    assert Drafts(service, EditQueue(), Sessions(tmp_path), slowest).live == live


def test_a_draft_gives_way_to_edits_and_to_the_next_draft(made):
    drafts, queue, key = made
    gate = threading.Event()
    edit = queue.submit("somebody", lambda job: gate.wait(60))
    assert drafts.draft({"key": key, **ARROW}) == {}
    waiting = queue.submit(f"draft {key}", lambda job: None)
    assert drafts.draft({"key": key, **ARROW}) == {} and waiting.cancelled
    gate.set()
    edit.future.result(60)


@pytest.mark.parametrize("drawing", [None, {}, {"arrows": []}, {"arrows": "x"}])
def test_a_drawing_that_is_no_edit_yet_has_no_draft(made, drawing):
    drafts, _, key = made
    assert drafts.draft(drawing and {"key": key, **drawing}) == {}
    assert drafts.draft({"key": "unknown", **ARROW}) == {}


def test_the_canvas_shows_drafts_during_a_pull_and_the_edit_after_it(contexts, pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "fast")
    monkeypatch.setattr(drafts_module.Drafts.__init__, "__defaults__", (1e9,))
    asked = []
    draft = Drafts.draft
    monkeypatch.setattr(Drafts, "draft", lambda self, drawing: asked.append(drawing) or draft(self, drawing))
    with served(model=str(tmp_path / "fast"), port=0) as server:
        user = User(contexts[DESKTOP], server, tmp_path, steps=2)
        user.press("Drag")
        before = user.canvas_pixels((64, 64))
        edits = len(user.session.nodes)
        user.page.mouse.move(*user.place(8, 8))
        user.page.mouse.down()
        user.page.mouse.move(*user.place(40, 30), steps=4)
        user.until(lambda: np.abs(user.canvas_pixels((64, 64)) - before).mean() > 5)
        assert asked and len(user.session.nodes) == edits
        user.page.mouse.up()
        user.until(lambda: len(user.session.nodes) > edits)
        assert np.abs(user.canvas_pixels((64, 64)) - before).mean() < 5
        user.leave()
        assert not user.errors
