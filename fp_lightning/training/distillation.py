"""Consistency distillation: an editor learns to do in one to four steps what guided sampling does in 25."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import check_sampling, guidance_pair, guidance_weights, guide
from fp_lightning.model import edm
from fp_lightning.model.condition import Condition
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.svd.load import saved_settings
from fp_lightning.training.module import FramePainterModule
from fp_lightning.types import EditBatch

HUBER = 0.001  # c of the pseudo-Huber loss
WEIGHT_POWER = 0.1  # of 1 / (σ_n − σ_{n+1}) in the loss weight


class DistillationModule(FramePainterModule):
    """Distils a trained editor into a consistency function (Song et al. 2023, arXiv 2303.01469, Algorithm 2).

    D(x; σ) of an editor already has the form of one: c_skip is 1 and c_out is 0 at σ = 0. With the data noised to level
    σ_n, the guided teacher takes one Euler step to σ_{n+1}. The editor's D at σ_n learns to equal that of its own
    average at σ_{n+1}. Loss and levels are those of AnimateLCM for SVD (Wang et al. 2024, arXiv 2402.00769).

    The teacher is the editor as it was loaded. Both the teacher and the average share all weights that do not train, so
    adapters (`trains: lora`) need no second copy of the network.

    Args:
        editor: a trained one, which is not distilled yet.
        steps: the most sampling steps that the editor is for; it is saved with the editor.
        guidance_scale: the teacher's guidance, which decays over the levels as in sampling.
        levels: number of noise levels, Karras' over the range of the sampling schedule.
        decay: decay of the average that gives the target, per optimiser step, in [0, 1).
        kwargs: see `FramePainterModule`.

    Raises:
        InputError: a value is outside its range.
    """

    sigmas: Tensor
    weights: Tensor

    def __init__(
        self,
        editor: FramePainter,
        *,
        steps: int = 4,
        guidance_scale: float = 3.0,
        levels: int = 100,
        decay: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(editor, **kwargs)
        if not 0 <= decay < 1:
            raise InputError(f"decay must be in [0, 1), got {decay}; try 0.95")
        if not 1 <= steps < levels:
            raise InputError(f"steps must be 1 or more and fewer than levels, got {steps} and {levels} levels")
        self.steps, self.decay = steps, decay
        sigmas = edm.karras_sigmas(levels, *editor.prior.sigma_range)[:-1]
        self.register_buffer("sigmas", sigmas, persistent=False)
        self.register_buffer(
            "weights", torch.tensor(guidance_weights(guidance_scale, sigmas.tolist())), persistent=False
        )
        self.teacher: dict[str, Tensor] = {}  # of the weights that train; the others are shared
        self.average: dict[str, Tensor] = {}  # of the same, float32

    def setup(self, stage: str) -> None:
        """Keep the teacher's weights before a checkpoint is loaded.

        Raises:
            InputError: the teacher is missing, is distilled itself, was saved with other settings, or the sampling of
                validation does not suit the distilled editor.
        """
        super().setup(stage)
        if stage != "fit" or self.teacher:
            return
        self._check_teacher()
        check_sampling(self.sampling, self.steps)
        self.editor.distilled_steps = self.steps
        self.keep_teacher()

    def _check_teacher(self) -> None:
        editor, model = self.editor, self.editor.model
        if not editor.trained or model is None:
            raise InputError(
                f"distillation needs a trained editor as its teacher, got {model}; pass a saved editor as "
                "--model.editor.model (`fp-lightning convert checkpoint` writes one)"
            )
        if editor.distilled_steps is not None:
            raise InputError(f"the teacher {model} is distilled itself; pass the editor that it was distilled from")
        saved = saved_settings(model) or {}
        changed = [f"{k} {saved[k]} (now {v})" for k, v in editor.settings().items() if saved.get(k, v) != v]
        if changed:
            raise InputError(f"the teacher {model} was saved with {', '.join(changed)}; set model.editor accordingly")

    def keep_teacher(self) -> None:
        """Copy the weights that train, in float32: as the teacher, and as the start of the average."""
        trained = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        self.teacher = {name: weight.float().clone() for name, weight in trained.items()}
        self.average = {name: weight.clone() for name, weight in self.teacher.items()}

    def on_train_start(self) -> None:
        super().on_train_start()
        for weights in (self.teacher, self.average):
            weights.update({name: weight.to(self.device) for name, weight in weights.items()})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then their average, before any checkpoint is written."""
        super().optimizer_step(*args, **kwargs)
        now = [p.detach().float() for p in self.parameters() if p.requires_grad]
        torch._foreach_lerp_(list(self.average.values()), now, 1 - self.decay)

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return D(x; σ) [b, 2, c, h, w]."""
        return self.editor.denoise(x, sigma, condition)[0]

    def losses(self, batch: EditBatch, generators: edm.Generators) -> dict[str, Tensor]:
        """Return the consistency loss as "total"; nothing outside of `fit`, which has no teacher."""
        if not self.teacher:
            return {}
        latents, condition = self.editor.training_inputs(batch, generators)
        device, clean = latents.device, latents * self.editor.prior.scaling_factor
        level = edm.drawn(partial(torch.randint, len(self.sigmas) - 1, ()), generators).to(device)
        noise = edm.drawn(partial(torch.randn, tuple(clean.shape[1:])), generators).to(device)
        sigma, following, weight = (
            values.view(-1, 1, 1, 1, 1) for values in (self.sigmas[level], self.sigmas[level + 1], self.weights[level])
        )
        x = clean + sigma * noise
        with torch.no_grad():
            inputs = (torch.cat([x, x]), self.sigmas[level].repeat(2), guidance_pair(condition))
            taught = guide(functional_call(self, self.teacher, inputs), weight)
            ahead = x + (x - taught) / sigma * (following - sigma)
            target = functional_call(self, self.average, (ahead, self.sigmas[level + 1], condition))
        error = (self(x, self.sigmas[level], condition) - target).square()
        huber = (error + HUBER**2).sqrt() - HUBER
        return {"total": (huber / (sigma - following) ** WEIGHT_POWER).mean()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also keep the average, so that a resumed run equals an uninterrupted one."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["consistency_average"] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also load the average.

        Raises:
            InputError: see `FramePainterModule`; or `fit` continues a run that was no distillation or had another
                teacher.
        """
        super().on_load_checkpoint(checkpoint)
        if not self.teacher:
            return
        if "consistency_average" not in checkpoint:
            raise InputError(
                "the checkpoint is not of a distillation; write it as a folder with `fp-lightning convert checkpoint`, "
                "and pass that as --model.editor.model"
            )
        taught_by = checkpoint.get("origin", {}).get("model")
        if taught_by != self.editor.model:
            raise InputError(
                f"the checkpoint was distilled from {taught_by}, not from {self.editor.model}; pass "
                f"--model.editor.model {taught_by}"
            )
        self.average = dict(checkpoint["consistency_average"])
        self.editor.distilled_steps = self.steps
