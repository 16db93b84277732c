"""Drafts: one-step edits that the canvas shows while a person moves an arrow or a piece."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from PIL import Image

from fp_lightning.demo.drawing import signals_of
from fp_lightning.demo.editing import EditService
from fp_lightning.demo.pictures import SHOWN, data_url, shrink
from fp_lightning.demo.queue import Cancelled, EditQueue
from fp_lightning.demo.session import Sessions
from fp_lightning.errors import InputError
from fp_lightning.media.edits import Edit

SLOWEST = 0.5  # seconds of a one-step edit, above which there are no drafts
ONE_STEP = {"num_inference_steps": 1, "keep_unedited": True}


class Drafts:
    """Makes drafts with a distilled editor on a machine that is fast enough.

    Args:
        service: its editor decides, and the seconds of a one-step edit at the start.
        queue: a draft is only made while nobody's edit waits or runs.
        sessions: of all users.
        slowest: see `SLOWEST`.
    """

    def __init__(self, service: EditService, queue: EditQueue, sessions: Sessions, slowest: float = SLOWEST) -> None:
        self.service, self.queue, self.sessions = service, queue, sessions
        self.live = service.editor.distilled_steps is not None and self._seconds() <= slowest

    def _seconds(self) -> float:
        """Return the time of a one-step edit, the second of two: the first also prepares."""
        height, width = self.service.pipe.config.size
        photo, spent = Image.new("RGB", (width, height), "grey"), 0.0
        for _ in range(2):
            start = time.perf_counter()
            self._edit(photo, points=[[0.0, 0.0, width / 2, height / 2]])
            spent = time.perf_counter() - start
        return spent

    def _edit(self, photo: Image.Image, **signals: Any) -> Image.Image:
        edit = self.service.prepare(Edit(photo, **signals, settings=ONE_STEP))
        return self.service.pipe(**edit.arguments(), return_dict=False)[0][0]

    def for_canvas(self) -> Callable[[Any], dict[str, str]] | None:
        """Return `draft` as the function that Gradio needs, None if there are no drafts."""

        def draft(drawing: Any) -> dict[str, str]:
            return self.draft(drawing)

        return draft if self.live else None

    def draft(self, drawing: Any) -> dict[str, str]:
        """Edit by a drawing with the key of its photo. A later draft of the same photo cancels one that waits.

        Returns:
            {"src": data URL}; or nothing if it was cancelled, others' edits come first, or the drawing is no edit yet.
        """
        try:
            node = self.sessions.node((drawing or {}).get("key"))
            photo, user = node.open(), f"draft {node.key}"
            signals = signals_of(drawing, photo)
            self.queue.cancel(*self.queue.jobs_of(user))
            if len(self.queue) > len(self.queue.jobs_of(user)):
                return {}
            job = self.queue.submit(user, lambda job: self._edit(photo, **signals))
            return {"src": data_url(shrink(job.future.result(), SHOWN))}
        except (InputError, Cancelled):
            return {}
