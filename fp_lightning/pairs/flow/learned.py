"""What learned estimators share: their device, its memory, their weight files, and images in and flow out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fp_lightning.errors import InputError

if TYPE_CHECKING:
    from fp_lightning.types import Image

STRIDE, LEAST = 8, 128  # px: sides that RAFT takes are multiples of the one, no less than the other
BATCH_SIZE = 8
T = TypeVar("T")
Predict = Callable[[Tensor, Tensor], Tensor]


class NetworkFlow:
    """A `FlowEstimator` around a network that takes images whose sides are multiples of 8 px, 128 px at least.

    Others are padded by repeating their last row and column, so that no position changes.
    """

    def __init__(self, predict: Predict, device: torch.device, batch_size: int = BATCH_SIZE) -> None:
        """
        Args:
            predict: two [b, 3, h, w], RGB in [0, 1] on `device` → flow [b, 2, h, w] in pixels from the first
                to the second.
            batch_size: pairs of images in a call of `predict`; halved for good where they do not fit in memory.
        """
        self.predict, self.device, self.batch_size = predict, device, batch_size

    def __call__(self, first: Sequence[Image], second: Sequence[Image], start: Tensor | None = None) -> Tensor:
        """Flow float32 [n, 2, h, w] in pixels on the CPU; the networks here begin from rest, whatever `start`.

        Raises:
            InputError: two images do not fit in the device's memory.
        """
        if len(first) != len(second):
            raise ValueError(f"{len(first)} first and {len(second)} second images")

        def in_batches(size: int) -> Tensor:
            slices = [slice(begin, begin + size) for begin in range(0, len(first), size)]
            return torch.cat([self._one_batch(first[part], second[part]) for part in slices])

        flow, self.batch_size = within_memory(in_batches, self.batch_size)
        return flow

    def _one_batch(self, first: Sequence[Image], second: Sequence[Image]) -> Tensor:
        height, width = first[0].shape[:2]
        with torch.no_grad(), exact_float32():
            flow = self.predict(self._prepared(first), self._prepared(second))
        return flow[..., :height, :width].float().cpu()

    def _prepared(self, images: Sequence[Image]) -> Tensor:
        batch = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float() / 255
        below, right = (max(LEAST, -(-side // STRIDE) * STRIDE) - side for side in batch.shape[-2:])
        return F.pad(batch, (0, right, 0, below), mode="replicate")


def choose_device(device: str) -> torch.device:
    """The device of that name; "auto" is a CUDA GPU if there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def exact_float32() -> AbstractContextManager[None]:
    """Convolutions in full float32 and the same at every run: cuDNN would round their inputs to TF32's 10 bits."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def within_memory(compute: Callable[[int], T], size: int) -> tuple[T, int]:
    """`compute(size)` and `size`, which is halved and tried again while the GPU is out of memory.

    Raises:
        InputError: one at a time is still too much.
    """
    while True:
        try:
            return compute(size), size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise InputError(
                    "the GPU's memory is too small for this size, even one at a time; "
                    "use a smaller --size, fewer --workers, or a GPU with more memory"
                ) from error
        size //= 2  # out here, where the error no longer holds on to the tensors of the failed call
        torch.cuda.empty_cache()


def find_weights(weights: str | None, url: str) -> Path:
    """The file `weights`, or that of `url` in torch hub's cache, fetched if it is not there yet.

    Raises:
        InputError: it is not there and cannot be fetched.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise InputError(f"no weight file {weights}; correct --flow-weights, or leave it out to fetch the weights")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        digest = torch.hub.HASH_REGEX.search(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None)
        except (OSError, HTTPException, RuntimeError) as error:
            raise InputError(
                f"{path.name} is not in {path.parent} and cannot be fetched ({first_line(error)}); "
                "copy it there from a machine with network, where the same command fetches it, "
                "or pass --flow-weights FILE"
            ) from error
    return path


def fill(network: nn.Module, path: Path) -> nn.Module:
    """Loads all of `network`'s weights from `path`, and freezes it.

    Args:
        path: .safetensors, or a state dict saved by torch, also one that lies under "state_dict" in a checkpoint.

    Raises:
        InputError: the file cannot be read, or its tensors are not those of the network.
    """
    stored, wanted = _read(path), network.state_dict()
    missing, unexpected = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    misshapen = {key for key in wanted.keys() & stored.keys() if wanted[key].shape != stored[key].shape}
    if missing or unexpected or misshapen:
        raise InputError(
            f"{path} does not fit {type(network).__name__}: of its {len(wanted)} tensors {len(missing)} are missing "
            f"and {len(misshapen)} have another shape, {len(unexpected)} are unexpected "
            f"(as {min(missing | misshapen | unexpected)}); pass the weights of that network"
        )
    network.load_state_dict(dict(stored))
    return network.eval().requires_grad_(False)


def _read(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, its unpickler and safetensors each raise their own kinds
        raise InputError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, or holds more than tensors; "
            "get it again"
        ) from error
    if isinstance(stored, Mapping):
        stored = stored.get("state_dict", stored)
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"{path} holds no state dict; pass a file of weights alone")
    return stored


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
