"""Runs edits with the pipeline, and reports their progress."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import psutil
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from fp_lightning.demo.pictures import data_url
from fp_lightning.demo.queue import Cancelled, Job
from fp_lightning.errors import InputError
from fp_lightning.evaluation.correspondence import Matches, matches
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.inference.sampler import Sampling, check_sampling, default_sampling
from fp_lightning.media.edits import Edit
from fp_lightning.media.images import squeeze
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.fingerprint import fingerprint
from fp_lightning.types import to_uint8, to_unit_range

logger = logging.getLogger(__name__)
PREVIEW_SHARE = 0.15  # the most of an edit's time that previews may take
MOST_STEPS = 200
SAMPLING = tuple(field.name for field in fields(Sampling))


@dataclass(frozen=True)
class Progress:
    """How far an edit is."""

    candidate: int  # from 0
    done: int  # steps
    steps: int
    preview: str | None = None  # data URL of the predicted clean image, at the last step that made one


@dataclass(frozen=True)
class Cost:
    """What edits took."""

    seconds: float
    memory: str  # for people, such as "5.1 GiB of GPU memory"


class EditService:
    """Edits with one pipeline, for the page and the API.

    Args:
        pipe: on its device.
        name: of the model, for people and saved edits.
    """

    def __init__(self, pipe: FramePainterPipeline, name: str) -> None:
        self.pipe, self.name = pipe, name
        pipe.set_progress_bar_config(disable=True)
        self.editor = pipe.editor
        self.sampling = default_sampling(self.editor.distilled_steps)
        self.weights = fingerprint(pipe.control_encoder)
        self.signals: tuple[str, ...] | None = None if pipe.config.signals is None else tuple(pipe.config.signals)

    def prepare(self, edit: Edit) -> Edit:
        """Return the edit with size, sampling, model and weights filled in, so that it can be reproduced.

        Raises:
            InputError: a setting is not usable, or exceeds this server's limits.
        """
        height, width = self.pipe.config.size
        sampling = {name: getattr(self.sampling, name) for name in ("num_inference_steps", "guidance_scale", "solver")}
        settings = {"height": height, "width": width, **sampling, **edit.settings}
        chosen = Sampling(**{name: settings[name] for name in SAMPLING if name in settings})
        check_sampling(chosen, self.editor.distilled_steps)
        size = (settings["height"], settings["width"])
        self.editor.check_size(size)
        if size[0] * size[1] > 2 * height * width:
            raise InputError(
                f"{size[0]} × {size[1]} px is more than twice the model's size; use {height} × {width} px or smaller"
            )
        if settings["num_inference_steps"] > MOST_STEPS:
            raise InputError(f"num_inference_steps must be at most {MOST_STEPS}, got {settings['num_inference_steps']}")
        return replace(edit, settings=settings, model=self.name, weights=self.weights)

    def run(self, job: Job, edits: Sequence[Edit], finished: Callable[[Edit, Image.Image], Any]) -> Cost:
        """Run edits in turn. The finished ones stay if the job is cancelled.

        Reports a `Progress` to the job after each step.

        Args:
            edits: from `prepare`. They run one at a time, so that each equals the edit alone to the last bit.
            finished: called with each edit and its image.

        Raises:
            Cancelled: the job was cancelled.
        """
        start = time.perf_counter()
        on_gpu = self.pipe.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for number, edit in enumerate(edits):
            images = self.pipe(**edit.arguments(), **self._callback(job, number, edit), return_dict=False)[0]
            finished(edit, images[0])
        if on_gpu:
            memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory"
        else:
            memory = f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB of memory"
        return Cost(time.perf_counter() - start, memory)

    def _callback(self, job: Job, number: int, edit: Edit) -> dict[str, Any]:
        """The pipeline's arguments that report every step to the job."""
        steps, start, spent = edit.settings["num_inference_steps"], time.perf_counter(), 0.0
        preview: str | None = None  # shown until the next one

        def report(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> None:
            nonlocal spent, preview
            job.check()
            begun = time.perf_counter()
            if spent <= PREVIEW_SHARE * (begun - start) and step + 1 < steps:
                clean = self.editor.decode(tensors["denoised"][:, 1:])[0, 0]
                preview = data_url(to_pil_image(to_uint8(clean).cpu()))
                spent += time.perf_counter() - begun
            job.report(Progress(number, step + 1, steps, preview))

        return {"callback_on_step_end": report, "callback_on_step_end_tensor_inputs": ("denoised",)}

    def matches(self, edit: Edit, result: Image.Image) -> Matches | None:
        """Find where each place of a result attends to, see `fp_lightning.evaluation.correspondence.matches`."""
        size = (edit.settings["height"], edit.settings["width"])
        layers = None if edit.sketch is None else [edit.sketch]
        signals = {"sketch": layers, "coarse": edit.coarse, "points": edit.points}
        batch = self.pipe.sample("result", edit.image, signals, size)
        batch = replace(batch, target=to_unit_range(squeeze(result, size))[None]).to(self.pipe.device)
        return matches(self.editor, batch, seeded_generators(["result"], edit.seed, "matches"))


def error_message(error: BaseException) -> str:
    """Return a sentence for the user; log errors that the user cannot mend."""
    if isinstance(error, Cancelled):
        return "Cancelled; your drawing is kept."
    if isinstance(error, InputError):
        text = str(error)
        if text.split(" ", 1)[0].isalpha():  # not a file name
            text = text[0].upper() + text[1:]
        return text + ("" if text.endswith((".", "!", "?")) else ".")
    logger.error("an edit failed", exc_info=error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        gc.collect()
        torch.cuda.empty_cache()
        return (
            "The GPU ran out of memory; your drawing is kept. Try again, or set the guidance scale to 1, which needs "
            "less memory."
        )
    return f"The server failed ({type(error).__name__}); your drawing is kept. Try again."
