"""FramePainter: SVD's parts joined into an editor that can be trained and asked to denoise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from fp_lightning.errors import InputError
from fp_lightning.model import edm
from fp_lightning.model.condition import Condition
from fp_lightning.model.control import INJECTION_FACTOR, ControlEncoder
from fp_lightning.model.fingerprint import fingerprint
from fp_lightning.model.matching import Correspondence
from fp_lightning.model.matching_loss import FORMS, MatchingForm
from fp_lightning.model.points import DragPoints
from fp_lightning.model.svd.specialise import specialise
from fp_lightning.model.svd.unet import DeepFeatures, FramePainterUNet
from fp_lightning.model.trainable import Trains
from fp_lightning.types import EditBatch

logger = logging.getLogger(__name__)
FPS_ID, MOTION_BUCKET, NOISE_AUGMENTATION = 6.0, 128.0, 0.02  # micro-conditioning as released; FPS_ID is fps − 1
OFFICIAL = {"match_queries": "both", "control_frames": "both", "control_factor": 0.2}  # the released model's settings
_SPOT = 8  # pixels: the smallest image that the control encoder can halve three times
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def uploaded(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; a GPU does not keep the host waiting for it."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


@dataclass(frozen=True)
class Losses:
    total: Tensor  # Eq. 8: diffusion + matching_weight · matching
    diffusion: Tensor  # Eq. 1 in EDM form
    matching: Tensor  # Eq. 7 or its cross-entropy form, mean over visible rows, heads and layers


class FramePainter(nn.Module):
    """The editor. The VAE and the image encoder are frozen; the U-Net and the control encoder train.

    Args:
        unet, control_encoder, vae, image_encoder, scheduler: the parts; see `load_backbone`. Of the
            scheduler only the noise range of the sampling schedule is used.
        control_frames: where the control response enters: "target" (paper) or "both" (released: the
            source frame receives the response to a black image).
        control_factor: multiplies the control response, not the dragged tokens; near 1.0 is advised for
            dense control images.
        reconstruct_source: also denoise the source frame (paper, Table 4).
        matching_weight: λ of Eq. 8.
        matching_loss: "squared" (Eq. 7) or "cross_entropy", see `fp_lightning.model.matching_loss`.
        sigma_mean, sigma_std: training noise levels are log-normal with these.
        augmentation_mean, augmentation_std: so is the noise on the conditioning image.
        model: what the parts were loaded from; checkpoints remember it.
        trained: the parts are a trained editor's, not SVD's with a new control encoder.
        trains: what `choose_trainable` has left to train; checkpoints remember it.
        augmentation_draws: None disturbs the conditioning image anew at every step; k keeps k noises, with
            their levels, for every sample, so that all the VAE sees of it can be kept on disk.
        dropout: p of conditioning dropout. With one uniform r a sample, the embedding goes where
            r < 2p, the image latents where p ≤ r < 3p, and control and points where both go
            (p ≤ r < 2p), which is what guidance calls unconditional.
    """

    def __init__(
        self,
        unet: FramePainterUNet,
        control_encoder: ControlEncoder,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        scheduler: EulerDiscreteScheduler,
        *,
        control_frames: Literal["target", "both"] = "target",
        control_factor: float = INJECTION_FACTOR,
        reconstruct_source: bool = True,
        matching_weight: float = 1.0,
        matching_loss: MatchingForm = "squared",
        sigma_mean: float = 0.7,
        sigma_std: float = 1.6,
        augmentation_mean: float = -3.0,
        augmentation_std: float = 0.5,
        augmentation_draws: int | None = None,
        dropout: float = 0.1,
        model: str | None = None,
        trained: bool = False,
        trains: Trains = "all",
    ) -> None:
        super().__init__()
        if not 0 <= dropout <= 1 / 3:
            raise InputError(f"dropout must be between 0 and 1/3, got {dropout}")
        if control_frames not in ("target", "both"):
            raise InputError(f"control_frames must be target or both, got {control_frames!r}")
        if augmentation_draws is not None and augmentation_draws < 1:
            raise InputError(f"augmentation_draws must be 1 or more, or null for new ones, got {augmentation_draws}")
        if matching_loss not in FORMS:
            raise InputError(f"matching_loss must be {' or '.join(FORMS)}, got {matching_loss!r}")
        self.unet, self.control_encoder, self.vae, self.image_encoder = unet, control_encoder, vae, image_encoder
        specialise(vae.decoder)
        self.sigma_range = (scheduler.config.sigma_min, scheduler.config.sigma_max)
        self.scheduler = scheduler
        self.control_frames, self.control_factor = control_frames, control_factor
        self.reconstruct_source = reconstruct_source
        self.matching_weight, self.matching_loss = matching_weight, matching_loss
        self.sigma_mean, self.sigma_std = sigma_mean, sigma_std
        self.augmentation_mean, self.augmentation_std = augmentation_mean, augmentation_std
        self.augmentation_draws = augmentation_draws
        self.dropout, self.model, self.trained, self.trains = dropout, model, trained, trains
        self.vae_slicing = False  # encode and decode one sample at a time: less memory
        for frozen in self.frozen:
            frozen.requires_grad_(False)
        self.train(self.training)

    @property
    def frozen(self) -> tuple[nn.Module, nn.Module]:
        return self.vae, self.image_encoder

    def train(self, mode: bool = True) -> FramePainter:
        """Frozen parts stay in evaluation mode."""
        super().train(mode)
        for frozen in self.frozen:
            frozen.eval()
        return self

    def settings(self) -> dict[str, object]:
        """What changes the network's meaning but no weight's name or shape; checkpoints remember it."""
        return {
            "attention": self.unet.config.attention,
            "match_queries": self.unet.config.match_queries,
            "control_frames": self.control_frames,
            "control_factor": self.control_factor,
        }

    @property
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this: 64 px for SVD."""
        levels = len(self.unet.config.block_out_channels)
        return self.vae_stride * 2 ** (levels - 1)

    @property
    def vae_stride(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises InputError with the nearest sizes when `size` (height, width) does not fit the network."""
        multiple = self.size_multiple
        problems = []
        for axis, value in zip(("height", "width"), size, strict=True):
            if value % multiple or value < 1:
                below = max(multiple, value // multiple * multiple)
                problems.append(
                    f"{axis} must be a multiple of {multiple}, got {value}; try {below} or {below + multiple}"
                )
        if problems:
            raise InputError("; ".join(problems))

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Images [b, 3, h, w] in [-1, 1] → posterior modes [b, 4, h/8, w/8], not scaled."""
        dtype = self._vae_dtype
        with torch.autocast(image.device.type, enabled=False):
            parts = image.to(dtype).split(1 if self.vae_slicing else len(image))
            return torch.cat([self.vae.encode(part).latent_dist.mode().float() for part in parts])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [b, f, 4, h, w] → images [b, f, 3, H, W] in [-1, 1]."""
        dtype, frames = self._vae_dtype, latents.shape[1]
        scaled = (latents / self.vae.config.scaling_factor).to(dtype)
        with torch.autocast(latents.device.type, enabled=False):
            parts = scaled.split(1 if self.vae_slicing else len(scaled))
            videos = [self.vae.decode(part.flatten(0, 1), num_frames=frames).sample.float() for part in parts]
        return torch.cat(videos).clamp(-1, 1).unflatten(0, latents.shape[:2])

    @property
    def _vae_dtype(self) -> torch.dtype:
        """float32 where SVD's VAE asks for it (`force_upcast`)."""
        if self.vae.config.force_upcast and self.vae.dtype != torch.float32:
            self.vae.to(torch.float32)
        return self.vae.dtype

    @torch.no_grad()
    def embed(self, source: Tensor) -> Tensor:
        """Images [b, 3, h, w] in [-1, 1] → image embeddings [b, 1, d], as SVD prepares them."""
        side = self.image_encoder.config.image_size
        with torch.autocast(source.device.type, enabled=False):
            image = (_resize_with_antialiasing(source.float(), (side, side)) + 1) / 2
        mean, std = (uploaded(torch.tensor(v), image.device)[:, None, None] for v in (_CLIP_MEAN, _CLIP_STD))
        pixels = ((image - mean) / std).to(self.image_encoder.dtype)
        return self.image_encoder(pixels).image_embeds[:, None].float()

    def condition(self, batch: EditBatch, noise: Tensor, augmentation: Tensor, control_scale: float = 1.0) -> Condition:
        """The condition of `batch`; `noise` [b, 3, h, w] and its level `augmentation` [b] disturb the source.

        Points without `points_valid` are all valid.
        """
        return self._condition(batch, self._encode_noisy(batch, noise, augmentation), augmentation, control_scale)

    def _encode_noisy(self, batch: EditBatch, noise: Tensor, level: Tensor) -> Tensor:
        return self.encode(batch.source + level[:, None, None, None] * noise)

    def _condition(
        self, batch: EditBatch, image_latents: Tensor, augmentation: Tensor, control_scale: float = 1.0
    ) -> Condition:
        count, device = len(batch), batch.source.device
        control, control_valid = self._control(batch)
        points, points_valid = batch.points, batch.points_valid
        if points is not None and points_valid is None:
            points_valid = torch.ones(points.shape[:2], dtype=torch.bool, device=device)
        ids = uploaded(torch.tensor([FPS_ID, MOTION_BUCKET]), device).expand(count, 2)
        return Condition(
            embedding=self.embed(batch.source) if batch.embedding is None else batch.embedding,
            image_latents=image_latents,
            added_time_ids=torch.cat([ids, augmentation[:, None]], 1),
            control=control,
            control_valid=control_valid,
            control_scale=torch.full((count,), float(control_scale), device=device),
            points=points,
            points_valid=points_valid,
        )

    def _control(self, batch: EditBatch) -> tuple[Tensor | None, Tensor]:
        """The control images, None where the encoder need not run, and which of them count, bool [b].

        In training it always runs, without control images on a black spot that does not count: every
        rank then has a gradient of every weight, whatever its samples have.
        """
        everyone = torch.ones(len(batch), dtype=torch.bool, device=batch.source.device)
        if batch.control is None:
            spot = batch.source.new_zeros((len(batch), 3, _SPOT, _SPOT)) if self.training else None
            return spot, ~everyone
        valid = everyone if batch.control_valid is None else batch.control_valid
        return batch.control if self.training or valid.any() else None, valid

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Condition,
        correspondence: Correspondence | None = None,
        deep: DeepFeatures | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """D(x; σ): noisy scaled latents [b, 2, 4, h, w] at levels [b] → clean ones, and the layers' matching losses.

        `deep`: see `FramePainterUNet.forward`.
        """
        levels = sigma.view(-1, 1, 1, 1, 1)
        c_skip, c_out, c_in, _ = edm.scalings(levels)
        c_noise = edm.scalings(sigma).c_noise
        response, points = None, None
        if condition.control is not None and not (deep and deep.reuse):
            response = self._response(condition.control, c_noise)
        if condition.points is not None and condition.points_valid is not None:
            height, width = (extent * self.vae_stride for extent in condition.image_latents.shape[-2:])
            points = DragPoints(condition.points, condition.points_valid, (height, width), condition.control_scale)
        image_latents = condition.image_latents[:, None].expand(-1, x.shape[1], -1, -1, -1)
        dtype = self.unet.dtype
        output, losses = self.unet(
            torch.cat([c_in * x, image_latents], 2).to(dtype),
            c_noise,
            condition.embedding.to(dtype),
            condition.added_time_ids,
            response,
            condition.control_scale * condition.control_valid * self.control_factor,
            correspondence,
            points,
            self.matching_loss,
            deep,
        )
        return c_skip * x + c_out * output.float(), losses

    def _response(self, control: Tensor, c_noise: Tensor) -> Tensor:
        """The control encoder's response per frame, [b, 1 or 2, c, h, w]."""
        frames, without = control[:, None], len(c_noise) - len(control)
        if self.control_frames == "both":
            frames = torch.cat([torch.zeros_like(frames), frames], 1)
        levels = c_noise[without:].repeat_interleave(frames.shape[1])
        response = self.control_encoder(frames.flatten(0, 1).to(self.control_encoder.dtype), levels)
        response = response.unflatten(0, frames.shape[:2])
        return torch.cat([response.new_zeros((without, *response.shape[1:])), response])

    def _latents(self, batch: EditBatch, target: Tensor) -> Tensor:
        images = torch.stack([batch.source, target], 1)
        return self.encode(images.flatten(0, 1)).unflatten(0, (len(batch), 2))

    def _training_condition(self, batch: EditBatch, generators: edm.Generators) -> Condition:
        """The condition with new noise on the source, or with one of the sample's own."""
        count, device = len(batch), batch.source.device
        if self.augmentation_draws is None:
            level = edm.drawn(self._augmentation_level, generators)
            noise = edm.drawn(partial(torch.randn, batch.source.shape[1:]), generators)
            return self.condition(batch, uploaded(noise, device), uploaded(level, device))
        draw = edm.drawn(partial(torch.randint, self.augmentation_draws, ()), generators)
        if batch.image_latents is None or batch.augmentation is None:
            return self.condition(batch, *self._drawn(batch, draw.tolist()))
        chosen = torch.arange(count, device=device), uploaded(draw, device)
        return self._condition(batch, batch.image_latents[chosen], batch.augmentation[chosen])

    def _augmentation_level(self, generator: torch.Generator | None) -> Tensor:
        return edm.log_normal((), self.augmentation_mean, self.augmentation_std, generator)

    def _drawn(self, batch: EditBatch, draws: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Each sample's own noise of the given number, [b, 3, h, w], and its level [b]."""
        noises, levels = [], []
        for name, draw in zip(batch.name, draws, strict=True):
            generator = edm.seeded_generator("augmentation", name, draw)
            levels.append(self._augmentation_level(generator))
            noises.append(torch.randn(batch.source.shape[1:], generator=generator))
        device = batch.source.device
        return uploaded(torch.stack(noises), device), uploaded(torch.stack(levels), device)

    def latent_settings(self) -> dict[str, object]:
        """All that `with_latents` depends on but the batch."""
        draws = self.augmentation_draws
        noise = None if draws is None else [draws, self.augmentation_mean, self.augmentation_std]
        return {"weights": fingerprint(self.vae, self.image_encoder), "type": str(self._vae_dtype), "noise": noise}

    @torch.no_grad()
    def with_latents(self, batch: EditBatch) -> EditBatch:
        """A batch with target, and all that the frozen networks make of it in training."""
        if batch.target is None:
            raise ValueError("latents need a batch with target")
        made = replace(batch, latents=self._latents(batch, batch.target), embedding=self.embed(batch.source))
        if self.augmentation_draws is None:
            return made
        encoded, levels = [], []
        for draw in range(self.augmentation_draws):
            noise, level = self._drawn(batch, [draw] * len(batch))
            encoded.append(self._encode_noisy(batch, noise, level))
            levels.append(level)
        return replace(made, image_latents=torch.stack(encoded, 1), augmentation=torch.stack(levels, 1))

    def losses(self, batch: EditBatch, generators: edm.Generators | None = None) -> Losses:
        """The training losses of one batch (Eq. 8).

        Args:
            batch: with target, and control, points, both or neither; the matching loss needs tracks and
                visible, and is 0 without them or where the attention has no matching branch.
            generators: one a sample, on the CPU; the same ones give the same losses on every device, and a sample
                the same noise in any batch. None draws new noise.
        """
        generators = generators or [None] * len(batch)
        if batch.target is None:
            raise ValueError("losses need a batch with target")
        condition = self._training_condition(batch, generators)
        latents = self._latents(batch, batch.target) if batch.latents is None else batch.latents
        correspondence = None
        if self.matching_weight and batch.tracks is not None and batch.visible is not None:
            height, width = batch.source.shape[-2:]
            correspondence = Correspondence(batch.tracks, batch.visible, (height, width))
        error, layers = self.denoising_error(latents, condition, generators, correspondence)
        diffusion = (error if self.reconstruct_source else error[:, 1:]).mean()
        matching = torch.stack(list(layers.values())).mean() if layers else diffusion.new_zeros(())
        return Losses(diffusion + self.matching_weight * matching, diffusion, matching)

    def denoising_error(
        self,
        latents: Tensor,
        condition: Condition,
        generators: edm.Generators,
        correspondence: Correspondence | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The EDM-weighted squared error of each latent, [b, f, 4, h, w], and the layers' matching losses.

        Conditioning dropout, noise levels and noise are drawn here.

        Args:
            latents: [b, f, 4, h, w] of the frames, not scaled; a number of frames other than two has no control.
            condition: what is told of them.
            generators: one a sample, on the CPU.
            correspondence: asks for the matching losses.
        """
        device = latents.device
        r, p = uploaded(edm.drawn(partial(torch.rand, ()), generators), device), self.dropout
        condition = condition.dropped(r < 2 * p, (r >= p) & (r < 3 * p), (r >= p) & (r < 2 * p))
        clean = latents * self.vae.config.scaling_factor
        levels = edm.drawn(partial(edm.log_normal, (), self.sigma_mean, self.sigma_std), generators)
        sigma = uploaded(levels, device)
        noise = uploaded(edm.drawn(partial(torch.randn, tuple(clean.shape[1:])), generators), device)
        levels = sigma.view(-1, 1, 1, 1, 1)
        denoised, layers = self.denoise(clean + levels * noise, sigma, condition, correspondence)
        return edm.loss_weight(levels) * (denoised - clean).square(), layers
