"""Training of a VAE from scratch. SVD's own comes trained and stays frozen; the tiny build needs one."""

from __future__ import annotations

import copy

import lightning as L
import torch
from diffusers import AutoencoderKLTemporalDecoder
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fp_lightning.types import EditBatch


class AutoencoderModule(L.LightningModule):
    """Fits a VAE to the frames of its batches: squared error, and a weak KL term that bounds the latents.

    After each validation the VAE is written to `out`, in half precision, its `scaling_factor` set to
    1 / standard deviation of the latents, so that scaled latents have unit variance.

    Args:
        vae: the autoencoder to train.
        learning_rate: AdamW's peak, after `warmup` steps; then cosine to zero over the whole fit.
        warmup: steps of linear warm-up.
        kl_weight: weight of the KL divergence per latent element.
        out: folder for the VAE in diffusers' format.
    """

    def __init__(
        self,
        vae: AutoencoderKLTemporalDecoder,
        learning_rate: float = 1.5e-3,
        warmup: int = 100,
        kl_weight: float = 1e-6,
        out: str = "runs/tiny_vae/vae",
    ) -> None:
        super().__init__()
        self.vae, self.learning_rate, self.warmup, self.kl_weight, self.out = vae, learning_rate, warmup, kl_weight, out

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        posterior, video = self._encode(batch)
        decoded = self.vae.decode(posterior.sample(), num_frames=2).sample
        reconstruction = (decoded - video).square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        self.log_dict({"train/reconstruction": reconstruction, "train/kl": kl}, batch_size=len(batch))
        return reconstruction + self.kl_weight * kl

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        posterior, video = self._encode(batch)
        decoded = self.vae.decode(posterior.mode(), num_frames=2).sample.clamp(-1, 1)
        error = (decoded - video).square().flatten(1).mean(1)
        scores = {"val/total": error.mean(), "val/psnr": -10 * torch.log10(error / 4).mean()}
        self.log_dict({**scores, "val/latent_std": posterior.mean.std()}, batch_size=len(batch))

    def on_validation_epoch_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            vae = copy.deepcopy(self.vae)
            vae.register_to_config(scaling_factor=round(1 / float(self.trainer.callback_metrics["val/latent_std"]), 4))
            vae.half().save_pretrained(self.out)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.vae.parameters(), lr=self.learning_rate, betas=(0.9, 0.99))
        total = int(self.trainer.estimated_stepping_batches)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-2, total_iters=self.warmup)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - self.warmup))
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, decay], [self.warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _encode(self, batch: EditBatch):
        if batch.target is None:
            raise ValueError("the VAE trains on batches with source and target")
        video = torch.stack([batch.source, batch.target], 1).flatten(0, 1)  # [b·2, 3, h, w]
        return self.vae.encode(video).latent_dist, video
