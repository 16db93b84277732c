"""Memory and operations of one training step, from a simulation of it.

Tensors of the simulation have shapes and types but no contents (torch's FakeTensorMode), so the full SVD needs neither
weights nor a GPU. The step is the one that training runs, operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fp_lightning.errors import InputError
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.matching import AttentionKind
from fp_lightning.model.svd import specialise
from fp_lightning.model.svd.load import SHIPPED, SVD, local_folder
from fp_lightning.model.svd.prior import SVDPrior, svd_prior
from fp_lightning.model.svd.shapes import svd_parts, svd_unet
from fp_lightning.model.trainable import Trains, choose_trainable, store_frozen
from fp_lightning.training.counting import CountedOperations, LiveBytes
from fp_lightning.training.muon import is_matrix
from fp_lightning.types import TRACK_STRIDE, EditBatch
from fp_lightning.weights.folders import empty_networks

TYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32}


@dataclass(frozen=True)
class Setting:
    """Settings that the memory and the time of a step depend on.

    Args:
        model: "tiny", SVD's hub id (whose shapes are known here), or a folder in diffusers' format.
        size: (height, width) in pixels.
        batch_size: samples per process and micro-batch.
        precision: of Lightning's Trainer.
        attention, trains, lora_rank, gradient_checkpointing, augmentation_draws: see `build_editor`.
        cached: latents and embeddings come from disk.
        ema: an average of the trainable weights is kept beside them.
        accumulate: micro-batches in one step.
        optimizer: see `OptimisedModule`.
        strategy: "auto" on one process, "ddp", "ddp_views" where gradients are views of DDP's buckets, or
            "deepspeed_stage_2", also with "_offload".
        processes: number of processes on all machines.
    """

    model: str = SVD
    size: tuple[int, int] = (576, 1024)
    batch_size: int = 1
    precision: str = "32-true"
    attention: AttentionKind = "matching"
    trains: Trains = "all"
    lora_rank: int = 16
    gradient_checkpointing: bool = False
    augmentation_draws: int | None = None
    cached: bool = False
    ema: bool = False
    accumulate: int = 1
    optimizer: str = "adamw"
    strategy: str = "auto"
    processes: int = 1


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device, and the operations of one optimiser step on it."""

    frozen: int  # weights that do not train
    trained: int  # weights that do
    gradients: int
    optimiser: int  # moments
    average: int  # of the weights (EMA)
    buckets: int  # in which DDP sends gradients
    step: int  # activations, what autocast casts, and intermediate results, at the moment of the peak
    operations: int  # of the products of one step, floating point
    trainable: int  # number of weights that train

    @property
    def peak(self) -> int:
        """Peak bytes of tensors during training, without validation."""
        parts = self.frozen, self.trained, self.gradients, self.optimiser, self.average, self.buckets, self.step
        return sum(parts)


def footprint(setting: Setting, on_cpu: bool = False) -> Footprint:
    """Simulate a training step.

    Args:
        on_cpu: use the shortcuts that only run on a CPU.

    Raises:
        InputError: an unknown model, precision or strategy, or a size that does not fit the network.
    """
    kind, _, true = setting.precision.partition("-")
    if kind not in TYPES or true not in ("mixed", "true"):
        raise InputError(f"plan knows 32-true, 16-mixed, bf16-mixed and bf16-true, got {setting.precision}")
    editor = editor_of(setting)
    editor.check_size(setting.size)
    if true == "true":
        editor.to(TYPES[kind])
        vae = svd_prior(editor.prior).vae
        if vae.config.force_upcast:  # as the prior itself does before it encodes, which fake weights forbid
            vae.float()
    if true == "mixed":
        store_frozen(editor, TYPES[kind])
    autocast = torch.autocast("cpu", TYPES[kind]) if true == "mixed" else nullcontext()
    with _fake(editor, on_cpu):
        batch = empty_batch(setting)
        if setting.cached:
            with autocast:
                batch = editor.with_latents(batch)
        live, counter = LiveBytes(), CountedOperations()
        for tensor in (*editor.parameters(), *editor.buffers()):
            live.add(tensor)
        weights = live.live
        with live, counter:
            for _ in range(min(2, setting.accumulate)):  # the second micro-batch starts with the gradients of the first
                with autocast:
                    loss = editor.losses(batch, seeded_generators(batch.name, 0)).total
                loss.backward()
        trained = [p for p in editor.parameters() if p.requires_grad]
        ours, all_ours = sum(p.nbytes for p in trained), sum(p.numel() for p in trained)
        operations = counter.total * setting.accumulate // min(2, setting.accumulate)
    whole = Footprint(
        frozen=weights - ours,
        trained=ours,
        gradients=ours,
        optimiser=sum(_moments(p, setting.optimizer) for p in trained),
        average=4 * all_ours if setting.ema else 0,
        buckets=0,
        step=live.most - weights - ours,
        operations=operations,
        trainable=all_ours,
    )
    return _shared(whole, setting)


