"""Cache of latents and embeddings: the outputs of frozen networks for training pairs, one safetensors file each.

The folder is named by a hash of everything the tensors depend on besides the pair: weights, sizes, settings. If one of
them changes, another folder is used, so stale tensors are never read. Each file also stores a checksum of its images,
which is verified on every read.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fp_lightning.errors import InputError
from fp_lightning.files import require_writable, write_text, written_beside
from fp_lightning.types import EditBatch, to_uint8

FORMAT = 1  # raise it when the file format or the conversion of images to tensors changes
FIELDS = ("latents", "embedding", "image_latents", "augmentation")  # cached fields of `EditBatch`


class LatentStore:
    """A folder of cached tensors, one file per pair. It holds only paths, so loader processes can receive it.

    Args:
        root: parent folder; the store is in `root/HASH`.
        settings: everything the tensors depend on besides the pair. Written to `latents.json`.

    Raises:
        InputError: the folder is new and cannot be written.
    """

    def __init__(self, root: str | Path, settings: Mapping[str, object]) -> None:
        described = json.dumps({"format": FORMAT, **settings}, sort_keys=True, indent=2)
        self.folder = Path(root) / hashlib.sha256(described.encode()).hexdigest()[:12]
        if not (self.folder / "latents.json").exists():
            require_writable(self.folder, "--data.latents")
            write_text(self.folder / "latents.json", described)

    def keys(self) -> set[str]:
        """Return the keys of all cached pairs."""
        return {path.stem for path in self.folder.glob("*.safetensors")}

    def has(self, key: str) -> bool:
        """Return whether a pair is cached, possibly by another process meanwhile."""
        return self._path(key).exists()

    def write(self, key: str, batch: EditBatch) -> None:
        """Write the tensors of a batch with b = 1, atomically.

        Raises:
            InputError: the folder cannot be written, or the disk is full.
        """
        tensors = {name: value.cpu().contiguous() for name in FIELDS if (value := getattr(batch, name)) is not None}
        try:
            with written_beside(self._path(key)) as partial:
                save_file(tensors, str(partial), {"images": checksum(batch)})
        except InputError as error:
            raise InputError(f"{error} with --data.latents") from error

    def read(self, key: str, batch: EditBatch) -> EditBatch:
        """Return `batch`, with b = 1, with its cached tensors.

        Raises:
            InputError: the tensors are missing, damaged, or were computed from other images.
        """
        path = self._path(key)
        try:
            with safe_open(str(path), "pt") as file:
                images, tensors = file.metadata()["images"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise InputError(f"{path} is missing or damaged; delete it and start again to compute it") from error
        if images != checksum(batch):
            raise InputError(
                f"{path} was computed from another image of this name; delete {path.parent} and start again"
            )
        return replace(batch, **tensors)  # type: ignore[arg-type]

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def checksum(batch: EditBatch) -> str:
    """Compute a checksum of the images of a batch with b = 1, as 8-bit values."""
    images = torch.cat([x for x in (batch.source, batch.target) if x is not None]).cpu()
    return f"{zlib.crc32(to_uint8(images).numpy().tobytes()):08x}"
