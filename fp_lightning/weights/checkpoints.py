"""Read weights from checkpoints; the editor's are averaged or last ones, with adapters merged."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from fp_lightning.errors import InputError
from fp_lightning.model.trainable import ADAPTER
from fp_lightning.weights.tensorfiles import StoredTensor, plain_names

PARTS = ("unet", "control_encoder")  # what training changes
Weights = dict[str, StoredTensor]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint, with its tensors memory-mapped.

    Raises:
        InputError: the file is missing, has other content than tensors and plain values, or is not an editor's.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}; a run writes checkpoints/last.ckpt and checkpoints/best.ckpt")
    state = _restricted(path, "pass a whole file of `fit`")
    if not isinstance(state, dict) or not {"state_dict", "editor"} <= state.keys():
        raise InputError(f"{path} is not a checkpoint of an editor; convert a checkpoint written by `fit`")
    return state


def open_checkpoint(path: Path) -> Weights:
    """Return the tensors of another code's checkpoint by name, memory-mapped. Names of nested tables join with a dot.

    Raises:
        InputError: the file is missing, or has other content than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; check its name")
    found: Weights = {}

    def collect(content: Any, prefix: str) -> None:
        if isinstance(content, torch.Tensor):
            found[prefix] = StoredTensor(tuple(content.shape), content.dtype, content.clone)
        elif isinstance(content, Mapping):
            for name, value in content.items():
                collect(value, f"{prefix}.{name}" if prefix else str(name))

    collect(_restricted(path, "download it again"), "")
    return found


def _restricted(path: Path, remedy: str) -> Any:
    """Return the content of a checkpoint by torch's restricted reader, with its tensors memory-mapped."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{path} cannot be read as a checkpoint ({reason}); {remedy}") from error


def trained_weights(
    state: Mapping[str, Any], checkpoint: str | Path, weights: Literal["auto", "ema", "raw"]
) -> tuple[dict[str, Weights], str]:
    """Return the weights of a checkpoint by part, and a note that tells raw weights from the average."""
    average = state.get("callbacks", {}).get("TrainableEMA", {}).get("average")
    if weights == "ema" and not average:
        raise InputError(f"{checkpoint} has no averaged weights; train with callbacks.TrainableEMA, or use raw")
    chosen = state["state_dict"] if weights == "raw" or not average else average
    trained: dict[str, Weights] = {part: {} for part in PARTS}
    for name, tensor in plain_names(chosen, checkpoint).items():
        owner, part, key = (*name.replace("editor.prior.", "editor.", 1).split(".", 2), "", "")[:3]
        if owner != "editor" or part not in trained:
            raise InputError(
                f"{checkpoint} has {name}, which is not a weight of an editor; convert a checkpoint written by `fit`"
            )
        trained[part][key] = StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.clone)
    kind = "raw" if chosen is not average else "average (EMA)"
    return trained, f"weights: {kind}, after {state.get('global_step', '?')} steps"


def complete(trained: Weights, base: Weights, where: str) -> Weights:
    """Return all weights of a U-Net: trained ones, frozen ones of `base`, and adapted ones with adapters merged.

    Raises:
        InputError: an adapter has no second matrix or no weight to adapt. `where` names the files.
    """
    complete = base | {name: tensor for name, tensor in trained.items() if ".lora_" not in name}
    for name, down in trained.items():
        if f".lora_A.{ADAPTER}." not in name:
            continue
        adapted = name.replace(f".lora_A.{ADAPTER}.", ".")
        up = trained.get(name.replace(".lora_A.", ".lora_B."))
        if up is None or adapted not in base:
            missing = "lora_B matrix" if up is None else "weight to adapt"
            raise InputError(f"{where} do not fit: {name} has no {missing}; pass the model that it was trained on")
        complete[adapted] = _merge(base[adapted], down, up)
    return complete


def _merge(base: StoredTensor, down: StoredTensor, up: StoredTensor) -> StoredTensor:
    """Return W + B A in the type of W (Hu et al. 2021, Eq. 3), computed in float32 when it is read."""

    def read() -> torch.Tensor:
        return (base.read().float() + up.read().float() @ down.read().float()).to(base.dtype)

    return StoredTensor(base.shape, base.dtype, read)
