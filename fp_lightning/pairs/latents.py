"""What frozen networks make of training pairs, on disk: a safetensors file a pair, in a folder named by a fingerprint.

The fingerprint is a hash of all that the tensors depend on but the pair: weights, sizes, settings. When one of them
changes the folder is another one, so nothing stale is ever read. A file also has a checksum of the images that it was
made from, which is compared whenever it is read.
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
from fp_lightning.files import write_atomic, written_beside
from fp_lightning.types import EditBatch, to_uint8

FORMAT = 1  # of the files, and of how images become tensors; raise it when either changes
FIELDS = ("latents", "embedding", "image_latents", "augmentation")  # of `EditBatch`


class LatentStore:
    """A folder of them. Holds paths only, so it goes to loader processes as it is.

    Args:
        root: folder of the folders.
        settings: all that the tensors depend on but the pair; kept in `latents.json`.
    """

    def __init__(self, root: str | Path, settings: Mapping[str, object]) -> None:
        described = json.dumps({"format": FORMAT, **settings}, sort_keys=True, indent=2)
        self.folder = Path(root) / hashlib.sha256(described.encode()).hexdigest()[:12]
        if not (self.folder / "latents.json").exists():
            write_atomic(self.folder / "latents.json", described.encode())

    def keys(self) -> set[str]:
        """Of the pairs that are there."""
        return {path.stem for path in self.folder.glob("*.safetensors")}

    def write(self, key: str, batch: EditBatch) -> None:
        """Keeps the tensors of a batch of one, whole or not at all."""
        tensors = {name: value.cpu().contiguous() for name in FIELDS if (value := getattr(batch, name)) is not None}
        with written_beside(self._path(key)) as partial:
            save_file(tensors, str(partial), {"images": checksum(batch)})

    def read(self, key: str, batch: EditBatch) -> EditBatch:
        """A batch of one with its tensors.

        Raises:
            InputError: they are missing or damaged, or were made from other images.
        """
        path = self._path(key)
        try:
            with safe_open(str(path), "pt") as file:
                made_from, tensors = file.metadata()["images"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise InputError(f"{path} is missing or damaged; delete it and start again, it is made anew") from error
        if made_from != checksum(batch):
            raise InputError(f"{path} was made from another image of this name; delete {path.parent} and start again")
        return replace(batch, **tensors)  # type: ignore[arg-type]

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def checksum(batch: EditBatch) -> str:
    """Of the images of a batch of one, in 8 bits a value, from which they came."""
    images = torch.cat([x for x in (batch.source, batch.target) if x is not None]).cpu()
    return f"{zlib.crc32(to_uint8(images).numpy().tobytes()):08x}"
