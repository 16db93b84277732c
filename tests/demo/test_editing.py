"""Edits by the service: candidates, previews, cancellation, matches and error messages."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from conftest import make_editor

from demo.inputs import an_edit, picture
from fp_lightning.demo.editing import EditService, error_message
from fp_lightning.demo.queue import Cancelled, EditQueue
from fp_lightning.demo.run import EditRun
from fp_lightning.demo.session import Session
from fp_lightning.errors import InputError
from fp_lightning.evaluation.correspondence import attention_maps, matches
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.media.edits import Edit
from fp_lightning.model.edm import seeded_generators


@pytest.fixture(scope="module")
def service():
    return EditService(FramePainterPipeline.from_editor(make_editor(), (64, 64)), "test")


def test_each_candidate_equals_the_edit_alone_and_has_previews(service):
    photo, queue, results = picture(80, 60), EditQueue(), []
    edits = [service.prepare(Edit(**{**vars(an_edit(photo, num_inference_steps=3)), "seed": seed})) for seed in (4, 5)]
    reports = []
    job = queue.submit(
        "a", lambda job: service.run(Recorder(job, reports), edits, lambda *result: results.append(result))
    )
    cost = job.future.result(60)
    assert [edit.seed for edit, _ in results] == [4, 5] and cost.seconds > 0 and "GiB" in cost.memory
    assert [(r.candidate, r.done, r.steps) for r in reports] == [(n, k, 3) for n in (0, 1) for k in (1, 2, 3)]
    assert reports[0].preview.startswith("data:image/png;base64,") and reports[3].preview
    for edit, image in results:
        assert np.array_equal(np.array(image), np.array(service.pipe(**edit.arguments()).images[0]))
    assert not np.array_equal(np.array(results[0][1]), np.array(results[1][1]))
    queue.close()


class Recorder:
    """A job whose reports are all kept."""

    def __init__(self, job, reports):
        self.job, self.reports = job, reports

    def __getattr__(self, name):
        return getattr(self.job, name)

    def report(self, update):
        self.reports.append(update)
        self.job.report(update)


def test_a_cancelled_run_keeps_finished_candidates(service, tmp_path):
    session, queue, photo = Session("t", tmp_path), EditQueue(), picture(80, 60)
    root = session.add_photo(photo, "photo")
    edits = [service.prepare(Edit(**{**vars(an_edit(photo, num_inference_steps=2)), "seed": n})) for n in range(3)]
    gate, run = threading.Event(), service.run

    class Slow(EditService):
        def __init__(self):
            vars(self).update(vars(service))

        def run(self, job, edits, finished):
            def then(*result):
                finished(*result)
                gate.set()
                while not job.cancelled:
                    time.sleep(0.01)

            return run(job, edits, then)

    edit_run = EditRun(Slow(), queue, session, root.key, edits)
    gate.wait(60)
    queue.cancel(edit_run.job)
    assert edit_run.result() == "Cancelled after 1 of 3 candidates; your drawing is kept."
    assert [node.caption for node in session.nodes.values()] == ["photo", "seed 0, drag"] and len(
        edit_run.finished
    ) == 1
    queue.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"num_inference_steps": 500}, "must be at most 200, got 500"),
        ({"solver": "magic"}, "solver must be one of"),
        ({"height": 63}, "height must be a multiple"),
        ({"height": 6400, "width": 6400}, "more than twice the model's size"),
    ],
)
def test_settings_are_checked_before_the_queue(service, settings, message):
    with pytest.raises(InputError, match=message):
        service.prepare(an_edit(picture(40, 40), **settings))


def test_matches_are_the_attention_maps_of_every_token(service):
    photo = picture(64, 64)
    edit, result = service.prepare(an_edit(photo)), picture(64, 64, 1)
    found = service.matches(edit, result)
    assert found.grid == found.cells == (16, 16) and found.maps.shape == (256, 256) and found.best.shape == (256,)
    torch.testing.assert_close(found.maps.sum(1), torch.ones(256))
    assert torch.equal(found.maps.argmax(1), found.best)
    batch = service.pipe.sample("result", photo, {"points": edit.points}, (64, 64))
    batch.target = torch.from_numpy(np.array(result)).movedim(-1, 0)[None].float() / 127.5 - 1
    noise = seeded_generators(["result"], edit.seed, "matches")
    maps = attention_maps(service.pipe.editor, batch, torch.tensor([[[9.0, 30.0]]]), noise)
    last = [layer for layer in maps.values() if layer.shape[-2:] == (16, 16)][-1]
    torch.testing.assert_close(found.maps[7 * 16 + 2], last[0, :, 0].mean(0).flatten())
    noise = seeded_generators(["result"], edit.seed, "matches")
    coarse = matches(service.pipe.editor, batch, noise, most=64)
    blocks = found.maps.view(8, 2, 8, 2, 8, 2, 8, 2).sum((5, 7)).mean((1, 3)).view(64, 64)
    assert coarse.cells == (8, 8) and torch.equal(coarse.best, found.best)
    torch.testing.assert_close(coarse.maps, blocks)


def test_a_model_without_attention_between_frames_has_no_matches():
    plain = EditService(FramePainterPipeline.from_editor(make_editor("temporal"), (64, 64)), "plain")
    assert plain.matches(plain.prepare(an_edit(picture(64, 64))), picture(64, 64, 1)) is None


def test_error_messages_are_sentences(caplog):
    assert error_message(InputError("draw first; then press")) == "Draw first; then press."
    assert error_message(InputError("my.png is empty")) == "my.png is empty."
    assert error_message(Cancelled()) == "Cancelled; your drawing is kept."
    assert error_message(ZeroDivisionError("x")).startswith("The server failed (ZeroDivisionError)")
    assert "an edit failed" in caplog.text
    assert "ran out of memory" in error_message(torch.cuda.OutOfMemoryError())
