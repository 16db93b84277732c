"""The LightningModule: steps and logging."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from fp_lightning.errors import InputError
from fp_lightning.evaluation.correspondence import CorrespondenceMetrics, attention_maps, entropy, probe
from fp_lightning.evaluation.metrics import EditMetrics
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.inference.sampler import Sampling, sample
from fp_lightning.media.edits import Edit
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.fingerprint import fingerprint
from fp_lightning.model.trainable import AUTOCAST, describe, store_frozen
from fp_lightning.pairs.latents import LatentStore
from fp_lightning.training.optimiser import AdamWModule, OptimizerName, Schedule
from fp_lightning.types import EditBatch, to_unit_range

logger = logging.getLogger(__name__)


class FramePainterModule(AdamWModule):
    """Trains, validates and runs an editor.

    All noise comes from generators seeded by (seed, what it is for, sample name) and, in training, the epoch: a
    resumed run draws what an uninterrupted one would, and a sample's noise and edit are the same in any batch, on
    any number of processes.

    Args:
        editor: see `fp_lightning.model.editor.build_editor`.
        learning_rate, betas, weight_decay, warmup, schedule, optimizer: see `AdamWModule`.
        sampling: how validation, test and predict draw their edits.
        metrics: of validation and test.
        fit_edits: samples, per process, of which a validation within `fit` draws edits; the losses are
            of all. `validate` and `test` draw all edits.
        seed: of all noise.
    """

    def __init__(
        self,
        editor: FramePainter,
        learning_rate: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        warmup: int = 0,
        schedule: Schedule = "constant",
        optimizer: OptimizerName = "adamw",
        sampling: Sampling | None = None,
        metrics: EditMetrics | None = None,
        fit_edits: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(editor, learning_rate, betas, weight_decay, warmup, schedule, optimizer)
        self.seed = seed
        self.sampling = sampling or Sampling()
        self.edit_metrics, self.fit_edits = metrics or EditMetrics(), fit_edits
        self.correspondence_metrics = CorrespondenceMetrics(list(editor.prior.attentions()))
        self.strict_loading = False  # checkpoints leave frozen weights out; on_load_checkpoint is strict instead

    def on_fit_start(self) -> None:
        """Says what trains, and makes ready what does not."""
        rank_zero_info(describe(self.editor))
        self._make_latents()
        if autocast := AUTOCAST.get(self.trainer.precision):
            store_frozen(self.editor, autocast)

    def on_fit_end(self) -> None:
        if self.trainer.precision in AUTOCAST:
            store_frozen(self.editor, torch.float32)

    def _make_latents(self) -> None:
        """Those that the data asks to be kept on disk, each rank its share."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if getattr(data, "latents", None) is None:
            return
        store = LatentStore(data.latents, {**self.editor.latent_settings(), "size": list(data.size)})
        missing = data.unlatented(store.keys())
        mine = Subset(missing, range(self.global_rank, len(missing), self.trainer.world_size))
        if len(missing):
            logger.info("making latents of %d pairs in %s", len(missing), store.folder)
        loader = DataLoader(mine, batch_size=None, num_workers=data.num_workers)
        for key, batch in track(loader, "latents", total=len(mine), disable=self.global_rank > 0 or not len(mine)):
            store.write(key, self.editor.with_latents(batch.to(self.device)))
        self.trainer.strategy.barrier("latents")
        data.store_of_latents = store

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        losses = self.editor.losses(batch, seeded_generators(batch.name, self.seed, "train", self.current_epoch))
        for name in ("total", "diffusion", "matching"):
            self.log(
                f"train/{name}",
                getattr(losses, name).detach(),
                batch_size=len(batch),
                prog_bar=name == "total",
                sync_dist=True,
            )
        return losses.total

    def validation_step(self, batch: EditBatch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: EditBatch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: EditBatch, batch_idx: int) -> Tensor | list[Tensor]:
        """Edits [b, 3, h, w] in [-1, 1]; a list, some at their photo's size, where saved edits are among them."""
        if not batch.edit or not any(batch.edit):
            return self._edit(batch)
        return [self._reproduced(edit) if edit else self._edit(batch.one(i))[0] for i, edit in enumerate(batch.edit)]

    def _reproduced(self, edit: Edit) -> Tensor:
        """A saved edit, made again as the pipeline makes it: by its own settings and noise, alone."""
        own = fingerprint(self.editor.control_encoder)
        if edit.weights not in (None, own):
            logger.warning("an edit was saved with %s, other weights than these: it will differ", edit.model)
        pipe = FramePainterPipeline.from_editor(self.editor, (self.editor.prior.size_multiple,) * 2)
        pipe.set_progress_bar_config(disable=True)
        edited = pipe(**edit.arguments(), return_dict=False)[0][0]
        return to_unit_range(torch.from_numpy(np.array(edited)).movedim(-1, 0))

    def _evaluate(self, batch: EditBatch, stage: str) -> dict[str, Tensor]:
        losses = self.editor.losses(batch, seeded_generators(batch.name, self.seed, stage))
        for name in ("total", "diffusion", "matching"):
            self.log(f"{stage}/{name}", getattr(losses, name), batch_size=len(batch), sync_dist=True)
        if self.trainer.state.fn == "fit" and len(self.edit_metrics.per_sample()) >= self.fit_edits:
            return {}
        edited = self._edit(batch)
        self.edit_metrics.update(edited, batch)
        if self.trainer.state.fn != "fit":
            self.correspondence_metrics.update(self.editor, batch, self._attention_noise(batch))
        return {"edited": edited}

    def _edit(self, batch: EditBatch) -> Tensor:
        return sample(self.editor, batch, self.sampling, seeded_generators(batch.name, self.seed, "edit"))

    def attention_maps(self, batch: EditBatch, points: Tensor, sigma: float = 1.0) -> dict[str, Tensor]:
        """See `fp_lightning.evaluation.correspondence.attention_maps`; a sample's noise is always the same."""
        with self._precision():
            return attention_maps(self.editor, batch, points, self._attention_noise(batch), sigma)

    def attention_entropy(self, batch: EditBatch, sigma: float = 1.0) -> dict[str, float]:
        """Of each layer that joins the frames, mean over heads and target tokens: 0 for one token, 1 for all alike."""
        with self._precision():
            seen = probe(self.editor, batch, sigma, self._attention_noise(batch))
            return {layer.layer: float(entropy(layer.query, layer.key).mean()) for layer in seen}

    def _precision(self) -> AbstractContextManager[None]:
        """In which Lightning runs the steps."""
        return nullcontext() if self._trainer is None else self.trainer.precision_plugin.forward_context()

    def _attention_noise(self, batch: EditBatch) -> list[torch.Generator]:
        return seeded_generators(batch.name, self.seed, "correspondence")

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        for name, value in self.edit_metrics.compute().items():
            if isinstance(value, float):
                self.log(f"{stage}/{name}", value, prog_bar=name == "psnr_moving")

    def on_validation_epoch_start(self) -> None:
        self.edit_metrics.reset()
        self.correspondence_metrics.reset()

    on_test_epoch_start = on_validation_epoch_start

    def trainable_names(self) -> set[str]:
        """The state-dict names of the weights that train: what a checkpoint carries."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = self.trainable_names()
        data = getattr(self.trainer, "datamodule", None)
        size, signals = getattr(data, "size", None), getattr(data, "signals", None)
        checkpoint["editor"] = self.editor.settings()
        checkpoint["origin"] = {
            "model": self.editor.model,
            "trains": self.editor.trains,
            "optimizer": self.optimizer,
            "size": None if size is None else list(size),
            "signals": None if signals is None else list(signals),
        }
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises InputError listing what differs when the checkpoint is of another architecture.

        Warns when it was trained on other signals than the data has.
        """
        now, then = self.editor.settings(), checkpoint.get("editor", {})
        changed = [f"{name} {then[name]} (now {now[name]})" for name in now if name in then and then[name] != now[name]]
        own = {k: tuple(v.shape) for k, v in self.named_parameters() if v.requires_grad}
        loaded = {k: tuple(v.shape) for k, v in checkpoint["state_dict"].items()}
        kinds = {
            "missing": sorted(own.keys() - loaded.keys()),
            "unexpected": sorted(loaded.keys() - own.keys()),
            "of another shape": sorted(k for k in own.keys() & loaded.keys() if own[k] != loaded[k]),
        }
        differing = [
            f"{len(names)} {kind} (first: {names[0]}"
            + (f", {loaded[names[0]]} instead of {own[names[0]]}" if kind == "of another shape" else "")
            + ")"
            for kind, names in kinds.items()
            if names
        ]
        if differing:
            raise InputError(
                f"the checkpoint is of another architecture: {', '.join(differing)} of {len(own)} tensors; "
                "use the recipe that it was trained with, see config.fit.yaml in its run folder"
            )
        if changed:
            raise InputError(f"the checkpoint was trained with {', '.join(changed)}; set model.editor accordingly")
        optimizer = checkpoint.get("origin", {}).get("optimizer", self.optimizer)
        if optimizer != self.optimizer and self._trainer is not None and self.trainer.state.fn == "fit":
            raise InputError(f"the checkpoint has moments of {optimizer}; go on with --model.optimizer {optimizer}")
        self.editor.trained = True
        data = getattr(self._trainer, "datamodule", None)
        known, asked = checkpoint.get("origin", {}).get("signals"), getattr(data, "signals", None)
        if known and asked and not set(asked) <= set(known):
            logger.warning(
                "the checkpoint was trained on %s, the data has %s: what it has not learnt it will not follow",
                *(", ".join(known), ", ".join(asked)),
            )

    def on_predict_start(self) -> None:
        if not self.editor.trained and self.trainer.global_step == 0:
            logger.warning(
                "nothing that was trained is loaded, the edits will be noise or the photo; pass --ckpt_path, or a "
                "saved editor as --model.editor.model"
            )
