"""What a recipe costs before it runs: the memory of each GPU and the time, from one step that is only simulated.

Tensors of the simulation have shapes and types and no contents (torch's FakeTensorMode), so the full SVD is planned
in seconds on a laptop, without its weights. The step is the one that training makes, operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from fp_lightning.types import TRACK_STRIDE, EditBatch
from fp_lightning.weights.folders import empty_networks

GIB = 2**30
GPUS = {  # memory in GiB, dense bfloat16 products in TFLOP/s, of the makers' data sheets
    "rtx-3090": (24, 71),
    "rtx-4090": (24, 165),
    "a6000": (48, 155),
    "l40s": (48, 362),
    "a100-40": (40, 312),
    "a100-80": (80, 312),
    "h100": (80, 989),
    "h200": (141, 989),
    "b200": (180, 2250),
}
RESERVED, FRAGMENTED = 1.5, 0.05  # GiB for CUDA, cuDNN and NCCL; share of the rest that the allocator cannot use
TYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32}


@dataclass(frozen=True)
class Setting:
    """What the memory and the time of a step depend on.

    Args:
        model: "tiny", SVD's hub id (whose shapes are known here), or a folder in diffusers' format.
        size: (height, width) in pixels.
        batch_size: samples per process and micro-batch.
        precision: of Lightning's Trainer.
        attention, trains, lora_rank, gradient_checkpointing, augmentation_draws: see `build_editor`.
        cached: the frozen networks' part of a sample comes from disk.
        ema: an average of the trainable weights is kept beside them.
        accumulate: micro-batches in one step.
        optimizer: see `AdamWModule`.
        strategy: "auto" on one process, "ddp", "ddp_views" where gradients are views of DDP's buckets, or
            "deepspeed_stage_2", also with "_offload".
        processes: in all.
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
    optimiser: int  # both moments of AdamW
    average: int  # of the weights (EMA)
    buckets: int  # in which DDP sends gradients
    step: int  # activations, what autocast casts, and intermediate results, at the moment of the peak
    operations: int  # of the products of one step, floating point
    trainable: int  # number of weights that train

    @property
    def peak(self) -> int:
        """The most bytes of tensors at any time of training, validation excepted."""
        parts = self.frozen, self.trained, self.gradients, self.optimiser, self.average, self.buckets, self.step
        return sum(parts)


