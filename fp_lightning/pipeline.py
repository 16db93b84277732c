"""FramePainterPipeline: an image and what the user drew → the edited image, as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, DiffusionPipeline, EulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image, ImageOps
from torchvision.transforms.functional import to_pil_image
from transformers import CLIPVisionModelWithProjection

from fp_lightning.control import INJECTION_FACTOR, ControlEncoder
from fp_lightning.editor import FramePainter
from fp_lightning.errors import InputError
from fp_lightning.images import coarse_image, drags, squeeze, strokes, unsqueeze
from fp_lightning.sampler import Sampling, sample
from fp_lightning.signals.combine import signal_fields
from fp_lightning.types import EditBatch, to_unit_range
from fp_lightning.unet import FramePainterUNet


@dataclass
class FramePainterOutput(BaseOutput):
    images: list[Image.Image]  # the edited images at the sizes of the inputs


class FramePainterPipeline(DiffusionPipeline):
    """Edits images. Made by `from_editor` or `from_pretrained`, kept by `save_pretrained`.

    Args:
        unet, control_encoder, vae, image_encoder, scheduler: the parts of a `FramePainter`.
        size: (height, width) in pixels at which the network works; inputs are resized to it and back.
        control_frames, control_factor: see `FramePainter`.
        signals: what it was trained on, of "sketch", "coarse" and "points"; None if that is not known.
    """

    model_cpu_offload_seq = "image_encoder->vae->control_encoder->unet->vae"

    def __init__(
        self,
        unet: FramePainterUNet,
        control_encoder: ControlEncoder,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        scheduler: EulerDiscreteScheduler,
        size: Sequence[int] = (576, 1024),
        control_frames: str = "target",
        control_factor: float = INJECTION_FACTOR,
        signals: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            control_encoder=control_encoder,
            vae=vae,
            image_encoder=image_encoder,
            scheduler=scheduler,
        )
        self.register_to_config(
            size=list(size),
            control_frames=control_frames,
            control_factor=control_factor,
            signals=None if signals is None else list(signals),
        )

    @classmethod
    def from_editor(cls, editor: FramePainter, size: tuple[int, int]) -> FramePainterPipeline:
        """A pipeline over the parts of `editor`, which works at `size` (height, width)."""
        editor.check_size(size)
        return cls(
            editor.unet,
            editor.control_encoder,
            editor.vae,
            editor.image_encoder,
            editor.scheduler,
            size=size,
            control_frames=editor.control_frames,
            control_factor=editor.control_factor,
        )

    @property
    def editor(self) -> FramePainter:
        """The parts, joined."""
        return FramePainter(
            self.unet,
            self.control_encoder,
            self.vae,
            self.image_encoder,
            self.scheduler,
            control_frames=self.config.control_frames,
            control_factor=self.config.control_factor,
        ).eval()

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | list[Image.Image],
        sketch: Image.Image | list[Image.Image | None] | None = None,
        coarse: Image.Image | list[Image.Image | None] | None = None,
        points: Any = None,
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        control_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> FramePainterOutput:
        """Edits one image by one or more signals, or a list of images by a list of each signal.

        Args:
            image: RGB, any size, turned upright as its EXIF says; signals are given for the upright image.
            sketch: what counts as a stroke is said in `strokes`.
            coarse: the image with parts moved roughly where they shall be, see `coarse_image`.
            points: drags, rows of (x_src, y_src, x_tgt, y_tgt) in pixels of the image, see `drags`.
            num_inference_steps, guidance_scale, control_scale: see `Sampling`.
            generator: one for all, or one an image; on the CPU. None draws new noise at every call.

        With a list of images every signal that is given is a list as long, with None for an image that
        has another one.

        Raises:
            InputError: an image without a signal, lists of other lengths, or a signal that is not usable.
        """
        images = [ImageOps.exif_transpose(item) for item in (image if isinstance(image, list) else [image])]
        given = {"sketch": sketch, "coarse": coarse, "points": points}
        signals = {name: self._one_an_image(name, value, image) for name, value in given.items() if value is not None}
        for index in range(len(images)):
            if all(values[index] is None for values in signals.values()):
                raise InputError(f"image {index} has no signal; pass a sketch, a coarse edit or points for it")
        if isinstance(generator, list) and len(generator) != len(images):
            raise InputError(f"{len(images)} images need as many generators, got {len(generator)}, or a single one")
        if not isinstance(generator, list):
            generator = self._one_each(generator or torch.Generator().manual_seed(torch.seed() >> 1), len(images))
        samples = [
            self._sample(str(index), item, {name: values[index] for name, values in signals.items()})
            for index, item in enumerate(images)
        ]
        batch = EditBatch.cat(samples).to(self._execution_device)
        settings = Sampling(num_inference_steps, guidance_scale, control_scale)
        with self.progress_bar(total=num_inference_steps) as bar:
            edited = sample(self.editor, batch, settings, generator, lambda step, latents: bar.update())
        self.maybe_free_model_hooks()
        results = [unsqueeze(item, (own.height, own.width)) for item, own in zip(edited, images, strict=True)]
        return FramePainterOutput(images=[to_pil_image(result) for result in results])

    def _sample(self, name: str, image: Image.Image, signals: dict[str, Any]) -> EditBatch:
        """One upright image with its signals, some of them None, at the network's size."""
        size, shape = (self.config.size[0], self.config.size[1]), (image.height, image.width)
        read = {
            "sketch": lambda drawn: strokes(drawn, shape, size),
            "coarse": lambda drawn: coarse_image(drawn, image, size),
            "points": lambda drawn: drags(drawn, shape, size),
        }
        drawn = {kind: read[kind](value) for kind, value in signals.items() if value is not None}
        return EditBatch(
            to_unit_range(squeeze(image, size))[None], [name], **signal_fields(size, **drawn, among=signals)
        )

    @staticmethod
    def _one_an_image(name: str, given: Any, image: Image.Image | list[Image.Image]) -> list[Any]:
        """A signal as a list as long as that of the images."""
        values, count = (given, len(image)) if isinstance(image, list) else ([given], 1)
        if not isinstance(values, list) or len(values) != count:
            got = len(values) if isinstance(values, list) else "no list"
            raise InputError(f"{count} images need a list of as many {name}, got {got}; put None for those without")
        for value in values:
            if name != "points" and not isinstance(value, Image.Image | None):
                raise InputError(f"{name} must be a PIL image, got {type(value).__name__}; open it with PIL.Image.open")
        return values

    @staticmethod
    def _one_each(generator: torch.Generator, count: int) -> list[torch.Generator]:
        """A single image uses the generator itself, a batch one seeded by it for each image."""
        if count == 1:
            return [generator]
        seeds = torch.randint(2**62, (count,), generator=generator).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