def _moments(weight: Tensor, optimizer: str) -> int:
    """Return the bytes of the moments of AdamW, or of the momentum of a matrix under Muon.

    With 8 bits, each block of 256 values has a float32 scale, and tensors of fewer than 4096 values stay float32.
    """
    if optimizer == "adamw":
        return 2 * weight.nbytes
    if optimizer == "muon":
        return (1 if is_matrix(weight) else 2) * weight.nbytes
    count = weight.numel()
    return 2 * (count + 4 * -(-count // 256)) if count >= 4096 else 8 * count


def _shared(whole: Footprint, setting: Setting) -> Footprint:
    """Return the share of one process under the strategy."""
    strategy, count = setting.strategy, setting.processes
    if strategy in ("ddp", "ddp_views"):
        return replace(whole, buckets=whole.gradients if count > 1 and strategy == "ddp" else 0)
    if strategy.startswith("deepspeed_stage_2"):
        states = 0 if strategy.endswith("offload") else whole.optimiser // count
        return replace(whole, gradients=whole.gradients // count, optimiser=states)
    if strategy == "auto" and count == 1:
        return whole
    raise InputError(f"plan knows auto, DDP and deepspeed_stage_2, got {strategy} on {count} processes")


def editor_of(setting: Setting) -> FramePainter:
    """Build the editor of a setting on the meta device."""
    networks = _networks(setting.model, setting.attention)
    unet, control_encoder = networks["unet"], networks["control_encoder"]
    choose_trainable(unet, control_encoder, setting.trains, setting.lora_rank)
    if setting.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    scheduler = EulerDiscreteScheduler(sigma_min=0.002, sigma_max=700.0)  # an editor reads only the range
    draws = setting.augmentation_draws if setting.cached else None  # without a disk they cost what new noise does
    prior = SVDPrior(unet, networks["vae"], networks["image_encoder"], scheduler)
    return FramePainter(prior, control_encoder, augmentation_draws=draws).float().train()


def _networks(model: str, attention: AttentionKind) -> dict[str, Any]:
    if model == SVD:
        return {"unet": svd_unet(attention), **svd_parts()}
    folder = SHIPPED.get(model) or local_folder(model, ["*/config.json"])
    return dict(empty_networks(folder, {"attention": attention}))


@contextmanager
def _fake(model: nn.Module, on_cpu: bool) -> Iterator[None]:
    """Replace the weights of a model on the meta device by fake tensors, within the block."""
    rows = specialise._ROWS
    specialise._ROWS = rows if on_cpu else 2**62
    try:
        with FakeTensorMode():
            for module in model.modules():
                for name, weight in module._parameters.items():
                    if weight is not None:
                        empty = torch.empty(weight.shape, dtype=weight.dtype)
                        module._parameters[name] = nn.Parameter(empty, requires_grad=weight.requires_grad)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
            yield
    finally:
        specialise._ROWS = rows


def empty_batch(setting: Setting) -> EditBatch:
    """Return a batch of sketches with tracks, without contents."""
    count, (height, width) = setting.batch_size, setting.size
    image, grid = (count, 3, height, width), (height // TRACK_STRIDE, width // TRACK_STRIDE)
    return EditBatch(
        source=torch.empty(image),
        name=[str(number) for number in range(count)],
        target=torch.empty(image),
        control=torch.empty(image),
        tracks=torch.empty(count, 2, *grid),
        visible=torch.empty(count, *grid, dtype=torch.bool),
    )
