"""FramePainterPipeline: an image and what the user drew → the edited image, as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLTemporalDecoder, DiffusionPipeline, EulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image, ImageOps
from torchvision.transforms.functional import to_pil_image
from transformers import CLIPVisionModelWithProjection

from fp_lightning.control import INJECTION_FACTOR, ControlEncoder
from fp_lightning.editor import FramePainter
from fp_lightning.errors import InputError
from fp_lightning.images import squeeze, strokes, unsqueeze
from fp_lightning.sampler import Sampling, sample
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
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            control_encoder=control_encoder,
            vae=vae,
            image_encoder=image_encoder,
            scheduler=scheduler,
        )
        self.register_to_config(size=list(size), control_frames=control_frames, control_factor=control_factor)

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
        sketch: Image.Image | list[Image.Image] | None = None,
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        control_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> FramePainterOutput:
        """Edits one image, or a batch.

        Args:
            image: RGB, any size.
            sketch: one an image; what counts as a stroke is said in `strokes`.
            num_inference_steps, guidance_scale, control_scale: see `Sampling`.
            generator: one for all, or one an image; on the CPU. None draws new noise at every call.

        Raises:
            InputError: no or too few sketches or generators.
        """
        images = [ImageOps.exif_transpose(item) for item in (image if isinstance(image, list) else [image])]
        sketches = sketch if isinstance(sketch, list) else [] if sketch is None else [sketch]
        if len(sketches) != len(images):
            raise InputError(f"{len(images)} images need as many sketches, got {len(sketches)}; pass sketch=[…]")
        if isinstance(generator, list) and len(generator) != len(images):
            raise InputError(f"{len(images)} images need as many generators, got {len(generator)}, or a single one")
        if not isinstance(generator, list):
            generator = self._one_each(generator or torch.Generator().manual_seed(torch.seed() >> 1), len(images))
        size, shapes = tuple(self.config.size), [(item.height, item.width) for item in images]
        batch = EditBatch(
            source=to_unit_range(torch.stack([squeeze(item, size) for item in images])),
            control=torch.stack([strokes(drawn, shape, size) for drawn, shape in zip(sketches, shapes, strict=True)]),
            name=[str(index) for index in range(len(images))],
        ).to(self._execution_device)
        settings = Sampling(num_inference_steps, guidance_scale, control_scale)
        with self.progress_bar(total=num_inference_steps) as bar:
            edited = sample(self.editor, batch, settings, generator, lambda step, latents: bar.update())
        self.maybe_free_model_hooks()
        results = [unsqueeze(result, shape) for result, shape in zip(edited, shapes, strict=True)]
        return FramePainterOutput(images=[to_pil_image(result) for result in results])

    @staticmethod
    def _one_each(generator: torch.Generator, count: int) -> list[torch.Generator]:
        """A single image uses the generator itself, a batch one seeded by it for each image."""
        if count == 1:
            return [generator]
        seeds = torch.randint(2**62, (count,), generator=generator).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
