"""Trainable weights in shards over processes: torch's FSDP2 (`fully_shard`), a block of the network at a time.

Weights, gradients, moments and averages are `DTensor`s, of which a process holds its part along the first dimension.
Before a block runs, its weights are gathered whole; then they are freed, and its gradients are summed into shards.
Frozen weights are whole in every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fp_lightning.errors import InputError
from fp_lightning.model.editor import FramePainter

BLOCKS = (
    *(BasicTransformerBlock, TemporalBasicTransformerBlock, TransformerSpatioTemporalModel),
    *(SpatioTemporalResBlock, Downsample2D, Upsample2D),
)


def check_sharding(processes: int, optimizer: str, precision: str) -> None:
    """Check that a training can be sharded.

    Raises:
        InputError: one process, an optimiser that needs whole matrices or blocks of values, or scaled losses.
    """
    if processes < 2:
        raise InputError(f"sharding needs 2 or more processes, got {processes}; add --trainer.strategy auto")
    if optimizer != "adamw":
        raise InputError(
            f"optimizer {optimizer} does not work on shards of weights; add --model.optimizer adamw, or train with "
            "--config hardware/node_8_24gb (DDP, moments in 8 bits)"
        )
    if precision == "16-mixed":
        raise InputError("sharding does not scale losses, which 16-mixed needs; add --trainer.precision bf16-mixed")


def blocks(editor: FramePainter) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Yield the parts whose weights are gathered together, inner parts first, with the trainable weights of each.

    The last part of a network is the network itself, with what its blocks do not hold.
    """
    parts: list[nn.Module] = [*editor.prior.children(), editor.control_encoder]
    networks = [part for part in parts if part not in editor.prior.frozen]
    taken: set[nn.Parameter] = set()
    for network in networks:
        inner = [module for module in network.modules() if isinstance(module, BLOCKS)]
        for module in (*reversed(inner), network):
            weights = [p for p in module.parameters() if p.requires_grad and p not in taken]
            taken.update(weights)
            if weights or module is network:
                yield module, weights


def gathered_bytes(editor: FramePainter) -> int:
    """Return the most bytes that a process holds beside its shards during a step.

    These are the weights of the largest block, their gradients, the next block on its way, and what belongs to no
    block: it stays whole from a network's first block to its last.
    """
    sizes = [(isinstance(module, BLOCKS), sum(p.nbytes for p in weights)) for module, weights in blocks(editor)]
    largest = max((size for is_block, size in sizes if is_block), default=0)
    return 3 * largest + sum(size for is_block, size in sizes if not is_block)


def shard(editor: FramePainter, mesh: DeviceMesh) -> None:
    """Shard the trainable weights of an editor over a one-dimensional mesh of processes, in place."""
    # a warning about in-place operations on outputs of blocks, of which the network has none
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    frozen = {p for p in editor.parameters() if not p.requires_grad}
    for module, _ in list(blocks(editor)):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)


def gather(module: nn.Module) -> None:
    """Make all weights whole until `release`, so that processes may call the network independently of each other."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def release(module: nn.Module) -> None:
    """Return all weights to their shards."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, or a tensor that is not sharded as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a tensor on the device of `other`, and in shards if `other` is. All processes have the same `tensor`."""
    if isinstance(other, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
    return tensor.to(other.device)
