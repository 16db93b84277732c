"""The interactive editor without a browser: drawings, the queue, histories, uploads, and the API with many users."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from conftest import make_editor
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from fp_lightning.cli.main import main as cli
from fp_lightning.demo.controls import Controls
from fp_lightning.demo.desk import Cancelled, Desk
from fp_lightning.demo.drawing import signals_of
from fp_lightning.demo.examples import examples
from fp_lightning.demo.run import EditRun
from fp_lightning.demo.segmenter import Segmenter
from fp_lightning.demo.serve import served
from fp_lightning.demo.studio import Studio, sentence
from fp_lightning.demo.uploads import Uploads
from fp_lightning.demo.work import Work, Works
from fp_lightning.errors import InputError
from fp_lightning.evaluation.correspondence import attention_maps, matches
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.media.edits import Edit, read_edit
from fp_lightning.model.edm import seeded_generators


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def bytes_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]
STROKE = {"points": [[5, 5], [50, 5]], "size": 3, "erase": False, "colour": "#ff0000"}


# Drawings


def test_strokes_of_all_colours_are_one_sketch_and_the_eraser_takes_away():
    eraser = {"points": [[20, 5]], "size": 8, "erase": True}
    drawing = {"strokes": [STROKE, {**STROKE, "points": [[5, 30], [50, 30]], "colour": "#00ff00"}, eraser]}
    alpha = np.array(signals_of(drawing, picture(60, 40))["sketch"])[..., 3]
    assert set(np.unique(alpha)) == {0, 255}
    assert alpha[5, 6:15].all() and alpha[30, 6:49].all() and alpha[5, 26:49].all()
    assert not alpha[5, 17:23].any() and not alpha[10:25].any()
    assert 3 <= (alpha[:12, 30] > 0).sum() <= 5


def test_a_drawing_may_hold_all_signals_and_a_region():
    drawing = {
        "strokes": [STROKE],
        "arrows": [[1, 2, 3, 4]],
        "pieces": [{"outline": SQUARE, "move": [25, 8], "angle": 0, "scale": 1}],
        "region": [SQUARE],
    }
    photo = picture(60, 40)
    given = signals_of(drawing, photo)
    assert given.keys() == {"sketch", "points", "coarse", "region"} and given["points"] == [[1, 2, 3, 4]]
    coarse, pixels = np.array(given["coarse"]), np.array(photo)
    assert np.array_equal(coarse[18:28, 35:45], pixels[10:20, 10:20])
    assert not np.array_equal(coarse[10:20, 10:20], pixels[10:20, 10:20])
    region = np.array(given["region"])
    assert region[10:20, 10:20].all() and region.sum() == 100 * 255


def test_a_piece_is_turned_scaled_and_mirrored_about_the_centre_of_its_box():
    photo = picture(60, 60)
    turned = {"outline": SQUARE, "move": [20, 0], "angle": np.pi / 2, "scale": 1, "mirror": True}
    coarse = np.array(signals_of({"pieces": [turned]}, photo)["coarse"])
    own = np.array(photo)[10:20, 10:20]
    assert np.array_equal(coarse[10:20, 30:40], np.rot90(own[:, ::-1], -1))
    double = {"outline": SQUARE, "move": [20, 20], "scale": 2, "copied": True}
    coarse = np.array(signals_of({"pieces": [double]}, photo)["coarse"])
    assert not np.array_equal(coarse[25:45, 25:45], np.array(photo)[25:45, 25:45])
    assert np.array_equal(np.delete(coarse, np.s_[24:46], 0), np.delete(np.array(photo), np.s_[24:46], 0))


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        (None, "there is no drawing"),
        ({}, "draw first"),
        ({"strokes": [{**STROKE, "erase": True}]}, "draw first"),
        ({"pieces": [{"outline": SQUARE, "move": [0, 0]}]}, "draw first"),
        ({"region": [SQUARE]}, "draw first"),
        ({"strokes": {"a": 1}}, "strokes of the drawing are no list"),
        ({"strokes": ["x"]}, "a stroke of the drawing is not usable"),
        ({"strokes": [{**STROKE, "points": []}]}, "a line of the drawing has no points"),
        ({"strokes": [{**STROKE, "size": 1e9}]}, "the size of a stroke of the drawing"),
        ({"strokes": [{**STROKE, "size": -1}]}, "the size of a stroke is -1 px"),
        ({"arrows": [[1, 2, 3]]}, "not 4 numbers"),
        ({"arrows": [[1, 2, 3, float("nan")]]}, "not 4 numbers"),
        ({"arrows": [[1, 2, 3, True]]}, "not 4 numbers"),
        ({"pieces": [{"outline": SQUARE, "move": [1, 1], "scale": 1e5}]}, "scaled by 100000"),
        ({"pieces": [7]}, "a cut-out of the drawing is not usable"),
        ({"arrows": [[0, 0, 1, 1]] * 100_001}, "more than 100000; clear some"),
    ],
)
def test_an_unusable_drawing_is_said_in_one_line(drawing, message):
    with pytest.raises(InputError, match=message) as caught:
        signals_of(drawing, picture(60, 40))
    assert "\n" not in str(caught.value)


def test_the_examples_hold_a_drawing_each():
    kinds = [set(signals_of(example.drawing, example.photo)) for example in examples()]
    assert kinds == [{"sketch"}, {"points"}, {"coarse"}]


# The queue


def test_jobs_run_one_at_a_time_in_their_order():
    desk, log, gate = Desk(10, 10), [], threading.Event()

    def work(name):
        def run(job):
            gate.wait(10)
            log.append(("begin", name))
            time.sleep(0.01)
            log.append(("end", name))
            return name

        return run

    jobs = [desk.submit("a", work(n)) for n in range(4)]
    assert [desk.ahead(job) for job in jobs] == [0, 1, 2, 3]
    gate.set()
    assert [job.future.result(10) for job in jobs] == [0, 1, 2, 3]
    assert log == [(what, n) for n in range(4) for what in ("begin", "end")]
    assert len(desk) == 0
    desk.close()


def test_the_line_is_limited_for_all_and_for_each():
    desk, gate = Desk(3, 2), threading.Event()
    jobs = [desk.submit(user, lambda job: gate.wait(10)) for user in ("a", "a")]
    with pytest.raises(InputError, match="you have 2 edits in the queue"):
        desk.submit("a", lambda job: None)
    jobs.append(desk.submit("b", lambda job: None))
    with pytest.raises(InputError, match="3 edits are waiting, the queue is full"):
        desk.submit("c", lambda job: None)
    gate.set()
    for job in jobs:
        job.future.result(10)
    desk.submit("a", lambda job: None).future.result(10)
    desk.close()


def test_a_waiting_job_is_cancelled_at_once_and_one_at_work_at_its_next_check():
    desk, begun, gate = Desk(), threading.Event(), threading.Event()

    def long(job):
        begun.set()
        gate.wait(10)
        job.check()
        raise AssertionError("it went on")

    first, second = desk.submit("a", long), desk.submit("b", lambda job: "never")
    begun.wait(10)
    assert desk.cancel(second) == 1 and len(desk) == 1
    with pytest.raises(Cancelled):
        second.future.result(0)
    assert desk.cancel(*desk.of("a")) == 1 and not first.future.done()
    gate.set()
    with pytest.raises(Cancelled):
        first.future.result(10)
    assert desk.submit("c", lambda job: 3).future.result(10) == 3  # the worker lives
    assert desk.cancel(first, second) == 0
    desk.close()


def test_a_failure_is_the_jobs_alone():
    desk = Desk()
    with pytest.raises(ZeroDivisionError):
        desk.submit("a", lambda job: 1 / 0).future.result(10)
    assert desk.submit("a", lambda job: 5).future.result(10) == 5
    desk.close()


def test_who_watches_hears_the_place_and_the_news():
    desk, gate = Desk(), threading.Event()

    async def watch():
        first = desk.submit("a", lambda job: gate.wait(10))
        second = desk.submit("b", lambda job: [job.tell(f"step {n}") or time.sleep(0.3) for n in range(2)])
        heard = []
        async for news in desk.watch(second):
            heard.append(news)
            gate.set()
        return first, heard

    _, heard = asyncio.run(watch())
    assert heard[0] == 1 and heard[-2:] == ["step 0", "step 1"]
    desk.close()


# Histories


def an_edit(photo: Image.Image, **settings) -> Edit:
    return Edit(
        photo,
        **signals_of({"arrows": [[5, 5, 20, 20]]}, photo),
        settings=settings,
        drawing={"arrows": [[5, 5, 20, 20]]},
    )


def test_a_history_is_a_tree_on_disk(tmp_path):
    work = Work("t", tmp_path)
    photo = picture(40, 30)
    root = work.start(photo, "photo", {"strokes": []})
    child = work.add(picture(40, 30, 1), an_edit(photo), root.key, "seed 0")
    assert (work.base, work.shown) == (root.key, child.key) and child.parent == root.key
    assert np.array_equal(np.array(child.open()), np.array(picture(40, 30, 1)))
    assert read_edit(child.edit).points == [[5, 5, 20, 20]] and child.size == (30, 40)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["edit-2.edit.json", "edit-2.png", "photo-1.png"]
    with pytest.raises(InputError, match="no longer in the history"):
        work.node("../../etc/passwd")


def test_a_full_history_forgets_what_nothing_was_made_from(tmp_path, monkeypatch):
    monkeypatch.setattr("fp_lightning.demo.work.MOST_NODES", 5)
    work = Work("t", tmp_path)
    photo = picture(20, 20)
    root = work.start(photo, "photo").key
    first = work.add(photo, an_edit(photo), root, "on the canvas").key
    work.base = first
    for number in range(8):
        work.add(photo, an_edit(photo), root, f"edit {number}")
    assert len(work.nodes) == 5 and {root, first} <= work.nodes.keys()
    assert len(list(tmp_path.glob("*.png"))) == 5 and work.shown in work.nodes


def test_work_is_found_by_its_token_alone_and_goes_after_its_time(tmp_path):
    works = Works(tmp_path, hours=1)
    mine, yours = works.new(), works.new()
    mine.start(picture(20, 20), "mine")
    assert works.open(mine.token) is mine and mine.token != yours.token
    for wrong in (None, "", mine.token[:-1], 3, ["a"], {"a": 1}):
        assert works.find(wrong) is None
        with pytest.raises(InputError, match="has expired; reload the page"):
            works.open(wrong)
    mine.used -= 3601
    assert mine.folder.exists()
    works.new()
    assert works.find(mine.token) is None and not mine.folder.exists() and works.find(yours.token) is yours


def test_there_is_a_limit_to_how_much_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("fp_lightning.demo.work.MOST_WORKS", 3)
    works = Works(tmp_path)
    tokens = [works.new().token for _ in range(5)]
    assert [works.find(token) is not None for token in tokens] == [False, False, True, True, True]


# Edits


@pytest.fixture(scope="module")
def studio():
    return Studio(FramePainterPipeline.from_editor(make_editor(), (64, 64)), "test")


def test_candidates_are_each_what_they_are_alone_and_previews_come_before(studio):
    photo, desk, results = picture(80, 60), Desk(), []
    edits = [studio.prepared(Edit(**{**vars(an_edit(photo, num_inference_steps=3)), "seed": seed})) for seed in (4, 5)]
    heard = []
    job = desk.submit("a", lambda job: studio.make(Listener(job, heard), edits, lambda *result: results.append(result)))
    cost = job.future.result(60)
    assert [edit.seed for edit, _ in results] == [4, 5] and cost.seconds > 0 and "GiB" in cost.memory
    assert [(step.number, step.done, step.steps) for step in heard] == [(n, k, 3) for n in (0, 1) for k in (1, 2, 3)]
    assert heard[0].preview.startswith("data:image/png;base64,") and heard[3].preview
    for edit, image in results:
        assert np.array_equal(np.array(image), np.array(studio.pipe(**edit.arguments()).images[0]))
    assert not np.array_equal(np.array(results[0][1]), np.array(results[1][1]))
    desk.close()


class Listener:
    """A job whose every word is kept."""

    def __init__(self, job, heard):
        self.job, self.heard = job, heard

    def __getattr__(self, name):
        return getattr(self.job, name)

    def tell(self, news):
        self.heard.append(news)
        self.job.tell(news)


def test_a_cancelled_run_keeps_what_is_made(studio, tmp_path):
    work, desk, photo = Work("t", tmp_path), Desk(), picture(80, 60)
    root = work.start(photo, "photo")
    edits = [studio.prepared(Edit(**{**vars(an_edit(photo, num_inference_steps=2)), "seed": n})) for n in range(3)]
    gate, make = threading.Event(), studio.make

    class Slow(Studio):
        def __init__(self):
            vars(self).update(vars(studio))

        def make(self, job, edits, finished):
            def then(*result):
                finished(*result)
                gate.set()
                while not job.cancelled:
                    time.sleep(0.01)

            return make(job, edits, then)

    run = EditRun(Slow(), desk, work, root.key, edits)
    gate.wait(60)
    desk.cancel(run.job)
    assert run.result() == "Cancelled, 1 of 3 made; your drawing is kept."
    assert [node.caption for node in work.nodes.values()] == ["photo", "seed 0, drag"] and len(run.made) == 1
    desk.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"num_inference_steps": 500}, "more than 200"),
        ({"solver": "magic"}, "solver must be one of"),
        ({"height": 63}, "height must be a multiple"),
        ({"height": 6400, "width": 6400}, "more than twice what the model works at"),
    ],
)
def test_settings_are_checked_before_anything_waits(studio, settings, message):
    with pytest.raises(InputError, match=message):
        studio.prepared(an_edit(picture(40, 40), **settings))


def test_matches_are_the_attention_maps_of_every_token(studio):
    photo = picture(64, 64)
    edit, result = studio.prepared(an_edit(photo)), picture(64, 64, 1)
    found = studio.matches(edit, result)
    assert found.grid == found.cells == (16, 16) and found.maps.shape == (256, 256) and found.best.shape == (256,)
    torch.testing.assert_close(found.maps.sum(1), torch.ones(256))
    assert torch.equal(found.maps.argmax(1), found.best)
    batch = studio.pipe.sample("result", photo, {"points": edit.points}, (64, 64))
    batch.target = torch.from_numpy(np.array(result)).movedim(-1, 0)[None].float() / 127.5 - 1
    noise = seeded_generators(["result"], edit.seed, "matches")
    maps = attention_maps(studio.pipe.editor, batch, torch.tensor([[[9.0, 30.0]]]), noise)
    last = [layer for layer in maps.values() if layer.shape[-2:] == (16, 16)][-1]
    torch.testing.assert_close(found.maps[7 * 16 + 2], last[0, :, 0].mean(0).flatten())
    noise = seeded_generators(["result"], edit.seed, "matches")
    coarse = matches(studio.pipe.editor, batch, noise, most=64)
    blocks = found.maps.view(8, 2, 8, 2, 8, 2, 8, 2).sum((5, 7)).mean((1, 3)).view(64, 64)
    assert coarse.cells == (8, 8) and torch.equal(coarse.best, found.best)
    torch.testing.assert_close(coarse.maps, blocks)


def test_a_model_without_attention_between_frames_has_no_matches():
    plain = Studio(FramePainterPipeline.from_editor(make_editor("temporal"), (64, 64)), "plain")
    assert plain.matches(plain.prepared(an_edit(picture(64, 64))), picture(64, 64, 1)) is None


def test_failures_are_sentences(caplog):
    assert sentence(InputError("draw first; then press")) == "Draw first; then press."
    assert sentence(InputError("my.png is empty")) == "my.png is empty."
    assert sentence(Cancelled()) == "Cancelled; your drawing is kept."
    assert sentence(ZeroDivisionError("x")).startswith("Something went wrong on the server (ZeroDivisionError)")
    assert "an edit failed" in caplog.text
    assert "ran out of memory" in sentence(torch.cuda.OutOfMemoryError())


# Clicks


def test_a_click_finds_the_part_of_the_mask_that_it_is_in(sam_folder, monkeypatch):
    segmenter, photo = Segmenter(str(sam_folder)), picture(90, 60)
    mask = np.zeros((60, 90), bool)
    mask[10:30, 10:40] = mask[40:50, 60:80] = True
    monkeypatch.setattr(segmenter, "_mask", lambda *_: mask)
    found = np.array(segmenter.find(photo, 20, 20))
    assert found.min(0) == pytest.approx([10.5, 10.5]) and found.max(0) == pytest.approx([39.5, 29.5])
    assert np.array(segmenter.find(photo, 60, 49)).min(0) == pytest.approx([60.5, 40.5])
    assert segmenter.find(photo, 50, 5) is None


def test_the_surest_mask_of_a_segmenter_is_taken_at_the_photos_size(sam_folder):
    segmenter, photo = Segmenter(str(sam_folder)), picture(90, 60)
    masks = [segmenter._mask(photo, x, 20) for x in (5, 80)]
    assert all(mask.shape == (60, 90) and mask.dtype == bool for mask in masks)
    assert not np.array_equal(*masks)  # the click matters


@pytest.mark.parametrize("model", ["nobody/nothing", "tiny-editor"])
def test_a_segmenter_that_is_none_is_refused_in_one_line(model):
    with pytest.raises(InputError) as caught:
        Segmenter(model)
    assert model in str(caught.value) and "\n" not in str(caught.value)


# Uploads


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG whose pixels would take 2.7 GB, in 3 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height // 100)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return bytes_of(picture(40, 20), "JPEG", exif=exif)


def clear() -> Image.Image:
    image = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 10, 10))
    return image


ACCEPTED = {
    "cmyk.jpg": (bytes_of(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "JPEG"), (40, 30)),
    "16bit.png": (bytes_of(Image.fromarray(np.full((30, 40), 0x8000, np.uint16))), (40, 30)),
    "animated.gif": (
        bytes_of(
            Image.new("RGB", (40, 30), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")]
        ),
        (40, 30),
    ),
    "transparent.png": (bytes_of(clear()), (40, 30)),
    "one.png": (bytes_of(Image.new("RGB", (1, 1), "green")), (1, 1)),
    "turned.jpg": (turned(), (20, 40)),
    "palette.png": (bytes_of(Image.new("P", (40, 30), 3)), (40, 30)),
    "really.txt": (bytes_of(picture(40, 30)), (40, 30)),
    "name; rm -rf $(x) ‮gnp.png": (bytes_of(picture(40, 30)), (40, 30)),
}
REFUSED = {
    "empty.png": (b"", "is empty .0 bytes."),
    "text.png": (b"hello, I am text", "is not an image that can be read"),
    "bomb.png": (bomb(), "has more than 40 million pixels; make it smaller"),
    "cut.png": (bytes_of(picture(400, 300))[:2000], "is not an image that can be read"),
    "vector.svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "is not an image"),
    "code.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "is not an image"),
    "other.json": (b'{"a": 1}', "is not an image|not a saved edit"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_odd_images_are_read_as_one_sees_them(name, tmp_path):
    data, size = ACCEPTED[name]
    (tmp_path / name).write_bytes(data)
    image = Uploads(tmp_path).image(str(tmp_path / name))
    assert image.mode == "RGB" and image.size == size
    pixels = np.array(image)
    if name == "cmyk.jpg":
        assert pixels[0, 0, 0] > 200 and pixels[0, 0, 1:].max() < 60
    if name == "16bit.png":
        assert (pixels == 128).all()
    if name == "animated.gif":
        assert (pixels[0, 0] == (255, 0, 0)).all()
    if name == "transparent.png":
        assert (pixels[20, 20] == 255).all() and (pixels[5, 5] == (0, 0, 255)).all()


@pytest.mark.parametrize("name", REFUSED)
def test_bad_uploads_are_refused_in_one_line(name, tmp_path):
    data, message = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        Uploads(tmp_path).photo_or_edit(str(tmp_path / name))
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_large_files_are_refused_before_they_are_read(tmp_path):
    for name, start, size, limit in (("large.png", b"\x89PNG", 2000, "0.001"), ("large.json", b"{", 5000, "0.004")):
        (tmp_path / name).write_bytes(start + bytes(size))
        with pytest.raises(InputError, match=f"{name} has 0.0 MB, more than {limit}"):
            Uploads(tmp_path, max_bytes=1000).photo_or_edit(str(tmp_path / name))


def test_a_saved_edit_may_be_larger_than_a_photo(tmp_path):
    data = an_edit(picture(60, 60)).to_bytes()
    (tmp_path / "a.edit.json").write_bytes(data)
    name, edit = Uploads(tmp_path, max_bytes=len(data) // 2).photo_or_edit(str(tmp_path / "a.edit.json"))
    assert name == "a.edit.json" and edit.points == [[5, 5, 20, 20]]


# Controls


def test_controls_become_settings_and_come_back():
    controls = Controls(3, 7, 12, 0.5, 2.5, "heun", True, 2, "0.2; 40")
    assert controls.seeds() == [7, 8, 9]
    edit = Edit(picture(8, 8), settings=controls.settings(), seed=7)
    assert edit.settings["guidance_interval"] == (0.2, 40.0)
    assert Controls.of(edit) == replace(controls, candidates=1, interval="0.2, 40")
    assert Controls.of(Edit(picture(8, 8))) == Controls()


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        (Controls(candidates=9), "candidates must be 1 to 4, got 9"),
        (Controls(seed=-1), "the seed must be a whole number"),
        (Controls(seed=None), "got None"),
        (Controls(interval="0.2"), "must be two numbers, such as 0.2, 40; got 0.2"),
        (Controls(interval="a, b"), "must be two numbers"),
    ],
)
def test_controls_that_are_not_usable_are_said(controls, message):
    with pytest.raises(InputError, match=message):
        controls.seeds(), controls.settings()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret.png", "/proc/self/environ", "sub/../../secret.png", "", "."]
)
def test_nothing_outside_of_the_upload_folder_is_opened(path, tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(bytes_of(picture(4, 4)))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for given in (path, str(folder / path), str(folder / "link.png"), "link.png"):
        with pytest.raises(InputError, match="is not among the uploads"):
            Uploads(folder).read(given)


# The API


@pytest.fixture(scope="module")
def server():
    with served(port=0, queue=6, per_user=1) as running:
        yield running


FAST = {"num_inference_steps": 2, "guidance_scale": 1.0}


def ask(server, folder: Path, number: int = 0, **options):
    """One program's edit: the image's path, and that of the saved edit."""
    folder.mkdir(parents=True, exist_ok=True)
    picture(48, 32, number).save(folder / f"{number}.png")
    client = Client(server.url, verbose=False, download_files=str(folder / "got"))
    given = {"points": [[5, 5, 30, 20]], "settings": FAST, "seed": number, **options}
    return client.predict(handle_file(str(folder / f"{number}.png")), **given, api_name="/edit")


def test_a_program_edits_and_reproduces(server, tmp_path):
    image, saved = ask(server, tmp_path)
    edit = read_edit(saved)
    assert np.array_equal(np.array(edit.image), np.array(picture(48, 32))) and edit.settings["num_inference_steps"] == 2
    expected = np.array(server.page.studio.pipe(**edit.arguments()).images[0])
    assert np.array_equal(np.array(Image.open(image)), expected)
    client = Client(server.url, verbose=False, download_files=str(tmp_path / "again"))
    again, _ = client.predict(handle_file(saved), api_name="/reproduce")
    assert np.array_equal(np.array(Image.open(again)), expected)


def test_twenty_programs_at_once_get_their_own_or_are_told_that_the_queue_is_full(server, tmp_path):
    def one(seed):
        try:
            return ask(server, tmp_path / str(seed), seed)
        except AppError as error:
            return str(error)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(20)))
    told = [answer for answer in answers if isinstance(answer, str)]
    assert all("edits are waiting, the queue is full; try again in a minute." in text for text in told)
    assert len(told) < 20 and max(len(server.page.desk), 0) == 0
    for seed, answer in enumerate(answers):
        if not isinstance(answer, str):
            edit = read_edit(answer[1])
            assert edit.seed == seed and np.array_equal(np.array(edit.image), np.array(picture(48, 32, seed)))
            expected = server.page.studio.pipe(**edit.arguments()).images[0]
            assert np.array_equal(np.array(Image.open(answer[0])), np.array(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": None}, "has no signal; pass a sketch"),
        ({"points": [[1, 2, 3]]}, "row 1 is"),
        ({"points": [[1, 2, 3, 4000]]}, "outside of its image"),
        ({"settings": {"num_inference_steps": "many"}}, "'many', which is not usable"),
        ({"settings": {"model": "/etc"}}, "has the setting 'model'"),
        ({"seed": -4}, "has the seed -4"),
    ],
)
def test_a_program_is_told_what_was_wrong(server, tmp_path, options, message):
    with pytest.raises(AppError) as caught:
        ask(server, tmp_path, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("name", [*ACCEPTED, *REFUSED])
def test_the_server_lives_through_any_upload(server, tmp_path, name):
    accepted = name in ACCEPTED
    data = (ACCEPTED if accepted else REFUSED)[name][0]
    (tmp_path / name).write_bytes(data)
    client = Client(server.url, verbose=False, download_files=str(tmp_path / "got"))
    given = {"points": [[0, 0, 1, 1]], "settings": FAST, "api_name": "/edit"}
    if accepted:
        image, _ = client.predict(handle_file(str(tmp_path / name)), **given)
        assert Image.open(image).size == ACCEPTED[name][1]
    else:
        with pytest.raises(AppError, match="not an image|empty|more than"):
            client.predict(handle_file(str(tmp_path / name)), **given)
    assert httpx.get(server.url).status_code == 200


def raw_call(server, path: str) -> str:
    """A request to /edit by hand, with a path that was never uploaded; what the server says."""
    data = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call = httpx.post(
        f"{server.url}gradio_api/call/edit", json={"data": [data, None, None, [[0, 0, 1, 1]], None, FAST, 0]}
    )
    event = call.json()["event_id"]
    return httpx.get(f"{server.url}gradio_api/call/edit/{event}", timeout=30).text


def test_paths_of_a_client_open_nothing(server, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(bytes_of(picture(8, 8)))
    for path in (str(secret), "/etc/passwd", f"{server.folder}/gradio/../../{secret}", "../../etc/passwd"):
        said = raw_call(server, path)
        assert "event: error" in said and "complete" not in said
        got = httpx.get(f"{server.url}gradio_api/file={path}")
        assert got.status_code in (403, 404)
    work = server.page.works.new()
    node = work.start(picture(8, 8), "photo")
    assert httpx.get(f"{server.url}gradio_api/file={node.image}").status_code in (403, 404)


def test_names_with_paths_stay_in_the_upload_folder(server):
    for name in ("../../../evil.png", "/etc/evil.png", "..\\evil.png", "a/../../evil.png", ".", "a" * 400 + ".png"):
        done = httpx.post(f"{server.url}gradio_api/upload", files={"files": (name, bytes_of(picture(8, 8)))})
        if done.status_code == 200:
            (path,) = done.json()
            assert Path(path).resolve().is_relative_to(server.folder / "gradio")
    assert not list(server.folder.parent.glob("evil*")) and httpx.get(server.url).status_code == 200


def test_the_handlers_of_the_page_are_not_for_programs(server):
    info = httpx.get(f"{server.url}gradio_api/info").json()["named_endpoints"]
    assert set(info) == {"/edit", "/reproduce"}


# The server


def test_a_password_is_asked_for_and_nothing_stays_on_disk(tmp_path):
    before = os.environ.get("GRADIO_TEMP_DIR")
    with served(port=0, password="right") as running:
        assert httpx.get(f"{running.url}gradio_api/info").status_code == 401
        with pytest.raises(Exception, match="(?i)auth|login|credential"):
            Client(running.url, auth=("editor", "wrong"), verbose=False)
        client = Client(running.url, auth=("editor", "right"), verbose=False, download_files=str(tmp_path))
        picture(48, 32).save(tmp_path / "a.png")
        given = {"points": [[5, 5, 30, 20]], "settings": FAST, "api_name": "/edit"}
        assert len(client.predict(handle_file(str(tmp_path / "a.png")), **given)) == 2
        folder = running.folder
        assert any(folder.rglob("*.png"))
    assert not folder.exists() and os.environ.get("GRADIO_TEMP_DIR") == before


def start(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "fp_lightning", "demo", "--port", "0", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_until(process: subprocess.Popen, word: str) -> list[str]:
    lines = []
    while not lines or word not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    return lines


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "demo"])
    assert cli.main() == 1
    assert "pip install 'fp-lightning[demo]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(server, monkeypatch, capsys):
    port = server.url.rstrip("/").rsplit(":", 1)[1]
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "demo", "--port", port])
    assert cli.main() == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_listening_to_all_is_said_has_a_password_and_leaves_nothing(monkeypatch, tmp_path, number, status):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start("--host", "0.0.0.0")
    try:
        said = "".join(lines_until(process, "password:"))
        assert "everybody who reaches this machine can reach it" in said and "User name: editor" in said
        assert list(tmp_path.glob("fp_lightning-demo-*"))
    finally:
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in err
    assert not list(tmp_path.glob("fp_lightning-demo-*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "nowhere/at/all"), "nowhere/at/all"),
        (("--device", "cuda"), "there is no GPU that torch can use"),
        (("--queue", "0"), "the queue's limits must be 1 or more"),
        (("--keep-hours", "0"), "more than 0 hours"),
        (("--max-megabytes", "-1"), "--max-megabytes must be above 0"),
        (("--password", "a", "--no-password"), "exclude each other"),
        (("--host", "256.0.0.1"), "cannot be used; choose another"),
    ],
)
def test_bad_options_are_one_line(monkeypatch, capsys, words, message):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "demo", "--port", "0", *words])
    assert cli.main() == 1
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1] and "Traceback" not in err
