"""Memory and operations of one training step: arithmetic on a simulation of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.training.muon import is_matrix
from fp_lightning.training.sharding import check_sharding
from fp_lightning.training.simulation import Setting, simulate


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device, and the operations of one optimiser step on it."""

    frozen: int  # weights that do not train
    trained: int  # weights that do
    gradients: int
    optimiser: int  # moments
    average: int  # of the weights (EMA)
    teacher: int  # of a distillation: copies of the weights that train, as the teacher and as the target's average
    buckets: int  # in which DDP sends gradients
    gathered: int  # weights that FSDP has whole at the same time, and their gradients
    step: int  # activations, what autocast casts, and intermediate results, at the moment of the peak
    operations: int  # of the products of one step, floating point
    trainable: int  # number of weights that train

    @property
    def peak(self) -> int:
        """Peak bytes of tensors during training, without validation."""
        states = self.trained, self.gradients, self.optimiser, self.average, self.teacher
        return sum((self.frozen, *states, self.buckets, self.gathered, self.step))


def footprint(setting: Setting, on_cpu: bool = False) -> Footprint:
    """Return what a training step takes.

    Args:
        setting: the setting.
        on_cpu: use the shortcuts that only run on a CPU.

    Raises:
        InputError: an unknown model, precision or strategy, a size that does not fit the network, or as
            `check_sharding`.
    """
    _check_strategy(setting)
    sharded = setting.strategy == "sharded"
    # shards of gradients, and DDP's buckets, are there before the backward pass as after an earlier micro-batch
    early = sharded or setting.strategy == "ddp_views"
    step = simulate(replace(setting, accumulate=2) if early else setting, on_cpu)
    ours, all_ours = sum(p.nbytes for p in step.trained), sum(p.numel() for p in step.trained)
    whole = Footprint(
        frozen=step.weights - ours,
        trained=ours,
        gradients=ours,
        optimiser=sum(_moments(p, setting.optimizer) for p in step.trained),
        average=4 * all_ours if setting.ema else 0,
        teacher=2 * 4 * all_ours if setting.distills else 0,
        buckets=0,
        gathered=step.gathered if sharded else 0,
        step=step.peak - step.weights - ours,
        operations=step.operations * setting.accumulate,
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


def _check_strategy(setting: Setting) -> None:
    strategy, count = setting.strategy, setting.processes
    if strategy == "sharded":
        check_sharding(count, setting.optimizer, setting.precision)
        return
    several = strategy in ("ddp", "ddp_views") or strategy.startswith("deepspeed_stage_2")
    if not several and (strategy, count) != ("auto", 1):
        raise InputError(
            f"plan knows auto, DDP, ShardedStrategy and deepspeed_stage_2, got {strategy} on {count} processes"
        )


def _shared(whole: Footprint, setting: Setting) -> Footprint:
    """Return the share of one process under the strategy."""
    strategy, count = setting.strategy, setting.processes
    if strategy == "sharded":
        names = "trained", "gradients", "optimiser", "average"
        return replace(whole, **{name: -(-getattr(whole, name) // count) for name in names})
    if strategy == "ddp" and count > 1:
        return replace(whole, buckets=whole.gradients)
    if strategy.startswith("deepspeed_stage_2"):
        states = 0 if strategy.endswith("offload") else whole.optimiser // count
        return replace(whole, gradients=whole.gradients // count, optimiser=states)
    return whole
