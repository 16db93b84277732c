"""FramePainter: a video prior and a control encoder joined into an editor, with its training losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from fp_lightning.errors import InputError
from fp_lightning.model import edm
from fp_lightning.model.condition import Condition
from fp_lightning.model.control import INJECTION_FACTOR, ControlEncoder
from fp_lightning.model.devices import to_device
from fp_lightning.model.matching import Correspondence
from fp_lightning.model.matching_loss import FORMS, MatchingForm
from fp_lightning.model.points import DragPoints
from fp_lightning.model.prior import DeepFeatures, NetworkInputs, VideoPrior
from fp_lightning.types import EditBatch

OFFICIAL = {"match_queries": "both", "control_frames": "both", "control_factor": 0.2}  # the released model's settings
_PLACEHOLDER = 8  # pixels: the smallest image that the control encoder can halve three times


@dataclass(frozen=True)
class Losses:
    """The training losses of one batch."""

    total: Tensor  # Eq. 8: diffusion + matching_weight · matching
    diffusion: Tensor  # Eq. 1 in EDM form
    matching: Tensor  # Eq. 7 or its cross-entropy form, mean over visible rows, heads and layers


class FramePainter(nn.Module):
    """The editor: a video prior whose network trains, and a control encoder.

    Args:
        prior: the video diffusion model, for example `SVDPrior`.
        control_encoder: encodes the control image.
        control_frames: the frames that receive the control response: "target" (paper) or "both" (released: the
            source frame receives the response to a black image).
        control_factor: multiplies the control response, not the dragged tokens; near 1.0 is advised for
            dense control images.
        reconstruct_source: also denoise the source frame (paper, Table 4).
        matching_weight: λ of Eq. 8.
        matching_loss: "squared" (Eq. 7) or "cross_entropy", see `fp_lightning.model.matching_loss`.
        sigma_mean, sigma_std: mean and standard deviation of ln σ of the training noise levels.
        augmentation_mean, augmentation_std: the same of the noise on the conditioning image.
        model: name or folder of the weights; checkpoints store it.
        trained: the weights are a trained editor's, not a prior's with a new control encoder.
        trains: which weights train, see `choose_trainable`; checkpoints store it.
        distilled_steps: the most sampling steps of an editor that was distilled into a consistency function, see
            `fp_lightning.training.distillation`; None for any other editor.
        augmentation_draws: None draws new noise for the conditioning image at every step. k keeps k fixed noises
            and levels per sample, so that the encoded conditioning images can be cached on disk.
        dropout: p of conditioning dropout. With one uniform r per sample, the embedding is dropped where
            r < 2p, the image latents where p ≤ r < 3p, and control and points where both are dropped
            (p ≤ r < 2p), which is the unconditional case of guidance.
    """

    def __init__(
        self,
        prior: VideoPrior,
        control_encoder: ControlEncoder,
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
        trains: str = "all",
        distilled_steps: int | None = None,
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
        self.prior, self.control_encoder = prior, control_encoder
        self.control_frames, self.control_factor = control_frames, control_factor
        self.reconstruct_source = reconstruct_source
        self.matching_weight, self.matching_loss = matching_weight, matching_loss
        self.sigma_mean, self.sigma_std = sigma_mean, sigma_std
        self.augmentation_mean, self.augmentation_std = augmentation_mean, augmentation_std
        self.augmentation_draws = augmentation_draws
        self.dropout, self.model, self.trained, self.trains = dropout, model, trained, trains
        self.distilled_steps = distilled_steps
        for frozen in self.prior.frozen:
            frozen.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> FramePainter:
        """Set the training mode. Frozen parts stay in evaluation mode."""
        super().train(mode)
        for frozen in self.prior.frozen:
            frozen.eval()
        return self

    def settings(self) -> dict[str, object]:
        """Return the settings that change the network's meaning but no weight's name or shape.

        Checkpoints store them.
        """
        return {
            **self.prior.settings(),
            "control_frames": self.control_frames,
            "control_factor": self.control_factor,
            **({} if self.distilled_steps is None else {"distilled_steps": self.distilled_steps}),
        }

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise InputError with the nearest valid sizes when `size` (height, width) does not fit the network."""
        multiple = self.prior.size_multiple
        problems = []
        for axis, value in zip(("height", "width"), size, strict=True):
            if value % multiple or value < 1:
                below = max(multiple, value // multiple * multiple)
                problems.append(
                    f"{axis} must be a multiple of {multiple}, got {value}; try {below} or {below + multiple}"
                )
        if problems:
            raise InputError("; ".join(problems))

    def encode(self, image: Tensor) -> Tensor:
        """Encode images [b, 3, H, W] in [-1, 1] into latents [b, c, h, w], not scaled."""
        return self.prior.encode(image)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [b, f, c, h, w] into images [b, f, 3, H, W] in [-1, 1]."""
        return self.prior.decode(latents)

    def condition(self, batch: EditBatch, noise: Tensor, augmentation: Tensor, control_scale: float = 1.0) -> Condition:
        """Return the condition of `batch`.

        Args:
            batch: points without `points_valid` are all valid.
            noise: [b, 3, H, W], added to the source.
            augmentation: [b], the level of that noise.
            control_scale: factor of the control response and of the dragged tokens.
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
        return Condition(
            embedding=self.prior.embed(batch.source) if batch.embedding is None else batch.embedding,
            image_latents=image_latents,
            added_time_ids=self.prior.micro_conditioning(augmentation),
            control=control,
            control_valid=control_valid,
            control_scale=torch.full((count,), float(control_scale), device=device),
            points=points,
            points_valid=points_valid,
        )

    def _control(self, batch: EditBatch) -> tuple[Tensor | None, Tensor]:
        """Return the control images, None if the encoder need not run, and which of them are valid, bool [b].

        In training the encoder always runs. Without control images it encodes a black placeholder that is not
        valid, so that every rank has gradients for all weights.
        """
        everyone = torch.ones(len(batch), dtype=torch.bool, device=batch.source.device)
        if batch.control is None:
            placeholder = batch.source.new_zeros((len(batch), 3, _PLACEHOLDER, _PLACEHOLDER))
            return placeholder if self.training else None, ~everyone
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
        """Evaluate D(x; σ), with the control response and the dragged tokens.

        Args:
            x: noisy scaled latents [b, 2, c, h, w].
            sigma: noise levels [b].
            condition: see `condition`.
            correspondence: requests the matching losses.
            deep: see `DeepFeatures`.

        Returns:
            Clean scaled latents of the shape of `x`, and the matching loss of each layer by name.
        """
        inputs = NetworkInputs(correspondence=correspondence, matching_form=self.matching_loss, deep=deep)
        inputs.response_scale = condition.control_scale * condition.control_valid * self.control_factor
        if condition.control is not None and not (deep and deep.reuse):
            inputs.response = self._response(condition.control, self.prior.noise_label(sigma))
        if condition.points is not None and condition.points_valid is not None:
            height, width = (extent * self.prior.stride for extent in condition.image_latents.shape[-2:])
            inputs.points = DragPoints(
                condition.points, condition.points_valid, (height, width), condition.control_scale
            )
        return self.prior.denoise(x, sigma, condition, inputs)

    def _response(self, control: Tensor, noise_label: Tensor) -> Tensor:
        """Return the control encoder's response per frame, [b, 1 or 2, c, h, w].

        Where there are fewer control images than noise labels, the first samples have none, and a response of zero.
        """
        frames, without = control[:, None], len(noise_label) - len(control)
        if self.control_frames == "both":
            frames = torch.cat([torch.zeros_like(frames), frames], 1)
        labels = noise_label[without:].repeat_interleave(frames.shape[1])
        response = self.control_encoder(frames.flatten(0, 1).to(self.control_encoder.dtype), labels)
        response = response.unflatten(0, frames.shape[:2])
        return torch.cat([response.new_zeros((without, *response.shape[1:])), response])

    def _latents(self, batch: EditBatch, target: Tensor) -> Tensor:
        images = torch.stack([batch.source, target], 1)
        return self.encode(images.flatten(0, 1)).unflatten(0, (len(batch), 2))

    def _training_condition(self, batch: EditBatch, generators: edm.Generators) -> Condition:
        """Return the condition with new noise on the source, or with one of the sample's fixed noises."""
        count, device = len(batch), batch.source.device
        if self.augmentation_draws is None:
            level = edm.drawn(self._augmentation_level, generators)
            noise = edm.drawn(partial(torch.randn, batch.source.shape[1:]), generators)
            return self.condition(batch, to_device(noise, device), to_device(level, device))
        draw = edm.drawn(partial(torch.randint, self.augmentation_draws, ()), generators)
        if batch.image_latents is None or batch.augmentation is None:
            return self.condition(batch, *self._fixed_noise(batch, draw.tolist()))
        chosen = torch.arange(count, device=device), to_device(draw, device)
        return self._condition(batch, batch.image_latents[chosen], batch.augmentation[chosen])

    def _augmentation_level(self, generator: torch.Generator | None) -> Tensor:
        return edm.log_normal((), self.augmentation_mean, self.augmentation_std, generator)

    def _fixed_noise(self, batch: EditBatch, draws: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return each sample's fixed noise of the given number, [b, 3, H, W], and its level [b]."""
        noises, levels = [], []
        for name, draw in zip(batch.name, draws, strict=True):
            generator = edm.seeded_generator("augmentation", name, draw)
            levels.append(self._augmentation_level(generator))
            noises.append(torch.randn(batch.source.shape[1:], generator=generator))
        device = batch.source.device
        return to_device(torch.stack(noises), device), to_device(torch.stack(levels), device)

    def latent_settings(self) -> dict[str, object]:
        """Return everything that `with_latents` depends on besides the batch."""
        draws = self.augmentation_draws
        noise = None if draws is None else [draws, self.augmentation_mean, self.augmentation_std]
        return {**self.prior.latent_weights(), "noise": noise}

    @torch.no_grad()
    def with_latents(self, batch: EditBatch) -> EditBatch:
        """Return a batch with target, with everything that the frozen networks compute from it in training."""
        if batch.target is None:
            raise ValueError("latents need a batch with target")
        encoded = replace(batch, latents=self._latents(batch, batch.target), embedding=self.prior.embed(batch.source))
        if self.augmentation_draws is None:
            return encoded
        image_latents, levels = [], []
        for draw in range(self.augmentation_draws):
            noise, level = self._fixed_noise(batch, [draw] * len(batch))
            image_latents.append(self._encode_noisy(batch, noise, level))
            levels.append(level)
        return replace(encoded, image_latents=torch.stack(image_latents, 1), augmentation=torch.stack(levels, 1))

    def losses(self, batch: EditBatch, generators: edm.Generators | None = None) -> Losses:
        """Return the training losses of one batch (Eq. 8).

        Args:
            batch: with target, and control, points, both or neither. The matching loss needs tracks and
                visible; it is 0 without them or if the attention has no matching branch.
            generators: one per sample, on the CPU. The same generators give the same losses on every device, and a
                sample the same noise in any batch. None draws new noise.
        """
        generators = generators or [None] * len(batch)
        latents, condition = self.training_inputs(batch, generators)
        correspondence = None
        if self.matching_weight and batch.tracks is not None and batch.visible is not None:
            height, width = batch.source.shape[-2:]
            correspondence = Correspondence(batch.tracks, batch.visible, (height, width))
        error, layers = self.denoising_error(latents, condition, generators, correspondence)
        diffusion = (error if self.reconstruct_source else error[:, 1:]).mean()
        matching = torch.stack(list(layers.values())).mean() if layers else diffusion.new_zeros(())
        return Losses(diffusion + self.matching_weight * matching, diffusion, matching)

    def training_inputs(self, batch: EditBatch, generators: edm.Generators) -> tuple[Tensor, Condition]:
        """Return the latents of both frames, [b, 2, c, h, w], not scaled, and the condition without dropout.

        Args:
            batch: with target.
            generators: one per sample, on the CPU.
        """
        if batch.target is None:
            raise ValueError("losses need a batch with target")
        condition = self._training_condition(batch, generators)
        return self._latents(batch, batch.target) if batch.latents is None else batch.latents, condition

    def denoising_error(
        self,
        latents: Tensor,
        condition: Condition,
        generators: edm.Generators,
        correspondence: Correspondence | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the EDM-weighted squared error of each latent, [b, f, c, h, w], and the layers' matching losses.

        Draws conditioning dropout, noise levels and noise.

        Args:
            latents: [b, f, c, h, w] of the frames, not scaled. Other than two frames take no control.
            condition: see `condition`.
            generators: one per sample, on the CPU.
            correspondence: requests the matching losses.
        """
        device = latents.device
        r, p = to_device(edm.drawn(partial(torch.rand, ()), generators), device), self.dropout
        condition = condition.dropped(r < 2 * p, (r >= p) & (r < 3 * p), (r >= p) & (r < 2 * p))
        clean = latents * self.prior.scaling_factor
        levels = edm.drawn(partial(edm.log_normal, (), self.sigma_mean, self.sigma_std), generators)
        sigma = to_device(levels, device)
        noise = to_device(edm.drawn(partial(torch.randn, tuple(clean.shape[1:])), generators), device)
        levels = sigma.view(-1, 1, 1, 1, 1)
        denoised, layers = self.denoise(clean + levels * noise, sigma, condition, correspondence)
        return edm.loss_weight(levels) * (denoised - clean).square(), layers
