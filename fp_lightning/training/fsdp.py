"""The trainer's strategy for weights in shards, with checkpoints as of one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fp_lightning.errors import InputError
from fp_lightning.training.sharding import check_sharding, gather, placed_like, release, shard


class ShardedStrategy(ModelParallelStrategy):
    """Divide weights, gradients and moments of `fit` among all processes, see `fp_lightning.training.sharding`.

    Validations gather the weights, so that processes may edit samples independently; `validate`, `test` and `predict`
    do not shard. Checkpoints are those of one process: the main process writes whole tensors through the checkpoint
    plugin, and a run on any number of processes, sharded or not, resumes from them. Lightning's own would drop the
    weights from the checkpoint before the module has checked them, and restore callbacks after `on_fit_start`.

    Raises:
        InputError: the module has no editor to shard, or see `check_sharding`.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        """Check the run, then join the processes in a mesh."""
        module: Any = self.lightning_module
        if not is_overridden("configure_model", module):
            raise InputError(f"{type(module).__name__} does not train in shards; add --trainer.strategy ddp")
        self._data_parallel_size = self.num_nodes * self.num_processes
        if module.trainer.state.fn == "fit":
            check_sharding(self._data_parallel_size, module.optimizer, str(module.trainer.precision))
        super().setup_environment()

    def shard(self, editor: Any) -> None:
        """Shard an editor over all processes, in place. The module's `configure_model` calls this."""
        shard(editor, self.device_mesh["data_parallel"])

    def on_validation_start(self) -> None:
        """Gather the weights."""
        assert self.lightning_module is not None
        gather(self.lightning_module)

    def on_validation_end(self) -> None:
        """Free the gathered weights."""
        assert self.lightning_module is not None
        release(self.lightning_module)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Gather the tensors of a checkpoint one by one; the main process writes them."""

        def whole(shards: DTensor) -> Tensor:
            tensor = shards.full_tensor()
            return tensor.cpu() if self.is_global_zero else tensor.new_empty(0)

        Strategy.save_checkpoint(self, apply_to_collection(checkpoint, DTensor, whole), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Map a checkpoint file into memory, whose pages the processes of a machine share."""
        if "://" in str(checkpoint_path):
            return Strategy.load_checkpoint(self, checkpoint_path, weights_only)
        return torch.load(checkpoint_path, map_location="cpu", weights_only=weights_only, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's shards of the weights."""
        assert self.lightning_module is not None
        weights = dict(self.lightning_module.named_parameters())
        saved = checkpoint["state_dict"].items()
        state = {name: placed_like(tensor, weights[name]) if name in weights else tensor for name, tensor in saved}
        Strategy.load_model_state_dict(self, {"state_dict": state}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shards of the moments."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            state = {
                number: {
                    name: placed_like(value, weight) if _is_moment(value, weight) else value
                    for name, value in saved["state"].get(number, {}).items()
                }
                for number, weight in zip(numbers, weights, strict=True)
            }
            optimizer.load_state_dict({**saved, "state": {k: v for k, v in state.items() if v}})

    def teardown(self) -> None:
        """Also wait for checkpoints that are still being written."""
        super().teardown()
        self.checkpoint_io.teardown()


def _is_moment(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape
