"""Read and write safetensors files one tensor at a time; pickles are never opened."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fp_lightning.errors import InputError
from fp_lightning.files import read_json, well_formed, written_beside

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
TRANSFORMERS_STEM = "model"  # file name of the weights of a transformers model, without suffix
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|_forward_module)\.)+")
Stored = TypeVar("Stored")
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read on demand."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def open_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name; only the header is read.

    Raises:
        InputError: the file does not exist, is a pickle (which is not opened), is not a complete safetensors file, or
            has tensors of an unsupported type.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; check its name")
    with path.open("rb") as handle:
        start = handle.read(9)
    if start[8:] != b"{" and (
        start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"
    ):  # a safetensors header begins at byte 8
        raise InputError(f"{path} is a pickle, which could run code, so it is not opened; use the safetensors file")
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            headers = {name: (tuple(item.get_shape()), DTYPES[item.get_dtype()]) for name, item in slices.items()}
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a complete safetensors file ({reason}); download or copy it again") from error
    except KeyError as error:
        raise InputError(f"{path} has tensors of type {error}; they must be {', '.join(DTYPES)}") from error

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name)

        return read

    return {name: StoredTensor(shape, dtype, reader(name)) for name, (shape, dtype) in headers.items()}


def open_weights(folder: str | Path, stem: str, variant: str | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of a model folder by name: `stem[.variant].safetensors`, or the shards listed in its index.

    If a folder has both, the one is read that its library loads: diffusers (any stem but "model") prefers the index,
    transformers (the stem "model") the single file.

    Raises:
        InputError: neither file exists, or see `open_tensors`.
    """
    folder, suffix = Path(folder), f".{variant}" if variant else ""
    index = folder / f"{stem}.safetensors.index{suffix}.json"
    single = folder / f"{stem}{suffix}.safetensors"
    if single.is_file() and (stem == TRANSFORMERS_STEM or not index.is_file()):
        return open_tensors(single)
    if index.is_file():
        shards = _shards(index)
        return {name: tensor for shard in shards for name, tensor in open_tensors(folder / shard).items()}
    others = sorted(path.name for path in folder.glob(f"{stem}*"))
    raise InputError(
        f"no {single.name} in {folder}"
        + (f" (found {', '.join(others)}; select one with --variant)" if others else "; the folder is incomplete")
    )


def _shards(index: Path) -> list[str]:
    """Return the files that an index lists."""
    with well_formed(index, "download or copy it again"):
        shards = sorted(set(read_json(index)["weight_map"].values()))
        outside = next((shard for shard in shards if Path(shard).name != shard), None)
        if outside is not None:
            raise ValueError(f"the weights {outside!r} are not beside it")
        return shards


def write_tensors(path: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file atomically, with one tensor in memory at a time.

    Args:
        path: file to write.
        tensors: tensors by name.
        dtype: type of floating-point tensors in the file; None keeps theirs.
    """
    dtypes = {name: dtype if dtype and t.dtype.is_floating_point else t.dtype for name, t in tensors.items()}
    order = sorted(
        tensors, key=lambda name: (-dtypes[name].itemsize, name)
    )  # wide types first, so that all are aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, shape = end, tensors[name].shape
        end += torch.Size(shape).numel() * dtypes[name].itemsize
        header[name] = {"dtype": _CODES[dtypes[name]], "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with written_beside(path) as partial, partial.open("wb") as handle:
        handle.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in order:
            tensor = tensors[name].read().detach().to("cpu", dtypes[name]).contiguous()
            handle.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def plain_names(tensors: Mapping[str, Stored], where: str | Path) -> dict[str, Stored]:
    """Return tensors by the names that they have in the network itself.

    `DataParallel`, `torch.compile` and DeepSpeed put `module.`, `_orig_mod.` and `_forward_module.` before names.

    Raises:
        InputError: two names become one. `where` names the file.
    """
    plain: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        short = _WRAPPERS.sub("", name).replace("._orig_mod.", ".")
        if short in plain:
            raise InputError(f"{where} holds {short} twice, once as {name}; remove one of them")
        plain[short] = tensor
    return plain


def check_weights(parts: Mapping[str, nn.Module], stored: Mapping[str, Mapping[str, StoredTensor]], where: str) -> None:
    """Compare the names and shapes of stored weights with those of networks.

    Args:
        parts: networks by name of part, on any device including meta.
        stored: tensors by name of part.
        where: what is checked, the subject of the error message.

    Raises:
        WeightsError: they differ. The message counts missing, unexpected and misshapen tensors and names the first
            of each kind; `details` lists all.
    """
    summary, details = [], []
    for part, network in parts.items():
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        found = {name: tensor.shape for name, tensor in stored[part].items()}
        both = expected.keys() & found.keys()
        kinds = {
            "missing": [f"{name} {expected[name]}" for name in sorted(expected.keys() - found.keys())],
            "unexpected": [f"{name} {found[name]}" for name in sorted(found.keys() - expected.keys())],
            "misshapen": [f"{n} {found[n]} instead of {expected[n]}" for n in sorted(both) if found[n] != expected[n]],
        }
        for kind, names in kinds.items():
            if names:
                summary.append(f"{len(names)} {kind} in {part} (first: {names[0]})")
                details += [f"{part}: {kind} {name}" for name in names]
    if details:
        raise WeightsError(f"{where} does not fit the network: {', '.join(summary)}", details)


class WeightsError(InputError):
    """Stored weights do not fit a network; `details` has a line for every differing tensor."""

    def __init__(self, message: str, details: list[str]) -> None:
        super().__init__(message)
        self.details = details
