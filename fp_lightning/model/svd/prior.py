"""Stable Video Diffusion as a `VideoPrior`: temporal VAE, CLIP embedding, micro-conditioning and noise range."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from fp_lightning.errors import InputError
from fp_lightning.model import edm
from fp_lightning.model.condition import Condition
from fp_lightning.model.devices import to_device
from fp_lightning.model.fingerprint import fingerprint
from fp_lightning.model.matching import spatial_attentions
from fp_lightning.model.prior import NetworkInputs, VideoPrior
from fp_lightning.model.svd.specialise import specialise
from fp_lightning.model.svd.unet import FramePainterUNet

FPS_ID, MOTION_BUCKET, NOISE_AUGMENTATION = 6.0, 128.0, 0.02  # micro-conditioning as released; FPS_ID is fps − 1
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class SVDPrior(VideoPrior):
    """SVD's parts, joined. The U-Net trains; the VAE and the image encoder are frozen.

    Args:
        unet, vae, image_encoder, scheduler: see `load_backbone`. Of the scheduler only the noise range of the
            sampling schedule is used.
    """

    noise_augmentation = NOISE_AUGMENTATION

    def __init__(
        self,
        unet: FramePainterUNet,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        scheduler: EulerDiscreteScheduler,
    ) -> None:
        super().__init__()
        self.unet, self.vae, self.image_encoder, self.scheduler = unet, vae, image_encoder, scheduler
        specialise(vae.decoder)
        self.sigma_range = (scheduler.config.sigma_min, scheduler.config.sigma_max)
        self.latent_channels = unet.config.out_channels
        self.scaling_factor = vae.config.scaling_factor
        self.stride = 2 ** (len(vae.config.block_out_channels) - 1)
        self.size_multiple = self.stride * 2 ** (len(unet.config.block_out_channels) - 1)  # 64 px for SVD

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        return self.vae, self.image_encoder

    def settings(self) -> dict[str, object]:
        return {"attention": self.unet.config.attention, "match_queries": self.unet.config.match_queries}

    def latent_weights(self) -> dict[str, Any]:
        return {"weights": fingerprint(self.vae, self.image_encoder), "type": str(self._vae_dtype)}

    def attentions(self) -> dict[str, Any]:
        return dict(spatial_attentions(self.unet))

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Encode images [b, 3, H, W] in [-1, 1] into posterior modes [b, 4, H/8, W/8], not scaled."""
        dtype = self._vae_dtype
        with torch.autocast(image.device.type, enabled=False):
            parts = image.to(dtype).split(1 if self.vae_slicing else len(image))
            return torch.cat([self.vae.encode(part).latent_dist.mode().float() for part in parts])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        dtype, frames = self._vae_dtype, latents.shape[1]
        unscaled = (latents / self.scaling_factor).to(dtype)
        with torch.autocast(latents.device.type, enabled=False):
            parts = unscaled.split(1 if self.vae_slicing else len(unscaled))
            videos = [self.vae.decode(part.flatten(0, 1), num_frames=frames).sample.float() for part in parts]
        return torch.cat(videos).clamp(-1, 1).unflatten(0, latents.shape[:2])

    @property
    def _vae_dtype(self) -> torch.dtype:
        """float32 if SVD's VAE requires it (`force_upcast`)."""
        if self.vae.config.force_upcast and self.vae.dtype != torch.float32:
            self.vae.to(torch.float32)
        return self.vae.dtype

    @torch.no_grad()
    def embed(self, source: Tensor) -> Tensor:
        """Embed images [b, 3, H, W] in [-1, 1] with CLIP, [b, 1, d], preprocessed as SVD does."""
        side = self.image_encoder.config.image_size
        with torch.autocast(source.device.type, enabled=False):
            image = (resized(source.float(), side) + 1) / 2
        mean, std = (to_device(torch.tensor(v), image.device)[:, None, None] for v in (_CLIP_MEAN, _CLIP_STD))
        pixels = ((image - mean) / std).to(self.image_encoder.dtype)
        return self.image_encoder(pixels).image_embeds[:, None].float()

    def micro_conditioning(self, augmentation: Tensor) -> Tensor:
        """Return (fps − 1, motion bucket, noise augmentation), [b, 3], with the released model's fps and motion."""
        ids = to_device(torch.tensor([FPS_ID, MOTION_BUCKET]), augmentation.device).expand(len(augmentation), 2)
        return torch.cat([ids, augmentation[:, None]], 1)

    def noise_label(self, sigma: Tensor) -> Tensor:
        """Return c_noise = ¼ ln σ."""
        return edm.scalings(sigma).c_noise

    def denoise(
        self, x: Tensor, sigma: Tensor, condition: Condition, inputs: NetworkInputs
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Evaluate D(x; σ) = c_skip · x + c_out · F(c_in · x; c_noise) (Karras et al. 2022, Eq. 7)."""
        c_skip, c_out, c_in, _ = edm.scalings(sigma.view(-1, 1, 1, 1, 1))
        image_latents = condition.image_latents[:, None].expand(-1, x.shape[1], -1, -1, -1)
        dtype = self.unet.dtype
        output, losses = self.unet(
            torch.cat([c_in * x, image_latents], 2).to(dtype),
            self.noise_label(sigma),
            condition.embedding.to(dtype),
            condition.added_time_ids,
            inputs.response,
            inputs.response_scale,
            inputs.correspondence,
            inputs.points,
            inputs.matching_form,
            inputs.deep,
        )
        return c_skip * x + c_out * output.float(), losses


def resized(image: Tensor, side: int) -> Tensor:
    """Resize images [b, 3, H, W] to [b, 3, side, side] as SVD's pipeline does before CLIP: blurred, then bicubic.

    Equals the function of diffusers' pipeline. The host does not wait for the GPU.
    """
    for dim in (3, 2):
        sigma = max((image.shape[dim] / side - 1) / 2, 0.001)
        taps = int(max(4 * sigma, 3)) | 1
        offset = torch.arange(taps, dtype=torch.float32) - taps // 2
        weights = (-offset.pow(2) / (2 * torch.tensor([sigma]).pow(2))).exp()
        kernel = to_device(weights / weights.sum(), image.device)
        shape, padding = (
            ((1, taps), (taps // 2, taps // 2, 0, 0)) if dim == 3 else ((taps, 1), (0, 0, taps // 2, taps // 2))
        )
        padded, channels = F.pad(image, padding, mode="reflect"), image.shape[1]
        image = F.conv2d(padded, kernel.expand(channels, -1).view(channels, 1, *shape), groups=channels)
    return F.interpolate(image, (side, side), mode="bicubic", align_corners=True)


def svd_prior(prior: VideoPrior) -> SVDPrior:
    """Return `prior` as SVD's, for code that works on SVD's parts.

    Raises:
        InputError: it is another model.
    """
    if not isinstance(prior, SVDPrior):
        raise InputError(f"this works on Stable Video Diffusion only, got an editor on {type(prior).__name__}")
    return prior
