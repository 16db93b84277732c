"""FramePainterPipeline: an image and what the user drew → the edited image, as a diffusers pipeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLTemporalDecoder, DiffusionPipeline, EulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from transformers import CLIPVisionModelWithProjection

from fp_lightning.control import INJECTION_FACTOR, ControlEncoder
from fp_lightning.editor import FramePainter
from fp_lightning.errors import InputError
from fp_lightning.sampler import Sampling, sample
from fp_lightning.types import EditBatch, to_uint8, to_unit_range
from fp_lightning.unet import FramePainterUNet

logger = logging.getLogger(__name__)


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
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        control_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> FramePainterOutput:
        """Edits one image, or a batch.

        Args:
            image: RGB, any size.
            sketch: white strokes on black, one an image; resized to its image, with a warning, if it differs.
            num_inference_steps, guidance_scale, control_scale: see `Sampling`.
            generator: one for all, or one an image; on the CPU. None draws new noise at every call.

        Raises:
            InputError: no or too few sketches or generators.
        """
        images = image if isinstance(image, list) else [image]
        sketches = sketch if isinstance(sketch, list) else [sketch] * (1 if sketch is not None else 0)
        if len(sketches) != len(images):
            raise InputError(f"{len(images)} images need as many sketches, got {len(sketches)}; pass sketch=[…]")
        if isinstance(generator, list) and len(generator) != len(images):
            raise InputError(f"{len(images)} images need as many generators, got {len(generator)}, or a single one")
        if isinstance(generator, list):
            generators = generator
        else:
            first = generator or torch.Generator().manual_seed(torch.seed() % 2**63)
            seeds = torch.randint(2**62, (len(images),), generator=first).tolist()
            generators = [first] if len(images) == 1 else [torch.Generator().manual_seed(seed) for seed in seeds]

        device = self._execution_device
        batch = EditBatch(
            source=torch.stack([to_unit_range(self._pixels(item)) for item in images]),
            control=torch.stack([self._control(s, i) for s, i in zip(sketches, images, strict=True)]),
            name=[str(index) for index in range(len(images))],
        ).to(device)
        settings = Sampling(num_inference_steps, guidance_scale, control_scale)
        with self.progress_bar(total=num_inference_steps) as bar:
            edited = sample(self.editor, batch, settings, generators, lambda step, latents: bar.update())
        self.maybe_free_model_hooks()
        results = [to_pil_image(to_uint8(result).cpu()) for result in edited]
        return FramePainterOutput(
            images=[
                result.resize(item.size, Image.Resampling.LANCZOS) for result, item in zip(results, images, strict=True)
            ]
        )

    def _pixels(self, image: Image.Image) -> Tensor:
        """uint8 [3, h, w] at the network's size."""
        height, width = self.config.size
        return pil_to_tensor(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))

    def _control(self, sketch: Image.Image, image: Image.Image) -> Tensor:
        if sketch.size != image.size:
            logger.warning("the sketch is %d×%d, its image %d×%d: the sketch is resized", *sketch.size, *image.size)
        return self._pixels(sketch).float() / 255
