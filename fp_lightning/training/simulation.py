"""One training step on tensors that have shapes and types but no contents (torch's FakeTensorMode).

The step is the one that training runs, operation by operation. The full SVD needs neither weights nor a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from fp_lightning.errors import InputError
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.matching import AttentionKind
from fp_lightning.model.svd import specialise
from fp_lightning.model.svd.load import SHIPPED, SVD, local_folder
from fp_lightning.model.svd.prior import SVDPrior, svd_prior
from fp_lightning.model.svd.shapes import svd_parts, svd_unet
from fp_lightning.model.trainable import Trains, choose_trainable, store_frozen
from fp_lightning.training.counting import LiveBytes, operations
from fp_lightning.training.distillation import DistillationModule
from fp_lightning.training.module import FramePainterModule
from fp_lightning.training.sharding import gathered_bytes
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
        strategy: "auto" on one process, "ddp", "ddp_views" where gradients are views of DDP's buckets, "sharded" (see
            `ShardedStrategy`), or "deepspeed_stage_2", also with "_offload".
        processes: number of processes on all machines.
        distills: the step is that of `DistillationModule`.

    Raises:
        InputError: a number that must be 1 or more is not.
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
    distills: bool = False

    def __post_init__(self) -> None:
        numbers = {
            "data.batch_size": self.batch_size,
            "trainer.accumulate_grad_batches": self.accumulate,
            "trainer.devices × trainer.num_nodes": self.processes,
            "model.editor.augmentation_draws": 1 if self.augmentation_draws is None else self.augmentation_draws,
        }
        if problems := [f"{name} must be 1 or more, got {value}" for name, value in numbers.items() if value < 1]:
            raise InputError("; ".join(problems))


@dataclass(frozen=True)
class Simulation:
    """What forward and backward of one micro-batch take on one process, without the optimiser."""

    trained: tuple[Tensor, ...]  # the weights that train, on the meta device
    gathered: int  # bytes beside the shards if the weights are sharded, see `gathered_bytes`
    weights: int  # bytes of all weights and buffers
    peak: int  # bytes of weights and of everything that the step makes, at their most, without a teacher's
    operations: int  # of the products, floating point


def simulate(setting: Setting, on_cpu: bool = False) -> Simulation:
    """Simulate one micro-batch; if others came before it in the step, with their gradients.

    The same simulation serves all settings that differ only in optimiser, average, strategy, number of processes and
    number of micro-batches from two. It is kept for them.

    Args:
        setting: the setting.
        on_cpu: use the shortcuts that only run on a CPU.

    Raises:
        InputError: an unknown model or precision, or a size that does not fit the network.
    """
    one = replace(
        setting,
        accumulate=min(2, setting.accumulate),
        augmentation_draws=setting.augmentation_draws if setting.cached else None,  # else they cost what new noise does
        ema=False,
        optimizer="adamw",
        strategy="auto",
        processes=1,
    )
    return _simulate(one, on_cpu, _versions(setting.model))


@lru_cache(maxsize=32)
def _simulate(setting: Setting, on_cpu: bool, versions: tuple[tuple[int, int], ...]) -> Simulation:
    """See `simulate`. A folder whose configurations have changed since is simulated anew."""
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
    # Lightning keeps no cast weights until the end of the forward pass
    autocast = torch.autocast("cpu", TYPES[kind], cache_enabled=False) if true == "mixed" else nullcontext()
    trained = tuple(p.detach() for p in editor.parameters() if p.requires_grad)
    module = module_of(setting, editor)
    gathered = gathered_bytes(editor)
    with _fake(module, on_cpu) as step:
        batch = empty_batch(setting)
        if setting.cached:
            with autocast:
                batch = editor.with_latents(batch)
        for tensor in (*editor.parameters(), *editor.buffers()):
            step.live.add(tensor)
        weights = step.live.now
        if setting.accumulate > 1:
            for weight in editor.parameters():
                if weight.requires_grad:
                    weight.grad = torch.empty_like(weight)
                    step.live.add(weight.grad)
        before = step.live.now
        if isinstance(module, DistillationModule):
            module.keep_teacher()
            for copied in (*module.teacher.values(), *module.average.values()):
                step.live.add(copied)
        copies = step.live.now - before
        with step.counted():
            with autocast:
                loss = module.losses(batch, seeded_generators(batch.name, 0))["total"]
            loss.backward()
    return Simulation(trained, gathered, weights, step.live.most - copies, step.operations)


def _versions(model: str) -> tuple[tuple[int, int], ...]:
    """Return time and size of the configurations in a model's folder; nothing for SVD, whose shapes are known here."""
    if model == SVD:
        return ()
    stats = [path.stat() for path in sorted(_folder(model).glob("*/config.json"))]
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)


def _folder(model: str) -> Path:
    return SHIPPED.get(model) or local_folder(model, ["*/config.json"])


def editor_of(setting: Setting) -> FramePainter:
    """Build the editor of a setting on the meta device."""
    networks = _networks(setting.model, setting.attention)
    unet, control_encoder = networks["unet"], networks["control_encoder"]
    choose_trainable(unet, control_encoder, setting.trains, setting.lora_rank)
    if setting.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    scheduler = EulerDiscreteScheduler(sigma_min=0.002, sigma_max=700.0)  # an editor reads only the range
    draws = setting.augmentation_draws if setting.cached else None
    prior = SVDPrior(unet, networks["vae"], networks["image_encoder"], scheduler)
    return FramePainter(prior, control_encoder, augmentation_draws=draws).float().train()


def module_of(setting: Setting, editor: FramePainter) -> FramePainterModule:
    """Return the module that trains the editor of a setting."""
    return DistillationModule(editor) if setting.distills else FramePainterModule(editor)


def _networks(model: str, attention: AttentionKind) -> dict[str, Any]:
    if model == SVD:
        return {"unet": svd_unet(attention), **svd_parts()}
    return dict(empty_networks(_folder(model), {"attention": attention}))


class FakeStep(FakeTensorMode):
    """Makes tensors without contents, and counts the operations and the bytes of a step on them.

    One mode does both: autograd asks each of its tensors for device and layout through every mode, which takes as long
    as an operation does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.operations = LiveBytes(), 0
        self._counts = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; torch would guard each call against it."""
        return False

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is called within."""
        self._counts = True
        try:
            yield
        finally:
            self._counts = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, counts = kwargs or {}, self._counts
        self._counts = False  # what an operation calls within itself
        try:
            result = self.dispatch(func, types, args, kwargs)
        finally:
            self._counts = counts
        if counts:
            leaves = (result,) if isinstance(result, Tensor) else tree_leaves(result)
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            for tensor in tensors:
                self.live.add(tensor)
            if tensors:
                self.operations += operations(func, args, kwargs, result)
        return result


@contextmanager
def _fake(model: nn.Module, on_cpu: bool) -> Iterator[FakeStep]:
    """Replace the weights of a model on the meta device by fake tensors, within the block."""
    rows = specialise._ROWS
    specialise._ROWS = rows if on_cpu else 2**62
    try:
        with FakeStep() as step:
            for module in model.modules():
                for name, weight in module._parameters.items():
                    if weight is not None:
                        empty = torch.empty(weight.shape, dtype=weight.dtype)
                        module._parameters[name] = nn.Parameter(empty, requires_grad=weight.requires_grad)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
            yield step
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
