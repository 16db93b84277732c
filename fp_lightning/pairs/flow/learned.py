"""Shared parts of learned estimators: batching and padding, devices and memory, and weight files."""

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

STRIDE, LEAST = 8, 128  # px: RAFT needs sides that are multiples of STRIDE and at least LEAST
BATCH_SIZE = 8
T = TypeVar("T")
Predict = Callable[[Tensor, Tensor], Tensor]


class NetworkFlow:
    """A `FlowEstimator` that wraps a network whose inputs have sides of at least 128 px, in multiples of 8 px.

    Other images are padded at the right and below by repeating their border, so positions do not change.
    """

    def __init__(self, predict: Predict, device: torch.device, batch_size: int = BATCH_SIZE) -> None:
        """
        Args:
            predict: function of two RGB images [b, 3, h, w] in [0, 1] on `device`, which returns the flow
                [b, 2, h, w] in pixels from the first to the second.
            device: where the network runs.
            batch_size: pairs of images per call of `predict`. It is halved, permanently, when memory runs out.
        """
        self.predict, self.device, self.batch_size = predict, device, batch_size

    def __call__(self, first: Sequence[Image], second: Sequence[Image], start: Tensor | None = None) -> Tensor:
        """Estimate flow float32 [n, 2, h, w] in pixels, on the CPU. `start` is ignored.

        Raises:
            InputError: the device's memory is too small even for one pair of images.
            ValueError: the numbers of images differ.
        """
        if len(first) != len(second):
            raise ValueError(f"{len(first)} first and {len(second)} second images")

        def in_batches(size: int) -> Tensor:
            slices = [slice(begin, begin + size) for begin in range(0, len(first), size)]
            return torch.cat([self._one_batch(first[part], second[part]) for part in slices])

        flow, self.batch_size = within_memory(in_batches, self.batch_size)
        return flow

    def _one_batch(self, first: Sequence[Image], second: Sequence[Image]) -> Tensor:
        """Estimate the flow of one batch, cropped to the images' size."""
        height, width = first[0].shape[:2]
        with torch.no_grad(), exact_float32():
            flow = self.predict(self._prepared(first), self._prepared(second))
        return flow[..., :height, :width].float().cpu()

    def _prepared(self, images: Sequence[Image]) -> Tensor:
        """Convert images uint8 [h, w, 3] to one padded batch [b, 3, h', w'] in [0, 1] on the device."""
        batch = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float() / 255
        below, right = (max(LEAST, -(-side // STRIDE) * STRIDE) - side for side in batch.shape[-2:])
        return F.pad(batch, (0, right, 0, below), mode="replicate")


def choose_device(device: str) -> torch.device:
    """Return the torch device of that name. "auto" is a CUDA GPU if there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def exact_float32() -> AbstractContextManager[None]:
    """Run convolutions deterministically and in full float32. By default, cuDNN rounds inputs to TF32 (10 bits)."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def within_memory(compute: Callable[[int], T], size: int) -> tuple[T, int]:
    """Return `compute(size)` and the size; while the GPU runs out of memory, halve the size and try again.

    Raises:
        InputError: memory runs out even at size 1.
    """
    while True:
        try:
            return compute(size), size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise InputError(
                    "the GPU's memory is too small for this size, even at batch size 1; "
                    "use a smaller --size, fewer --workers, or a GPU with more memory"
                ) from error
        size //= 2  # outside the handler, where the error no longer keeps tensors of the failed call alive
        torch.cuda.empty_cache()


def find_weights(weights: str | None, url: str) -> Path:
    """Return the path of the file `weights`, or of `url` in torch hub's cache, downloaded if it is missing.

    Raises:
        InputError: the file is missing and cannot be downloaded.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise InputError(
                f"no weight file {weights}; correct --flow-weights, or leave it out to download the weights"
            )
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        digest = torch.hub.HASH_REGEX.search(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None)
        except (OSError, HTTPException, RuntimeError) as error:
            raise InputError(
                f"{path.name} is not in {path.parent} and cannot be downloaded ({first_line(error)}); "
                "copy it there from a machine with network, where the same command downloads it, "
                "or pass --flow-weights FILE"
            ) from error
    return path


def fill(network: nn.Module, path: Path) -> nn.Module:
    """Load all weights of `network` from a file, freeze it, and return it in eval mode.

    Args:
        network: the network to fill.
        path: .safetensors, or a state dict saved by torch, optionally under the key "state_dict".

    Raises:
        InputError: the file cannot be read, or its tensors do not match the network.
    """
    stored, expected = _read(path), network.state_dict()
    missing, unexpected = expected.keys() - stored.keys(), stored.keys() - expected.keys()
    misshapen = {key for key in expected.keys() & stored.keys() if expected[key].shape != stored[key].shape}
    if missing or unexpected or misshapen:
        raise InputError(
            f"{path} does not match {type(network).__name__}: of its {len(expected)} tensors "
            f"{len(missing)} are missing and {len(misshapen)} have another shape, {len(unexpected)} are unexpected "
            f"(for example {min(missing | misshapen | unexpected)}); pass the weights of that network"
        )
    network.load_state_dict(dict(stored))
    return network.eval().requires_grad_(False)


def _read(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict, see `fill`."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, its unpickler and safetensors raise many types
        raise InputError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, or holds more than tensors; "
            "download it again"
        ) from error
    if isinstance(stored, Mapping):
        stored = stored.get("state_dict", stored)
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"{path} has no state dict; pass a file that holds only weights")
    return stored


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 160 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
