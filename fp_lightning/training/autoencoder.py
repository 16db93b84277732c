"""Train a VAE from scratch. SVD's is already trained and stays frozen; the tiny build needs this."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fp_lightning.model.devices import to_device
from fp_lightning.model.svd.specialise import generalise, specialise
from fp_lightning.training.optimiser import (
    OptimizerName,
    check_last_validation,
    make_optimizer,
    use_settings,
    warmed_up,
)
from fp_lightning.types import ClipBatch
from fp_lightning.weights.saving import save_over

COLOURS = (
    (1.4, 1.4, 1.4),
    (6.0, -6.0, 0.0),
    (4.0, 4.0, -8.0),
)  # weights of red, green, blue; each sum has about the same variance


class AutoencoderModule(L.LightningModule):
    """Trains a VAE on the frames of clips: squared error with more weight on hue, and a weak KL term.

    A further loss pulls the first three latent channels towards the mean colours of the pixels under each latent:
    lightness, red minus green, yellow minus blue. Lightness varies about twelve times as much as hue. Without this
    loss the VAE learns lightness, then stays for thousands of steps in a state where no latent encodes hue.

    After each validation the VAE is saved to `out` in half precision. Its `scaling_factor` is
    1 / (standard deviation of the latents), so that scaled latents have unit variance.

    Args:
        vae: the autoencoder to train.
        learning_rate: peak learning rate after `warmup` steps, followed by cosine decay to zero.
        warmup: number of steps of linear warm-up.
        kl_weight: weight of the KL divergence per latent element.
        hue_weight: weight of the squared error of hue, the part that differs between red, green and blue.
        colour_weight: weight of the squared error of the first three latent channels from the mean colours.
        optimizer: see `make_optimizer`.
        out: folder for the VAE in diffusers' format.
    """

    def __init__(
        self,
        vae: AutoencoderKLTemporalDecoder,
        learning_rate: float = 1.5e-3,
        warmup: int = 100,
        kl_weight: float = 1e-4,
        hue_weight: float = 4.0,
        colour_weight: float = 0.05,
        optimizer: OptimizerName = "adamw",
        out: str = "runs/tiny_vae/vae",
    ) -> None:
        super().__init__()
        self.learning_rate, self.warmup, self.optimizer, self.out = learning_rate, warmup, optimizer, out
        self.kl_weight, self.hue_weight, self.colour_weight = kl_weight, hue_weight, colour_weight
        self.vae = specialise(vae)  # torch 2.15 computes wrong bfloat16 gradients of (3, 1, 1) kernels on CPUs

    def setup(self, stage: str) -> None:
        """See `check_last_validation`."""
        check_last_validation(self.trainer)

    def on_train_start(self) -> None:
        """See `use_settings`."""
        use_settings(self, self.learning_rate)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Log the losses and return their weighted sum, a scalar."""
        posterior, lightness, hue = self._errors(batch, sampled=True)
        reconstruction = (lightness + self.hue_weight * hue).mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        means = F.avg_pool2d(batch.frames.flatten(0, 1), 2 ** (len(self.vae.config.block_out_channels) - 1))
        colours = to_device(means.new_tensor(COLOURS, device="cpu"), means.device)
        target = torch.einsum("kc, nchw -> nkhw", colours, means)
        colour = (posterior.mean[:, : len(COLOURS)] - target).square().mean()
        parts = {"train/reconstruction": reconstruction, "train/kl": kl, "train/colour": colour}
        self.log_dict(parts, batch_size=len(batch))
        return reconstruction + self.kl_weight * kl + self.colour_weight * colour

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """Log squared error, PSNR (dB), PSNR of hue (dB) and the standard deviation of the latents."""
        posterior, lightness, hue = self._errors(batch, sampled=False)
        scores = {
            "val/total": (lightness + hue).mean(),
            "val/psnr": -10 * torch.log10((lightness + hue) / 4).mean(),
            "val/hue_psnr": -10 * torch.log10(hue / 4).mean(),
            "val/latent_std": posterior.mean.float().std(),
        }
        self.log_dict(scores, batch_size=len(batch), sync_dist=True)

    def _errors(self, batch: ClipBatch, sampled: bool) -> tuple[DiagonalGaussianDistribution, Tensor, Tensor]:
        """Return the posterior of all n frames, and their mean squared errors [n] of lightness and of hue."""
        video, frames = batch.frames.flatten(0, 1), batch.frames.shape[1]
        posterior = self.vae.encode(video).latent_dist
        latents = posterior.sample() if sampled else posterior.mode()
        error = self.vae.decode(latents, num_frames=frames).sample.float() - video
        lightness = error.mean(1, keepdim=True)
        return posterior, lightness.square().flatten(1).mean(1), (error - lightness).square().flatten(1).mean(1)

    def on_validation_epoch_end(self) -> None:
        """Save the VAE."""
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            vae = generalise(copy.deepcopy(self.vae))
            vae.register_to_config(scaling_factor=round(1 / float(self.trainer.callback_metrics["val/latent_std"]), 4))
            save_over(self.out, vae.half().save_pretrained)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser with linear warm-up and cosine decay."""
        options: dict[str, Any] = {"lr": self.learning_rate, "betas": (0.9, 0.99), "weight_decay": 1e-2}
        optimizer = make_optimizer(self.optimizer, self.vae.parameters(), **options)
        schedule = warmed_up(optimizer, self.warmup, "cosine", self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
