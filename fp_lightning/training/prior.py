"""Training of an image-to-video prior from scratch. SVD comes trained; the tiny build needs its own."""

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
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.edm import seeded_generator, seeded_generators
from fp_lightning.model.svd.prior import SVDPrior, svd_prior
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.pairs.flow.dis import dis_flow
from fp_lightning.training.optimiser import AdamWModule, OptimizerName, Schedule, check_last_validation
from fp_lightning.types import ClipBatch, length, to_uint8

CLIP_FPS = 7  # of two frames: what editors are told, see `fp_lightning.model.svd.prior.FPS_ID`
MOTION_WIDTH, MOTION_MOST = 512, 255  # a motion bucket is the greatest displacement in px at 512 px width, at most 255
SEEN_SIDE = 256  # px at which optical flow looks at what was generated


class VideoPriorModule(AdamWModule):
    """Fits a U-Net of SVD's class to clips: image-to-video diffusion, as SVD is trained, at one size.

    The first frame's latents and embedding are given. Micro-conditioning is (fps − 1, motion bucket, noise level): a
    clip has 7 frames a second for every frame after the first, so that two frames have what editors are told, and
    the motion bucket is the greatest displacement in px at 512 px width.

    After each validation the U-Net is written to `out`, in half precision and diffusers' format.

    Args:
        editor: parts and noise levels; with attention "temporal", which is SVD's own network.
        learning_rate, betas, weight_decay, warmup, schedule, optimizer: see `AdamWModule`.
        guidance_scale, num_inference_steps: of the clips that validation generates.
        generated: clips of each length that validation generates; their scores are the main process's alone,
            since ranks may see other lengths.
        seed: of all noise.
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
        seed: int = 0,
        out: str = "runs/tiny_svd/unet",
    ) -> None:
        super().__init__(editor, learning_rate, betas, weight_decay, warmup, schedule, optimizer)
        attention = self.svd.unet.config.attention
        if attention != "temporal":
            raise InputError(f"a prior has SVD's attention, got {attention}; set it to temporal")
        self.svd.vae.encoder.to(memory_format=torch.channels_last)  # on a CPU 1.6 times as fast
        for unused in editor.control_encoder.parameters():
            unused.requires_grad_(False)
        self.seed, self.out = seed, out
        self.guidance_scale, self.num_inference_steps, self.generated = guidance_scale, num_inference_steps, generated
        self._counts: dict[int, int] = {}  # generated in this validation, by length

    @property
    def svd(self) -> SVDPrior:
        """The parts of SVD's class that this trains."""
        return svd_prior(self.editor.prior)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_last_validation(self.trainer)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch, seeded_generators(batch.name, self.seed, "train", self.current_epoch))
        self.log("train/total", loss.detach(), batch_size=len(batch), prog_bar=True)
        return loss

    def loss(self, batch: ClipBatch, generators: edm.Generators) -> Tensor:
        """The diffusion loss (Eq. 1 in EDM form) over all frames of the clips."""
        editor = self.editor
        levels = partial(edm.log_normal, (), editor.augmentation_mean, editor.augmentation_std)
        level = edm.drawn(levels, generators)
        noise = edm.drawn(partial(torch.randn, batch.frames.shape[2:]), generators)
        condition = self.condition(batch.frames[:, 0], batch.motion, batch.frames.shape[1], noise, level)
        latents = self._encode(batch.frames.flatten(0, 1)).unflatten(0, batch.frames.shape[:2])
        return editor.denoising_error(latents, condition, generators)[0].mean()

    def condition(self, first: Tensor, motion: Tensor, frames: int, noise: Tensor, level: Tensor) -> Condition:
        """What the network is told of clips.

        Args:
            first: [b, 3, h, w] in [-1, 1].
            motion: [b] greatest displacement from the first frame to the last, in image widths.
            frames: of each clip.
            noise, level: [b, 3, h, w] and [b], added to the first frame as SVD does.
        """
        count, device = len(first), first.device
        noise, level = noise.to(device), level.to(device)
        fps = torch.full((count,), CLIP_FPS * (frames - 1) - 1.0, device=device)
        bucket = (motion * MOTION_WIDTH).clamp(max=MOTION_MOST)
        nothing = torch.zeros(count, dtype=torch.bool, device=device)
        return Condition(
            embedding=self.editor.prior.embed(first),
            image_latents=self._encode(first + level[:, None, None, None] * noise),
            added_time_ids=torch.stack([fps, bucket, level], 1),
            control=None,
            control_valid=nothing,
            control_scale=torch.ones(count, device=device),
            points=None,
            points_valid=None,
        )

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """As `FramePainter.encode`, in the precision of the training: half of a step would go into the VAE otherwise.

        In bfloat16 the tiny build's latents are off by 0.4 % of their standard deviation, a quarter of what the noise
        on the first frame does to them.
        """
        return self.svd.vae.encode(images).latent_dist.mode().float()

    @torch.no_grad()
    def generate(self, first: Tensor, motion: Tensor, frames: int, generator: torch.Generator) -> Tensor:
        """Clips [b, frames, 3, h, w] in [-1, 1] that begin with the images `first`; see `condition`."""
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
        frames = batch.frames.shape[1]
        loss = self.loss(batch, seeded_generators(batch.name, self.seed, "val"))
        self.log("val/total", loss, batch_size=len(batch), sync_dist=True)
        wanted = min(len(batch), self.generated - self._counts.get(frames, 0))
        if wanted <= 0 or not self.trainer.is_global_zero:
            return
        self._counts[frames] = self._counts.get(frames, 0) + wanted
        given, motion = batch.frames[:wanted], batch.motion[:wanted]
        clips = self.generate(given[:, 0], motion, frames, seeded_generator(self.seed, "clips", *batch.name))
        scores = {
            "first_frame_psnr": _psnr(clips[:, 0], given[:, 0]),
            "first_frame_psnr_vae": _psnr(self._reconstructed(given)[:, 0], given[:, 0]),
            "motion": seen_motion(clips),
            "motion_true": seen_motion(given),
        }
        for name, values in scores.items():
            self.log(f"val/{frames}_frames/{name}", values.mean(), batch_size=wanted, rank_zero_only=True)

    def _reconstructed(self, clips: Tensor) -> Tensor:
        """What the VAE alone returns of clips [b, f, 3, h, w]: the best that any first frame can be."""
        latents = self.editor.encode(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        return self.editor.decode(latents * self.svd.scaling_factor)

    def on_validation_epoch_start(self) -> None:
        self._counts = {}

    def on_validation_epoch_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            plain_unet(self.svd.unet).to(torch.float16).save_pretrained(self.out)


def plain_unet(unet: FramePainterUNet) -> UNetSpatioTemporalConditionModel:
    """A copy of a network with SVD's attention as diffusers' own class."""
    own = {k: v for k, v in unet.config.items() if k not in ("attention", "match_queries") and not k.startswith("_")}
    plain = UNetSpatioTemporalConditionModel.from_config(own)
    plain.load_state_dict(unet.state_dict())
    return plain


def seen_motion(clips: Tensor) -> Tensor:
    """The greatest motion from first to last frame of clips [b, f, 3, h, w] as DIS sees it, [b] in px at 512 px width.

    It is the 99th percentile of the flow, with the frames brought to 256 px; of frames that do not fit each other
    the flow means little.
    """
    height, width = clips.shape[-2:]
    size = (round(SEEN_SIDE * height / width), SEEN_SIDE)
    ends = F.interpolate(clips[:, [0, -1]].flatten(0, 1), size, mode="bicubic", align_corners=False)
    images = [np.ascontiguousarray(image) for image in to_uint8(ends).permute(0, 2, 3, 1).cpu().numpy()]
    flow = dis_flow(images[::2], images[1::2])
    lengths = torch.stack([length(one).flatten().quantile(0.99) for one in flow])
    return lengths * (MOTION_WIDTH / SEEN_SIDE)


def _psnr(images: Tensor, truth: Tensor) -> Tensor:
    """[b] in dB, of images in [-1, 1]."""
    return -10 * torch.log10((images - truth).square().flatten(1).mean(1) / 4)
