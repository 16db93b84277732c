"""Safetensors files read and written one tensor at a time; nothing is ever unpickled."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fp_lightning.errors import InputError
from fp_lightning.files import written_beside

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read when it is asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def open_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; only its header is read.

    Raises:
        InputError: no such file, a pickle (which is not opened), or not a whole safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; check its name")
    with path.open("rb") as handle:
        start = handle.read(9)
    if start[8:] != b"{" and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"):  # a header begins at byte 8
        raise InputError(f"{path} is a pickle, which could run code and is not opened; get the safetensors file")
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            headers = {name: (tuple(item.get_shape()), DTYPES[item.get_dtype()]) for name, item in slices.items()}
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a whole safetensors file ({reason}); download or copy it again") from error
    except KeyError as error:
        raise InputError(f"{path} has tensors of type {error}; they must be {', '.join(DTYPES)}") from error

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name)

        return read

    return {name: StoredTensor(shape, dtype, reader(name)) for name, (shape, dtype) in headers.items()}


def open_weights(folder: str | Path, stem: str, variant: str | None = None) -> dict[str, StoredTensor]:
    """The tensors of a model folder: `stem[.variant].safetensors`, or the shards that its index lists.

    Raises:
        InputError: neither exists, or as in `open_tensors`.
    """
    folder, suffix = Path(folder), f".{variant}" if variant else ""
    index = folder / f"{stem}.safetensors.index{suffix}.json"
    single = folder / f"{stem}{suffix}.safetensors"
    if single.is_file():
        return open_tensors(single)
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return {name: tensor for shard in shards for name, tensor in open_tensors(folder / shard).items()}
    others = sorted(path.name for path in folder.glob(f"{stem}*"))
    raise InputError(
        f"no {single.name} in {folder}"
        + (f" (there is {', '.join(others)}; --variant chooses)" if others else "; the folder is not complete")
    )


def write_tensors(path: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None = None) -> None:
    """Writes a safetensors file, one tensor in memory at a time, under its name only when it is whole.

    Args:
        dtype: of the tensors with a floating point in the file; None keeps each one's own.
    """
    kinds = {name: dtype if dtype and t.dtype.is_floating_point else t.dtype for name, t in tensors.items()}
    order = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))  # wide types first keeps all aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, shape = end, tensors[name].shape
        end += torch.Size(shape).numel() * kinds[name].itemsize
        header[name] = {"dtype": _CODES[kinds[name]], "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with written_beside(path) as partial, partial.open("wb") as handle:
        handle.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in order:
            tensor = tensors[name].read().detach().to("cpu", kinds[name]).contiguous()
            handle.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def check_weights(parts: Mapping[str, nn.Module], given: Mapping[str, Mapping[str, StoredTensor]], where: str) -> None:
    """Holds stored weights against networks (of any device, meta too) by name and shape.

    Raises:
        InputError: they differ. Its first line says how many are missing, unexpected and misshapen and
            names the first of each; `details` lists all.
    """
    summary, details = [], []
    for part, network in parts.items():
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        found = {name: tensor.shape for name, tensor in given[part].items()}
        both = wanted.keys() & found.keys()
        kinds = {
            "missing": [f"{name} {wanted[name]}" for name in sorted(wanted.keys() - found.keys())],
            "unexpected": [f"{name} {found[name]}" for name in sorted(found.keys() - wanted.keys())],
            "misshapen": [f"{n} {found[n]} instead of {wanted[n]}" for n in sorted(both) if found[n] != wanted[n]],
        }
        for kind, names in kinds.items():
            if names:
                summary.append(f"{len(names)} {kind} in {part} (first: {names[0]})")
                details += [f"{part}: {kind} {name}" for name in names]
    if details:
        raise WeightsError(f"{where} does not fit the network: {', '.join(summary)}", details)


class WeightsError(InputError):
    """Stored weights that are not the network's; `details` has a line for every tensor."""

    def __init__(self, message: str, details: list[str]) -> None:
        super().__init__(message)
        self.details = details