def footprint(setting: Setting, on_cpu: bool = False) -> Footprint:
    """Simulates a training step.

    Args:
        on_cpu: takes the shortcuts that only a CPU takes.

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
            for _ in range(min(2, setting.accumulate)):  # from the second on gradients wait from the first
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
    """Bytes of both moments of AdamW; in 8 bits each block of 256 has a float32 scale, and small tensors keep 32."""
    if optimizer == "adamw":
        return 2 * weight.nbytes
    count = weight.numel()
    return 2 * (count + 4 * -(-count // 256)) if count >= 4096 else 8 * count


def _shared(whole: Footprint, setting: Setting) -> Footprint:
    """What of it one process has under the strategy."""
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
    """The editor of a setting, its networks on the meta device."""
    networks = _networks(setting.model, setting.attention)
    unet, control_encoder = networks["unet"], networks["control_encoder"]
    choose_trainable(unet, control_encoder, setting.trains, setting.lora_rank)
    if setting.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    scheduler = EulerDiscreteScheduler(sigma_min=0.002, sigma_max=700.0)  # of which an editor takes the range alone
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
    """Gives a model of the meta device weights without contents."""
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
    """Sketches with tracks."""
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


def cheaper(setting: Setting, least: int, memory: float) -> Iterator[tuple[str, int]]:
    """What to change when memory runs out: words of the command line and the bytes with them and those before.

    What saves less than a hundredth is left out; ends with the first that fits `memory` GiB.

    Args:
        least: bytes that the setting takes as it is.
    """
    whole = setting.batch_size * setting.accumulate
    changes: list[tuple[str, dict[str, Any]]] = [
        ("--model.editor.gradient_checkpointing true", {"gradient_checkpointing": True}),
        ("--config cached", {"cached": True, "augmentation_draws": setting.augmentation_draws or 4}),
        (
            f"--data.batch_size 1 --trainer.accumulate_grad_batches {whole}",
            {"batch_size": 1, "accumulate": whole},
        ),
        ("--model.optimizer adamw_8bit", {"optimizer": "adamw_8bit"}),
        *(
            (f"--model.editor.trains {trains}", {"trains": trains})
            for trains in ("temporal", "lora", "matching+control")
        ),
    ]
    for words, change in changes:
        other = replace(setting, **change)
        peak = footprint(other).peak
        if peak > 0.99 * least:
            continue
        setting, least = other, peak
        yield words, peak
        if fits(peak, memory):
            return


def fits(bytes_: int, memory: float) -> bool:
    """Whether so many bytes of tensors fit a GPU of `memory` GiB."""
    return bytes_ / GIB <= (memory - RESERVED) * (1 - FRAGMENTED)


def seconds(operations: int, tflops: float, utilisation: float) -> float:
    """Of a step of so many operations."""
    return operations / (tflops * 1e12 * utilisation)


def setting_of(config: Any) -> tuple[Setting, int]:
    """What of a parsed `fit` configuration matters here, and its number of steps.

    Raises:
        InputError: it trains no editor, or the data module has no size.
    """
    model, data, trainer = config.model.init_args, config.data.init_args, config.trainer
    editor = getattr(getattr(model, "editor", None), "init_args", None)
    if editor is None or not hasattr(data, "size"):
        raise InputError("plan is for recipes that train an editor; stack svd or tiny with a signal")
    processes = _devices(trainer.devices) * trainer.num_nodes
    names = [getattr(callback, "class_path", "") for callback in trainer.callbacks or []]
    return Setting(
        model=editor.model,
        size=tuple(data.size),
        batch_size=data.batch_size,
        precision=str(trainer.precision or "32-true"),
        attention=editor.attention,
        trains=editor.trains,
        lora_rank=editor.lora_rank,
        gradient_checkpointing=editor.gradient_checkpointing,
        augmentation_draws=editor.augmentation_draws,
        cached=getattr(data, "latents", None) is not None and editor.augmentation_draws is not None,
        ema=any(name.endswith("TrainableEMA") for name in names),
        accumulate=trainer.accumulate_grad_batches or 1,
        optimizer=getattr(model, "optimizer", "adamw"),
        strategy="auto" if processes == 1 else _strategy(trainer.strategy),
        processes=processes,
    ), trainer.max_steps


def _strategy(given: Any) -> str:
    """The name of `trainer.strategy`, also where it is a class with options."""
    name = str(getattr(given, "class_path", given)).rpartition(".")[2]
    if name != "DDPStrategy":
        return "ddp" if name.startswith("ddp") else name
    options = {**(given.get("init_args") or {}), **(given.get("dict_kwargs") or {})}
    return "ddp_views" if options.get("gradient_as_bucket_view") else "ddp"


def _devices(given: Any) -> int:
    """How many devices of a machine `trainer.devices` names.

    Raises:
        InputError: it does not say.
    """
    if isinstance(given, list):
        return len(given)
    if not str(given).isdigit():
        raise InputError(f"plan needs to know the number of GPUs: set --trainer.devices, got {given}")
    return int(given)


def report(setting: Setting, steps: int, gpu: str, utilisation: float) -> Sequence[str]:
    """The plan in lines of text.

    Raises:
        InputError: an unknown GPU, a utilisation outside of (0, 1], or as `footprint`.
    """
    if gpu not in GPUS:
        raise InputError(f"--gpu must be one of {', '.join(GPUS)}, got {gpu}")
    if not 0 < utilisation <= 1:
        raise InputError(f"--utilisation must be above 0 and at most 1, got {utilisation:g}")
    memory, tflops = GPUS[gpu]
    cost = footprint(setting)
    height, width = setting.size
    lines = [
        f"{setting.model}, {height} × {width} px, {setting.processes} × {gpu} ({memory} GiB), {setting.strategy}, "
        f"{setting.precision}, {setting.batch_size} samples × {setting.accumulate} a process; "
        f"trains {setting.trains}, {cost.trainable:,} weights",
        "",
    ]
    parts = {
        "weights that do not train": cost.frozen,
        "weights that train": cost.trained,
        "gradients": cost.gradients,
        "moments of AdamW": cost.optimiser,
        "average of the weights": cost.average,
        "buckets of DDP": cost.buckets,
        "activations and intermediate results": cost.step,
        "in all, GiB": cost.peak,
    }
    lines += [f"  {name:<38}{value / GIB:9.2f}" for name, value in parts.items() if value]
    lines += ["", f"{'It fits' if fits(cost.peak, memory) else 'It does not fit'}: {_room(memory)}."]
    if not fits(cost.peak, memory):
        lines += list(_remedies(setting, cost.peak, memory))
    each = seconds(cost.operations, tflops, utilisation)
    pace = f"{utilisation:.0%} of {tflops} TFLOP/s"
    lines += ["", f"{cost.operations / 1e12:.1f} TFLOP a step and process: {each:.2g} s at {pace}"]
    if steps > 0:
        lines[-1] += f", {each * steps / 3600:.2g} h for {steps:,} steps"
    return lines


def _room(memory: float) -> str:
    lost = f"{FRAGMENTED:.0%} of the rest is lost to fragments"
    return f"of {memory} GiB the driver and libraries take {RESERVED}, {lost}"


def _remedies(setting: Setting, least: int, memory: float) -> Iterator[str]:
    yield "What to add, in this order:"
    peak = least
    for words, peak in cheaper(setting, least, memory):
        yield f"  {words:<62}{peak / GIB:9.2f} GiB{', fits' if fits(peak, memory) else ''}"
    if not fits(peak, memory):
        yield "None of that is enough: take a smaller --data.size, or a larger GPU."
