"""FramePainterPipeline: edit an image by a sketch, a coarse edit or drag points, as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from transformers import CLIPVisionModelWithProjection

from fp_lightning.errors import InputError
from fp_lightning.inference.arguments import Layers, list_generators, list_images, list_signals, per_image
from fp_lightning.inference.blend import edit_mask, paste_back, region_weight
from fp_lightning.inference.pipeline_files import SavedPipeline
from fp_lightning.inference.sampler import PresetName, default_sampling, noise_levels, sample_latents
from fp_lightning.inference.solvers import SolverName
from fp_lightning.media.images import coarse_image, drags, region_mask, squeeze, strokes, unsqueeze
from fp_lightning.model import edm
from fp_lightning.model.control import INJECTION_FACTOR, ControlEncoder
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.svd.prior import SVDPrior, svd_prior
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.signals.combine import signal_fields
from fp_lightning.types import EditBatch, to_unit_range
from fp_lightning.weights.model_card import model_card, pipeline_settings

OutputType = Literal["pil", "np", "pt", "latent"]
StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass
class FramePainterOutput(BaseOutput):
    """The output of a pipeline call.

    Attributes:
        images: edited images in sRGB at the sizes of the inputs, or scaled latents [b, 2, c, h, w] of source and edit.
    """

    images: list[Image.Image] | list[np.ndarray] | list[Tensor] | Tensor


class FramePainterPipeline(SavedPipeline):
    """A diffusers pipeline that edits images. Create it with `from_pretrained` or `from_editor`.

    Args:
        unet, control_encoder, vae, image_encoder, scheduler: the parts of a `FramePainter` on SVD.
        size: (height, width) in pixels at which the network works. Inputs are resized to it, and results back.
        control_frames, control_factor: see `FramePainter`.
        signals: the signals of the training data, of "sketch", "coarse" and "points"; None if unknown.
        distilled_steps: see `FramePainter`.
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"
    _exclude_from_cpu_offload = ["control_encoder"]  # noqa: RUF012  14 MB, used at every step
    _callback_tensor_inputs = ["latents", "denoised"]  # noqa: RUF012

    def __init__(
        self,
        unet: FramePainterUNet,
        control_encoder: ControlEncoder,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        scheduler: EulerDiscreteScheduler,
        size: tuple[int, int] | list[int] = (576, 1024),
        control_frames: str = "target",
        control_factor: float = INJECTION_FACTOR,
        signals: Sequence[str] | None = None,
        distilled_steps: int | None = None,
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
            distilled_steps=distilled_steps,
        )
        self._vae_slicing = False

    @classmethod
    def from_editor(cls, editor: FramePainter, size: tuple[int, int]) -> FramePainterPipeline:
        """Build a pipeline on the parts of `editor`, without copying them.

        Args:
            editor: an editor on SVD.
            size: (height, width) in pixels at which the network works.

        Raises:
            InputError: `size` does not fit the network, or the editor is not built on SVD.
        """
        editor.check_size(size)
        prior = svd_prior(editor.prior)
        return cls(
            prior.unet,
            editor.control_encoder,
            prior.vae,
            prior.image_encoder,
            prior.scheduler,
            size=size,
            control_frames=editor.control_frames,
            control_factor=editor.control_factor,
            distilled_steps=editor.distilled_steps,
        )

    def model_card(self, title: str) -> str:
        """Return a model card in Markdown: what the pipeline is, how to use it, and its settings."""
        settings = pipeline_settings(self.editor.settings(), self.config.size)
        return model_card(title, settings, self.config.signals)

    def enable_vae_slicing(self) -> None:
        """Encode and decode one image at a time, which takes less memory."""
        self._vae_slicing = True

    def disable_vae_slicing(self) -> None:
        """Encode and decode all images of a batch at once."""
        self._vae_slicing = False

    @property
    def editor(self) -> FramePainter:
        """The parts as an editor in evaluation mode."""
        editor = FramePainter(
            SVDPrior(self.unet, self.vae, self.image_encoder, self.scheduler),
            self.control_encoder,
            control_frames=self.config.control_frames,
            control_factor=self.config.control_factor,
            trained=True,
            distilled_steps=self.config.distilled_steps,
        ).eval()
        editor.prior.vae_slicing = self._vae_slicing
        return editor

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | list[Image.Image],
        sketch: Layers | list[Layers | None] | None = None,
        coarse: Image.Image | list[Image.Image | None] | None = None,
        points: Any = None,
        *,
        preset: PresetName | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        control_scale: float = 1.0,
        solver: SolverName | None = None,
        guidance_interval: tuple[float, float] | None = None,
        reuse: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        keep_unedited: bool = False,
        region: Image.Image | list[Image.Image | None] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> FramePainterOutput | tuple:
        """Edit one image by one or more signals, or several images by lists of signals.

        If `image` is a list, each signal is None or a list of the same length. Its entry is None for an image without
        this signal. Every image needs at least one signal.

        Args:
            image: image of any mode and size. It is read as upright sRGB on a white ground, see `normalised`.
                Positions in signals refer to the upright image.
            sketch: target outline, see `strokes`. A list of images holds the layers of one sketch, whose strokes are
                combined.
            coarse: the image with parts moved roughly to their target positions, see `coarse_image`.
            points: drags, rows of (x_src, y_src, x_tgt, y_tgt) in pixels of the image, see `drags`.
            preset: "paper" or "fast", see `PRESETS`. None: what suits the editor, see `default_sampling`.
            num_inference_steps, guidance_scale, control_scale, solver, guidance_interval, reuse: see `Sampling`. Steps,
                guidance and solver are those of the preset if they are None.
            height, width: size in pixels at which the network works. The default is the pipeline's `size`.
            generator: a generator, or a list of one per image; on the CPU. None draws new noise at every call.
            keep_unedited: paste the photo back where the edit did not change it, with a soft border. Pixels there
                equal the photo exactly. See `edit_mask`.
            region: mask of the pixels that may change, see `region_mask`. All other pixels equal the photo exactly.
                The border is soft on the inside.
            output_type: "pil"; "np": arrays [H, W, 3]; "pt": tensors [3, H, W], both float32 in [0, 1]; "latent":
                scaled latents [b, 2, c, h, w].
            return_dict: False returns a tuple (images,).
            callback_on_step_end: called as (pipeline, step, timestep, tensors) after each step. It may return a
                dictionary whose "latents" replace the current ones. An exception cancels the edit.
            callback_on_step_end_tensor_inputs: names of the tensors that the callback receives: "latents", and
                "denoised", the last denoised latents D(x; σ). Both are scaled, [b, 2, c, h, w].

        Raises:
            InputError: an image has no signal, a list has a wrong length, or a value is invalid.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
        if (keep_unedited or region is not None) and output_type == "latent":
            raise InputError("keep_unedited and region need output_type pil, np or pt, got latent; leave them out")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise InputError(
                f"callback_on_step_end_tensor_inputs may hold {' and '.join(self._callback_tensor_inputs)}, "
                f"got {', '.join(sorted(unknown))}"
            )
        images = list_images(image)
        regions = [None] * len(images) if region is None else per_image("region", region, image)
        signals = list_signals(image, {"sketch": sketch, "coarse": coarse, "points": points})
        generators = list_generators(generator, len(images))
        editor = self.editor
        chosen: dict[str, Any] = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "solver": solver,
        }
        settings = replace(
            default_sampling(editor.distilled_steps, preset),
            **{name: value for name, value in chosen.items() if value is not None},
            control_scale=control_scale,
            guidance_interval=guidance_interval,
            reuse=reuse,
        )
        size = (height or self.config.size[0], width or self.config.size[1])
        editor.check_size(size)
        samples = [
            self.sample(str(index), item, {name: values[index] for name, values in signals.items()}, size)
            for index, item in enumerate(images)
        ]
        batch = EditBatch.cat(samples).to(self._execution_device)
        levels = edm.scalings(noise_levels(settings, editor)[:-1]).c_noise

        with self.progress_bar(total=settings.num_inference_steps) as bar:

            def progress(step: int, latents: Tensor, denoised: Tensor) -> Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                tensors = {"latents": latents, "denoised": denoised}
                requested = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                return (callback_on_step_end(self, step, levels[step], requested) or {}).get("latents")

            latents = sample_latents(editor, batch, settings, generators, progress)
        if output_type == "latent":
            self.maybe_free_model_hooks()
            return FramePainterOutput(images=latents) if return_dict else (latents,)
        edited = editor.decode(latents)[:, 1]
        unchanged: Sequence[Tensor | None] = [None] * len(images)
        if keep_unedited:
            factor = editor.prior.scaling_factor
            unchanged = list(
                editor.decode(editor.encode(batch.source)[:, None].expand(-1, 2, -1, -1, -1) * factor)[:, 1]
            )
        results = [_paste(*each) for each in zip(images, edited, unchanged, regions, strict=True)]
        self.maybe_free_model_hooks()
        outputs = [_as_type(result, output_type) for result in results]
        return FramePainterOutput(images=outputs) if return_dict else (outputs,)

    @staticmethod
    def sample(name: str, image: Image.Image, signals: dict[str, Any], size: tuple[int, int]) -> EditBatch:
        """Return a batch of one upright image and its signals at the network's size.

        Args:
            name: name of the sample.
            image: the upright image.
            signals: signals by name ("sketch", "coarse", "points"); None where the image has none.
            size: (height, width) in pixels at which the network works.

        Raises:
            InputError: a signal is invalid.
        """
        shape = (image.height, image.width)
        read = {
            "sketch": lambda layers: torch.stack([strokes(layer, shape, size) for layer in layers]).amax(0),
            "coarse": lambda edit: coarse_image(edit, image, size),
            "points": lambda rows: drags(rows, shape, size),
        }
        fields = {kind: read[kind](value) for kind, value in signals.items() if value is not None}
        return EditBatch(
            to_unit_range(squeeze(image, size))[None], [name], **signal_fields(size, **fields, among=signals)
        )


def _paste(photo: Image.Image, edited: Tensor, unchanged: Tensor | None, region: Image.Image | None) -> Tensor:
    """Resize an edit to its photo, and keep the photo where it is unedited or outside the region.

    Args:
        photo: the upright photo.
        edited: float [3, h, w] in [-1, 1].
        unchanged: the photo after the VAE's encoder and decoder, like `edited`; None does not keep unedited pixels.
        region: mask of the pixels that may change; None allows all.

    Returns:
        uint8 [3, H, W] at the photo's size.
    """
    size = (photo.height, photo.width)
    if unchanged is None and region is None:
        return unsqueeze(edited, size)
    pixels = torch.from_numpy(np.array(photo)).movedim(-1, 0)
    image = edited.cpu()
    if unchanged is not None:
        image = paste_back(pixels, image, *edit_mask(image, unchanged.cpu()))
    if region is not None:
        image = paste_back(pixels, image, region_weight(region_mask(region, size)), torch.zeros(3, 1, 1))
    return unsqueeze(image, size)


def _as_type(image: Tensor, output_type: OutputType) -> Any:
    """Convert an image, uint8 [3, H, W], to `output_type`."""
    if output_type == "pil":
        return to_pil_image(image)
    return image.float() / 255 if output_type == "pt" else image.movedim(0, -1).numpy().astype(np.float32) / 255
