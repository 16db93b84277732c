"""Train an image-to-video prior from scratch. SVD is already trained; the tiny build needs this."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import guidance_weights, guided
from fp_lightning.inference.solvers import SOLVERS
from fp_lightning.model import edm
from fp_lightning.model.condition import Condition
from fp_lightning.model.devices import to_device
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.edm import seeded_generator, seeded_generators
from fp_lightning.model.svd.prior import SVDPrior, svd_prior
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.pairs.flow.dis import dis_flow
from fp_lightning.training.optimiser import OptimisedModule, OptimizerName, Schedule, check_last_validation
from fp_lightning.types import ClipBatch, length, to_uint8
from fp_lightning.weights.saving import save_over

CLIP_FPS = 7  # of a clip of two frames, the value that editors use: see `fp_lightning.model.svd.prior.FPS_ID`
MOTION_WIDTH, MOTION_MAX = 512, 255  # a motion bucket is the largest displacement in px at 512 px width, at most 255
FLOW_WIDTH = 256  # px to which generated clips are resized for optical flow


class VideoPriorModule(OptimisedModule):
    """Trains a U-Net of SVD's class on clips of one size: image-to-video diffusion, as SVD was trained.

    The network is conditioned on the latents and the embedding of the first frame. Micro-conditioning is
    (fps − 1, motion bucket, noise level). A clip of n frames has 7 (n − 1) frames per second, so that two frames have
    the same value as in an editor. The motion bucket is the largest displacement in px at 512 px width.

    After each validation the U-Net is saved to `out`, in half precision and diffusers' format.

    Args:
        editor: supplies the networks and noise levels. Its attention must be "temporal", that of SVD.
        learning_rate, betas, weight_decay, warmup, schedule, optimizer: see `OptimisedModule`.
        guidance_scale, num_inference_steps: settings of the clips that validation generates.
        generated: number of clips of each length that validation generates. Only the main process scores them,
            because the lengths differ between ranks.
        seed: seed of all noise; None as in `FramePainterModule`.
        out: folder for the U-Net.

    Raises:
        InputError: the editor's attention is not "temporal".
    """

    def __init__(
        self,
        editor: FramePainter,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-2,
        warmup: int = 200,
        schedule: Schedule = "cosine",
        optimizer: OptimizerName = "adamw",
        guidance_scale: float = 1.0,
        num_inference_steps: int = 12,
        generated: int = 16,
        seed: int | None = None,
        out: str = "runs/tiny_svd/unet",
    ) -> None:
        super().__init__(editor, learning_rate, betas, weight_decay, warmup, schedule, optimizer)
        attention = self.svd.unet.config.attention
        if attention != "temporal":
            raise InputError(f"a prior needs attention temporal, got {attention}; set it to temporal")
        self.svd.vae.encoder.to(memory_format=torch.channels_last)  # 1.6 times as fast on a CPU
        for unused in editor.control_encoder.parameters():
            unused.requires_grad_(False)
        self.seed, self.out = seed or 0, out
        self.guidance_scale, self.num_inference_steps, self.generated = guidance_scale, num_inference_steps, generated
        self._counts: dict[int, int] = {}  # clips generated in this validation, by number of frames

    @property
    def svd(self) -> SVDPrior:
        """The parts of SVD's class that this trains."""
        return svd_prior(self.editor.prior)

    def setup(self, stage: str) -> None:
        """See `OptimisedModule.setup` and `check_last_validation`."""
        super().setup(stage)
        check_last_validation(self.trainer)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Log and return the loss, a scalar."""
        loss = self.loss(batch, seeded_generators(batch.name, self.seed, "train", self.current_epoch))
        self.log("train/total", loss.detach(), batch_size=len(batch), prog_bar=True)
        return loss

    def loss(self, batch: ClipBatch, generators: edm.Generators) -> Tensor:
        """Return the diffusion loss (Eq. 1, in EDM form), the mean over all frames of the clips."""
        editor = self.editor
        levels = partial(edm.log_normal, (), editor.augmentation_mean, editor.augmentation_std)
        level = edm.drawn(levels, generators)
        noise = edm.drawn(partial(torch.randn, batch.frames.shape[2:]), generators)
        condition = self.condition(batch.frames[:, 0], batch.motion, batch.frames.shape[1], noise, level)
        latents = self._encode(batch.frames.flatten(0, 1)).unflatten(0, batch.frames.shape[:2])
        return editor.denoising_error(latents, condition, generators)[0].mean()

    def condition(self, first: Tensor, motion: Tensor, frames: int, noise: Tensor, level: Tensor) -> Condition:
        """Return the conditioning of clips.

        Args:
            first: first frames [b, 3, h, w] in [-1, 1].
            motion: largest displacements [b] from the first frame to the last, in image widths.
            frames: number of frames per clip.
            noise: standard normal noise [b, 3, h, w].
            level: noise levels [b]; level · noise is added to the first frame (SVD's noise augmentation).
        """
        count, device = len(first), first.device
        noise, level = to_device(noise, device), to_device(level, device)
        fps = torch.full((count,), CLIP_FPS * (frames - 1) - 1.0, device=device)
        bucket = (motion * MOTION_WIDTH).clamp(max=MOTION_MAX)
        no_control = torch.zeros(count, dtype=torch.bool, device=device)
        return Condition(
            embedding=self.editor.prior.embed(first),
            image_latents=self._encode(first + level[:, None, None, None] * noise),
            added_time_ids=torch.stack([fps, bucket, level], 1),
            control=None,
            control_valid=no_control,
            control_scale=torch.ones(count, device=device),
            points=None,
            points_valid=None,
        )

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Encode images [n, 3, h, w] in [-1, 1] like `FramePainter.encode`, but in the training precision.

        In float32 the VAE would take half of a step. In bfloat16 the tiny build's latents are off by 0.4 % of their
        standard deviation, a quarter of the effect of noise augmentation.
        """
        return self.svd.vae.encode(images).latent_dist.mode().float()

    @torch.no_grad()
    def generate(self, first: Tensor, motion: Tensor, frames: int, generator: torch.Generator) -> Tensor:
        """Return clips [b, frames, 3, h, w] in [-1, 1] that begin with the images `first`.

        Args:
            first, motion, frames: see `condition`.
            generator: source of all noise, on the CPU.
        """
        editor, (height, width) = self.editor, first.shape[-2:]
        noise = torch.randn(first.shape, generator=generator)
        level = torch.full((len(first),), editor.prior.noise_augmentation)
        condition = self.condition(first, motion, frames, noise, level)
        sigmas = edm.karras_sigmas(self.num_inference_steps, *editor.prior.sigma_range)
        weights = guidance_weights(self.guidance_scale, sigmas[:-1].tolist())
        stride = editor.prior.stride
        shape = (len(first), frames, editor.prior.latent_channels, height // stride, width // stride)
        x = torch.randn(shape, generator=generator) * (sigmas[0] ** 2 + 1).sqrt()
        latents = SOLVERS["euler"](
            guided(editor, condition, weights), x.to(first.device), sigmas.to(first.device), None
        )
        return editor.decode(latents)

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """Log the loss; on the main process also generate clips and score their first frame (dB) and motion (px)."""
        frames = batch.frames.shape[1]
        loss = self.loss(batch, seeded_generators(batch.name, self.seed, "val"))
        self.log("val/total", loss, batch_size=len(batch), sync_dist=True)
        count = min(len(batch), self.generated - self._counts.get(frames, 0))
        if count <= 0 or not self.trainer.is_global_zero:
            return
        self._counts[frames] = self._counts.get(frames, 0) + count
        real, motion = batch.frames[:count], batch.motion[:count]
        clips = self.generate(real[:, 0], motion, frames, seeded_generator(self.seed, "clips", *batch.name))
        scores = {
            "first_frame_psnr": _psnr(clips[:, 0], real[:, 0]),
            "first_frame_psnr_vae": _psnr(self._reconstruct(real)[:, 0], real[:, 0]),
            "motion": measure_motion(clips),
            "motion_true": measure_motion(real),
        }
        for name, values in scores.items():
            self.log(f"val/{frames}_frames/{name}", values.mean(), batch_size=count, rank_zero_only=True)

    def _reconstruct(self, clips: Tensor) -> Tensor:
        """Encode and decode clips [b, f, 3, h, w]: the upper bound for the PSNR of generated first frames."""
        latents = self.editor.encode(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        return self.editor.decode(latents * self.svd.scaling_factor)

    def on_validation_epoch_start(self) -> None:
        self._counts = {}

    def on_validation_epoch_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            save_over(self.out, plain_unet(self.svd.unet).to(torch.float16).save_pretrained)


def plain_unet(unet: FramePainterUNet) -> UNetSpatioTemporalConditionModel:
    """Copy a network with attention "temporal" into diffusers' class for SVD."""
    config = {k: v for k, v in unet.config.items() if k not in ("attention", "match_queries") and not k.startswith("_")}
    plain = UNetSpatioTemporalConditionModel.from_config(config)
    plain.load_state_dict(unet.state_dict())
    return plain


def measure_motion(clips: Tensor) -> Tensor:
    """Measure the motion from the first to the last frame of clips with optical flow (DIS).

    The frames are resized to a width of 256 px. If they do not show the same scene, the flow means little.

    Args:
        clips: [b, f, 3, h, w] in [-1, 1].

    Returns:
        [b], 99th percentile of the flow's length, in px at 512 px width.
    """
    height, width = clips.shape[-2:]
    size = (round(FLOW_WIDTH * height / width), FLOW_WIDTH)
    ends = F.interpolate(clips[:, [0, -1]].flatten(0, 1), size, mode="bicubic", align_corners=False)
    images = [np.ascontiguousarray(image) for image in to_uint8(ends).permute(0, 2, 3, 1).cpu().numpy()]
    flow = dis_flow(images[::2], images[1::2])
    lengths = torch.stack([length(one).flatten().quantile(0.99) for one in flow])
    return lengths * (MOTION_WIDTH / FLOW_WIDTH)


def _psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Return the PSNR [b] in dB of images [b, 3, h, w] in [-1, 1]."""
    return -10 * torch.log10((images - truth).square().flatten(1).mean(1) / 4)
