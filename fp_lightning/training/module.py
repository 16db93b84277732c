"""The LightningModule of an editor: steps, logging and checkpoints."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from fp_lightning.errors import InputError
from fp_lightning.evaluation.correspondence import CorrespondenceMetrics, attention_maps, entropy, probe
from fp_lightning.evaluation.metrics import EditMetrics
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.inference.sampler import Sampling, default_sampling, sample
from fp_lightning.media.edits import Edit
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.edm import Generators, seeded_generators
from fp_lightning.model.fingerprint import fingerprint
from fp_lightning.model.svd.load import saved_settings
from fp_lightning.model.trainable import AUTOCAST, describe, store_frozen
from fp_lightning.pairs.latents import LatentStore
from fp_lightning.training.fsdp import ShardedStrategy
from fp_lightning.training.optimiser import OptimisedModule, OptimizerName, Schedule
from fp_lightning.types import EditBatch, to_unit_range

logger = logging.getLogger(__name__)


class FramePainterModule(OptimisedModule):
    """Trains, validates and runs an editor.

    The generator of a sample's noise is seeded by (seed, purpose, sample name) and, in training, the epoch. A resumed
    run therefore draws the same noise as an uninterrupted one, and the noise and edit of a sample do not depend on
    its batch or on the number of processes.

    Args:
        editor: the network, see `fp_lightning.build_editor`.
        learning_rate, betas, weight_decay, warmup, schedule, optimizer: see `OptimisedModule`.
        sampling: settings of the edits in validate, test and predict; None for `default_sampling`.
        metrics: metrics of validation and test; None for the defaults of `EditMetrics`.
        fit_edits: number of samples per process that a validation within `fit` edits. Its losses cover all samples.
            `validate` and `test` edit every sample.
        seed: seed of all noise; None for that of `--seed_everything` on the command line, and 0 in Python.
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
        seed: int | None = None,
    ) -> None:
        super().__init__(editor, learning_rate, betas, weight_decay, warmup, schedule, optimizer)
        self.seed = seed or 0
        self.sampling = sampling or default_sampling(editor.distilled_steps)
        self.checkpoint_size: list[int] | None = None  # at which a loaded checkpoint was trained
        self.edit_metrics, self.fit_edits = metrics or EditMetrics(), fit_edits
        self.correspondence_metrics = CorrespondenceMetrics(list(editor.prior.attentions()))
        self.strict_loading = False  # checkpoints have no frozen weights; on_load_checkpoint checks the names

    @property
    def trained_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels at which the loaded checkpoint, or else the saved editor, was trained."""
        size = self.checkpoint_size
        if size is None and self.editor.trained and self.editor.model:
            size = (saved_settings(self.editor.model) or {}).get("size")
        return None if size is None else (size[0], size[1])

    def configure_model(self) -> None:
        """Shard the editor for `fit` if the trainer's strategy does."""
        trainer = self._trainer  # None in `load_from_checkpoint`
        if trainer is not None and isinstance(trainer.strategy, ShardedStrategy) and trainer.state.fn == "fit":
            trainer.strategy.shard(self.editor)

    def on_fit_start(self) -> None:
        """Report what trains, cache latents if the data requests it, and store frozen weights in the autocast type."""
        rank_zero_info(describe(self.editor))
        self._cache_latents()
        if autocast := AUTOCAST.get(self.trainer.precision):
            store_frozen(self.editor, autocast)

    def on_fit_end(self) -> None:
        """Return frozen weights to float32."""
        if self.trainer.precision in AUTOCAST:
            store_frozen(self.editor, torch.float32)

    def _cache_latents(self) -> None:
        """Encode the pairs whose latents are not yet in the data module's cache.

        The ranks share the work, and so do runs that fill the same cache at the same time.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if getattr(data, "latents", None) is None:
            return
        store = LatentStore(data.latents, {**self.editor.latent_settings(), "size": list(data.size)})
        missing = data.missing_latents(store.keys(), self.global_rank, self.trainer.world_size)
        if len(missing):
            logger.info("encoding latents of %d pairs into %s", len(missing), store.folder)
        loader = DataLoader(missing, batch_size=None, num_workers=data.num_workers)
        quiet = self.global_rank > 0 or not len(missing)
        for key, batch in track(loader, "latents", total=len(missing), disable=quiet):
            if not store.has(key):
                store.write(key, self.editor.with_latents(batch.to(self.device)))
        self.trainer.strategy.barrier("latents")
        data.latent_store = store

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Log the losses and return their weighted sum, a scalar."""
        losses = self.losses(batch, seeded_generators(batch.name, self.seed, "train", self.current_epoch))
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), batch_size=len(batch), prog_bar=name == "total", sync_dist=True)
        return losses["total"]

    def losses(self, batch: EditBatch, generators: Generators) -> dict[str, Tensor]:
        """Return the losses of a batch by name, scalars. "total" is the one that training minimises."""
        return vars(self.editor.losses(batch, generators))

    def validation_step(self, batch: EditBatch, batch_idx: int) -> dict[str, Tensor]:
        """Log losses, update metrics, and return `{"edited": [b, 3, h, w]}`, or an empty dict beyond `fit_edits`."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: EditBatch, batch_idx: int) -> dict[str, Tensor]:
        """See `validation_step`."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: EditBatch, batch_idx: int) -> Tensor | list[Tensor]:
        """Edit a batch.

        Returns:
            Images [b, 3, h, w] in [-1, 1]. If the batch has saved edits, a list of [3, h, w]; saved edits are at the
            size of their photo.
        """
        if not batch.edit or not any(batch.edit):
            return self._edit(batch)
        return [self._reproduced(edit) if edit else self._edit(batch.one(i))[0] for i, edit in enumerate(batch.edit)]

    def _reproduced(self, edit: Edit) -> Tensor:
        """Reproduce a saved edit [3, h, w] in [-1, 1] with its settings and noise, as the pipeline does."""
        if edit.weights not in (None, fingerprint(self.editor.control_encoder)):
            logger.warning("an edit was saved by %s with different weights; the result will differ", edit.model)
        pipe = FramePainterPipeline.from_editor(self.editor, (self.editor.prior.size_multiple,) * 2)
        pipe.set_progress_bar_config(disable=True)
        edited = pipe(**edit.arguments(), return_dict=False)[0][0]
        return to_unit_range(torch.from_numpy(np.array(edited)).movedim(-1, 0))

    def _evaluate(self, batch: EditBatch, stage: str) -> dict[str, Tensor]:
        for name, value in self.losses(batch, seeded_generators(batch.name, self.seed, stage)).items():
            self.log(f"{stage}/{name}", value, batch_size=len(batch), sync_dist=True)
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
        """See `fp_lightning.evaluation.correspondence.attention_maps`; the noise depends on the sample's name alone."""
        with self._precision():
            return attention_maps(self.editor, batch, points, self._attention_noise(batch), sigma)

    def attention_entropy(self, batch: EditBatch, sigma: float = 1.0) -> dict[str, float]:
        """Return the attention entropy by name of each layer that joins the frames, mean over heads and target tokens.

        Entropy is in [0, 1]: 0 if all weight is on one token, 1 if it is uniform.
        """
        with self._precision():
            layers = probe(self.editor, batch, sigma, self._attention_noise(batch))
            return {layer.layer: float(entropy(layer.query, layer.key).mean()) for layer in layers}

    def _precision(self) -> AbstractContextManager[None]:
        """The precision context in which Lightning runs the steps."""
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
        """Return the state-dict names of trainable weights, the ones that a checkpoint holds."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only trainable weights; add the editor's settings ("editor") and the run's ("origin")."""
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
            "data_seed": getattr(data, "seed", None),
        }
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint fits; warn if the data has signals that it was not trained on.

        Raises:
            InputError: the checkpoint is from a different architecture, was trained with different settings of the
                editor, or holds the state of a different optimiser than `fit` uses. The message names what differs.
        """
        origin = checkpoint.get("origin", {})
        self._check_tensors(checkpoint["state_dict"])
        current, saved = self.editor.settings(), checkpoint.get("editor", {})
        named = current.keys() & saved.keys() - {"distilled_steps"}
        changed = [f"{k} {saved[k]} (now {current[k]})" for k in current if k in named and saved[k] != current[k]]
        if changed:
            raise InputError(f"the checkpoint was trained with {', '.join(changed)}; set model.editor accordingly")
        optimizer = origin.get("optimizer", self.optimizer)
        if optimizer != self.optimizer and self._trainer is not None and self.trainer.state.fn == "fit":
            raise InputError(
                f"the checkpoint holds the optimiser state of {optimizer}, not of {self.optimizer}; continue with "
                f"--model.optimizer {optimizer}"
            )
        self.editor.trained, self.editor.distilled_steps = True, saved.get("distilled_steps")
        self.checkpoint_size = origin.get("size")
        data = getattr(self._trainer, "datamodule", None)
        self._warn_of_other_data(origin, data)
        data_signals, checkpoint_signals = getattr(data, "signals", None), origin.get("signals")
        if checkpoint_signals and data_signals and not set(data_signals) <= set(checkpoint_signals):
            logger.warning(
                "the checkpoint was trained on %s, but the data has %s; it will ignore signals it has not learned",
                *(", ".join(checkpoint_signals), ", ".join(data_signals)),
            )

    def _warn_of_other_data(self, origin: dict[str, Any], data: Any) -> None:
        """Warn if other weights stay frozen than in training, or if pairs may be scored that were trained on."""
        stage = None if self._trainer is None else self.trainer.state.fn
        if stage == "fit" and origin.get("model", self.editor.model) != self.editor.model:
            logger.warning(
                "the checkpoint was trained from %s, so of %s only the weights that do not train are used",
                *(origin["model"], self.editor.model),
            )
        saved = origin.get("data_seed")
        if stage in ("validate", "test") and saved is not None and getattr(data, "seed", saved) != saved:
            logger.warning(
                "the checkpoint was trained with data.seed %s, now %s: pairs may be scored that were trained on; "
                "add --data.seed %s",
                *(saved, data.seed, saved),
            )

    def _check_tensors(self, state_dict: dict[str, Tensor]) -> None:
        expected = {k: tuple(v.shape) for k, v in self.named_parameters() if v.requires_grad}
        loaded = {k: tuple(v.shape) for k, v in state_dict.items()}
        reshaped = sorted(k for k in expected.keys() & loaded.keys() if expected[k] != loaded[k])
        problems = [
            f"{len(names)} {kind} (first: {names[0]})"
            for kind, names in (
                ("missing", sorted(expected.keys() - loaded.keys())),
                ("unexpected", sorted(loaded.keys() - expected.keys())),
            )
            if names
        ]
        if reshaped:
            first = reshaped[0]
            shapes = f"{loaded[first]} instead of {expected[first]}"
            problems.append(f"{len(reshaped)} of different shape (first: {first}, {shapes})")
        if problems:
            raise InputError(
                f"the checkpoint is from a different architecture: {', '.join(problems)} of {len(expected)} tensors; "
                "use the recipe that it was trained with, see config.fit.yaml in its run folder"
            )

    def on_predict_start(self) -> None:
        """See `_warn_if_untrained`."""
        self._warn_if_untrained()

    def on_test_start(self) -> None:
        """See `_warn_if_untrained`."""
        self._warn_if_untrained()

    def on_validation_start(self) -> None:
        """See `_warn_if_untrained`; within `fit`, nothing needs to be loaded."""
        if self.trainer.state.fn != "fit":
            self._warn_if_untrained()

    def _warn_if_untrained(self) -> None:
        """Warn if no trained weights are loaded."""
        if not self.editor.trained and self.trainer.global_step == 0:
            logger.warning(
                "no trained weights are loaded, so edits will be noise or the unchanged photo; pass --ckpt_path, or a "
                "saved editor as --model.editor.model"
            )
