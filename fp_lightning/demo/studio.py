"""Makes edits with the pipeline, one after another, and tells how they come along."""

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

from fp_lightning.demo.desk import Cancelled, Job
from fp_lightning.demo.pictures import data_url
from fp_lightning.errors import InputError
from fp_lightning.evaluation.correspondence import Matches, matches
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.inference.sampler import Sampling
from fp_lightning.media.edits import Edit
from fp_lightning.media.images import squeeze
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.fingerprint import fingerprint
from fp_lightning.types import to_uint8, to_unit_range

logger = logging.getLogger(__name__)
PREVIEW_SHARE = 0.15  # of the time, at most, goes into previews
MOST_STEPS = 200
SAMPLING = tuple(field.name for field in fields(Sampling))


@dataclass(frozen=True)
class Step:
    """How far an edit is."""

    number: int  # of the candidate, from 0
    done: int
    steps: int
    preview: str | None = None  # data URL of what it will be like, as last seen


@dataclass(frozen=True)
class Cost:
    """What an edit took."""

    seconds: float
    memory: str  # in words


class Studio:
    """The pipeline, ready for edits from the page and from programs.

    Args:
        pipe: on its device.
        name: of the model, for people and saved edits.
    """

    def __init__(self, pipe: FramePainterPipeline, name: str) -> None:
        self.pipe, self.name = pipe, name
        pipe.set_progress_bar_config(disable=True)
        self.editor = pipe.editor
        self.weights = fingerprint(pipe.control_encoder)
        self.signals: tuple[str, ...] | None = None if pipe.config.signals is None else tuple(pipe.config.signals)

    def prepared(self, edit: Edit) -> Edit:
        """The edit with all that it depends on written down.

        Raises:
            InputError: a setting is not usable, or more than this server gives.
        """
        height, width = self.pipe.config.size
        defaults = {"height": height, "width": width, "num_inference_steps": Sampling.num_inference_steps}
        settings = {**defaults, **edit.settings}
        Sampling(**{name: settings[name] for name in SAMPLING if name in settings})
        size = (settings["height"], settings["width"])
        self.editor.check_size(size)
        if size[0] * size[1] > 2 * height * width:
            raise InputError(f"{size[0]} × {size[1]} px is more than twice what the model works at, {height} × {width}")
        if settings["num_inference_steps"] > MOST_STEPS:
            raise InputError(f"{settings['num_inference_steps']} steps are more than {MOST_STEPS}; take fewer")
        return replace(edit, settings=settings, model=self.name, weights=self.weights)

    def make(self, job: Job, edits: Sequence[Edit], finished: Callable[[Edit, Image.Image], Any]) -> Cost:
        """Makes the edits in turn; those that are finished stay so if the job is cancelled.

        Tells the job a `Step` after each step, with a preview of the clean image that the step leads to.

        Args:
            edits: see `prepared`. One at a time, so that each is to the last bit what it is alone.
            finished: is given each edit and its image.

        Raises:
            Cancelled: by the job.
        """
        start = time.perf_counter()
        on_gpu = self.pipe.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for number, edit in enumerate(edits):
            images = self.pipe(**edit.arguments(), **self._watched(job, number, edit), return_dict=False)[0]
            finished(edit, images[0])
        if on_gpu:
            memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU"
        else:
            memory = f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB"
        return Cost(time.perf_counter() - start, memory)

    def _watched(self, job: Job, number: int, edit: Edit) -> dict[str, Any]:
        """The pipeline's arguments that tell the job of every step."""
        steps, start, spent = edit.settings["num_inference_steps"], time.perf_counter(), 0.0
        preview: str | None = None  # the last one, which holds until the next

        def tell(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> None:
            nonlocal spent, preview
            job.check()
            begun = time.perf_counter()
            if spent <= PREVIEW_SHARE * (begun - start) and step + 1 < steps:
                clean = self.editor.decode(tensors["denoised"][:, 1:])[0, 0]
                preview = data_url(to_pil_image(to_uint8(clean).cpu()))
                spent += time.perf_counter() - begun
            job.tell(Step(number, step + 1, steps, preview))

        return {"callback_on_step_end": tell, "callback_on_step_end_tensor_inputs": ("denoised",)}

    def matches(self, edit: Edit, result: Image.Image) -> Matches | None:
        """Where each place of a result comes from, see `fp_lightning.evaluation.correspondence.matches`."""
        size = (edit.settings["height"], edit.settings["width"])
        layers = None if edit.sketch is None else [edit.sketch]
        signals = {"sketch": layers, "coarse": edit.coarse, "points": edit.points}
        batch = self.pipe.sample("result", edit.image, signals, size)
        batch = replace(batch, target=to_unit_range(squeeze(result, size))[None]).to(self.pipe.device)
        return matches(self.editor, batch, seeded_generators(["result"], edit.seed, "matches"))


def sentence(error: BaseException) -> str:
    """What to say to somebody whose edit failed; what they cannot mend is logged."""
    if isinstance(error, Cancelled):
        return "Cancelled; your drawing is kept."
    if isinstance(error, InputError):
        text = str(error)
        if text.split(" ", 1)[0].isalpha():  # and no file's name
            text = text[0].upper() + text[1:]
        return text + ("" if text.endswith((".", "!", "?")) else ".")
    logger.error("an edit failed", exc_info=error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        gc.collect()
        torch.cuda.empty_cache()
        return "The GPU ran out of memory; your drawing is kept. Try again, or with a guidance of 1, which takes less."
    return f"Something went wrong on the server ({type(error).__name__}); your drawing is kept. Try again."
